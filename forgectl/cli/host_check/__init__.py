"""What `forgectl check` concludes from the facts of hosts. Pure."""

"""What `forgectl check` concludes from what hosts have. Pure."""

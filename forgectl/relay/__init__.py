"""The host's end of an ssh connection: it answers questions about the host, then passes bytes to the agent."""

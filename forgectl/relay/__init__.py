"""The host's end of an ssh connection: what is asked of a host before, and on the way to, its agent."""

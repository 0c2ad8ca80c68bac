"""Reads rank logs and prints them, for `forgectl logs` and for a launch in the foreground."""

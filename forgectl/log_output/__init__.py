"""Follows rank logs and prints them: for `forgectl logs`, a launch in the foreground and a script with actors."""

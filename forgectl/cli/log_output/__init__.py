"""Rank logs as `forgectl logs` and a launch in the foreground write them."""

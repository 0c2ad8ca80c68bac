"""Reaches agents and hosts, on this machine and by ssh, and finds out which hosts reach each other."""

"""Copies a workdir to other hosts; both ends: what belongs to it, and its copy there."""

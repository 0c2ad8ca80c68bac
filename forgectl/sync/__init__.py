"""A workdir on other hosts, both ends: what belongs to it, and its copy there."""

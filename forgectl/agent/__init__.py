"""The agent: one daemon per run and host; it owns every process there. Standard library and psutil only."""

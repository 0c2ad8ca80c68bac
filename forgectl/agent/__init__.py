"""The agent: one daemon a host and run; owns every process there. Standard library and psutil only."""

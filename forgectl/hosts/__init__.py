"""What a machine has, and who uses it. Standard library and psutil only."""

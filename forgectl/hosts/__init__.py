"""What a machine has, and who holds it. Standard library and psutil only."""

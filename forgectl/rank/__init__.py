"""What a launched process runs first."""

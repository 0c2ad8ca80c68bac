"""forgectl: launch, watch and shut down process groups for PyTorch. Importing it imports neither torch nor monarch."""

__version__ = "0.1.0"

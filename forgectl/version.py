"""forgectl's version, which both ends of each connection compare."""

__version__ = "0.1.0"

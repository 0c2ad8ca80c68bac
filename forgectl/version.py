"""forgectl's version; both ends of each connection compare it."""

__version__ = "0.1.0"

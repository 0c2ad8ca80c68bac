"""`forgectl version`: prints which version this is."""

from __future__ import annotations

from forgectl.cli import parameters

VERSION = "%(prog)s %(version)s"


@parameters.command(examples={"forgectl version": "as forgectl --version and forgectl -V"})
def version() -> None:
    """Print forgectl's version."""
    import sys

    from forgectl.version import __version__

    sys.stdout.write(VERSION % {"prog": "forgectl", "version": __version__} + "\n")

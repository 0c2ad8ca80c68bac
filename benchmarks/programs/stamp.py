"""How a rank says that it has come so far: a file GENERATION-RANK with the time and its pid."""

import os
import sys
import time
from pathlib import Path


def stamp(folder: str) -> None:
    """Write this rank's stamp; the time is of the monotonic clock, which all processes of a machine share."""
    at = time.monotonic()
    path = Path(folder) / f"{os.environ['TORCHELASTIC_RESTART_COUNT']}-{os.environ['RANK']}"
    partial = path.with_suffix(".partial")
    partial.write_text(f"{at} {os.getpid()}")
    partial.replace(path)


def folder_argument() -> str:
    """The folder for stamps: the first argument of every program here."""
    return sys.argv[1]

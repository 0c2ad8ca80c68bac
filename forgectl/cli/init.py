"""`forgectl init`: writes a spec and a script that run without changes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

TEMPLATES = Path(__file__).parent / "templates"


def init(
    folder: Annotated[
        Path, typer.Argument(metavar="[DIR]", help="The folder for them; made if missing.", show_default=False)
    ] = Path(),
) -> None:
    """Write a first spec and its script into DIR.

    DIR is by default the current folder. Nothing is overwritten.
    """
    import sys

    from forgectl.errors import NotFoundError, UsageError

    names = sorted(p.name for p in TEMPLATES.iterdir() if p.suffix in (".yaml", ".py"))
    there = [n for n in names if (folder / n).exists()]
    if there:
        raise UsageError(f"{folder / there[0]} is there already", hint="name another folder: forgectl init DIR")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            (folder / name).write_text((TEMPLATES / name).read_text())
    except OSError as e:
        raise NotFoundError(f"cannot write into {folder}: {e.strerror}") from None
    sys.stdout.write("".join(f"wrote {folder / n}\n" for n in names))
    sys.stdout.write(f"try it: forgectl launch {folder / 'forge.yaml'}\n")

"""What a person sees of a table, without colours."""

from __future__ import annotations

from rich.console import Console, RenderableType


def printed(what: RenderableType, width: int = 80) -> str:
    console = Console(width=width, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(what)
    return capture.get()

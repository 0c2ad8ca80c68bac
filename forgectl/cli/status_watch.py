"""`forgectl status -w`: draws again and again, in place on a terminal."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

from rich.live import Live

from forgectl.cli import render

EVERY = 1.0


def keep_showing(collect: Callable[[], list[dict[str, Any]]], *, as_json: bool, ranks: bool) -> None:
    """Show what `collect` gives once a second until Ctrl-C."""
    try:
        if as_json:
            while True:
                sys.stdout.write(json.dumps({"schema_version": 1, "runs": collect()}) + "\n")
                sys.stdout.flush()
                time.sleep(EVERY)
        console = render.stdout()
        while not console.is_terminal:
            render.show(render.status_view(collect(), ranks=ranks))
            sys.stdout.flush()
            time.sleep(EVERY)
        with Live(console=console, auto_refresh=False, screen=True) as live:
            while True:
                live.update(render.status_view(collect(), ranks=ranks), refresh=True)
                time.sleep(EVERY)
    except KeyboardInterrupt:
        pass

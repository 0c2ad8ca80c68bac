"""An ssh host, and the user's own ssh program that reaches it."""

from __future__ import annotations

import os
import shlex

from forgectl.errors import UsageError
from forgectl.frozen import dataclass


def program() -> list[str]:
    """The user's ssh: FORGECTL_SSH with its options, else `ssh`. Raises UsageError if it cannot be parsed."""
    given = os.environ.get("FORGECTL_SSH", "").strip()
    try:
        return shlex.split(given) or ["ssh"]
    except ValueError as e:
        raise UsageError(f"FORGECTL_SSH={given!r} is not a command: {e}") from None


@dataclass(frozen=True)
class Destination:
    """An ssh host of a run: its name, ssh's name for it, the interpreter there, and our folder ("": it finds one)."""

    name: str
    ssh: str
    python: str
    root: str = ""

    @property
    def command(self) -> str:
        """The ssh program, as the user would type it."""
        return shlex.join(program())

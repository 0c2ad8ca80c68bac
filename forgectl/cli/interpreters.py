"""Where interpreters find modules. It imports none of them: it asks their import systems."""

from __future__ import annotations

import functools
import importlib.util
import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from forgectl.spec.python_source import Elsewhere, Origin

SECONDS = 10.0
_INSTALLED = frozenset({"site-packages", "dist-packages"})
_ASK = """
import importlib.util, json, sys
try:
    spec = importlib.util.find_spec(sys.argv[1])
    found = spec and [spec.origin if spec.has_location else None, list(spec.submodule_search_locations or ())]
except Exception:
    found = [None, []]
print(json.dumps(found))
"""


def modules_of(python: str | None) -> Elsewhere:
    """Where an interpreter finds top-level modules; None: the one that runs forgectl. Another one is run to say so."""
    return functools.cache(functools.partial(_ask, python)) if python else _find


def modules_here(python: str | None) -> Elsewhere:
    """The same for `plan`, which runs no program that a spec names: another interpreter may have any module."""
    from forgectl.spec.python_source import Origin

    return (lambda _: Origin()) if python else _find


def _find(name: str) -> Origin | None:
    """Find a module by the path of this process.

    Ranks have a path of their own: of what is found outside of installed packages only the existence counts.
    """
    from forgectl.spec.classes import READY_MADE
    from forgectl.spec.python_source import Origin, origin_of

    try:
        spec = importlib.util.find_spec(name)
    except Exception:  # such as a module in sys.modules without a spec
        return Origin()
    if spec is None:
        return None
    origin = origin_of(spec)
    path = Path(origin.file or "")
    installed = not _INSTALLED.isdisjoint(path.parts) or path.parent == READY_MADE
    return origin if installed else Origin()


def _ask(python: str, name: str) -> Origin | None:
    """Ask another interpreter. If it gives no answer, the module may be there: others report such an interpreter."""
    from forgectl.spec.python_source import Origin

    try:
        argv = [python, "-c", _ASK, name]
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=SECONDS, check=False)
        found = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        return Origin()
    return None if found is None else Origin(found[0], tuple(found[1]))

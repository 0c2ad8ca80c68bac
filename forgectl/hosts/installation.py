"""The command that adds what is missing to this forgectl: it depends on how forgectl was installed."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote, urlsplit


def install_command(python: str, extra: str, packages: Sequence[str]) -> str:
    """How to get the packages of one of our extras for an interpreter, which may be another than ours.

    The extra pins what fits; but only where this forgectl is, and can be installed from again, can it be named.
    """
    ours = python == sys.executable
    by_uv = ours and _metadata("INSTALLER").strip() == "uv"  # which makes environments without pip
    install = ["uv", "pip", "install", "--python", python] if by_uv else [python, "-m", "pip", "install"]
    return shlex.join([*install, *((ours and _with_extra(extra)) or packages)])


def _with_extra(extra: str) -> list[str] | None:
    """This forgectl with an extra, as arguments of pip install; None if it came from no place that is known."""
    try:
        direct = json.loads(_metadata("direct_url.json") or "null")
    except ValueError:
        return None
    if direct is None:  # from an index, or not installed at all
        return [f"forgectl[{extra}]"] if _metadata("INSTALLER") else None
    url = str(direct.get("url", ""))
    path = unquote(urlsplit(url).path)
    if "vcs_info" in direct:
        vcs = direct["vcs_info"]
        return [f"forgectl[{extra}] @ {vcs.get('vcs', 'git')}+{url}@{vcs.get('commit_id', 'HEAD')}"]
    if url.startswith("file:"):
        if not Path(path).exists():
            return None
        if "dir_info" not in direct:
            return [f"{path}[{extra}]"]
        return [*(["-e"] if direct["dir_info"].get("editable") else []), f"{path}[{extra}]"]
    return [f"forgectl[{extra}] @ {url}"]


def _metadata(name: str) -> str:
    """A file of this forgectl's metadata; "" if there is none. A checkout may have some without it, beside the code."""
    return next((text for d in metadata.distributions(name="forgectl") if (text := d.read_text(name))), "")

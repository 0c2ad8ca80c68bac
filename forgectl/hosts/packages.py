"""Which packages a Python has, without importing them. Imports nothing of ours: other Pythons run this source."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import json
import re
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

MODULES = {"pyzmq": "zmq", "psutil": "psutil", "cloudpickle": "cloudpickle", "numpy": "numpy"}
"""Package (pip's name) → module."""


def packages() -> dict[str, str | None]:
    """Package → version; None if it is not installed, `?` if its version is not known."""
    found: dict[str, str | None] = {"torch": version_of("torch", "torch"), "CUDA": None, "NCCL": None}
    if found["torch"]:
        found.update(of_torch())
        if cuda := found["CUDA"]:
            found["NCCL"] = installed(f"nvidia-nccl-cu{cuda.partition('.')[0]}")
    found.update({name: version_of(name, module) for name, module in MODULES.items()})
    return found


def version_of(name: str, module: str) -> str | None:
    """The version in a package's metadata; `?` if there is only a module."""
    return installed(name) or ("?" if spec_of(module) else None)


def installed(name: str) -> str | None:
    """The version in a package's metadata."""
    try:
        return importlib.metadata.version(name)
    except Exception:  # not there, or broken
        return None


def spec_of(module: str) -> ModuleSpec | None:
    """Where a module would be imported from."""
    try:
        return importlib.util.find_spec(module)
    except Exception:
        return None


def of_torch() -> dict[str, str | None]:
    """From torch's version.py: its version, which includes the kind of build, and CUDA's."""
    spec = spec_of("torch")
    if spec is None or spec.origin is None:
        return {}
    try:
        text = Path(spec.origin).with_name("version.py").read_text()
    except (OSError, ValueError):
        return {}
    found = {"torch": literal(text, "__version__"), "CUDA": literal(text, "cuda")}
    return {name: value for name, value in found.items() if value}


def literal(text: str, name: str) -> str | None:
    """The string that the source `text` of a module assigns to `name`."""
    match = re.search(rf"^{re.escape(name)}\s*(?::[^=\n]*)?=(.*)$", text, re.MULTILINE)
    try:
        value = ast.literal_eval(match.group(1).strip()) if match else None
    except (ValueError, SyntaxError):
        return None
    return value if isinstance(value, str) else None


def main() -> None:
    """Print this Python and its packages as JSON."""
    version = ".".join(map(str, sys.version_info[:3]))
    answer = {"executable": sys.executable, "version": version, "packages": packages()}
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()

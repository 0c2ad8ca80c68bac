"""What the package `actors` may use, and what importing it costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import actors

PACKAGE = Path(actors.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Every module or name that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_an_actor_uses_the_public_api_alone(path: Path) -> None:
    import forgectl

    public = {f"forgectl.{name}" for name in forgectl.__all__} | {"forgectl"}
    assert {name for name in imports(path) if name.split(".")[0] == "forgectl"} <= public


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_no_kind_of_accelerator_is_named(path: Path) -> None:
    assert "cuda" not in path.read_text().lower()


def test_importing_it_imports_neither_torch_nor_transformers() -> None:
    code = "import actors, actors.types, sys; print([m for m in ('torch', 'transformers', 'zmq') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_every_public_name_is_there() -> None:
    for name in actors.__all__:
        assert getattr(actors, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Generater'"):
        getattr(actors, "Generater")  # noqa: B009

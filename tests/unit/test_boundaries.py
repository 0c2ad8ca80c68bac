"""Which part of forgectl may import which: the architecture, held by a test."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "forgectl"

BELOW_ALL = ("boot", "errors", "frozen", "names", "redaction", "version")
"""Modules beside the packages: what every package may import."""
LAYERS = (
    "system",
    "log_output",
    "wire",
    "messages",
    "model",
    "stacks",
    "protocol",
    "spec",
    "plan",
    "hosts",
    "sync",
    "rank",
    "agent",
    "relay",
    "transport",
    "controller",
    "actor",
    "cli",
)
"""A package imports only what stands before it here."""
TABLE = "boot"
"""The one module that names others as text: what our processes run first."""
HEAVY = {"torch", "monarch", "numpy"}
MAY_BE_HEAVY = {"agent/forkserver/rendezvous.py", "rank/script.py", "messages/pickling.py"}
SHIPPED = ("system", "wire", "model", "stacks", "protocol", "hosts", "sync", "rank", "agent", "relay", *BELOW_ALL)
"""What runs on hosts: standard library and psutil only (pynvml where there is one)."""

FILES = sorted(p.relative_to(PACKAGE) for p in PACKAGE.rglob("*.py") if "templates" not in p.parts)
"""All but what `forgectl init` writes: that is the user's."""


MODULES = {f"forgectl.{'.'.join(p.with_suffix('').parts)}".removesuffix(".__init__"): p for p in FILES}
MODULES["forgectl"] = MODULES.pop("forgectl.__init__", Path("__init__.py"))


@functools.cache
def imports(path: Path) -> frozenset[str]:
    """Every module that a file names in an import, wherever in the file; of ours, also those that it names as text."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((PACKAGE / path).read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            whole = {f"{node.module}.{a.name}" for a in node.names}
            found |= (whole & MODULES.keys()) or {node.module}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("forgectl."):
            found |= {node.value} & MODULES.keys()
    return frozenset(found)


def of(path: Path) -> str:
    """The package of a file; of a module beside the packages its own name."""
    return path.parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", [p for p in FILES if of(p) not in ("__init__", "__main__", TABLE)], ids=str)
def test_a_package_imports_only_what_stands_below_it(path: Path) -> None:
    below = (*BELOW_ALL, *LAYERS[: LAYERS.index(of(path))]) if of(path) in LAYERS else BELOW_ALL
    for name in imports(path):
        if name in MODULES:
            assert name != "forgectl", f"{path} imports the public API"
            assert of(MODULES[name]) in (of(path), *below), f"{path} imports {name}"


def test_no_imports_go_in_a_circle() -> None:
    """Wherever they stand: in functions, and for types alone, too."""
    left = {
        name: imports(path) & MODULES.keys() - {name} for name, path in MODULES.items() if name != f"forgectl.{TABLE}"
    }
    while free := [name for name, needs in left.items() if not needs & left.keys()]:
        for name in free:
            del left[name]
    assert not left, f"among {sorted(left)}"


@pytest.mark.parametrize("path", FILES, ids=str)
def test_only_ranks_and_stores_know_torch(path: Path) -> None:
    heavy = {name.partition(".")[0] for name in imports(path)} & HEAVY
    assert not heavy or path.as_posix() in MAY_BE_HEAVY


@pytest.mark.parametrize("path", FILES, ids=str)
def test_only_the_message_plane_knows_zeromq(path: Path) -> None:
    knows = {name.partition(".")[0] for name in imports(path)} & {"zmq", "cloudpickle"}
    assert not knows or path.parts[0] == "messages"


@pytest.mark.parametrize("path", FILES, ids=str)
def test_nothing_imports_monarch(path: Path) -> None:
    assert "monarch" not in {name.partition(".")[0] for name in imports(path)}


@pytest.mark.parametrize("path", [p for p in FILES if of(p) in SHIPPED], ids=str)
def test_what_is_shipped_to_hosts_needs_only_psutil(path: Path) -> None:
    outside = {
        top
        for name in imports(path)
        if (top := name.partition(".")[0]) not in sys.stdlib_module_names and top != "forgectl"
    }
    assert outside <= {"psutil", "pynvml", "_typeshed"} | (HEAVY if path.as_posix() in MAY_BE_HEAVY else set())


@pytest.mark.parametrize("module", ["", ".cli.app", ".controller.controller", ".agent.start", ".agent.daemon"])
def test_importing_it_imports_neither_torch_nor_zmq(module: str) -> None:
    code = f"import forgectl{module}, sys; print(sorted({{'torch', 'monarch', 'numpy', 'zmq'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

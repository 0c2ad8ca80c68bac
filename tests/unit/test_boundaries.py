"""Which part of forgectl may import which: the architecture, held by a test."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "forgectl"

SHARED = ("errors", "names", "codec", "frozen", "protocol", "processes", "plan.model")
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "boot": (),
    "errors": ("frozen",),
    "codec": (),
    "frozen": (),
    "names": (),
    "private": (),
    "redaction": ("names",),
    "processes": ("frozen",),
    "log_cap": ("frozen",),
    "protocol": ("codec", "frozen", "plan.model"),
    "wire": ("errors", "private", "protocol"),
    "stream": ("protocol", "wire"),
    "doorway": ("protocol", "wire"),
    "messages": ("frozen", "messages", "names", "private", "processes"),
    "plan": ("errors", "frozen", "names", "plan", "spec"),
    "spec": ("errors", "names", "plan.model", "spec"),
    "rank": ("boot", "names", "processes", "rank", "redaction"),
    "agent": (
        *SHARED,
        "agent",
        "boot",
        "plan.environment",
        "doorway",
        "log_cap",
        "rank",
        "redaction",
        "stream",
        "wire",
    ),
    "relay": (
        *SHARED,
        "agent.cgroups",
        "agent.gpus",
        "agent.opening",
        "agent.store",
        "boot",
        "private",
        "relay",
        "wire",
    ),
    "transport": (
        *SHARED,
        "agent.gpus",
        "agent.opening",
        "boot",
        "plan.links",
        "relay.entries",
        "relay.examine",
        "relay.index",
        "relay.reach",
        "spec",
        "stream",
        "transport",
        "wire",
    ),
    "controller": (
        *SHARED,
        "boot",
        "controller",
        "doorway",
        "log_cap",
        "plan.localized",
        "plan.addition",
        "plan.links",
        "stream",
        "transport",
        "wire",
    ),
    "actor": (
        *SHARED,
        "actor",
        "controller.begin",
        "controller.client",
        "controller.rundir",
        "doorway",
        "messages",
        "stream",
        "wire",
        "rank.driver",
        "redaction",
    ),
    "cli": (
        *SHARED,
        "actor.asking",
        "cli",
        "controller.begin",
        "controller.client",
        "controller.rundir",
        "plan",
        "spec",
        "log_cap",
        "transport",
        "wire",
    ),
    "__main__": ("cli",),
    "__init__": ("actor", "errors"),
}
HEAVY = {"torch", "monarch", "numpy"}
MAY_BE_HEAVY = {"agent/forkserver/rendezvous.py", "rank/main.py", "cli/templates/train.py", "messages/pickling.py"}
SHIPPED = (
    "agent",
    "rank",
    "relay",
    "names",
    "codec",
    "frozen",
    "log_cap",
    "processes",
    "protocol",
    "stream",
    "doorway",
    "wire",
    "private",
    "redaction",
    "errors",
    "boot",
    "plan/environment",
)
"""What runs on hosts: standard library and psutil only (pynvml where there is one)."""

FILES = sorted(p.relative_to(PACKAGE) for p in PACKAGE.rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Every module that a file names in an import, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse((PACKAGE / path).read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{a.name}" if node.module == "forgectl" else node.module for a in node.names}
            if node.module.startswith("forgectl."):
                found |= {f"{node.module}.{a.name}" for a in node.names if _is_module(f"{node.module}.{a.name}")}
    return found


def _is_module(name: str) -> bool:
    path = PACKAGE.parent.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_file_imports_only_what_its_part_may(path: Path) -> None:
    part = path.parts[0].removesuffix(".py")
    for name in imports(path):
        inner = name.removeprefix("forgectl.")
        if inner == name or inner in ("__version__", ""):
            continue
        packages = {p for p in imports(path) if p.startswith(f"{name}.")}
        if packages and _is_module(name) and (PACKAGE / inner.replace(".", "/")).is_dir():
            continue  # `from forgectl.agent import logs` names agent, but loads logs
        allowed = any(inner == a or inner.startswith(f"{a}.") for a in MAY_IMPORT[part])
        assert allowed, f"{path} imports {name}"


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


@pytest.mark.parametrize("path", [p for p in FILES if p.as_posix().startswith(SHIPPED)], ids=str)
def test_what_is_shipped_to_hosts_needs_only_psutil(path: Path) -> None:
    outside = {
        top
        for name in imports(path)
        if (top := name.partition(".")[0]) not in sys.stdlib_module_names and top != "forgectl"
    }
    assert outside <= {"psutil", "pynvml", "_typeshed"} | (HEAVY if path.as_posix() in MAY_BE_HEAVY else set())


@pytest.mark.parametrize("module", ["", ".cli.app", ".controller.daemon", ".agent.main", ".agent.agent"])
def test_importing_it_imports_neither_torch_nor_zmq(module: str) -> None:
    code = f"import forgectl{module}, sys; print(sorted({{'torch', 'monarch', 'numpy', 'zmq'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

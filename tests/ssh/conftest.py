"""Fixtures: a forgectl whose ssh hosts are the lab's."""

from __future__ import annotations

import shutil
import sys
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import PROGRAMS, Forge, until
from tests.lab.lab import Lab


class Far:
    """A forgectl and the hosts that it reaches by ssh."""

    def __init__(self, forge: Forge, lab: Lab) -> None:
        self.forge = forge
        self.lab = lab
        forge.env |= lab.env

    def hosts(self, *names: str, **settings: object) -> str:
        """A list for `hosts:`, with this interpreter on each."""
        more = "".join(f", {k}: {v}" for k, v in settings.items())
        return "[" + ", ".join(f"{{name: {n}, python: {sys.executable}{more}}}" for n in names) + "]"

    def spec(self, body: str, *names: str, **settings: object) -> str:
        """A spec over hosts that have the folder of test programs, as on a shared file system."""
        return f"hosts: {self.hosts(*(names or self.lab.names), **settings)}\nworkdir: {PROGRAMS}\nsync: none\n{body}\n"

    programs = PROGRAMS

    def bare_python(self) -> str:
        """An interpreter that has psutil and nothing else that a mesh may need, on every host."""
        import psutil

        folder = self.lab.shared / "bare"
        if not folder.exists():
            venv.create(folder, with_pip=False)
            site = next(folder.glob("lib/python*/site-packages"))
            package = Path(psutil.__file__).parent
            shutil.copytree(package, site / "psutil")
        return str(folder / "bin" / "python")

    def launch(self, body: str, *names: str, **settings: object) -> str:
        """Launch it detached; the run's id."""
        return self.forge.launch(self.spec(body, *names, **settings))

    def processes(self, run: str) -> dict[str, dict[int, str]]:
        """Host → what runs there of a run, where anything does."""
        found = {name: self.lab.processes(name, f"FORGE_RUN_ID={run}") for name in self.lab.names}
        return {name: processes for name, processes in found.items() if processes}

    def until_empty(self, run: str, *names: str) -> None:
        """Wait until nothing of a run is left on these hosts, or all."""
        until(
            lambda: not self.processes(run).keys() & set(names or self.lab.names),
            f"the end of {run} on {names or 'all hosts'}",
        )

    def host(self, run: str, name: str) -> dict[str, Any]:
        """A host of a run's status document."""
        found: dict[str, Any] = next(h for h in self.forge.document(run)["hosts"] if h["name"] == name)
        return found

    def until_host(self, run: str, name: str, *states: str) -> None:
        until(lambda: self.host(run, name)["state"] in states, f"{name} to be {states}")


@pytest.fixture
def far(lab: Lab, forge: Forge) -> Far:
    """A forgectl whose ssh hosts are the lab's."""
    return Far(forge, lab)


MakeFar = Callable[..., Far]


@pytest.fixture
def make_far(make_lab: Callable[..., Lab], forge: Forge) -> MakeFar:
    """The same with a lab of one's own."""
    return lambda *arguments, **options: Far(forge, make_lab(*arguments, **options))

"""What `launch`, `run` and `plan` share: they ask the hosts of a spec and turn the spec into a plan."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from forgectl.errors import NotInstalledError, SpecError, UsageError
from forgectl.hosts.installation import install_command
from forgectl.model.plan import MeshPlan, Plan
from forgectl.names import DEFAULT_SPECS

if TYPE_CHECKING:
    from forgectl.spec.model import Spec
    from forgectl.transport.survey import Hosts

PACKAGES = {"torch": "torch", "zmq": "pyzmq", "cloudpickle": "cloudpickle"}
"""Module → the name of its pip package."""
MESSAGES = {"zmq", "cloudpickle"}
"""Modules that actors need for messages."""


def here() -> Path:
    """The current folder; raises UsageError if it was removed, since nothing can be started in it."""
    try:
        return Path.cwd()
    except FileNotFoundError:
        raise UsageError("the current folder was removed", hint="cd to one that exists") from None


def default_spec() -> Path | None:
    """The spec of the current folder that no command line has to name."""
    return next((Path(name) for name in DEFAULT_SPECS if Path(name).is_file()), None)


def spec_file(named: Path | None, command: str) -> Path:
    """The spec that was named, else that of the current folder. Raises UsageError if there is none for `command`."""
    if named is None:
        if found := default_spec():
            return found
        others = [shlex.quote(path.name) for path in sorted(here().glob("*.y*ml"))[:3]]
        name = f"name one, such as {', '.join(others)}" if others else f"forgectl {command} SPEC"
        raise UsageError(
            f"no SPEC was named, and {here()} has no {DEFAULT_SPECS[0]}",
            hint=f"{name}; or `forgectl init` writes a first one",
        )
    if named.suffix == ".py" and named.is_file():
        hint = f"forgectl run {shlex.quote(str(named))}"
        raise UsageError(f"{named} is a Python program, not a spec", hint=hint)
    return named


@contextlib.contextmanager
def planned(spec: Spec) -> Iterator[tuple[Plan, Hosts]]:
    """Place the spec on its hosts as they are now. Connections to them stay open until the context ends.

    Raises SpecError, BusyError, NotInstalledError, and ForgeError for hosts that ssh does not reach.
    """
    from forgectl.cli.views.host_news import no_answer_yet
    from forgectl.plan.placement import place
    from forgectl.transport.addresses import verified
    from forgectl.transport.survey import gather

    _refuse_what_cannot_be_launched(spec)
    with gather(spec, os.environ, no_answer_yet) as hosts:
        plan = place(spec, hosts.facts, python=sys.executable, inherited=os.environ)
        _refuse_actors_without_messages(plan)
        _refuse_hosts_without_what_they_need(plan, hosts)
        plan = verified(plan, hosts, {h.name: h.address for h in spec.hosts if h.address})
        file = Path(spec.source).absolute()
        yield dataclasses.replace(plan, spec=str(file) if file.is_file() else ""), hosts


def _refuse_what_cannot_be_launched(spec: Spec) -> None:
    problems = []
    if spec.driver and spec.driver.command and (spec.actors or spec.services):
        message = "a command cannot bring up the spec's actors and services; use `run: FILE.py` or `module:`"
        problems.append(spec.problem("driver.command", message))
    if problems:
        raise SpecError(spec.source, problems)


def _refuse_actors_without_messages(plan: Plan) -> None:
    """Raise NotInstalledError if this interpreter lacks them. Ranks under other interpreters report it themselves."""
    meshes = [m for m in plan.meshes if m.stays or (m.kind == "driver" and plan.declared)]
    missing = [PACKAGES[module] for module in sorted(MESSAGES) if not importlib.util.find_spec(module)]
    if missing and any(sys.executable in m.python.values() for m in meshes):
        message = f"actors and services need {' and '.join(missing)}, which {sys.executable} does not have"
        raise NotInstalledError(message, hint=install_command(sys.executable, "actors", missing))


def _refuse_hosts_without_what_they_need(plan: Plan, hosts: Hosts) -> None:
    """Raise one NotInstalledError for what the interpreters of all ssh hosts lack.

    Ranks under other interpreters report it themselves.
    """
    from forgectl.transport.destination import program

    lacking = {}
    for host in plan.hosts:
        needed = {name for m in plan.meshes if m.python.get(host.name) == host.python for name in _needs(m)}
        if absent := [m for m in hosts.missing.get(host.name, ()) if m in needed]:
            lacking[host] = [PACKAGES[m] for m in absent]
    if lacking:
        command = shlex.join(program())
        lines = [f"host {h.name}: {h.python} lacks {', '.join(p)}" for h, p in lacking.items()]
        cures = [
            f"{command} {shlex.quote(h.ssh or h.name)} {shlex.quote(h.python)} -m pip install {' '.join(p)}"
            for h, p in lacking.items()
        ]
        raise NotInstalledError("\n".join(lines), hint="\n  hint: ".join(cures))


def _needs(mesh: MeshPlan) -> set[str]:
    if mesh.stays:
        return {"torch", *MESSAGES} if "torch" in mesh.preload else MESSAGES
    return {"torch"} if "torch" in mesh.preload else set()

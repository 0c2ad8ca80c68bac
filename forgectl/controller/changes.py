"""Finds the hosts and meshes whose commands a record may have changed. Pure.

A run writes about 20 records for each of its N hosts. Looking at all hosts after every record would take time
proportional to N squared.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from forgectl.controller.commands import HOST
from forgectl.controller.records import AgentLost, AgentUp, Happened, Record
from forgectl.controller.run_state import Run
from forgectl.controller.state import MeshState
from forgectl.model.plan import MeshPlan
from forgectl.model.status import OVER, MeshStateName
from forgectl.plan.links import dials
from forgectl.protocol.supervision import MessengerOpened


class MeshFacts(NamedTuple):
    """The facts of a mesh on which the commands to several of its hosts depend."""

    plan: MeshPlan
    state: MeshStateName
    generation: int
    first: int
    before: int
    left: tuple[tuple[str, int], ...]
    port: int | None
    ending: bool
    grace: float
    needs_hosts: bool

    @classmethod
    def of(cls, m: MeshState) -> MeshFacts:
        left = tuple(m.left.items())
        return cls(m.plan, m.state, m.generation, m.first, m.before, left, m.port, m.ending, m.grace, m.needs_hosts)

    @property
    def hosts(self) -> tuple[str, ...]:
        """The hosts that it is on, then those that it was moved away from."""
        return (*self.plan.hosts, *(host for host, _ in self.left))

    @property
    def messengers(self) -> tuple[str, ...]:
        """The hosts that need a messenger for this mesh."""
        return self.plan.hosts if self.plan.stays and self.state not in OVER else ()


class Changes:
    """Follows a run: `after` must be called after every record.

    A command to a host depends on facts of the whole mesh, on what the host itself has reported of the mesh, and on
    messengers. So if the facts of a mesh changed, the result has all its hosts. If not, it has at most the host of the
    record: what other hosts have reported is reset only together with those facts, when a generation ends or the mesh
    moves. tests/unit/controller/test_changes.py compares the result with a look at everything.
    """

    def __init__(self) -> None:
        self._meshes: dict[str, MeshFacts] = {}
        self._messengers: dict[str, tuple[MessengerOpened | None, int]] = {}
        self._ended = False

    def after(self, run: Run, record: Record) -> dict[str, dict[str, None]]:
        """Host → the subjects of its `commands` that may have changed, as the keys of a dict, in order."""
        found: dict[str, dict[str, None]] = {}

        def name(hosts: Iterable[str], subject: str) -> None:
            for host in hosts:
                found.setdefault(host, {})[subject] = None

        about = record.host if isinstance(record, (Happened, AgentUp, AgentLost)) else None
        of = record.what.mesh if isinstance(record, Happened) else None
        if about is not None:
            name(self._of_messenger(run, about), HOST)
        for mesh in run.meshes.values():
            before, now = self._meshes.get(mesh.name), MeshFacts.of(mesh)
            self._meshes[mesh.name] = now
            if before != now:
                name(_of_mesh(run, before, now), mesh.name)
                if now.messengers != (before.messengers if before else ()):
                    name(run.hosts, HOST)
            elif about in mesh.plan.by_host and of in (None, mesh.name):
                name([about], mesh.name)
        if run.ended != self._ended:
            self._ended = run.ended
            for subject in (HOST, *run.meshes):
                name(run.hosts, subject)
        return found

    def _of_messenger(self, run: Run, name: str) -> Iterable[str]:
        """The hosts whose commands change with the messenger of host `name`."""
        host = run.hosts[name]
        before, now = self._messengers.get(name, (None, 0)), (host.messenger, host.messengers_lost)
        self._messengers[name] = now
        if before[1] != now[1]:
            return run.hosts  # the number of links is the number of messengers that the run has lost
        if before[0] != now[0]:
            return [n for n, other in run.hosts.items() if n == name or dials(other.plan, host.plan)]
        return ()


def _of_mesh(run: Run, before: MeshFacts | None, now: MeshFacts) -> Iterable[str]:
    """The hosts that a change of a mesh concerns: all, if any process of the run may send it requests."""
    if now.plan.is_asked or (before is not None and before.plan.is_asked):
        return run.hosts
    return (*now.hosts, *(before.hosts if before else ()))

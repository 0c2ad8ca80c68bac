"""Finds the hosts and meshes of which a record may have changed the commands. Pure.

A run of N hosts writes some 20 records for each: looking at all hosts after every record would take time in N squared.
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
    """Everything of a mesh that the commands to more than one of its hosts depend on."""

    plan: MeshPlan
    state: MeshStateName
    generation: int
    first: int
    before: int
    left: tuple[tuple[str, int], ...]
    port: int | None
    ending: bool
    grace: float
    homeless: bool

    @classmethod
    def of(cls, m: MeshState) -> MeshFacts:
        left = tuple(m.left.items())
        return cls(m.plan, m.state, m.generation, m.first, m.before, left, m.port, m.ending, m.grace, m.homeless)

    @property
    def hosts(self) -> tuple[str, ...]:
        """Those that it is on, and those that it was on."""
        return (*self.plan.hosts, *(host for host, _ in self.left))

    @property
    def messengers(self) -> tuple[str, ...]:
        """The hosts that need a messenger for its sake."""
        return self.plan.hosts if self.plan.stays and self.state not in OVER else ()


class Changes:
    """Follows a run: it has to see the run after every record.

    A command to a host depends on facts of the whole mesh, on what the host itself has said of the mesh, and on
    messengers. So where the facts of a mesh have changed, all its hosts are named; where they have not, at most the
    host that the record is about: what other hosts have said changes only together with those facts, as a generation
    ends or the mesh moves. tests/unit/controller/test_changes.py compares the outcome with a look at everything.
    """

    def __init__(self) -> None:
        self._meshes: dict[str, MeshFacts] = {}
        self._messengers: dict[str, tuple[MessengerOpened | None, int]] = {}
        self._ended = False

    def after(self, run: Run, record: Record) -> dict[str, dict[str, None]]:
        """Host → subjects of its `commands` (as the keys of a dict, in order) that may not be what they were."""
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
        """The hosts that have something to do because of the messenger of host `name`."""
        host = run.hosts[name]
        before, now = self._messengers.get(name, (None, 0)), (host.messenger, host.messengers_lost)
        self._messengers[name] = now
        if before[1] != now[1]:
            return run.hosts  # links are numbered by how many messengers the run has lost
        if before[0] != now[0]:
            return [n for n, other in run.hosts.items() if n == name or dials(other.plan, host.plan)]
        return ()


def _of_mesh(run: Run, before: MeshFacts | None, now: MeshFacts) -> Iterable[str]:
    """The hosts that a change of a mesh concerns: of actors all, since any process of the run may have a handle."""
    if now.plan.stays or (before is not None and before.plan.stays):
        return run.hosts
    return (*now.hosts, *(before.hosts if before else ()))

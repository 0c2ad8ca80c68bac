"""An enclosure: all processes that one generation of a mesh started on this host. It ends them and proves it."""

from __future__ import annotations

import asyncio
import contextlib
import math
import signal
from collections.abc import Callable, Iterable, Sequence

from forgectl.agent.enclosure.search import Marks, Roots, sweep
from forgectl.agent.enclosure.wait import all_ended
from forgectl.frozen import dataclass
from forgectl.system import cgroups
from forgectl.system.cgroups import Cgroup
from forgectl.system.processes import REAL, Identity, ProcessTable, Stat, alive, signal_exactly

UNKILLABLE_AFTER = 5.0  # seconds after SIGKILL; a process with much memory may need one or two to end
_RESCAN = 0.5  # seconds between searches for processes that joined while we waited for others
_ROUNDS = 30  # scans that may be needed to stop a fork bomb; two or three suffice


@dataclass(frozen=True)
class Sighting:
    """A process as it was seen. Its text form: `pid 4711 (python), state D in nfs_wait, of uid 1000`."""

    identity: Identity
    name: str
    state: str  # as in ps: D is uninterruptible sleep
    wchan: str = ""  # where in the kernel it sleeps; "" where that cannot be read
    owner: int | None = None  # user id

    def __str__(self) -> str:
        place = f" in {self.wchan}" if self.wchan else ""
        owner = f", of uid {self.owner}" if self.owner is not None else ""
        return f"pid {self.identity.pid} ({self.name}), state {self.state}{place}{owner}"


@dataclass(frozen=True)
class EndReport:
    """How an enclosure ended. It is verified empty if there are no `unkillable`."""

    found: tuple[Sighting, ...]  # its processes when the end began
    killed: int  # how many were sent SIGKILL
    unkillable: tuple[Sighting, ...] = ()  # those that were sent SIGKILL and still exist


class Enclosure:
    """The processes of one generation of a mesh on this host.

    With a cgroup of its own, the kernel tracks its members. Without one, a search finds them by registered leaders,
    their sessions, their descendants and the environment. Such a search misses only a process that left its parents,
    its session *and* its environment before any search saw it, unless `add_server` covers it.

    A rank must set FORGE_MESH, and must not keep its fork server's FORGE_ROLE, before user code runs.
    """

    def __init__(
        self, marks: Marks, groups: Sequence[Cgroup] = (), *, above: int = 0, table: ProcessTable = REAL
    ) -> None:
        self._marks = marks
        self._groups = tuple(groups)
        self._above = above  # how many directories above each cgroup are ours to remove
        self._table = table
        self._roots = Roots()
        self._leaders: dict[int, Identity] = {}
        self._wakeup = asyncio.Event()
        self._deadline = math.inf
        self._ending: asyncio.Task[EndReport] | None = None

    @classmethod
    def create(
        cls,
        run: str,
        host: str,
        mesh: str,
        generation: int,
        *,
        use_cgroup: bool = True,
        table: ProcessTable = REAL,
    ) -> Enclosure:
        """An enclosure with a cgroup of its own where one can be made, else one that searches."""
        names = (f"forgectl-{run}", host, f"{mesh}-{generation}")
        group = Cgroup.create(cgroups.own(), *names) if use_cgroup else None
        return cls(Marks(run, host, mesh), [group] if group else [], above=2, table=table)

    @property
    def cgroup(self) -> Cgroup | None:
        """Its cgroup, or None where it searches."""
        return self._groups[0] if self._groups else None

    @property
    def cgroup_procs_path(self) -> str | None:
        """The file to which a rank writes "0" first, to join the cgroup; None where there is no cgroup."""
        return self.cgroup.procs_path if self.cgroup else None

    @property
    def leaders(self) -> tuple[Identity, ...]:
        """The registered ranks, alive or not."""
        return tuple(self._leaders.values())

    def add(self, leader: Identity) -> None:
        """Register a rank: a process that leads its own session, or is about to."""
        self._leaders[leader.pid] = leader
        self._roots.members[leader.pid] = leader
        if not self._groups:
            self._roots.sessions[leader.pid] = leader

    def add_server(self, server: Identity, *, spare: Iterable[Identity] = ()) -> None:
        """Register a fork server that serves this mesh alone and reaps its orphans: each of its children is a member.

        Children in `spare` are no members: for example the mesh's store, which must outlive the ranks.
        """
        self._roots.servers[server.pid] = server
        self._roots.spared.update({s.pid: s for s in spare})

    def members(self) -> list[Identity]:
        """Its members now, parents first, without zombies.

        Without a cgroup, call this when a leader has exited, and now and then: a process seen once is not lost.
        """
        return list(self._members())

    def signal(self, signum: int) -> int:
        """Signal each member, never a process that reuses its pid; returns how many were signalled."""
        return sum(signal_exactly(m, signum, self._table) for m in self._everyone())

    def kill(self) -> None:
        """SIGKILL all members. Returns before they are gone; `end` waits for that."""
        for group in self._groups:
            group.kill()
        for stat in self._enclosed():
            if stat.state == "Z":  # its first thread has ended, and cgroup.kill skips the others (Linux 6.18)
                signal_exactly(self._identity(stat), signal.SIGKILL, self._table)
        self._stop_and_kill()

    async def end(self, grace: float, *, unkillable_after: float = UNKILLABLE_AFTER) -> EndReport:
        """Send SIGTERM to all; after `grace` seconds send SIGKILL to what is left, and wait until nothing is.

        With a grace of 0 there is no SIGTERM. A call during another joins it, and shortens the grace if its own ends
        sooner. Cancelling the caller does not stop the end. Processes that outlive SIGKILL for `unkillable_after`
        seconds are in the report.
        """
        if self._ending is not None and not self._ending.done():
            self.hurry(grace)
        else:
            hurried = self._deadline if self._ending is None else math.inf  # by an order that overtook this one
            self._deadline = min(hurried, self._now() + grace)
            self._ending = asyncio.ensure_future(self._end(grace > 0, unkillable_after))
        return await asyncio.shield(self._ending)

    def hurry(self, grace: float = 0.0) -> None:
        """Shorten the grace of an `end`, running or about to begin, to `grace` seconds from now; never lengthen it."""
        self._deadline = min(self._deadline, self._now() + grace)
        self._wakeup.set()

    def close(self) -> bool:
        """Remove its cgroup, and our empty directories above it. False if processes are left in it."""
        removed = [group.remove(self._above) for group in self._groups]
        return all(removed)

    async def _end(self, ask: bool, unkillable_after: float) -> EndReport:
        found = self._ask() if ask else self._everyone()
        left = found
        while left and (remaining := self._deadline - self._now()) > 0:
            await self._changed(left, min(remaining, _RESCAN))
            left = self._present()
        killed: set[Identity] = set()
        give_up = self._now() + unkillable_after
        pause = 0.01
        while left and (remaining := give_up - self._now()) > 0:
            killed.update(left)
            self.kill()
            await self._changed(left, min(remaining, pause))
            pause = min(2 * pause, _RESCAN)
            left = self._present()
        survivors = [self._look(i, s) for i, s in left.items() if alive(i, self._table)]
        seen = tuple(Sighting(i, s.name, s.state) for i, s in found.items())
        return EndReport(seen, len(killed), tuple(survivors))

    def _ask(self) -> dict[Identity, Stat]:
        """Send SIGTERM to all members, and SIGCONT so that stopped ones handle it; repeat for new members."""
        asked: dict[Identity, Stat] = {}
        for group in self._groups:
            group.thaw()
        for _ in range(3):
            fresh = {i: s for i, s in self._everyone().items() if i not in asked}
            if not fresh:
                break
            for member in fresh:
                signal_exactly(member, signal.SIGTERM, self._table)
                signal_exactly(member, signal.SIGCONT, self._table)
            asked |= fresh
        return asked

    def _stop_and_kill(self) -> None:
        """SIGKILL all members outside the cgroups. Stop them first: a stopped process cannot fork."""
        stopped: set[Identity] = set()

        def stop(identity: Identity) -> None:
            if identity not in stopped:
                signal_exactly(identity, signal.SIGSTOP, self._table)
                stopped.add(identity)

        for _ in range(_ROUNDS):
            before = len(stopped)
            inside = self._pids_inside()
            found = {i: s for i, s in self._swept(stop).items() if s.pid not in inside}
            for identity in found:
                stop(identity)
            if len(stopped) == before and all(s.state in "TtDZX" for s in found.values()):
                break
        for identity in stopped:
            signal_exactly(identity, signal.SIGKILL, self._table)

    async def _changed(self, left: Iterable[Identity], timeout: float) -> None:
        """Wait until all in `left` have ended, `hurry` is called, or `timeout` seconds have passed."""
        inside = self._pids_inside()
        outside = [m for m in left if m.pid not in inside]
        groups = self._groups if inside else ()
        await all_ended(outside, groups, timeout, self._wakeup, self._table)
        self._wakeup.clear()

    def _present(self) -> dict[Identity, Stat]:
        """The members. The cheap search will do while it finds some; only the thorough one proves that none is left."""
        return self._by_identity(self._enclosed()) or self._everyone()

    def _everyone(self) -> dict[Identity, Stat]:
        return self._by_identity([*self._enclosed(), *self._swept().values()])

    def _members(self) -> dict[Identity, Stat]:
        return self._by_identity(self._enclosed()) if self._groups else self._swept()

    def _swept(self, at_sight: Callable[[Identity], None] | None = None) -> dict[Identity, Stat]:
        return self._by_identity(sweep(self._table, self._marks, self._roots, at_sight))

    def _enclosed(self) -> list[Stat]:
        """The members of the cgroups, and the leaders that never joined one."""
        if not self._groups:
            return []
        pids = self._pids_inside()
        stats = [s for s in map(self._table.stat, pids) if s and not s.dead]
        for leader in self._leaders.values():
            stat = None if leader.pid in pids else self._table.stat(leader.pid)
            if stat and stat.start_time == leader.start_time and not stat.dead:
                self._roots.sessions[leader.pid] = leader
                stats.append(stat)
        return stats

    def _pids_inside(self) -> set[int]:
        return {pid for group in self._groups for pid in group.pids()}

    def _by_identity(self, stats: Iterable[Stat]) -> dict[Identity, Stat]:
        ordered = sorted(stats, key=lambda s: (s.start_time, s.pid))
        return {self._identity(s): s for s in ordered}

    def _identity(self, stat: Stat) -> Identity:
        return Identity(stat.pid, stat.start_time, self._table.boot_id())

    def _look(self, identity: Identity, stat: Stat) -> Sighting:
        pid = identity.pid
        now = self._table.stat(pid) or stat
        return Sighting(identity, now.name, now.state, self._table.wchan(pid), self._table.owner(pid))

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


async def sweep_run(
    run: str, host: str, *, unkillable_after: float = UNKILLABLE_AFTER, table: ProcessTable = REAL
) -> EndReport:
    """Kill all processes that a dead agent of this run and host has left, fork servers and stores too.

    It spares this process, its ancestors, and every controller and agent. A process without a cgroup that has left
    both its parents and its environment looks like any other process, and survives. Returns what was found.
    """
    own = cgroups.own()
    groups = [g for g in cgroups.find(f"forgectl-{run}", host) if own is None or g.path not in (own, *own.parents)]
    rest = Enclosure(Marks(run, host), groups, above=1, table=table)
    report = await rest.end(0, unkillable_after=unkillable_after)
    rest.close()
    for root in cgroups.find(f"forgectl-{run}"):  # the agent that emptied it may have died before removing it
        with contextlib.suppress(OSError):  # another host of the run, also on this machine, is in it
            root.path.rmdir()
    return report

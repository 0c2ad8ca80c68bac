"""Who belongs to a mesh, or to a whole run, found in the process table alone: for hosts without a cgroup."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from forgectl.agent.processes import Identity, ProcessTable, Stat

_NEVER = frozenset({b"controller", b"agent"})


@dataclass(frozen=True)
class Marks:
    """What the environment of a process says when it belongs here; `mesh` None: any of the run and host."""

    run: str
    host: str
    mesh: str | None = None

    def match(self, environ: dict[bytes, bytes]) -> bool:
        """Whether a process executed with `environ` belongs here by that alone.

        A fork server serves a mesh but is not of it; it is found only when a whole run is asked for.
        """
        if environ.get(b"FORGE_RUN_ID") != self.run.encode() or environ.get(b"FORGE_HOST") != self.host.encode():
            return False
        if self.mesh is None:
            return True
        return environ.get(b"FORGE_MESH") == self.mesh.encode() and environ.get(b"FORGE_ROLE") != b"forkserver"


@dataclass
class Roots:
    """What is known beforehand: whose processes, their sessions, descendants and children are looked for."""

    members: dict[int, Identity] = field(default_factory=dict)  # by pid: leaders, and all found earlier
    sessions: dict[int, Identity] = field(default_factory=dict)  # by session id: the leader that opened it
    servers: dict[int, Identity] = field(default_factory=dict)  # by pid: every child of theirs belongs here
    spared: dict[int, Identity] = field(default_factory=dict)  # by pid: these do not, nor what is below them


def sweep(table: ProcessTable, marks: Marks, roots: Roots) -> list[Stat]:
    """The living processes that belong here, parents before children; `roots` learns them.

    Never this process, its ancestors, or any controller or agent (nor what only these have started).
    A session stays known for as long as it has a process: then its number cannot have come to mean another.
    """
    stats = {s.pid: s for s in map(table.stat, table.pids()) if s and not s.kernel}
    boot = table.boot_id()
    _forget_ended(stats, roots, boot)
    environs = _environs(table, stats)
    spared = {pid for pid, environ in environs.items() if environ.get(b"FORGE_ROLE") in _NEVER}
    spared |= _line_of(os.getpid(), stats) | roots.spared.keys()
    seeds = {
        pid
        for pid, s in stats.items()
        if pid in roots.members or s.session in roots.sessions or s.ppid in roots.servers or marks.match(environs[pid])
    }
    found = [stats[pid] for pid in _descend(seeds, stats, spared)]
    roots.members.update({s.pid: Identity(s.pid, s.start_time, boot) for s in found})
    return sorted((s for s in found if not s.dead), key=lambda s: (s.start_time, s.pid))


def _forget_ended(stats: dict[int, Stat], roots: Roots, boot: str) -> None:
    """Drop what no longer exists, before its number can be taken for somebody else's."""

    def exists(identity: Identity) -> bool:
        stat = stats.get(identity.pid)
        return stat is not None and (stat.start_time, boot) == (identity.start_time, identity.boot_id)

    for known in (roots.members, roots.servers, roots.spared):
        for pid in [pid for pid, identity in known.items() if not exists(identity)]:
            del known[pid]
    used = {s.session for s in stats.values()}
    for sid, leader in list(roots.sessions.items()):
        reused = sid in stats and not exists(leader)  # impossible while the session had a process left
        if reused or (sid not in used and not exists(leader)):
            del roots.sessions[sid]


def _environs(table: ProcessTable, stats: dict[int, Stat]) -> dict[int, dict[bytes, bytes]]:
    """The FORGE_ variables of each process. For a moment within exec a process has none, so that asks again."""
    raw = {pid: table.environ(pid) for pid in stats}
    raw.update({pid: table.environ(pid) for pid, environ in raw.items() if not environ and not stats[pid].dead})
    return {pid: _forge_variables(environ) for pid, environ in raw.items()}


def _forge_variables(environ: bytes) -> dict[bytes, bytes]:
    if b"FORGE_" not in environ:
        return {}
    pairs = (entry.partition(b"=") for entry in environ.split(b"\0") if entry.startswith(b"FORGE_"))
    return {name: value for name, _, value in pairs}


def _line_of(pid: int, stats: dict[int, Stat]) -> set[int]:
    """This process and its ancestors."""
    line: set[int] = set()
    while pid in stats and pid not in line:
        line.add(pid)
        pid = stats[pid].ppid
    return line


def _descend(seeds: Iterable[int], stats: dict[int, Stat], spared: set[int]) -> set[int]:
    """The seeds and all their descendants, except the spared ones and what is only below those.

    A parent is never younger than its child: where it seems so, its pid was reused while the table was read.
    """
    children: dict[int, list[int]] = defaultdict(list)
    for s in stats.values():
        parent = stats.get(s.ppid)
        if parent and parent.start_time <= s.start_time:
            children[s.ppid].append(s.pid)
    found: set[int] = set()
    waiting = [pid for pid in seeds if pid not in spared]
    while waiting:
        pid = waiting.pop()
        if pid not in found:
            found.add(pid)
            waiting.extend(child for child in children[pid] if child not in spared)
    return found

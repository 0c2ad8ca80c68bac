"""Finds the processes of a mesh, or of a whole run, in the process table alone: for hosts without a cgroup."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from forgectl.system.processes import Identity, ProcessTable, Stat

_NEVER = frozenset({b"controller", b"agent"})
_LISTINGS = 50  # enough where other programs keep starting processes; usually two suffice


@dataclass(frozen=True)
class Marks:
    """The environment variables by which a process belongs here; with `mesh` None, to any mesh of the run and host."""

    run: str
    host: str
    mesh: str | None = None

    def match(self, environ: dict[bytes, bytes]) -> bool:
        """Whether `environ` alone shows that its process belongs here.

        A fork server serves a mesh but is not part of it: it matches only where `mesh` is None.
        """
        if environ.get(b"FORGE_RUN_ID") != self.run.encode() or environ.get(b"FORGE_HOST") != self.host.encode():
            return False
        if self.mesh is None:
            return True
        return environ.get(b"FORGE_MESH") == self.mesh.encode() and environ.get(b"FORGE_ROLE") != b"forkserver"


@dataclass
class Roots:
    """The processes known before a search. It looks for them, their sessions, descendants and children."""

    members: dict[int, Identity] = field(default_factory=dict)  # by pid: leaders, and all found earlier
    sessions: dict[int, Identity] = field(default_factory=dict)  # by session id: the leader that opened it
    servers: dict[int, Identity] = field(default_factory=dict)  # by pid: every child of theirs belongs here
    spared: dict[int, Identity] = field(default_factory=dict)  # by pid: these and their descendants do not


def sweep(
    table: ProcessTable, marks: Marks, roots: Roots, at_sight: Callable[[Identity], None] | None = None
) -> list[Stat]:
    """The living processes that belong here, parents before children; they are added to `roots`.

    It spares this process, its ancestors, and every controller and agent (and what only these have started). A process
    that clearly belongs here is passed to `at_sight` as soon as it is read, before it can fork and exit.
    """
    boot = table.boot_id()
    known = set(roots.members.values())
    spared = _this_and_ancestors(table) | roots.spared.keys()
    stats: dict[int, Stat] = {}
    environs: dict[int, dict[bytes, bytes]] = {}
    for stat, environ in _examine(table):
        stats[stat.pid], environs[stat.pid] = stat, environ
        identity = Identity(stat.pid, stat.start_time, boot)
        if environ.get(b"FORGE_ROLE") in _NEVER:
            spared.add(stat.pid)
        elif at_sight and stat.pid not in spared and (identity in known or marks.match(environ)) and not stat.dead:
            at_sight(identity)
    _forget_ended(stats, roots, boot)
    seeds = {
        pid
        for pid, s in stats.items()
        if pid in roots.members or s.session in roots.sessions or s.ppid in roots.servers or marks.match(environs[pid])
    }
    found = [stats[pid] for pid in _descend(seeds, stats, spared)]
    roots.members.update({s.pid: Identity(s.pid, s.start_time, boot) for s in found})
    return sorted((s for s in found if not s.dead), key=lambda s: (s.start_time, s.pid))


def _examine(table: ProcessTable) -> Iterator[tuple[Stat, dict[bytes, bytes]]]:
    """Every process with its FORGE_ variables. It lists processes again until a listing shows no new one.

    One listing proves nothing: a listed process may fork and exit before it is read, and its child is not listed. For
    a moment during exec a process has no environment, so a process without one is read twice.
    """
    done: set[int] = set()
    blank: set[int] = set()
    for _ in range(_LISTINGS):
        fresh = [pid for pid in table.pids() if pid not in done]
        if not fresh:
            return
        for pid in fresh:
            stat = table.stat(pid)
            environ = table.environ(pid) if stat and not stat.kernel else b""
            if stat and not (environ or stat.kernel or stat.dead or pid in blank):
                blank.add(pid)
            else:
                done.add(pid)
            if stat and not stat.kernel:
                yield stat, _forge_variables(environ)


def _forget_ended(stats: dict[int, Stat], roots: Roots, boot: str) -> None:
    """Drop processes that no longer exist, before another process can reuse their ids."""

    def exists(identity: Identity) -> bool:
        stat = stats.get(identity.pid)
        return stat is not None and (stat.start_time, boot) == (identity.start_time, identity.boot_id)

    for known in (roots.members, roots.servers, roots.spared):
        for pid in [pid for pid, identity in known.items() if not exists(identity)]:
            del known[pid]
    used = {s.session for s in stats.values()}
    for sid, leader in list(roots.sessions.items()):
        reused = sid in stats and not exists(leader)  # only possible once the session has no process left
        if reused or (sid not in used and not exists(leader)):
            del roots.sessions[sid]


def _forge_variables(environ: bytes) -> dict[bytes, bytes]:
    if b"FORGE_" not in environ:
        return {}
    pairs = (entry.partition(b"=") for entry in environ.split(b"\0") if entry.startswith(b"FORGE_"))
    return {name: value for name, _, value in pairs}


def _this_and_ancestors(table: ProcessTable) -> set[int]:
    """This process and its ancestors."""
    line: set[int] = set()
    stat = table.stat(os.getpid())
    while stat and stat.pid not in line:
        line.add(stat.pid)
        stat = table.stat(stat.ppid)
    return line


def _descend(seeds: Iterable[int], stats: dict[int, Stat], spared: set[int]) -> set[int]:
    """The seeds and all their descendants, except spared ones and what descends only from those.

    A parent is never younger than its child. If it seems younger, its pid was reused while the table was read.
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

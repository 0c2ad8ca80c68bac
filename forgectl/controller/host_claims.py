"""Checks what a host sends, its events and parts of logs, against the plan before anything uses it. Pure.

A host is trusted with its own ranks alone. A message about anything else, or one that our agent never sends, breaks the
protocol: `AgentLink` gives up the host for it.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import math
import struct
from collections.abc import Container
from typing import Any

from forgectl.controller.records import Happened
from forgectl.controller.run_state import Run
from forgectl.controller.state import HostState, MeshState
from forgectl.model.plan import MAX_RANKS, impossible_gpus
from forgectl.names import NAME
from forgectl.plan.links import messengers
from forgectl.protocol.control import HostStacks
from forgectl.protocol.supervision import (
    Event,
    Happening,
    HostGpus,
    LogPart,
    LogParts,
    MeshGone,
    MessengerGone,
    MessengerOpened,
    Notice,
    Prepared,
    ProgressResumed,
    ProgressStopped,
    RankExited,
    RankStarted,
    RankStats,
    Refused,
    StartFailed,
    StoreOpened,
    Welcome,
)
from forgectl.stacks.evidence import RankEvidence
from forgectl.system.log_times import SAMPLE
from forgectl.wire.envelope import MAX_LINE, ProtocolError, encode

LARGEST = 1 << 53
"""Largest number that every JSON reader reads exactly."""
MOST_TEXT = 512 * 1024
"""Characters in one event. An agent sends at most three texts of 32 KiB, which redaction may lengthen a little."""
MOST_LINES = 2 * MAX_RANKS
"""Entries of a list in one event: log lines, or processes that SIGKILL did not end."""
MOST_SKIPPED = 100_000
"""Most generations that a journal may have lost: each takes a number in memory."""
MOST_MESSENGERS = 1000
"""Most messengers that a host may lose: each is replaced at once, and each loss is a record in the journal."""
MOST_GROUPS = 256
"""Most process groups of which a rank may have recorded collectives."""
LOG_KEY = tuple[str, int, int]
"""Mesh, generation and rank."""


def check_event(run: Run, name: str, event: Event, *, catching_up: bool = False) -> Happening | None:
    """What an event of host `name` adds to the run's state; None if it was known, or does not matter any more.

    Only what this returns may be recorded. So the size of the journal depends on what can happen in a run, not on what
    a host sends. `catching_up`: the journal may have lost earlier events, so agents may be ahead of it. Raises
    ProtocolError, with what the host did.
    """
    host = run.hosts.get(name)
    if host is None:
        raise ProtocolError("it is not a host of this run")
    _number("seq", event.seq, 1)
    if event.seq <= host.last_seq:
        return None  # replayed after a reconnection
    what = event.what
    _check_size(what)
    if isinstance(what, (MessengerOpened, MessengerGone)):
        news = _messenger_news(run, host, what, catching_up)
    else:
        news = _mesh_news(run, host, what, catching_up)
    return what if news else None


def unsound(run: Run, record: Happened) -> str | None:
    """What is wrong with a recorded event, if the host was not allowed to send it.

    Journals of older versions also hold events that were not checked.
    """
    try:
        sound = check_event(run, record.host, Event(record.seq, record.what), catching_up=True) is not None
    except ProtocolError as e:
        return str(e)
    return None if sound else "nothing new"


# ---------------------------------------------------------------- of a mesh


def _mesh_news(run: Run, host: HostState, what: Any, catching_up: bool) -> bool:
    name = host.plan.name
    if not NAME.fullmatch(what.mesh):
        raise ProtocolError(f"it reported a mesh {what.mesh[:80]!r}, which is not a valid name")
    mesh = run.meshes.get(what.mesh)
    if mesh is None:
        return False  # the journal lost its addition, or somebody else sent the agent commands
    if isinstance(what, (Prepared, Refused, Notice)):
        return name in mesh.plan.by_host and _is_news(mesh, name, what)
    _number("generation", what.generation, 0)
    if what.generation < mesh.generation:
        return False  # late, about a generation that is over
    ahead = what.generation - mesh.generation
    if ahead and not (catching_up and ahead + len(mesh.restarts) <= MOST_SKIPPED):
        raise ProtocolError(
            f"it reported generation {what.generation} of mesh {mesh.name}, which is in generation {mesh.generation}"
        )
    if name not in mesh.plan.by_host:
        if catching_up:
            return False  # the journal lost the record that the mesh moved there
        raise ProtocolError(f"it reported mesh {mesh.name}, but has no rank of it")
    if isinstance(what, (RankStarted, RankExited)):
        _check_place(mesh, name, what.rank)
    _CHECKS[type(what)](mesh, name, what)
    return ahead > 0 or _is_generation_news(mesh, name, what)


def _is_news(mesh: MeshState, host: str, what: Prepared | Refused | Notice) -> bool:
    """Whether the event changes anything; the mesh has ranks on the host."""
    if isinstance(what, Prepared):
        return not mesh.ended and host not in mesh.prepared
    if isinstance(what, Refused):
        if not 1 <= what.error.code <= 255:
            raise ProtocolError(f"it refused mesh {mesh.name} with {what.error.code}, which is not an exit code")
        return not (mesh.ended or mesh.hopeless or host in mesh.prepared)
    return mesh.may_report(host)


def _check_place(mesh: MeshState, host: str, number: int) -> None:
    rank = mesh.ranks.get(number)
    if rank is None:
        raise ProtocolError(f"it reported rank {str(number)[:20]} of mesh {mesh.name}, which has {mesh.plan.procs}")
    if rank.plan.host != host:
        raise ProtocolError(f"it reported rank {number} of mesh {mesh.name}, which is on host {rank.plan.host}")


def _check_store(mesh: MeshState, host: str, what: StoreOpened) -> None:
    _number("port", what.port, 1, 65535)
    if host != mesh.plan.hosts[0]:
        raise ProtocolError(f"it opened a store for mesh {mesh.name}, which has its store on {mesh.plan.hosts[0]}")


def _check_started(mesh: MeshState, host: str, what: RankStarted) -> None:
    _number("pid", what.pid, 1)
    _number("start_time", what.start_time, 0)


def _check_exited(mesh: MeshState, host: str, what: RankExited) -> None:
    if what.exit_code is not None:
        _number("exit_code", what.exit_code, 0, 255)
    if what.signal is not None:
        _number("signal", what.signal, 1, 64)
    if what.exit_code is not None and what.signal is not None:
        raise ProtocolError(f"it reported that rank {what.rank} of mesh {mesh.name} both exited and was killed")
    if not 0 <= what.failed_ago < LARGEST:  # false for NaN, too
        raise ProtocolError(f"it reported that rank {what.rank} of mesh {mesh.name} failed {what.failed_ago} s ago")


def _check_gone(mesh: MeshState, host: str, what: MeshGone) -> None:
    _number("killed", what.killed, 0)


def _check_stopped(mesh: MeshState, host: str, what: ProgressStopped) -> None:
    for rank in what.ranks:
        _check_place(mesh, host, rank)
    if not what.ranks or not 0 <= what.seconds < LARGEST:  # false for NaN, too
        raise ProtocolError(f"it reported that {len(what.ranks)} ranks hang for {what.seconds} s")


_CHECKS: dict[type, Any] = {
    StoreOpened: _check_store,
    StartFailed: lambda mesh, host, what: _number("code", what.code, 1, 255),
    RankStarted: _check_started,
    RankExited: _check_exited,
    MeshGone: _check_gone,
    ProgressStopped: _check_stopped,
    ProgressResumed: lambda mesh, host, what: None,
}


def _is_generation_news(mesh: MeshState, host: str, what: Any) -> bool:
    """Whether the event changes anything in the current generation."""
    if isinstance(what, StoreOpened):
        return mesh.port is None
    if isinstance(what, RankStarted):
        return mesh.ranks[what.rank].pid is None
    if isinstance(what, RankExited):
        return mesh.ranks[what.rank].exit is None
    if isinstance(what, MeshGone):
        return host not in mesh.gone
    if isinstance(what, ProgressStopped):
        return not mesh.ended and host not in mesh.hung and mesh.may_report(host)
    if isinstance(what, ProgressResumed):
        return host in mesh.hung
    return not mesh.ended and mesh.may_report(host)


# ---------------------------------------------------------------- of a host's messenger


def _messenger_news(run: Run, host: HostState, what: MessengerOpened | MessengerGone, catching_up: bool) -> bool:
    _number("generation", what.generation, 0)
    if what.mesh or host.plan not in messengers(run.plan):
        raise ProtocolError("it reported a messenger, but has none in this run")
    ahead = what.generation - host.messengers_lost
    if ahead < 0:
        return False
    if what.generation >= MOST_MESSENGERS:
        raise ProtocolError(f"its messenger has ended {MOST_MESSENGERS} times")
    if ahead and not catching_up:
        raise ProtocolError(f"it reported messenger number {what.generation}, but has lost {host.messengers_lost}")
    if isinstance(what, MessengerGone):
        return True  # no later report repeats it: the next messenger has the next number
    _number("port", what.port, 0, 65535)
    if not what.socket.startswith("/") or len(what.socket) > 4096 or not what.socket.isprintable():
        raise ProtocolError(f"its messenger listens at {what.socket[:80]!r}, which is not a path")
    return ahead > 0 or host.messenger is None


# ---------------------------------------------------------------- numbers and texts


def _number(name: str, value: int, least: int, most: int = LARGEST) -> None:
    if not least <= value <= most:
        raise ProtocolError(f"it sent {name} {str(value)[:30]}, which is impossible")


def _check_size(what: Any) -> None:
    """Raise ProtocolError for an event that is too long to be kept and shown in a status."""
    values = [v for value in vars(what).values() for v in (value if isinstance(value, tuple) else (value,))]
    if isinstance(what, Refused):
        values += [what.error.message, what.error.hint]
    if len(values) > MOST_LINES or sum(len(v) for v in values if isinstance(v, str)) > MOST_TEXT:
        raise ProtocolError(
            f"it sent a {type(what).__name__} of more than {MOST_TEXT} characters or {MOST_LINES} lines"
        )


# ---------------------------------------------------------------- other messages


def check_welcome(name: str, welcome: Welcome) -> None:
    """Raise ProtocolError if this cannot be the agent of host `name`."""
    if welcome.host != name:
        raise ProtocolError(f"its agent reported that it is the one of host {welcome.host[:80]!r}")
    _number("pid", welcome.pid, 1)
    if len(welcome.boot_id) > 100:
        raise ProtocolError("it sent a boot id of more than 100 characters")


def check_parts(known: Container[LOG_KEY], answer: LogParts) -> None:
    """Raise ProtocolError for an impossible part of a log; `known` are the logs that the host may have."""
    for part in answer.parts:
        key = (part.at.mesh, part.at.generation, part.at.rank)
        if key not in known:
            raise ProtocolError(f"it sent a log that nobody asked it for: {str(key)[:120]}")
        try:
            length = len(base64.b64decode(part.data, validate=True))
        except (binascii.Error, ValueError):
            raise ProtocolError("it sent a part of a log that is not base64") from None
        _number("size of a log", part.size, 0)
        _number("offset of a log", part.at.offset, 0)
        _number("offset of a log", part.offset, part.at.offset, max(part.size, part.at.offset))
        if length and part.offset + length > part.size:
            raise ProtocolError(f"it sent bytes beyond the end of a log: {part.offset + length} of {part.size}")
        _check_times(part, part.offset + length)
    if not 0 <= answer.now < LARGEST:  # false for NaN, too
        raise ProtocolError(f"its clock shows {answer.now}")


def _check_times(part: LogPart, end: int) -> None:
    try:
        samples = list(SAMPLE.iter_unpack(base64.b64decode(part.times, validate=True)))
    except (binascii.Error, ValueError, struct.error):
        raise ProtocolError("it sent times of a log that are none") from None
    sizes, times = [size for size, _ in samples], [when for _, when in samples]
    if sizes != sorted(set(sizes)) or times != sorted(times):
        raise ProtocolError("it sent times of a log that are out of order")
    if sizes and not (part.at.offset <= sizes[0] and sizes[-1] <= end):
        raise ProtocolError(f"it sent times of bytes {sizes[0]} to {sizes[-1]} of a log, with bytes up to {end}")


def check_gpus(answer: HostGpus) -> None:
    """Raise ProtocolError for GPUs that no host has: the plan of a mesh that is placed on them keeps their names."""
    if why := impossible_gpus(answer.gpus):
        raise ProtocolError(why)


def own_use(run: Run, name: str, meshes: dict[str, dict[int, RankStats]]) -> dict[str, dict[int, RankStats]]:
    """Mesh → rank → use, from what a host reported; entries for ranks of other hosts are left out."""
    found: dict[str, dict[int, RankStats]] = {}
    for mesh in (run.meshes[m] for m in meshes if m in run.meshes):
        for number, use in meshes[mesh.name].items():
            rank = mesh.ranks.get(number)
            if rank is not None and rank.plan.host == name and _is_use(use):
                found.setdefault(mesh.name, {})[number] = use
    return found


def own_stacks(
    run: Run, name: str, meshes: dict[str, tuple[RankEvidence, ...]]
) -> dict[str, tuple[RankEvidence, ...]] | None:
    """Mesh → its ranks, from what a host reported of its own; None if that is too long to be sent on."""
    found: dict[str, tuple[RankEvidence, ...]] = {}
    for mesh in (run.meshes[m] for m in meshes if m in run.meshes):
        own = {n for n, rank in mesh.ranks.items() if rank.plan.host == name}
        seen = {r.rank: _with_few_groups(r) for r in meshes[mesh.name] if r.rank in own and r.host == name}
        found[mesh.name] = tuple(seen.values())
    return found if len(encode(HostStacks(name, found))) < MAX_LINE else None


def _with_few_groups(rank: RankEvidence) -> RankEvidence:
    """The evidence, without its collectives if they are of more groups than ranks have: each takes time to judge."""
    if len({(c.backend, c.group) for c in rank.collectives}) <= MOST_GROUPS:
        return rank
    return dataclasses.replace(rank, collectives=(), recorded=False)


def _is_use(use: RankStats) -> bool:
    still = 0.0 if use.still is None else use.still
    return all(math.isfinite(n) and n >= 0 for n in (use.cpu_percent, still)) and 0 <= use.rss_bytes <= LARGEST

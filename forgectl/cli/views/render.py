"""All Rich output: tables and reports, with respect for NO_COLOR, the width, and output that is no terminal.

All output passes through `_HarmlessConsole`, so text from a host, a rank or a spec cannot act on the terminal.
"""

from __future__ import annotations

import datetime
import math
import os
import re
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.padding import Padding
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from forgectl.log_output.terminal_text import harmless, wants_color
from forgectl.model.status import CollateralStatus, MeshStatus, RankStatus, ReplicaStatus, RunStatus, ServiceStatus
from forgectl.system.sizes import show_bytes

STATE_STYLE = {
    "running": "green", "ready": "green", "succeeded": "green", "up": "green",
    "failed": "bold red", "lost": "bold red", "killed": "red",
    "starting": "yellow", "restarting": "yellow", "stopping": "yellow", "degraded": "yellow", "pending": "yellow",
    "reconnecting": "yellow", "stopped": "dim", "exited": "dim",
}  # fmt: skip
_ROLE_STYLE = {"cause": "bold red", "victim": "dim", None: ""}
NARROWEST_REASON = 30
"""Columns that long reasons need inside a table; with fewer they are printed below it."""
_RAISED = re.compile(r"rank \d+ on \S+ (?:raised |exited with code \d+: )(.+)", re.DOTALL)
_COMPARED = 100  # characters of two errors that must be equal
_SEEN_LINES = 5  # of a log's end that are shown again
WIDE = 100_000
"""Columns of a table that goes into a pipe: nothing is cut."""


def stdout() -> Console:
    """The console for data."""
    return _console(sys.stdout)


def stderr() -> Console:
    """The console for everything else."""
    return _console(sys.stderr)


class _HarmlessConsole(Console):
    """Makes all text harmless for a terminal; our own colours and cursor movements pass."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable():
                yield segment
            else:
                lines = (harmless(line, color=False) for line in segment.text.split("\n"))
                yield Segment("\n".join(lines), segment.style)


def _console(stream: Any) -> Console:
    width = None if stream.isatty() else int(os.environ.get("COLUMNS") or WIDE)
    no_color = not wants_color(stream)
    return _HarmlessConsole(file=stream, width=width, highlight=False, no_color=no_color, markup=False, emoji=False)


def show(what: RenderableType) -> None:
    """Print data; if stdout is no terminal, without the trailing blanks of tables."""
    console = stdout()
    if console.is_terminal:
        console.print(what)
        return
    with console.capture() as capture:
        console.print(what)
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in capture.get().splitlines()))


def plain(text: str) -> Text:
    """Text from a host, rank or spec as it will be shown, so that the widths of columns are right."""
    return Text(harmless(text, color=False))


def state_text(state: str) -> Text:
    """A state in its colour."""
    return Text(state, style=STATE_STYLE.get(state, ""))


# ---------------------------------------------------------------- status


def status_view(runs: list[RunStatus], *, ranks: bool) -> RenderableType:
    """A row for each mesh, grouped by run; with `ranks`, also a row for each rank."""
    if not runs:
        return Text("no runs; `forgectl launch SPEC` starts one, `forgectl status -a` shows ended ones")
    parts: list[RenderableType] = [_Meshes(runs), *_troubled_hosts(runs)]
    if ranks:
        for run in runs:
            parts.append(Text())
            parts.extend(_run_details(run))
    return Group(*parts)


def _troubled_hosts(runs: list[RunStatus]) -> Iterator[RenderableType]:
    """A line for each host of a living run that is not reached."""
    for run in runs:
        for host in run.hosts:
            if not run.ended and host.state in ("reconnecting", "lost"):
                where = f" of run {run.run}" if len(runs) > 1 else ""
                seen = f", last seen {age(host.last_seen)} ago" if host.last_seen else ""
                yield Text.assemble("  host ", plain(host.name), f"{where}: ", state_text(host.state), seen)


class _Meshes:
    """A row for each mesh. If there is no room for the reasons in the rows, they follow below."""

    def __init__(self, runs: list[RunStatus]) -> None:
        several = len(runs) > 1
        self._rows = [
            [*_mesh_row(run, mesh, f"{run.run}/{mesh.mesh}" if several else mesh.mesh)]
            for run in runs
            for mesh in run.meshes
        ]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        reasons = [row[-1] for row in self._rows if isinstance(row[-1], Text)]
        longest = max((reason.cell_len for reason in reasons), default=0)
        headings = ("MESH", "KIND", "STATE", "READY", "HOSTS", "GPUS", "RESTARTS", "AGE")
        bare = _table(*headings)
        for row in self._rows:
            bare.add_row(*row[:-1])
        room = options.max_width - 2 - Measurement.get(console, options, bare).maximum
        if room >= min(longest, NARROWEST_REASON) and room >= len("REASON"):
            full = _table(*headings, "REASON")
            for row in self._rows:
                full.add_row(*row)
            yield full
            return
        yield bare
        for row in self._rows:
            if isinstance(row[0], Text) and isinstance(row[-1], Text) and row[-1].plain != "-":
                yield Padding(Text.assemble(row[0], ": ", row[-1]), (0, 0, 0, 2), expand=False)


def _mesh_row(run: RunStatus, mesh: MeshStatus, name: str) -> Iterator[RenderableType]:
    hosts = list(dict.fromkeys(r.host for r in mesh.ranks))
    gpus = sum(len(r.gpus) for r in mesh.ranks)
    yield plain(name)
    yield Text(mesh.kind)
    yield state_text(mesh.state)
    yield Text(f"{mesh.ready}/{mesh.desired}")
    yield plain(hosts[0] if len(hosts) == 1 else f"{hosts[0]} +{len(hosts) - 1}")
    yield Text(str(gpus) if gpus else "-")
    yield Text(f"{mesh.restarts}/{mesh.max_restarts}" if mesh.max_restarts else "-")
    yield Text(age(run.started_at, run.ended_at))
    yield plain(_reason(mesh))


def _reason(mesh: MeshStatus) -> str:
    """Why the mesh is in its state; if it waits for its restart, first for how long."""
    reason = mesh.reason or "-"
    if mesh.restarting is None or mesh.restarting.at is None:
        return reason
    left = max(0, math.ceil((_time(mesh.restarting.at) - _now()).total_seconds()))
    return f"restarting in {left} s: {reason}"


def _run_details(run: RunStatus) -> Iterator[RenderableType]:
    alive = f"controller {run.controller.pid}" if run.controller.alive else "no controller"
    yield Text.assemble("run ", (run.run, "bold"), ": ", state_text(run.state), f", {alive}, {run.run_dir}")
    table = _table("RANK", "HOST", "PID", "STATE", "GPUS", "CPU %", "MEMORY", "END")
    for mesh in run.meshes:
        for rank in mesh.ranks:
            role = _role(rank, mesh)
            state = "waiting" if mesh.restarting and mesh.restarting.at else rank.state
            table.add_row(
                plain(f"{mesh.mesh}/{rank.rank}"),
                plain(rank.host),
                Text(str(rank.pid or "-")),
                state_text(state) if role is None else Text(state),
                Text(",".join(rank.gpus) or "-"),
                Text("-" if rank.cpu_percent is None else f"{rank.cpu_percent:.0f}", justify="right"),
                Text("-" if rank.rss_bytes is None else show_bytes(rank.rss_bytes), justify="right"),
                Text(how_ended(rank) if role != "cause" else f"{how_ended(rank)} (root cause)".removeprefix("- ")),
                style=_ROLE_STYLE[role],
            )
    yield table
    if len(run.hosts) > 1 or run.hosts[0].state not in ("up", "gone"):
        yield Text()
        yield _hosts(run)
    names = {m.mesh.rpartition(".")[0] for m in run.meshes if m.kind == "service"}
    services = [service for name, service in (run.services or {}).items() if name in names]
    if services:
        yield Text()
        yield _services(services)


def _role(rank: RankStatus, mesh: MeshStatus) -> Literal["cause", "victim"] | None:
    """Whether an ended rank caused the end of its mesh, or was ended by it; None if its mesh goes on, or is done."""
    if not rank.ended or (mesh.failure is None and mesh.state not in ("stopping", "stopped")):
        return None
    return "cause" if mesh.failure and rank.rank == mesh.failure.rank else "victim"


def _hosts(run: RunStatus) -> Table:
    table = _table("HOST", "STATE", "ADDRESS", "AGENT", "LAST SEEN")
    for host in run.hosts:
        table.add_row(
            plain(host.name),
            state_text(host.state),
            plain(host.address or "-"),
            Text(str(host.agent_pid or "-")),
            Text(f"{age(host.last_seen)} ago" if host.last_seen and not run.ended else "-"),
        )
    return table


def _services(services: list[ServiceStatus]) -> Table:
    """A row for each service, and for each of its replicas."""
    table = _table(
        "SERVICE", "HEALTHY", "REQUESTS", "FAILED", "PER S", "MEAN", "P50", "P99", "ACTIVE", "QUEUED", "SESSIONS"
    )
    for service in services:
        healthy = Text(f"{sum(r.healthy for r in service.replicas)}/{len(service.replicas)}")
        table.add_row(plain(service.service), healthy, *_requests(service))
        for replica in service.replicas:
            healthy = Text("yes", "green") if replica.healthy else Text("no", "bold red")
            table.add_row(plain(f"  {replica.mesh}"), healthy, *_requests(replica))
    return table


def _requests(counts: ServiceStatus | ReplicaStatus) -> Iterator[Text]:
    for count in (counts.total, counts.failures):
        yield Text(str(count), justify="right")
    yield Text(f"{counts.requests_per_second:.1f}", justify="right")
    for latency in (counts.latency_mean, counts.latency_p50, counts.latency_p99):
        yield Text("-" if latency is None else f"{1000 * latency:.1f} ms", justify="right")
    for count in (counts.active, counts.queued, counts.sessions):
        yield Text(str(count), justify="right")


def how_ended(rank: RankStatus) -> str:
    """`exit 0`, `SIGTERM`, or `-` for a rank that has not ended."""
    if rank.signal is not None:
        try:
            return signal.Signals(rank.signal).name
        except ValueError:
            return f"signal {rank.signal}"
    return "-" if rank.exit_code is None else f"exit {rank.exit_code}"


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
    for column in columns:
        flexible = column in (
            "MESH",
            "RANK",
            "REASON",
            "END",
            "SERVICE",
        )  # these are folded if there is no room for all
        table.add_column(column, no_wrap=not flexible, overflow="fold", min_width=len(column))
    return table


def age(start: str | None, end: str | None = None) -> str:
    """The time since `start`, or from `start` to `end`: `12s`, `5m`, `3h`, `2d`."""
    if start is None:
        return "-"
    until = _time(end) if end else _now()
    seconds = max(0, int((until - _time(start)).total_seconds()))
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.timezone.utc)


def _time(text: str) -> datetime.datetime:
    return datetime.datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=datetime.timezone.utc)


# ---------------------------------------------------------------- changes of a mesh


def state_sentence(mesh: MeshStatus) -> str:
    """The state that a mesh has come to, and why; where ranks did not end by themselves, how many SIGKILL ended."""
    reason = mesh.reason if mesh.state in ("stopping", "stopped", "failed", "lost") else None
    by = (reason or "").removeprefix("stopped by ")
    if mesh.state == "stopped" and by != reason:
        killed = sum(r.signal == signal.SIGKILL for r in mesh.ranks)
        how = f"; SIGKILL ended {killed} of {mesh.desired} ranks" if killed else ""
        return f"{mesh.mesh} stopped by {by}{how}"
    return f"{mesh.mesh} {mesh.state}: {by}" if by else f"{mesh.mesh} {mesh.state}"


def last_restart(mesh: MeshStatus) -> int:
    """The number of the restart that is under way, else of the last one."""
    return mesh.restarting.number if mesh.restarting else mesh.restarts


def restarts(mesh: MeshStatus, shown: int) -> Iterator[str]:
    """`m: restart 3 of 30 in 4 s: why` for the restarts after number `shown`: no report need have come in between."""
    last = last_restart(mesh)
    if last <= shown:
        return
    if last - shown > 1:
        several = f"restart {shown + 1}" if last - shown == 2 else f"restarts {shown + 1} to {last - 1}"
        yield f"{mesh.mesh}: {several}{_at_most(mesh, last - 1)}"
    wait = mesh.restarting.wait if mesh.restarting else 0.0
    when = f" in {wait:g} s" if wait else ""
    why = f": {mesh.reason.removeprefix('restarted: ')}" if mesh.reason else ""
    yield f"{mesh.mesh}: restart {last}{_at_most(mesh, last)}{when}{why}"


def _at_most(mesh: MeshStatus, number: int) -> str:
    """More than the maximum are possible where only those within a time count."""
    return f" of {mesh.max_restarts}" if number <= mesh.max_restarts else ""


# ---------------------------------------------------------------- failures


def failure_report(mesh: MeshStatus, *, seen: bool = False) -> RenderableType | None:
    """Why a mesh failed: the root cause with its traceback, or else its last log lines, then the collateral ranks.

    Ranks with the same error are one line. If the output of ranks was `seen` where this is shown, it is not repeated
    in full: of a traceback only the last frame, of log lines only the last few.
    """
    failure = mesh.failure
    if failure is None:
        return None
    lines = [
        Text.assemble(
            (f"{mesh.mesh} {mesh.state}", "bold red"), ": ", Text(harmless(failure.message, color=False), "bold")
        )
    ]
    if failure.traceback:
        trace = failure.traceback.rstrip().splitlines()
        lines += [Text("  ") + plain(line) for line in (_last_frame(trace) if seen else trace)]
    elif failure.log_tail:
        lines.append(Text("  its last log lines:", style="dim"))
        lines += [Text("  │ ", style="dim") + plain(line) for line in failure.log_tail[-_SEEN_LINES if seen else 0 :]]
    if failure.log:
        lines.append(Text("  log: ", style="dim") + plain(failure.log))
    alike = [c for c in failure.collateral if _error(c.message) and _error(c.message) == _error(failure.message)]
    if alike and failure.rank is not None:
        ranks = _ranges([failure.rank, *(c.rank for c in alike)])
        lines.append(Text(f"  ranks {ranks}: the same error", style="dim"))
    if others := [c for c in failure.collateral if c not in alike]:
        lines.append(Text(f"  fell with it: {_folded(others)}", style="dim"))
    return Group(*lines)


def _last_frame(trace: list[str]) -> list[str]:
    """The end of a traceback, from its last frame on."""
    frames = [i for i, line in enumerate(trace) if line.startswith('  File "')]
    return trace[frames[-1] :] if frames else trace[-1:]


def _error(message: str) -> str:
    """What a rank raised, from the sentence about its end; "" if it did not say. Long ones come cut."""
    match = _RAISED.fullmatch(message)
    return match[1][:_COMPARED] if match else ""


def _ranges(ranks: Iterable[int]) -> str:
    """`0-2,5`."""
    parts: list[list[int]] = []
    for rank in sorted(set(ranks)):
        if parts and rank == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], rank]
        else:
            parts.append([rank])
    return ",".join("-".join(map(str, part)) for part in parts)


def _folded(collateral: Sequence[CollateralStatus]) -> str:
    """`rank 0 on local exited with code 1; and 6 more`: one line, since these ranks are not the cause."""
    first = harmless(collateral[0].message, color=False)
    return first if len(collateral) == 1 else f"{first}; and {len(collateral) - 1} more"

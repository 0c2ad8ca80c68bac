"""What `forgectl status` shows to people: a row for each mesh and, if asked for, for each rank, host and service."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from rich.console import Group, RenderableType
from rich.text import Text

from forgectl.cli.views import render
from forgectl.cli.views.columns import Column
from forgectl.cli.views.render import how_ended, plain, state_text
from forgectl.cli.views.table import Table
from forgectl.model.status import MeshStatus, RankStatus, ReplicaStatus, RunStatus, ServiceStatus
from forgectl.names import service_of
from forgectl.system.sizes import show_bytes

MESH = (
    Column("RUN", least=10), Column("MESH", least=8), Column("KIND", drop=6), Column("STATE"), Column("READY", drop=1),
    Column("HOSTS", drop=5, least=8), Column("GPUS", drop=8), Column("RESTARTS", drop=7),
    Column("STARTED", drop=4), Column("ENDED", drop=2), Column("ELAPSED", drop=3), Column("PROGRESS", drop=9),
)  # fmt: skip
WIDE = (*MESH, Column("GENERATION"), Column("EXIT"))
_PASSING = tuple(i for i, c in enumerate(MESH) if c.heading in ("ELAPSED", "PROGRESS"))
NAMES = 2
"""The first columns of a mesh, which name it."""
RANK = (
    Column("RANK", least=10), Column("HOST", drop=3, least=8), Column("PID", drop=4), Column("STATE"),
    Column("GPUS", drop=5), Column("CPU %", drop=2, right=True), Column("MEMORY", drop=1, right=True),
    Column("PROGRESS", drop=6), Column("END"),
)  # fmt: skip
HOST = (
    Column("HOST", least=10), Column("STATE"), Column("ADDRESS", drop=2), Column("AGENT", drop=3),
    Column("LAST SEEN", drop=1),
)  # fmt: skip
SERVICE = (
    Column("SERVICE", least=10), Column("HEALTHY"), Column("REQUESTS", drop=1, right=True),
    *(Column(name, drop=n, right=True) for name, n in (
        ("FAILED", 2), ("PER S", 3), ("MEAN", 7), ("P50", 6), ("P99", 4), ("ACTIVE", 8), ("QUEUED", 5), ("SESSIONS", 9)
    )),
)  # fmt: skip

Row = tuple[Text, ...]
_ROLE_STYLE = {"cause": "bold red", "victim": "dim", None: ""}


@dataclass
class ChangedRows:
    """Which rows of a table were not drawn before, for output that is appended to."""

    _seen: dict[str, set[str]] = field(default_factory=dict)

    def of(self, table: str, rows: Sequence[Row], lasting: Callable[[Row], Row]) -> tuple[list[Row], bool]:
        """The rows with something new in their `lasting` cells, and whether the table is new, too."""
        before = self._seen.get(table)
        now = {"\t".join(cell.plain for cell in lasting(row)): row for row in rows}
        self._seen[table] = set(now)
        return [row for key, row in now.items() if key not in (before or ())], before is None


def status_view(runs: Sequence[RunStatus], *, ranks: bool, wide: bool = False) -> RenderableType:
    """A row for each mesh, grouped by run; with `ranks`, also a row for each rank. `wide`: with all that is known."""
    parts: list[RenderableType] = [_meshes(runs, wide, ranks), *_troubled_hosts(runs)]
    if ranks:
        for run in runs:
            parts.append(Text())
            parts.extend(_run_details(run))
    return Group(*parts)


def nothing_runs(last: RunStatus | None) -> Text:
    """What is shown in place of an empty table; `last` is the run that ended last."""
    if last is None:
        return Text("no runs; `forgectl launch SPEC` starts one")
    ago = f" {render.age(last.ended_at)} ago" if last.ended_at else ""
    how = Text.assemble("no runs; the last one, ", plain(last.run), ", ", state_text(last.state), ago)
    return how + Text("; `forgectl status -a` shows ended ones")


def news(runs: Sequence[RunStatus], changed: ChangedRows, *, ranks: bool) -> Iterator[RenderableType]:
    """The rows that are new or have changed in more than what they use and how long they have lasted."""
    rows = _mesh_rows(runs, MESH, wide=False, ranks=ranks, counting=False)
    fresh, is_new = changed.of(
        "meshes", rows, lambda row: tuple(cell for i, cell in enumerate(row) if i not in _PASSING)
    )
    if fresh:
        yield Table(MESH, fresh, remark="REASON", names=NAMES, head=is_new, widest=rows)
    if ranks:
        rows = [row for run in runs for row in _rank_rows(run)]
        fresh, is_new = changed.of("ranks", rows, lambda row: (*row[:5], row[8]))
        if fresh:
            yield Table(RANK, fresh, head=is_new, widest=rows)


def _troubled_hosts(runs: Sequence[RunStatus]) -> Iterator[RenderableType]:
    """A line for each host of a living run that is not reached."""
    for run in runs:
        for host in run.hosts:
            if not run.ended and host.state in ("reconnecting", "lost"):
                where = f" of run {run.run}" if len(runs) > 1 else ""
                seen = f", last seen {render.age(host.last_seen)} ago" if host.last_seen else ""
                yield Text.assemble("  host ", plain(host.name), f"{where}: ", state_text(host.state), seen)


def _meshes(runs: Sequence[RunStatus], wide: bool, ranks: bool) -> Table:
    columns = _columns(runs, wide=wide)
    return Table(columns, _mesh_rows(runs, columns, wide=wide, ranks=ranks), remark="REASON", names=NAMES)


def _columns(runs: Sequence[RunStatus], *, wide: bool) -> tuple[Column, ...]:
    """The columns of meshes; only where one has ended also when it did."""
    if wide:
        return WIDE
    ended = any(mesh.ended for run in runs for mesh in run.meshes)
    return tuple(c for c in MESH if ended or c.heading != "ENDED")


def _mesh_rows(
    runs: Sequence[RunStatus], columns: Sequence[Column], *, wide: bool, ranks: bool, counting: bool = True
) -> list[Row]:
    """The cells of each mesh, and its reason; `counting`: with the seconds that are left to its restart."""
    rows = []
    for run in runs:
        for mesh in run.meshes if wide or ranks else shown(run):
            cells = {c.heading: cell for c, cell in zip(WIDE, _mesh_cells(run, mesh, wide), strict=True)}
            rows.append(
                (*(cells[c.heading] for c in columns), plain(_reason(mesh) if counting else mesh.reason or "-"))
            )
    return rows


def _reason(mesh: MeshStatus) -> str:
    """Why the mesh is in its state; if it waits for its restart, first for how long."""
    reason = mesh.reason or "-"
    if mesh.restarting is None or mesh.restarting.at is None:
        return reason
    return f"restarting in {math.ceil(render.seconds_until(mesh.restarting.at))} s: {reason}"


def shown(run: RunStatus) -> list[MeshStatus]:
    """The meshes that a user wrote; the driver that forgectl adds only if it fails, or while it is alone."""
    own = [m for m in run.meshes if not m.implicit or m.state in ("failed", "lost")]
    return own or list(run.meshes)


def _mesh_cells(run: RunStatus, mesh: MeshStatus, wide: bool) -> Iterator[Text]:
    hosts = list(dict.fromkeys(r.host for r in mesh.ranks))
    gpus = sum(len(r.gpus) for r in mesh.ranks)
    end = (mesh.since or run.ended_at) if mesh.ended else None
    more = f" +{len(hosts) - 1}" if len(hosts) > 1 else ""
    exit_codes = {128 + r.signal if r.signal is not None else r.exit_code for r in mesh.ranks if r.ended}
    yield plain(run.run)
    yield plain(mesh.mesh)
    yield Text(mesh.kind)
    yield state_text(mesh.state)
    yield Text(f"{mesh.ready}/{mesh.desired}")
    yield plain(",".join(hosts) if wide else f"{hosts[0]}{more}" if hosts else "-")
    yield Text(str(gpus) if gpus else "-")
    yield Text(f"{mesh.restarts}/{mesh.max_restarts}" if mesh.max_restarts else "-")
    yield Text(render.clock(run.started_at, whole=wide))
    yield Text(render.clock(end, whole=wide))
    yield Text(render.age(run.started_at, end))
    yield _progress(mesh.seconds_since_progress, hung=mesh.hung is not None)
    yield Text(str(mesh.generation))
    yield Text(",".join(sorted(str(code) for code in exit_codes if code is not None)) or "-")


def _progress(seconds: float | None, *, hung: bool) -> Text:
    """The time since the last progress of what works."""
    return Text("-" if seconds is None else f"{render.lasting(seconds)} ago", "yellow" if hung else "")


def _run_details(run: RunStatus) -> Iterator[RenderableType]:
    alive = f"controller {run.controller.pid}" if run.controller.alive else "no controller"
    yield Text.assemble("run ", (run.run, "bold"), ": ", state_text(run.state), f", {alive}, {run.run_dir}")
    yield Table(RANK, list(_rank_rows(run)))
    if len(run.hosts) > 1 or run.hosts[0].state not in ("up", "gone"):
        yield Text()
        yield Table(HOST, [_host_cells(run, i) for i in range(len(run.hosts))])
    names = {service_of(m.mesh, m.kind) for m in run.meshes}
    services = [service for name, service in (run.services or {}).items() if name in names]
    if services:
        yield Text()
        yield Table(SERVICE, [row for service in services for row in _service_rows(service)])


def _rank_rows(run: RunStatus) -> Iterator[Row]:
    for mesh in run.meshes:
        for rank in mesh.ranks:
            role = _role(rank, mesh)
            end = how_ended(rank)
            state = "waiting" if mesh.restarting and mesh.restarting.at else rank.state
            used = not rank.ended  # the last figures of a process that is gone say nothing
            yield (
                plain(f"{mesh.mesh}/{rank.rank}"),
                plain(rank.host),
                Text(str(rank.pid or "-")),
                Text(state, _ROLE_STYLE[role]) if role else state_text(state),
                Text(",".join(rank.gpus) or "-"),
                Text(f"{rank.cpu_percent:.0f}" if used and rank.cpu_percent is not None else "-"),
                Text(show_bytes(rank.rss_bytes) if used and rank.rss_bytes is not None else "-"),
                _progress(
                    rank.seconds_since_progress if used else None, hung=bool(mesh.hung and rank.rank in mesh.hung.ranks)
                ),
                Text(f"{end} (root cause)".removeprefix("- ") if role == "cause" else end, _ROLE_STYLE[role]),
            )


def _role(rank: RankStatus, mesh: MeshStatus) -> Literal["cause", "victim"] | None:
    """Whether an ended rank caused the end of its mesh, or was ended by it; None if its mesh goes on, or is done."""
    if not rank.ended or (mesh.failure is None and mesh.state not in ("stopping", "stopped")):
        return None
    return "cause" if mesh.failure and rank.rank == mesh.failure.rank else "victim"


def _host_cells(run: RunStatus, index: int) -> Row:
    host = run.hosts[index]
    return (
        plain(host.name),
        state_text(host.state),
        plain(host.address or "-"),
        Text(str(host.agent_pid or "-")),
        Text(f"{render.age(host.last_seen)} ago" if host.last_seen and not run.ended else "-"),
    )


def _service_rows(service: ServiceStatus) -> Iterator[Row]:
    """A row for the service, and for each of its replicas."""
    healthy = Text(f"{sum(r.healthy for r in service.replicas)}/{len(service.replicas)}")
    yield (plain(service.service), healthy, *_requests(service))
    for replica in service.replicas:
        healthy = Text("yes", "green") if replica.healthy else Text("no", "bold red")
        yield (plain(f"  {replica.mesh}"), healthy, *_requests(replica))


def _requests(counts: ServiceStatus | ReplicaStatus) -> Iterator[Text]:
    for count in (counts.total, counts.failures):
        yield Text(str(count))
    yield Text(f"{counts.requests_per_second:.1f}")
    for latency in (counts.latency_mean, counts.latency_p50, counts.latency_p99):
        yield Text("-" if latency is None else f"{1000 * latency:.1f} ms")
    for count in (counts.active, counts.queued, counts.sessions):
        yield Text(str(count))

"""A plan as `forgectl plan` shows it: a row for each mesh, then its environment and ranks on each host."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from forgectl.model.environment import AT_LAUNCH, PER_RANK
from forgectl.model.plan import BACKOFF, RESTART_CAUSES, Gpu, HookPlan, MeshPlan, OnFailure, Plan, RankPlan
from forgectl.system.times import show_duration
from forgectl.wire.codec import to_json

SECRET = "***"
LATER = "(at launch)"
_FAILURES: dict[OnFailure, str] = {
    "stop": "on_failure: stop (the first mesh that fails for good ends the run)",
    "continue": "on_failure: continue (the other meshes go on)",
}


def plan_json(plan: Plan) -> dict[str, Any]:
    """The plan as one JSON document; `at_launch` names the variables that each rank gets only at launch."""
    return {"schema_version": 1, **to_json(plan), "at_launch": list(AT_LAUNCH)}


def plan_table(plan: Plan) -> Group:
    """The plan as tables for people, at 80 columns and more."""
    meshes = [m for m in plan.meshes if m.program.kind != "resident"]  # a driver that the spec does not have
    parts: list[RenderableType] = [_summary(meshes)]
    if plan.on_failure:
        parts += ["", _FAILURES[plan.on_failure]]
    if plan.on:
        parts += ["", _hooks(plan.on)]
    for mesh in meshes:
        for host in mesh.hosts:
            parts += ["", *_mesh_on_host(mesh, host)]
    return Group(*parts)


def _hooks(on: HookPlan) -> Table:
    """The commands for events, one per line."""
    words = {name: w[2] if w[:2] == ("/bin/sh", "-c") else shlex.join(w) for name, w in on.commands.items()}
    return _pairs({f"on {name}": line for name, line in words.items()})


def _summary(meshes: Iterable[MeshPlan]) -> Table:
    table = _table("MESH", "KIND", "PROCS", "HOSTS", "GPUS", "RESTARTS", "RUNS")
    for mesh in meshes:
        table.add_row(
            _plain(mesh.mesh),
            mesh.kind,
            str(mesh.procs),
            _plain(", ".join(mesh.hosts)),
            _plain(_gpus(mesh)),
            _restarts(mesh),
            _plain(_program(mesh)),
        )
    return table


def _mesh_on_host(mesh: MeshPlan, host: str) -> Iterator[RenderableType]:
    ranks = mesh.ranks_on(host)
    of = f" of {mesh.procs}" if len(ranks) < mesh.procs else ""
    count = f"{len(ranks)}{of} rank" + "s" * (mesh.procs > 1)
    how = f"{mesh.start_method} from {mesh.python[host]}"
    if mesh.preload and mesh.start_method == "fork":
        how += f", preload {' '.join(mesh.preload)}"
    if (limit := mesh.unit.time_limit) is not None:
        how += f", time limit {show_duration(limit)}"
    name = (_plain_str(mesh.mesh), "bold")
    yield Text.assemble(name, " on ", (_plain_str(host), "bold"), _plain_str(f": {count}, {how}"))
    for part in (_given(mesh, host), _ours(mesh, ranks), _ranks(ranks, mesh.gpus[host])):
        yield Padding(part, (0, 0, 0, 2))


def _given(mesh: MeshPlan, host: str) -> Table:
    """The environment of the mesh's fork server on this host, a variable per line."""
    variables = {**mesh.env[host], **dict.fromkeys(mesh.secrets, SECRET)}
    return _pairs(dict(sorted(variables.items())))


def _ours(mesh: MeshPlan, ranks: tuple[RankPlan, ...]) -> Table:
    """The variables that forgectl sets alike for all ranks on this host, then those known only at launch."""
    own = _own_names(ranks)
    alike = " ".join(f"{n}={v}" for n, v in ranks[0].env.items() if n not in own)
    later = [*AT_LAUNCH, *(["GLOO_SOCKET_IFNAME"] if len(mesh.hosts) > 1 else [])]
    return _pairs({"(every rank)": alike, LATER: " ".join(later)})


def _pairs(rows: dict[str, str]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(_plain(name), _plain(value))
    return table


def _ranks(ranks: tuple[RankPlan, ...], gpus: tuple[Gpu, ...]) -> Table:
    table = _table("RANK", "GPU", "OWN VARIABLES")
    own = _own_names(ranks)
    names = {g.visible: g.name for g in gpus}
    for rank in ranks:
        gpu = ", ".join(f"{g} {names.get(g, '')}".strip() for g in rank.gpus)
        variables = " ".join(f"{n}={v}" for n, v in rank.env.items() if n in own)
        table.add_row(str(rank.rank), _plain(gpu or "-"), _plain(variables))
    return table


def _own_names(ranks: Iterable[RankPlan]) -> set[str]:
    """Names of the variables that differ between ranks of a host, or may differ."""
    names: set[str] = set(PER_RANK)
    first, *others = ranks
    for rank in others:
        names |= {n for n, _ in rank.env.items() ^ first.env.items()}
    return names


def _gpus(mesh: MeshPlan) -> str:
    count = sum(len(on_host) for on_host in mesh.gpus.values())
    owner = mesh.unit.share_gpus_with
    return (f"{count} of {owner}" if owner else str(count)) if count else "-"


def _restarts(mesh: MeshPlan) -> str:
    if not mesh.restart.max:
        return "never"
    within = mesh.restart.within
    text = str(mesh.restart.max) if within is None else f"{mesh.restart.max} in {show_duration(within)}"
    backoff, causes = mesh.restart.backoff, mesh.restart.on
    if backoff != BACKOFF:
        text += f", backoff {show_duration(backoff)}" if backoff else ", at once"
    return text if causes == RESTART_CAUSES else f"{text}, on {', '.join(causes)}"


def _program(mesh: MeshPlan) -> str:
    program = mesh.program
    prefix = ["-m"] if program.kind == "module" else []
    return shlex.join([*prefix, program.target, *program.args])


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def _plain(text: str) -> Text:
    return Text(_plain_str(text), overflow="fold")


def _plain_str(text: str) -> str:
    """The text with every escape, control character and bidi mark made visible, so that none acts on a terminal."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)

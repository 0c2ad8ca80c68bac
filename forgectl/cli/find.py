"""Finds the runs, meshes and ranks that a user names on a command line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from forgectl.cli.address import Address, KnownMesh, KnownRun, resolve
from forgectl.controller import client, run_dir
from forgectl.controller.run_dir import RunDir
from forgectl.errors import ForgeError, NotFoundError, UsageError
from forgectl.frozen import dataclass
from forgectl.model.status import RunStatus
from forgectl.names import nearest, service_of

SHOWN = 8
"""Most names in a hint."""


@dataclass(frozen=True)
class Found:
    """A run, and what of it was named: `target` is a mesh or a service, None for the whole run.

    `meshes` are those it stands for now; `rank` is one rank of them, None for all.
    """

    run: RunDir
    target: str | None
    meshes: tuple[str, ...]
    rank: int | None = None

    @property
    def ranks(self) -> frozenset[int] | None:
        """The ranks, None for all."""
        return None if self.rank is None else frozenset({self.rank})

    def __str__(self) -> str:
        return str(Address(self.run.run, self.target, self.meshes, self.rank))


def all_living() -> list[RunDir]:
    """Runs that have not ended, oldest first."""
    return [run for run in run_dir.all_runs() if not run.has_ended]


def living_of(spec: Path) -> list[RunDir]:
    """The runs that were launched from this file and have not ended. One whose plan cannot be read is none."""
    file, found = spec.resolve(), []
    for run in all_living():
        with contextlib.suppress(ForgeError):
            launched = run.read_plan().spec
            if launched and Path(launched).resolve() == file:
                found.append(run)
    return found


def raise_refused() -> None:
    """Raise NotOursError if there is a run that is not read, as others may have made or touched it."""
    for refusal in run_dir.refused_runs().values():
        raise refusal


def find(text: str, *, ended: bool = False) -> Found:
    """What RUN, MESH, RUN/MESH, MESH/RANK or RUN/MESH/RANK means: in living runs, else with `ended` in the latest.

    A service's name stands for the meshes of all its replicas. Raises NotFoundError, UsageError if it may mean several
    things, NotOursError.
    """
    by_id = {r.run: r for r in run_dir.all_runs()}
    over = [r for r in reversed(by_id.values()) if r.has_ended]
    ended_ids = {r.run for r in over}
    living = [_known(r) for r in by_id.values() if r.run not in ended_ids]
    address = resolve(text, living, map(known_ended, meant(text, over)) if ended else ())
    if address is None:
        if (refusal := run_dir.refused_runs().get(text.partition("/")[0])) is not None:
            raise refusal
        raise_refused()  # it may be a mesh of such a run
        if not ended and (address := resolve(text, (), map(known_ended, meant(text, over)))):
            raise _has_ended(by_id[address.run], address)
        raise _not_found(text, living, over if ended else [])
    return Found(by_id[address.run], address.target, address.meshes, address.rank)


def find_most(text: str) -> Found:
    """As `find`, also in runs that have ended; a name that a run shares with its only mesh means the run."""
    found = find(text, ended=True)
    if found.rank is None and found.target == found.run.name and "/" not in text:
        known = _known(found.run).meshes
        if {name for name, mesh in known.items() if not mesh.implicit} == {*found.meshes}:
            return Found(found.run, None, tuple(known))
    return found


def find_whole(text: str, command: str, *, ended: bool = False) -> Found:
    """As `find`, for commands that act on whole meshes. Raises UsageError for a single rank."""
    found = find(text, ended=ended)
    if found.rank is not None:
        mesh = f"{found.run.run}/{found.target}"
        raise UsageError(f"{text} is one rank; ranks of a mesh live and end together", hint=f"{command} {mesh}")
    return found


def find_run(name: str, *, ended: bool = False) -> RunDir:
    """The run of that id or name. Raises as `find`."""
    runs = [r for r in run_dir.all_runs() if name in (r.run, r.name)]
    exact = [r for r in runs if r.run == name]
    living = [r for r in runs if not r.has_ended]
    if not exact and len(living) > 1:
        raise UsageError(f"several runs are named {name!r}: {', '.join(r.run for r in living)}", hint="give one's id")
    if found := exact or living or (runs if ended else []):
        return found[-1]
    if (refusal := run_dir.refused_runs().get(name)) is not None:
        raise refusal
    raise NotFoundError(f"no run {name!r}", hint=_nearest(name, [n for r in all_living() for n in (r.run, r.name)]))


def only_living() -> Found:
    """The one run that has not ended. Raises NotFoundError if there is none, UsageError if there are several."""
    living = all_living()
    if len(living) > 1:
        raise UsageError(f"{len(living)} runs are alive", hint=f"say which: {', '.join(r.run for r in living[:SHOWN])}")
    if not living:
        raise_refused()
        over = run_dir.all_runs()
        raise NotFoundError("nothing is running", hint=f"the latest run that ended is {over[-1].run}" if over else None)
    return Found(living[0], None, tuple(_known(living[0]).meshes))


def latest() -> Found:
    """The run that failed last, or the one living run, whichever is newer; else the run that ended last.

    Raises NotFoundError if there is no run, UsageError if several live and none has failed since they began.
    """
    living = all_living()
    began = max((run.begin_time() for run in living), default=0.0)
    over = sorted((run for run in run_dir.all_runs() if run.has_ended), key=lambda run: run.end_time() or 0.0)
    for run in reversed(over):
        if (run.end_time() or 0.0) < began:
            break
        final = run.read_final()
        if final is not None and final.state in ("failed", "lost"):
            return Found(run, None, tuple(m.mesh for m in final.meshes))
    if living or not over:
        return only_living()
    return Found(over[-1], None, tuple(_known(over[-1]).meshes))


def in_one_run(found: Sequence[Found]) -> RunDir:
    """The run that several names are of. Raises UsageError if they are of several."""
    runs = list(dict.fromkeys(f.run for f in found))
    if len(runs) > 1:
        raise UsageError(f"these are of {len(runs)} runs: {', '.join(map(str, found))}", hint="name those of one run")
    return runs[0]


def _has_ended(run: RunDir, address: Address) -> NotFoundError:
    """The error for a name of a run that is over: how it ended."""
    from forgectl.cli.outcome import outcome  # only after a mistake

    final = run.read_final()
    how = outcome(final, address.meshes if address.target else None, ago=True) if final else f"run {run.run} has ended"
    return NotFoundError(how, hint=f"`forgectl logs {address}` shows what it printed")


def _not_found(text: str, living: list[KnownRun], over: list[RunDir]) -> NotFoundError:
    first, slash, rest = text.partition("/")
    runs = [*living, *map(known_ended, over[:SHOWN])]
    if not slash:
        names = [n for r in runs for n in (r.run, r.name, *_targets(r))]
        return NotFoundError(f"no run or mesh {text!r}", hint=_nearest(text, names))
    for run in runs:
        if first in (run.run, run.name):
            return NotFoundError(f"run {run.run} has no mesh {rest!r}", hint=_nearest(rest, list(_targets(run))))
        if first in _targets(run):
            return NotFoundError(f"mesh {first!r} has no rank {rest!r}", hint="ranks are numbers, from 0")
    return NotFoundError(f"no run {first!r}", hint=_nearest(first, [n for r in runs for n in (r.run, r.name)]))


def _targets(run: KnownRun) -> Iterator[str]:
    """Its meshes and services."""
    for name, mesh in run.meshes.items():
        yield name
        if service := service_of(name, mesh.kind):
            yield service


def meant(text: str, ended: Sequence[RunDir]) -> Iterator[RunDir]:
    """Those of the ended runs that a text may mean. To read all that of thousands of runs would take seconds."""
    first = text.partition("/")[0]
    named = [run for run in ended if run.run == first]
    return (run for run in named or ended if first in (run.run, run.name) or run.may_have_had(first))


def _known(run: RunDir) -> KnownRun:
    """A living run and its meshes. Only the controller knows of meshes that code added."""
    try:
        if run.read_plan().may_grow:
            return known_by_status(client.document(run))
    except ForgeError:  # meshes of other runs must still be found; `forgectl status` shows this error
        return KnownRun(run.run, {})
    return known_by_plan(run)


def known_by_plan(run: RunDir) -> KnownRun:
    """A run with the meshes that it began with. Raises InternalError if its plan cannot be read."""
    meshes = run.read_plan().meshes
    return KnownRun(run.run, {m.mesh: KnownMesh(m.kind, m.procs, m.program.kind == "resident") for m in meshes})


def known_by_status(status: RunStatus, *, ended: bool = True) -> KnownRun:
    """A run with its meshes in some state; without `ended` only those that live."""
    meshes = [m for m in status.meshes if ended or not m.ended]
    return KnownRun(status.run, {m.mesh: KnownMesh(m.kind, m.desired, m.implicit) for m in meshes})


def known_ended(run: RunDir) -> KnownRun:
    """An ended run with all meshes that it had."""
    status = run.read_final()
    return known_by_status(status) if status else KnownRun(run.run, {})


def _nearest(name: str, known: list[str]) -> str:
    if near := nearest(name, known):
        return f"did you mean {near!r}?"
    if not known:
        return "nothing is running; `forgectl status -a` shows runs that have ended"
    return f"there is {', '.join(sorted(set(known))[:SHOWN])}"

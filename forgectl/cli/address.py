"""What a user may name on a command line: RUN, MESH, RUN/MESH, MESH/RANK or RUN/MESH/RANK. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from forgectl.errors import NotFoundError, UsageError
from forgectl.frozen import dataclass
from forgectl.names import service_of


@dataclass(frozen=True)
class KnownMesh:
    """A mesh of a run. `implicit`: forgectl added it, the user never wrote it."""

    kind: str
    procs: int
    implicit: bool = False


@dataclass(frozen=True)
class KnownRun:
    """A run with its meshes, by name. `run` is its id."""

    run: str
    meshes: Mapping[str, KnownMesh]

    @property
    def name(self) -> str:
        return self.run.rpartition("-")[0]


@dataclass(frozen=True)
class Address:
    """A run, or with `target` a mesh or a service of it: `meshes` are that mesh, or the service's replicas.

    `rank` is one rank of these meshes, None for all.
    """

    run: str
    target: str | None
    meshes: tuple[str, ...]
    rank: int | None = None

    def __str__(self) -> str:
        """The text that means this alone."""
        rank = () if self.rank is None else (str(self.rank),)
        return "/".join((self.run, *((self.target,) if self.target else ()), *rank))


def resolve(text: str, living: Sequence[KnownRun], ended: Iterable[KnownRun] = ()) -> Address | None:
    """What a text means among the living runs, else in the first of the ended ones that has it; None if nothing.

    Raises UsageError if it may mean several things, NotFoundError if the mesh has no such rank.
    """
    if found := _only(text, meanings(text, living)):
        return _with_rank(found, living)
    for run in ended:
        if found := _only(text, meanings(text, [run])):
            return _with_rank(found, [run])
    return None


def meanings(text: str, runs: Sequence[KnownRun]) -> list[Address]:
    """Everything that a text may mean. The id of a run means only that run."""
    first, *rest = text.split("/")
    named = [r for r in runs if r.run == first] or [r for r in runs if r.name == first]
    if not rest:
        if any(r.run == first for r in named):
            return [_whole(r) for r in named]
        found = [address for r in runs if (address := _part(r, first))]
        return [*(_whole(r) for r in named if not any(_all_of(r, a) for a in found)), *found]
    if len(rest) == 1:
        found = [address for r in named if (address := _part(r, rest[0]))]
        rank = _number(rest[0])
        return found if rank is None else [*found, *(a for r in runs if (a := _part(r, first, rank)))]
    if len(rest) == 2 and (rank := _number(rest[1])) is not None:
        return [address for r in named if (address := _part(r, rest[0], rank))]
    return []


def _only(text: str, found: list[Address]) -> Address | None:
    if len(found) > 1:
        raise UsageError(f"{text!r} may mean several things", hint=f"say which: {', '.join(map(str, found))}")
    return found[0] if found else None


def _with_rank(found: Address, runs: Sequence[KnownRun]) -> Address:
    if found.rank is not None:
        run = next(r for r in runs if r.run == found.run)
        most = max(run.meshes[m].procs for m in found.meshes)
        if found.rank >= most:
            raise no_rank(found.target or "", found.rank, most)
    return found


def no_rank(mesh: str, rank: int, procs: int) -> NotFoundError:
    """The error for a rank that a mesh does not have."""
    has = f"ranks 0 to {procs - 1}" if procs > 1 else "only rank 0"
    return NotFoundError(f"mesh {mesh!r} has no rank {rank}", hint=f"it has {has}")


def _whole(run: KnownRun) -> Address:
    return Address(run.run, None, tuple(run.meshes))


def _all_of(run: KnownRun, address: Address) -> bool:
    """Whether the address has every mesh of the run that its user knows: then it means the same as the run."""
    return address.run == run.run and {m for m, known in run.meshes.items() if not known.implicit} == {*address.meshes}


def _part(run: KnownRun, name: str, rank: int | None = None) -> Address | None:
    """A mesh of a run, or all replicas of a service."""
    if name in run.meshes:
        return Address(run.run, name, (name,), rank)
    replicas = tuple(m for m, known in run.meshes.items() if service_of(m, known.kind) == name)
    return Address(run.run, name, replicas, rank) if replicas else None


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None

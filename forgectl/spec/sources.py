"""`hosts: {file: …}` and `hosts: {slurm: true}`: lists the hosts that a hostfile or Slurm names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from pydantic_core import PydanticCustomError

from forgectl.model.plan import MAX_RANKS
from forgectl.spec.hostfile import Complaint, read_hostfile
from forgectl.spec.hosts import HostSource, by_ssh
from forgectl.spec.nodelist import NodelistError, counts, expand
from forgectl.spec.problems import MOST, Problems, show, step
from forgectl.spec.programs import tilde
from forgectl.spec.read import Null
from forgectl.spec.scalars import NAME_RULE
from forgectl.spec.validate import validated

MAX_HOSTS = 1000
MAX_BYTES = 1 << 20
_NO_NAME = f"does not begin with the name of a host ({NAME_RULE}), or with an ssh destination"
_LOCAL = ("local", "localhost")
_NODES = ("SLURM_JOB_NODELIST", "SLURM_NODELIST")


@dataclass(frozen=True)
class _Named:
    """A host as its source names it, and where that is. `quoted`: whether messages may repeat the name."""

    place: str
    destination: str
    slots: int | None
    quoted: bool = True


def fill_in(data: dict[str, Any], folder: Path, environ: Mapping[str, str], problems: Problems) -> set[str]:
    """Replace the source of the hosts in `data` by the hosts; returns the paths of wrong or missing values."""
    if not isinstance(data.get("hosts"), dict):
        return set()
    source, broken = validated(HostSource, data.pop("hosts"), problems, under=("hosts",))
    where = "hosts.file" if source.file else "hosts.slurm"
    if source.file and source.slurm:
        problems.add("hosts.slurm", "file and slurm exclude each other; keep one")
    elif where in problems.unreadable:
        pass
    elif source.file or source.slurm:
        named = _of_file(source.file, folder) if source.file else _of_slurm(environ, count=source.slots is None)
        data["hosts"], whole = _listed(named, source, where, problems)
        if whole:
            return broken
    elif broken.isdisjoint({"hosts.file", "hosts.slurm"}):
        problems.add("hosts", "expected a list of hosts, or a map with file or with slurm: true")
    return broken | {"hosts"}


def _listed(
    named: Iterable[_Named | str], source: HostSource, where: str, problems: Problems
) -> tuple[list[dict[str, Any]] | Null, bool]:
    """The hosts as a spec would list them, and whether all are valid."""
    every: dict[str, Any] = {"python": source.python, "root": source.root, "env": dict(source.env)}
    every |= {"gpus": source.gpus, "slots": source.slots}
    given = {key: value for key, value in every.items() if value is not None}
    found: dict[str, dict[str, Any]] = {}
    places: dict[str, str] = {}
    complaints: list[str] = []
    for one in named:
        host = one if isinstance(one, str) else _host(one)
        if isinstance(one, str) or isinstance(host, str):
            complaints.append(str(host))
        elif (name := host["name"]) in found:
            first = f"; first in {places[name]}" if places[name] != one.place else ""
            what = f"the name {show(name)}" if one.quoted else "its name"
            complaints.append(f"{one.place}: {what} is used twice{first}")
        else:
            found[name], places[name] = {**given, **host}, one.place
            if "local" in host:
                found[name].pop("root", None)  # only hosts that are reached by ssh have one
        if len(found) > MAX_HOSTS or len(complaints) >= MOST:
            break
    if len(found) > MAX_HOSTS:
        complaints.append(f"names more than {MAX_HOSTS} hosts")
        found.popitem()
    for complaint in complaints:
        problems.add(where, complaint)
    for i in range(len(found)):  # later problems with a host, such as a missing GPU, belong to the source
        problems.places[step("hosts", i)] = problems.places.get(where, problems.places["hosts"])
    return list(found.values()) or Null(), not complaints


def _host(named: _Named) -> dict[str, Any] | str:
    """A host in the long form, or a message about its name."""
    slots = {} if named.slots is None else {"slots": named.slots}
    if named.destination in _LOCAL:
        return {"name": named.destination, "local": True, **slots}
    try:
        return {**by_ssh(named.destination), **slots}
    except PydanticCustomError as e:
        return f"{named.place}: {e if named.quoted else _NO_NAME}"


def _of_file(name: str, folder: Path) -> Iterator[_Named | str]:
    path = folder / name
    try:
        if not path.is_file():
            what = "not a regular file" if path.exists() else f"no such file{tilde(name)}"
            yield f"{show(name)}: {what}; looked for {show(str(path))}"
            return
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as e:
        yield f"{show(name)}: cannot read it: {getattr(e, 'strerror', None) or e}"
        return
    if len(text) > MAX_BYTES:
        yield f"{show(name)}: larger than 1 MiB; a hostfile is far smaller"
        return
    empty = True
    for entry in read_hostfile(text):
        empty = False
        place = f"{name}:{entry.line}"
        yield (
            f"{place}: {entry.message}"
            if isinstance(entry, Complaint)
            else _Named(place, entry.destination, entry.slots, quoted=False)
        )
    if empty:
        yield f"{name}: names no host"


def _of_slurm(environ: Mapping[str, str], *, count: bool) -> Iterator[_Named | str]:
    variable = next((v for v in _NODES if environ.get(v)), None)
    if variable is None:
        yield f"{_NODES[0]} is not set: this is not a Slurm job; start it by salloc or sbatch, or list the hosts"
        return
    try:
        names = expand(environ[variable], MAX_HOSTS)
    except NodelistError as e:
        yield f"{variable}={show(environ[variable])} {e}"
        return
    slots: list[int] = []
    if count:
        try:
            slots = _slots(environ, len(names))
        except NodelistError as e:
            yield str(e)
    for name, number in zip_longest(names, slots):
        yield _Named(variable, name, number)


def _slots(environ: Mapping[str, str], hosts: int) -> list[int]:
    """The slots of each host: the job's tasks or GPUs there, whichever are more; empty if Slurm gives neither.

    A job for torchrun has a single task per host, with all its GPUs.
    """
    given: list[list[int]] = []
    for variable, form in (("SLURM_TASKS_PER_NODE", "{}"), ("SLURM_GPUS_ON_NODE", f"{{}}(x{hosts})")):
        text = environ.get(variable, "")
        try:
            given += [counts(form.format(text), hosts, MAX_RANKS)] if text else []
        except NodelistError as e:
            raise NodelistError(f"{variable}={show(text)} {e}") from None
    return [max(numbers) for numbers in zip(*given, strict=True)]

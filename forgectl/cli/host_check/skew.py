"""What hosts have in common and where they differ: facts as short texts, grouped by value. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from forgectl.cli.host_check.wants import Wants
from forgectl.protocol.host_survey import Examination, Interpreter
from forgectl.system.sizes import show_bytes

if TYPE_CHECKING:
    from forgectl.transport.examinations import Examined

GIB = 1 << 30
ROOMY = 100 * GIB
"""Bytes of free disk above which the exact number does not matter."""
IN_STEP = 1.0
"""Seconds by which a clock may be wrong."""
_PACKAGES = ("torch", "CUDA", "NCCL", "pyzmq")
_NONE = "none"
_UNLIMITED = "unlimited"


@dataclass(frozen=True)
class Folded:
    """Facts by label: `alike` has those with the same value on all hosts, `apart` the hosts of each value."""

    alike: dict[str, str]
    apart: dict[str, dict[str, list[str]]]


def fold(facts: Mapping[str, Mapping[str, str]]) -> Folded:
    """Fold facts by host and label; a host without a label has the value "none" for it."""
    labels = dict.fromkeys(label for of_host in facts.values() for label in of_host)
    apart: dict[str, dict[str, list[str]]] = {}
    for label in labels:
        values: dict[str, list[str]] = defaultdict(list)
        for host, of_host in facts.items():
            values[of_host.get(label, _NONE)].append(host)
        apart[label] = dict(sorted(values.items(), key=lambda item: -len(item[1])))
    alike = {label: next(iter(values)) for label, values in apart.items() if len(values) == 1}
    return Folded(alike, {label: values for label, values in apart.items() if label not in alike})


def facts_of(examined: Examined) -> dict[str, str]:
    """Label → value, for the facts of a host that are shown for comparison."""
    found = examined.found
    facts: dict[str, str] = {}
    for python, interpreter in found.interpreters.items():
        of = f" ({python})" if python else ""
        facts[f"python{of}"] = interpreter.version or "?"
        facts |= {f"{p}{of}": v for p in _PACKAGES if (v := interpreter.packages.get(p))}
    facts["kernel"] = found.kernel
    if found.driver:
        facts["NVIDIA driver"] = found.driver
    if gpus := _gpus(found):
        facts["GPUs"] = gpus
    facts["cores"] = str(found.facts.cores)
    facts["memory"] = show_bytes(round(found.memory / GIB) * GIB)
    free = min((space.free for space in found.disks if space.total), default=0)
    facts["free disk"] = f"over {show_bytes(ROOMY)}" if free >= ROOMY else show_bytes(free)
    facts["/dev/shm"] = show_bytes(found.shm.total) if found.shm else _NONE
    files, locked = found.limits["nofile"][0], found.limits["memlock"][0]
    facts["ulimit nofile"] = str(files) if files >= 0 else _UNLIMITED
    facts["ulimit memlock"] = show_bytes(locked) if locked >= 0 else _UNLIMITED
    facts["cgroups"] = "yes" if found.cgroup else "no"
    facts["clock"] = "in step" if abs(examined.ahead) <= max(IN_STEP, examined.within) else f"{examined.ahead:+.1f} s"
    return facts


def _gpus(found: Examination) -> str:
    """`8 × NVIDIA H100 (80 GiB), 2 taken`."""
    memory = {m.uuid: f" ({show_bytes(round(m.total / GIB) * GIB)})" for m in found.gpu_memory}
    kinds = Counter((g.name or "declared") + memory.get(g.uuid, "") for g in found.facts.gpus)
    taken = sum(g.holder is not None for g in found.facts.gpus)
    return ", ".join(f"{n} × {kind}" for kind, n in kinds.items()) + (f", {taken} taken" if taken else "")


def skews(examined: Mapping[str, Examined], wants: Mapping[str, Wants]) -> Iterator[tuple[str, dict[str, list[str]]]]:
    """(name, value → hosts) for each version that differs, though ranks that work together need the same one."""
    pythons = dict.fromkeys(p for e in examined.values() for p in e.found.interpreters)
    for python in pythons:
        of = f" of {python}" if python else ""
        for what, concerned, value_of in _COMPARED:
            values: dict[str, list[str]] = defaultdict(list)
            for host, e in examined.items():
                interpreter = e.found.interpreters.get(python)
                if interpreter is None or python not in wants[host].packages or not concerned(wants[host]):
                    continue
                if value := value_of(interpreter):
                    values[value].append(host)
            if len(values) > 1:
                yield what + of, dict(sorted(values.items(), key=lambda item: -len(item[1])))


def _has_ranks(wants: Wants) -> bool:
    return wants.ranks


_COMPARED: tuple[tuple[str, Callable[[Wants], bool], Callable[[Interpreter], str | None]], ...] = (
    ("python", lambda w: w.ranks or w.actors, lambda i: ".".join(i.version.split(".")[:2])),
    ("torch", _has_ranks, lambda i: (i.packages.get("torch") or "").partition("+")[0]),
    ("CUDA", lambda w: w.gpus, lambda i: (i.packages.get("CUDA") or "no CUDA") if i.packages.get("torch") else None),
    ("NCCL", lambda w: w.gpus, lambda i: i.packages.get("NCCL")),
    ("pyzmq", lambda w: w.actors, lambda i: i.packages.get("pyzmq")),
)

"""Problems of hosts, present and possible ones, from what was found on them and what a spec wants. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from forgectl.cli.host_check.skew import skews
from forgectl.cli.host_check.wants import Wants
from forgectl.errors import ForgeError, SpecError
from forgectl.model.plan import Gpu
from forgectl.protocol.host_survey import Examination
from forgectl.system.sizes import show_bytes

if TYPE_CHECKING:
    from forgectl.transport.examinations import Examined

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
WORST = (65, 77, 69, 75)
"""Exit codes, the deciding one first: a bad spec, ssh refused, something cannot work, something is taken."""
UNFIT = 69
OLDEST_PYTHON = (3, 10)
CLOCK_WARNING, CLOCK_ERROR = 1.0, 30.0  # seconds
LEAST_FILES = 4096
LEAST_SHM = 512 << 20
LEAST_DISK, LEAST_DISK_SHARE = 2 << 30, 0.05


@dataclass(frozen=True)
class Finding:
    """One problem of some hosts. `code`: the exit code of an error; 0 for a warning or note."""

    severity: Severity
    hosts: tuple[str, ...]
    message: str
    hint: str | None = None
    code: int = 0


@dataclass(frozen=True)
class Target:
    """A host of the spec; `ssh` is None if it is this machine."""

    name: str
    ssh: str | None
    python: str


def exit_code(findings: Iterable[Finding]) -> int:
    """The code of the worst error; 0 if there is none."""
    codes = {f.code for f in findings if f.severity == "error"}
    return next((code for code in WORST if code in codes), max(codes, default=0))


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    """The findings, worst first; equal ones of several hosts become one."""
    folded: dict[Finding, list[str]] = defaultdict(list)
    for f in findings:
        folded[replace(f, hosts=())] += f.hosts
    found = [replace(f, hosts=tuple(dict.fromkeys(hosts))) for f, hosts in folded.items()]
    return sorted(found, key=lambda f: SEVERITIES.index(f.severity))


def of_error(hosts: tuple[str, ...], error: ForgeError) -> Finding:
    """The finding for an error of one host, or of placing the spec on all hosts."""
    message = error.message
    for name in hosts:
        message = message.removeprefix(f"host {name}: ")
    return Finding("error", hosts, message, error.hint, error.exit_code)


def of_spec(error: SpecError) -> Iterator[Finding]:
    """A finding for each problem of a spec."""
    for problem in error.problems:
        yield Finding("error", (), problem.render(error.source), error.hint, error.exit_code)


def of_hosts(
    targets: Mapping[str, Target], examined: Mapping[str, Examined], wants: Mapping[str, Wants]
) -> Iterator[Finding]:
    """Findings about the hosts that were reached: what they lack, and where they differ."""
    yield from _lacking(targets, examined, wants)
    for name, e in examined.items():
        yield from _of_gpus(name, targets[name], e.found, wants[name])
        yield from _of_clock(name, e)
        yield from _of_files(name, e.found, wants[name])
        yield from _of_limits(name, e.found, wants[name])
    for what, values in skews(examined, wants):
        yield from _of_skew(what, values)
    yield from _one_machine(targets, examined)


def _lacking(
    targets: Mapping[str, Target], examined: Mapping[str, Examined], wants: Mapping[str, Wants]
) -> Iterator[Finding]:
    """Interpreters that cannot be run, and packages that they lack: for all hosts at once, with the command to run."""
    lacking: dict[tuple[str, tuple[str, ...]], list[Target]] = defaultdict(list)
    for name, e in examined.items():
        for python, packages in wants[name].packages.items():
            shown, interpreter = python or targets[name].python, e.found.interpreters[python]
            if interpreter.error:
                hint = "set `python:` of the host, or of the mesh, to an interpreter there"
                yield Finding("error", (name,), f"cannot run {shown}: {interpreter.error}", hint, UNFIT)
            elif tuple(map(int, interpreter.version.split(".")[:2])) < OLDEST_PYTHON:
                message = f"{shown} is Python {interpreter.version}; forgectl needs 3.10 or newer"
                yield Finding("error", (name,), message, None, UNFIT)
            elif absent := tuple(sorted(p for p in packages if interpreter.packages.get(p) is None)):
                lacking[shown, absent].append(targets[name])
    for (python, absent), there in lacking.items():
        command = f"{python} -m pip install {' '.join(absent)}"
        first = there[0]
        hint = f"on each: {command}" if len(there) > 1 else f"ssh {first.ssh} {command}" if first.ssh else command
        yield Finding("error", tuple(t.name for t in there), f"{python} lacks {', '.join(absent)}", hint, UNFIT)


def _of_gpus(name: str, target: Target, found: Examination, wants: Wants) -> Iterator[Finding]:
    if found.no_such_gpu:
        yield Finding("error", (name,), found.no_such_gpu, "`gpus:` of the host says which to use", 65)
    elif not found.nvml and not found.facts.gpus and wants.gpus:
        driver = f"an NVIDIA driver{f' ({found.driver})' if found.driver else ''} is there"
        message = f"{driver}, but {target.python} lacks nvidia-ml-py, so its GPUs are not seen"
        yield Finding("error", (name,), message, f"{target.python} -m pip install nvidia-ml-py", UNFIT)
    if wants.gpus:
        for holder, gpus in _by_holder(found.facts.gpus).items():
            s = "s" * (len(gpus) > 1)
            yield Finding("warning", (name,), f"GPU{s} {', '.join(gpus)} taken by {holder}")


def _by_holder(gpus: Iterable[Gpu]) -> dict[str, list[str]]:
    held: dict[str, list[str]] = defaultdict(list)
    for gpu in gpus:
        if gpu.holder is not None:
            held[gpu.holder].append(gpu.visible)
    return held


def _of_clock(name: str, examined: Examined) -> Iterator[Finding]:
    off = max(0.0, abs(examined.ahead) - examined.within)
    if off > CLOCK_WARNING:
        way = "ahead of" if examined.ahead > 0 else "behind"
        message = f"its clock is {abs(examined.ahead):.1f} s {way} this machine's"
        severity: Severity = "error" if off > CLOCK_ERROR else "warning"
        yield Finding(severity, (name,), message, "let NTP set both clocks", UNFIT if severity == "error" else 0)


def _of_files(name: str, found: Examination, wants: Wants) -> Iterator[Finding]:
    for space in found.disks:
        if not space.there and space.path != found.facts.root:
            message = f"workdir {space.path} is not there"
            yield Finding("error", (name,), message, "`sync: content` would copy it there", UNFIT)
    for space in {(s.total, s.free): s for s in reversed(found.disks)}.values():  # one path of each file system
        if space.total and space.free < max(LEAST_DISK, LEAST_DISK_SHARE * space.total):
            yield Finding("warning", (name,), f"only {show_bytes(space.free)} are free where {space.path} is")
    if not wants.ranks:
        return
    if found.shm is None:
        yield Finding("warning", (name,), "no /dev/shm, which NCCL and torch's data loaders need")
    elif found.shm.free < LEAST_SHM:
        message = f"only {show_bytes(found.shm.free)} of /dev/shm are free; NCCL and torch's data loaders need more"
        yield Finding("warning", (name,), message, "make it larger (in a container: --shm-size=8g), or clear it")


def _of_limits(name: str, found: Examination, wants: Wants) -> Iterator[Finding]:
    files, most = found.limits["nofile"]
    if wants.ranks and 0 <= files < LEAST_FILES:
        hint = f"ulimit -n {LEAST_FILES if most < 0 else min(most, 65536)}, or `nofile` in /etc/security/limits.conf"
        yield Finding("warning", (name,), f"a process may open only {files} files", hint)
    locked = found.limits["memlock"][0]
    if wants.gpus and found.facts.gpus and locked >= 0:
        message = f"a process may lock only {show_bytes(locked)} of memory; NCCL over InfiniBand needs more"
        yield Finding("note", (name,), message, "`memlock unlimited` in /etc/security/limits.conf")
    if wants.ranks and not found.cgroup:
        yield Finding("note", (name,), "no cgroup can be made; what ranks leave behind is found by a search instead")


def _of_skew(what: str, values: Mapping[str, list[str]]) -> Iterator[Finding]:
    """A finding for each minority value; if no value has a majority, one finding with all values."""
    (usual, many), *others = values.items()
    hint = f"ranks that work together want one {what}"
    if len(many) == len(others[0][1]):
        each = "; ".join(f"{value} on {_some(hosts)}" for value, hosts in values.items())
        yield Finding("warning", tuple(h for hosts in values.values() for h in hosts), f"{what} differs: {each}", hint)
        return
    for value, hosts in others:
        yield Finding("warning", tuple(hosts), f"{what} is {value}; on {len(many)} other hosts it is {usual}", hint)


def _some(hosts: list[str]) -> str:
    return ", ".join(hosts[:4]) + (f" and {len(hosts) - 4} more" if len(hosts) > 4 else "")


def _one_machine(targets: Mapping[str, Target], examined: Mapping[str, Examined]) -> Iterator[Finding]:
    """Names of hosts that are one machine, and so share its GPUs."""
    machines: dict[str, list[str]] = defaultdict(list)
    for name, e in examined.items():
        machines[e.found.facts.machine].append(name)
    for names in machines.values():
        if len(names) > 1 and any(targets[n].ssh for n in names):
            yield Finding("note", tuple(names), "are one machine, whose cores and GPUs they share")


def of_reach(
    reach: Mapping[tuple[str, str], Mapping[str, str | None]], needed: Collection[tuple[str, str]] | None
) -> Iterator[Finding]:
    """Hosts that others do not reach at any single address.

    `needed`: the pairs that the spec needs, for which that is an error; None if they are not known.
    """
    for to in dict.fromkeys(to for _, to in reach):
        of_host = {start: tried for (start, end), tried in reach.items() if end == to}
        addresses = dict.fromkeys(a for tried in of_host.values() for a in tried)
        hint = f"`address:` of host {to} says where others reach it. Is a firewall in between?"
        if not addresses:
            severity: Severity = "error" if needed and any(end == to for _, end in needed) else "warning"
            yield Finding(severity, (to,), "has no address but loopback", hint, UNFIT if severity == "error" else 0)
            continue
        best = min(addresses, key=lambda a: sum(tried.get(a, "") is not None for tried in of_host.values()))
        for start, tried in of_host.items():
            if (why := tried.get(best, "not tried")) is not None:
                severity = "error" if needed and (start, to) in needed else "warning"
                code = UNFIT if severity == "error" else 0
                yield Finding(severity, (start,), f"does not reach {to} at {best}: {why}", hint, code)

"""What `forgectl check` makes of what was found on hosts: findings, their order, and how they are shown."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forgectl.cli.check import check
from forgectl.cli.host_check.findings import Finding, Target, exit_code, in_order, of_error, of_hosts, of_reach, of_spec
from forgectl.cli.host_check.skew import facts_of, fold
from forgectl.cli.host_check.wants import OWN, Wants, wants_of
from forgectl.cli.views.check_view import check_json, check_table
from forgectl.errors import BusyError, SpecError, SpecProblem, SshRefusedError, UnreachableError
from forgectl.model.plan import Gpu, HostFacts
from forgectl.protocol.host_survey import Examination, GpuMemory, Interpreter, Space
from forgectl.transport.examinations import Examined, clock
from tests.unit.cli.printing import printed
from tests.unit.plan.plan_cases import spec_of

GIB = 1 << 30
PACKAGES = {"torch": "2.13.0+cu130", "CUDA": "13.0", "NCCL": "2.27.3", "pyzmq": "0.7.0", "cloudpickle": "3.1.2"}
PYTHON = Interpreter("/usr/bin/python3", "3.11.7", {**PACKAGES, "psutil": "7.0.0"})
SOUND = Examination(
    received=1000.0,
    hostname="n1",
    kernel="6.18.0",
    facts=HostFacts(
        "n1",
        "boot",
        64,
        tuple(Gpu(str(i), f"GPU-{i}", "NVIDIA H100") for i in range(8)),
        network="boot/1",
        root="/var/tmp/forgectl-0",
        addresses=("10.0.0.1",),
    ),
    interpreters={OWN: PYTHON},
    memory=1008 * GIB,
    memory_available=900 * GIB,
    disks=(Space("/var/tmp/forgectl-0", 1000 * GIB, 500 * GIB, False),),
    shm=Space("/dev/shm", 504 * GIB, 504 * GIB),
    limits={"nofile": (65536, 65536), "nproc": (1000, 1000), "memlock": (-1, -1), "core": (0, -1)},
    cgroup=True,
    driver="570.86",
    gpu_memory=tuple(GpuMemory(f"GPU-{i}", 80 * GIB, 0) for i in range(8)),
    answered=1000.1,
)
FOUND = """
    received hostname kernel boot_id network addresses root interpreters cores memory memory_available disks shm limits
    cgroup driver nvml gpus declared_gpus gpu_memory no_such_gpu answered
"""
"""The fields of a host in `check --json`."""
WANTS = Wants({OWN: {"psutil", "torch", "pyzmq"}}, gpus=True, ranks=True, actors=True)


def host(number: int = 1, *, ahead: float = 0.0, within: float = 0.01, **changes: Any) -> Examined:
    """A sound host of its own, but for `changes`."""
    own: dict[str, Any] = {"machine": f"boot-{number}", "network": f"boot-{number}/1"}
    own |= {field: changes.pop(field) for field in list(changes) if hasattr(SOUND.facts, field)}
    return Examined(replace(SOUND, facts=replace(SOUND.facts, **own), **changes), ahead, within)


def python(**packages: str | None) -> dict[str, Interpreter]:
    return {OWN: replace(PYTHON, packages={**PYTHON.packages, **packages})}


def found(*hosts: Examined, wants: Wants = WANTS) -> list[str]:
    """`severity hosts: message` of each finding on hosts h1, h2 and on."""
    names = [f"h{i}" for i in range(1, len(hosts) + 1)]
    targets = {name: Target(name, f"u@{name}", "python3") for name in names}
    examined = dict(zip(names, hosts, strict=True))
    findings = in_order(of_hosts(targets, examined, dict.fromkeys(names, wants)))
    return [f"{f.severity} {','.join(f.hosts)}: {f.message}" for f in findings]


def test_of_sound_hosts_there_is_nothing_to_say() -> None:
    assert found(host(1), host(2), host(3)) == []


CASES: list[tuple[dict[str, Any], str]] = [
    ({"interpreters": python(torch=None)}, "error h1: python3 lacks torch"),
    ({"interpreters": python(torch=None, pyzmq=None)}, "error h1: python3 lacks pyzmq, torch"),
    ({"interpreters": {OWN: Interpreter(error="No such file")}}, "error h1: cannot run python3: No such file"),
    (
        {"interpreters": {OWN: replace(PYTHON, version="3.9.18")}},
        "error h1: python3 is Python 3.9.18; forgectl needs 3.10 or newer",
    ),
    ({"no_such_gpu": "host h1 has no GPU 9", "gpus": ()}, "error h1: host h1 has no GPU 9"),
    (
        {"nvml": False, "gpus": ()},
        "error h1: an NVIDIA driver (570.86) is there, but python3 lacks nvidia-ml-py, so its GPUs are not seen",
    ),
    (
        {"gpus": tuple(Gpu(str(i), f"GPU-{i}", holder="run x" if i > 5 else None) for i in range(8))},
        "warning h1: GPUs 6, 7 taken by run x",
    ),
    ({"ahead": 2.5, "within": 0.2}, "warning h1: its clock is 2.5 s ahead of this machine's"),
    ({"ahead": -45.0}, "error h1: its clock is 45.0 s behind this machine's"),
    (
        {"disks": (Space("/var/tmp/f", 1000 * GIB, 40 * GIB),)},
        "warning h1: only 40 GiB are free where /var/tmp/f is",
    ),
    (
        {"disks": (Space("/var/tmp/forgectl-0", 8 * GIB, GIB), Space("/w", 8 * GIB, GIB))},
        "warning h1: only 1 GiB are free where /var/tmp/forgectl-0 is",  # one file system, said once
    ),
    (
        {"disks": (Space("/var/tmp/forgectl-0", 9 * GIB, 9 * GIB, False), Space("/w", 9 * GIB, 9 * GIB, False))},
        "error h1: workdir /w is not there",
    ),
    ({"shm": None}, "warning h1: no /dev/shm, which NCCL and torch's data loaders need"),
    (
        {"shm": Space("/dev/shm", 64 << 20, 63 << 20)},
        "warning h1: only 63 MiB of /dev/shm are free; NCCL and torch's data loaders need more",
    ),
    ({"limits": {**SOUND.limits, "nofile": (1024, 4096)}}, "warning h1: a process may open only 1024 files"),
    (
        {"limits": {**SOUND.limits, "memlock": (8 << 20, 8 << 20)}},
        "note h1: a process may lock only 8 MiB of memory; NCCL over InfiniBand needs more",
    ),
    ({"cgroup": False}, "note h1: no cgroup can be made; what ranks leave behind is found by a search instead"),
]


@pytest.mark.parametrize(("changes", "said"), CASES)
def test_what_is_wrong_with_a_host_is_said_once(changes: dict[str, Any], said: str) -> None:
    assert found(host(1, **changes)) == [said]


@pytest.mark.parametrize(("changes", "said"), CASES)
def test_what_is_wrong_with_many_hosts_is_said_of_all_together(changes: dict[str, Any], said: str) -> None:
    three = found(host(1, **changes), host(2, **changes), host(3, **changes))
    assert three == [said.replace(" h1:", " h1,h2,h3:", 1)]


def test_a_clock_that_is_known_too_badly_is_not_complained_of() -> None:
    assert found(host(1, ahead=5.0, within=4.5)) == []


def test_a_host_for_a_driver_alone_needs_neither_gpus_nor_room_for_ranks() -> None:
    bare: dict[str, Any] = {
        "gpus": (),
        "shm": None,
        "nvml": False,
        "cgroup": False,
        "limits": {**SOUND.limits, "nofile": (256, 256)},
    }
    assert found(host(1, **bare), wants=Wants({OWN: {"torch"}})) == []


def lacking(*hosts: Examined) -> list[str | None]:
    names = [f"h{i}" for i in range(1, len(hosts) + 1)]
    targets = {n: Target(n, None if n == "h3" else f"u@{n}", "python3") for n in names}
    examined = dict(zip(names, hosts, strict=True))
    return [f.hint for f in in_order(of_hosts(targets, examined, dict.fromkeys(names, WANTS)))]


def test_what_is_missing_comes_with_the_command_that_mends_it() -> None:
    bad: dict[str, Any] = {"interpreters": python(torch=None)}
    assert lacking(host(1, **bad)) == ["ssh u@h1 python3 -m pip install torch"]
    assert lacking(host(1, **bad), host(2, **bad)) == ["on each: python3 -m pip install torch"]
    assert lacking(host(1), host(2), host(3, **bad)) == ["python3 -m pip install torch"]  # this machine


def test_interpreters_of_meshes_are_looked_at_beside_the_host_s_own() -> None:
    wants = Wants({OWN: {"psutil"}, "/opt/py": {"torch"}}, ranks=True)
    other = {OWN: PYTHON, "/opt/py": replace(PYTHON, packages={"torch": None})}
    assert found(host(1, interpreters=other), wants=wants) == ["error h1: /opt/py lacks torch"]
    apart = [{**other, "/opt/py": replace(PYTHON, packages={"torch": v})} for v in ("2.12.0", "2.13.0", "2.13.0")]
    hosts = [host(i, interpreters=interpreters) for i, interpreters in enumerate(apart)]
    assert found(*hosts, wants=wants) == [
        "warning h1: torch of /opt/py is 2.12.0; on 2 other hosts it is 2.13.0",
    ]


SKEWS = [
    # what each host has, what is said
    ([{"torch": "2.12.0"}, {}, {}], ["warning h1: torch is 2.12.0; on 2 other hosts it is 2.13.0"]),
    ([{"CUDA": "12.8"}, {}, {}], ["warning h1: CUDA is 12.8; on 2 other hosts it is 13.0"]),
    ([{"NCCL": "2.26.2"}, {}, {}], ["warning h1: NCCL is 2.26.2; on 2 other hosts it is 2.27.3"]),
    ([{"pyzmq": "0.6.0"}, {}, {}], ["warning h1: pyzmq is 0.6.0; on 2 other hosts it is 0.7.0"]),
    ([{"CUDA": None, "NCCL": None}, {}, {}], ["warning h1: CUDA is no CUDA; on 2 other hosts it is 13.0"]),
    ([{"torch": "2.13.0+cpu"}, {}, {}], []),  # its CUDA tells them apart
    ([{"cloudpickle": "3.0.0"}, {}, {}], []),
    ([{"torch": "2.12.0"}, {}], ["warning h1,h2: torch differs: 2.12.0 on h1; 2.13.0 on h2"]),
    (
        [{"torch": "2.11.0"}, {"torch": "2.12.0"}, {}, {}],
        [
            "warning h1: torch is 2.11.0; on 2 other hosts it is 2.13.0",
            "warning h2: torch is 2.12.0; on 2 other hosts it is 2.13.0",
        ],
    ),
]


@pytest.mark.parametrize(("packages", "said"), SKEWS)
def test_versions_that_differ_are_told_by_the_majority(packages: list[dict[str, Any]], said: list[str]) -> None:
    assert found(*(host(i, interpreters=python(**p)) for i, p in enumerate(packages))) == said


def test_of_python_only_the_minor_version_has_to_be_one() -> None:
    def with_python(number: int, version: str) -> Examined:
        return host(number, interpreters={OWN: replace(PYTHON, version=version)})

    assert found(with_python(1, "3.11.2"), with_python(2, "3.11.9")) == []
    said = ["warning h1: python is 3.12; on 2 other hosts it is 3.11"]
    assert found(with_python(1, "3.12.1"), with_python(2, "3.11.2"), with_python(3, "3.11.9")) == said


def test_two_names_of_one_machine_are_noted() -> None:
    assert found(host(1), host(1)) == ["note h1,h2: are one machine, whose cores and GPUs they share"]


def test_the_worst_comes_first_and_decides_the_exit_code() -> None:
    taken, refused = Finding("error", (), "x", None, 75), Finding("error", (), "y", None, 77)
    unfit, warning = Finding("error", (), "z", None, 69), Finding("warning", (), "w")
    spec = of_spec(SpecError("s.yaml", [SpecProblem("hosts", "bad", 3, 4)]))
    assert in_order([warning, taken]) == [taken, warning]
    assert exit_code([]) == exit_code([warning]) == 0
    assert exit_code([taken, warning]) == 75
    assert exit_code([taken, unfit]) == 69
    assert exit_code([taken, unfit, refused]) == 77
    (bad,) = spec
    assert (bad.message, exit_code([refused, bad])) == ("s.yaml:3:4: hosts: bad", 65)
    assert exit_code([Finding("error", (), "odd", None, 70)]) == 70


def test_errors_of_ssh_keep_their_words_and_codes() -> None:
    refused = of_error(("a",), SshRefusedError("host a: ssh refused: key", hint="do"))
    assert refused == Finding("error", ("a",), "ssh refused: key", "do", 77)
    assert of_error(("a",), UnreachableError("host a: no answer")).code == 69
    assert of_error((), BusyError("not enough free GPUs")).code == 75


REACH: dict[tuple[str, str], dict[str, str | None]] = {
    ("a", "b"): {"10.0.0.2": None, "fe::2": "timed out"},
    ("c", "b"): {"10.0.0.2": "timed out", "fe::2": "timed out"},
    ("b", "a"): {"10.9.9.9": "it is not an address of a"},
    ("a", "c"): {"10.0.0.3": "timed out", "10.1.0.3": None},
    ("b", "c"): {"10.0.0.3": None, "10.1.0.3": None},
}


def test_hosts_that_others_do_not_reach() -> None:
    def said(needed: set[tuple[str, str]] | None) -> list[str]:
        return [f"{f.severity} {f.hosts[0]}: {f.message} ({f.code})" for f in of_reach(REACH, needed)]

    lonely = "b: does not reach a at 10.9.9.9: it is not an address of a"
    complaints = ["c: does not reach b at 10.0.0.2: timed out", lonely]
    assert said(None) == [f"warning {c} (0)" for c in complaints]
    assert said({("c", "b")}) == [f"error {complaints[0]} (69)", f"warning {complaints[1]} (0)"]
    (alone,) = of_reach({("a", "b"): {}}, {("a", "b")})
    assert (alone.severity, alone.hosts, alone.message) == ("error", ("b",), "has no address but loopback")


@given(st.floats(-1e4, 1e4), st.floats(0, 5), st.floats(0, 5), st.floats(0, 60))
def test_clocks_are_compared_whatever_the_way_takes(ahead: float, way: float, back: float, work: float) -> None:
    """Of a clock that is ahead, asked over a slow line: the answer holds what is true."""
    asked = 1000.0
    received = asked + way + ahead
    replied = received + work
    answered = replied - ahead + back
    told, within = clock(asked, received, replied, answered)
    assert abs(told - ahead) <= within + 1e-6
    assert within <= (way + back) / 2 + 1e-6


WANTED = """
hosts: [local, gpu01, {name: gpu02, gpus: none}, {name: gpu03, slots: 0}]
scripts:
  sft: {module: x, with_gpus: true, python: /opt/py, preload: [torch]}
  tidy: {command: "true", hosts: [gpu03]}
actors: {a: {class: m:C, hosts: [gpu02], preload: [torch]}}
"""


def test_what_a_spec_wants_of_each_host() -> None:
    wants = wants_of(spec_of(WANTED))
    driver = {"pyzmq", "cloudpickle"}  # of the actors that it holds
    actors = {"torch", *driver}
    assert wants["local"] == Wants({OWN: {"psutil"} | driver, "/opt/py": {"torch"}}, True, True, True)
    assert wants["gpu01"] == Wants({OWN: {"psutil"}, "/opt/py": {"torch"}}, True, True, False)
    assert wants["gpu02"] == Wants({OWN: {"psutil"} | actors}, False, True, True)
    assert wants["gpu03"] == Wants({OWN: {"psutil"}}, False, True, False)
    assert wants_of(spec_of("hosts: [gpu01]\nactors: {a: {class: m:C}}"))["local"] == Wants(
        {OWN: {"psutil"} | driver}, False, False, True
    )


def shown(hosts: list[str], examined: dict[str, Examined], findings: list[Finding], width: int) -> str:
    return printed(check_table(hosts, examined, findings), width)


def test_what_is_alike_is_told_once_and_the_rest_by_value() -> None:
    names = [f"gpu{i:02d}" for i in range(1, 9)]
    examined = {name: host(i) for i, name in enumerate(names)}
    examined["gpu08"] = host(8, interpreters=python(torch="2.12.0+cu128", CUDA="12.8"), ahead=3.0)
    findings = [Finding("warning", ("gpu08",), "torch is 2.12.0", "mend it"), Finding("note", tuple(names), "so")]
    for width in (80, 200):
        lines = shown(names, examined, findings, width).splitlines()
        assert all(len(line) <= width for line in lines)
        text = " ".join(" ".join(lines).split())
        assert "on all 8 hosts: python 3.11.7, NCCL 2.27.3, pyzmq 0.7.0, kernel 6.18.0, NVIDIA driver" in text
        assert "GPUs 8 × NVIDIA H100 (80 GiB), cores 64, memory 1008 GiB, free disk over 100 GiB" in text
        rows = [" ".join(line.split()) for line in lines]
        assert "torch 2.13.0+cu130 gpu[01-07]" in rows
        assert "2.12.0+cu128 gpu08" in rows
        assert "clock in step gpu[01-07]" in rows
        assert "+3.0 s gpu08" in rows
        assert "warning gpu08: torch is 2.12.0" in rows
        assert "hint: mend it" in rows
        assert "note all hosts: so" in rows
        assert rows[-1] == "ready: 8 hosts, 1 warning, 1 note"


def test_hosts_that_were_not_reached_are_counted() -> None:
    findings = [of_error(("b",), UnreachableError("host b: no\x1b[31m answer"))]
    text = shown(["a", "b", "c"], {"a": host(1), "c": host(2)}, findings, 100)
    assert "on all 2 hosts that were reached: " in text
    assert "\x1b" not in text
    assert text.splitlines()[-1] == "not ready: 1 error; 2 of 3 hosts reached"
    alone = shown(["a"], {}, [of_error(("a",), UnreachableError("host a: no"))], 80)
    assert alone.split("\n") == ["error  a: no", "", "not ready: 1 error; 0 of 1 host reached", ""]


def test_the_document_has_everything() -> None:
    reach: dict[tuple[str, str], dict[str, str | None]] = {("a", "b"): {"10.0.0.2": None}}
    findings = [of_error(("b",), UnreachableError("host b: no answer", hint="do"))]
    document = json.loads(json.dumps(check_json("s.yaml", ["a", "b"], {"a": host(1, ahead=2.0)}, reach, findings)))
    assert (document["schema_version"], document["spec"], document["exit_code"]) == (1, "s.yaml", 69)
    assert [(h["name"], h["reached"], h["clock_ahead"]) for h in document["hosts"]] == [
        ("a", True, 2.0),
        ("b", False, None),
    ]
    assert document["hosts"][0]["found"]["interpreters"][OWN]["packages"]["torch"] == "2.13.0+cu130"
    assert set(document["hosts"][0]["found"]) == set(FOUND.split())
    assert document["reach"] == [{"from": "a", "to": "b", "addresses": {"10.0.0.2": None}}]
    assert document["findings"] == [
        {"severity": "error", "hosts": ["b"], "message": "no answer", "hint": "do", "code": 69},
    ]


values = st.sampled_from(["1", "2", "3"])
facts = st.dictionaries(st.sampled_from("abcd"), st.dictionaries(st.sampled_from("xyz"), values), min_size=1)


@given(facts)
def test_folding_loses_nothing(found: dict[str, dict[str, str]]) -> None:
    folded = fold(found)
    for host_name, of_host in found.items():
        for label in {label for f in found.values() for label in f}:
            value = of_host.get(label, "none")
            assert folded.alike.get(label) == value or host_name in folded.apart[label][value]
    assert folded.alike.keys().isdisjoint(folded.apart)
    assert all(len(values) > 1 for values in folded.apart.values())


def test_what_is_taken_shows_among_the_facts() -> None:
    gpus = (Gpu("0", "GPU-0", "NVIDIA H100", "run x"), Gpu("1", "u", ""), Gpu("2", "v", ""))
    assert facts_of(host(1, gpus=gpus))["GPUs"] == "1 × NVIDIA H100 (80 GiB), 2 × declared, 1 taken"


def test_its_help_says_that_it_runs_programs_that_the_spec_names() -> None:
    assert "it runs each `python:` that SPEC names" in " ".join((check.__doc__ or "").split())

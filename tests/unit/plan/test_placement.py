"""Where a spec's meshes go, and what is said where they do not fit."""

from __future__ import annotations

from dataclasses import replace

import pytest

from forgectl.errors import BusyError, SpecError
from forgectl.model.plan import Plan, Program
from tests.unit.plan.plan_cases import HOLDER, case, hosts_of, notation_of, placed, spec_of

FITS = [
    # hosts, meshes, plan
    ("a:4", "x:4", "x=a0123"),
    ("a:4", "x:2 y:2", "x=a01 y=a23"),
    ("a:4 b:4", "x:4", "x=a0123"),  # ties in the spec's order
    ("a:8 b:4", "x:4", "x=b0123"),  # the fewest left over
    ("a:8 b:4 c:2", "x:3", "x=b012"),
    ("a:4 b:4", "x:6", "x=a012,b012"),  # as few hosts as have room, evenly
    ("a:2 b:2 c:2 d:2", "x:6", "x=a01,b01,c01"),
    ("a:1 b:2 c:2", "x:4", "x=b01,c01"),
    ("a:0 b:2", "x:2", "x=b01"),
    ("a:8 b:8", "x:8/2", "x=a0123,b0123"),  # as many hosts as asked for
    ("a:8 b:4 c:4", "x:4/2", "x=b01,c01"),
    ("a:8 b:8", "x:4/1", "x=a0123"),
    ("a:4 b:4", "x:4@b+a", "x=b01,a01"),  # those hosts, in that order
    ("a:4 b:4", "x:2 y:4@a", "x=b01 y=a0123"),  # named hosts have the first choice
    ("a:4 b:4", "x:3 y:1@a", "x=a123 y=a0"),
    ("a:4 b:4", "x:2 y:4", "x=b01 y=a0123"),  # then the bigger ones
    ("a:4!0", "x:2", "x=a12"),  # free ones only
    ("a:4!012 b:4", "x:2", "x=b01"),
    ("a:4 b=a:4", "x:4@a+b", "x=a01,b23"),  # one machine: its GPUs are given once
    ("a:4 b=a:4", "x:2 y:2", "x=a01 y=a23"),
    ("a:4 b=a:2", "x:4@a+b", "x=a23,b01"),  # b sees fewer, so a leaves them
    ("a:4 b=a:4 c:2", "x:4/2 y:2", "x=a01,c01 y=a23"),
    # best fit alone would strand u; looking further finds room
    ("a:9 b:9", "p:5/1 q:4/1 r:3/1 s:2/1 t:2/1 u:2/1", "p=a01234 q=a5678 r=b012 s=b34 t=b56 u=b78"),
    ("a:10 b:10", "p:5/1 q:4/1 r:4/1 s:3/1 t:2/1 u:2/1", "p=a01234 q=b0123 r=b4567 s=a567 t=a89 u=b89"),
    ("a:4 b:4", "x:3-", "x=a"),  # without GPUs every host has room
    ("a:0 b:0 c:0", "x:4-/2", "x=a,b"),
    ("a:0 b:0 c:0", "x:4-@c+a", "x=c,a"),
    # slots: of ranks without GPUs, and of GPUs
    ("a:0#2 b:0", "x:4-", "x=b"),
    ("a:0 b:0#2", "x:2-", "x=a"),  # the first with room, not the tightest fit
    ("a:0#2 b:0#2", "x:4-", "x=a,b"),  # as few hosts as have room, evenly
    ("a:0#3 b:0#1 c:0#3", "x:4-", "x=a,c"),
    ("a:0#2 b:0#2 c:0#2", "x:3-/3", "x=a,b,c"),
    ("a:0#1 b:0#4 c:0#2", "x:4-/2", "x=b,c"),
    ("a:0#4 b:0#2", "x:2- y:4-", "x=b y=a"),  # bigger ones have the first choice
    ("a:0#4 b:0#2", "x:2- y:3-@a", "x=b y=a"),
    # the first with room would strand u; looking further finds room
    ("a:0#10 b:0#10", "p:5-/1 q:4-/1 r:4-/1 s:3-/1 t:2-/1 u:2-/1", "p=a q=b r=b s=a t=a u=b"),
    ("a:0#0 b:0", "x:1-", "x=b"),
    ("a:4#2", "x:2", "x=a01"),
    ("a:4#2 b:4", "x:4", "x=b0123"),
    ("a:4#2 b:4#2", "x:4", "x=a01,b01"),
    ("a:4!01#2", "x:2", "x=a23"),  # whichever are free
    ("a:4#2 b=a:4#2", "x:4", "x=a01,b23"),  # of one machine, each its share
    ("a:4#2", "x:2 y:2-", "x=a01 y=a"),  # counted apart
]


@pytest.mark.parametrize(("hosts", "meshes", "plan"), FITS)
def test_meshes_go_where_they_fit(hosts: str, meshes: str, plan: str) -> None:
    assert notation_of(placed(*case(hosts, meshes))) == plan


NEVER = [
    # hosts, meshes, one "path: message" a problem
    ("a:4", "x:8", ["scripts.x.procs: wants 8 GPUs, but a has 4 GPUs"]),
    ("a:0", "x:1", ["scripts.x.procs: wants 1 GPU, but a has no GPU"]),
    (
        "a:4 b:1",
        "x:3 y:4@a",
        [
            "scripts.x.procs: wants 3 GPUs, on one host or in equal shares on several, "
            "but a has 4 GPUs (y takes 4); b has 1 GPU"
        ],
    ),
    ("a:4 b:2", "x:3@b", ["scripts.x.procs: wants 3 GPUs on b, but b has 2 GPUs"]),
    (
        "a:4 b:2",
        "x:6@a+b",
        ["scripts.x.procs: wants 3 GPUs on each of a, b, but a has 4 GPUs; b has 2 GPUs"],
    ),
    (
        "a:4 b=a:4",
        "x:6/2",
        ["scripts.x.procs: wants 3 GPUs on each of 2 hosts, but a, b share 4 GPUs"],
    ),
    ("a:4 b:4", "x:3/3", ["scripts.x.hosts: wants 3 hosts, but the spec has 2: a, b"]),
    ("a:4", "x:3-/3", ["scripts.x.hosts: wants 3 hosts, but the spec has 1: a"]),
    (
        "a:0#2 b:0#3 c:0#0",
        "x:6- y:1-@a z:2-/1",
        [
            "scripts.x.procs: wants 6 slots, on one host or in equal shares on several, "
            "but a has 2 slots (y takes 1); b has 3 slots; c has no slot",
        ],
    ),
    ("a:0#2 b:0", "x:3-@a", ["scripts.x.procs: wants 3 slots on a, but a has 2 slots"]),
    ("a:0#2 b:0", "x:6-@a+b", ["scripts.x.procs: wants 3 slots on each of a, b, but a has 2 slots; b has any number"]),
    ("a:8#2", "x:4", ["scripts.x.procs: wants 4 GPUs, but a has 8 GPUs, of which its slots allow 2"]),
    ("a:0#8", "x:4", ["scripts.x.procs: wants 4 GPUs, but a has no GPU"]),
    (
        "a:4#2 b=a:4#2",
        "x:6/2 y:3-@b",
        [
            "scripts.x.procs: wants 3 GPUs on each of 2 hosts, but "
            "a has 4 GPUs, of which its slots allow 2; b has 4 GPUs, of which its slots allow 2",
            "scripts.y.procs: wants 3 slots on b, but b has 2 slots",
        ],
    ),
    (
        "a:4 b:4",
        "x:3/3 y:9/1 z:10/1",
        [
            "scripts.x.hosts: wants 3 hosts, but the spec has 2: a, b",
            "scripts.y.procs: wants 9 GPUs on one host, but a has 4 GPUs; b has 4 GPUs",
            "scripts.z.procs: wants 10 GPUs on one host, but a has 4 GPUs; b has 4 GPUs",
        ],
    ),
    # what can never fit is said even while GPUs are taken
    ("a:4!0123", "x:8", ["scripts.x.procs: wants 8 GPUs, but a has 4 GPUs"]),
    ("a:4!0123", "x:4 y:2-/2", ["scripts.y.hosts: wants 2 hosts, but the spec has 1: a"]),
]


@pytest.mark.parametrize(("hosts", "meshes", "said"), NEVER)
def test_what_can_never_fit_is_a_spec_error(hosts: str, meshes: str, said: list[str]) -> None:
    with pytest.raises(SpecError) as caught:
        placed(*case(hosts, meshes))
    assert caught.value.exit_code == 65
    assert [f"{p.where}: {p.message}" for p in caught.value.problems] == said
    assert all(p.line > 1 for p in caught.value.problems)


def test_a_machine_without_any_gpu_is_told_how_to_declare_one() -> None:
    with pytest.raises(SpecError) as caught:
        placed(*case("a:0", "x:1"))
    assert "gpus: N" in (caught.value.hint or "")


BUSY = [
    # hosts, meshes, what is said of the taken GPUs
    ("a:4!1", "x:4", f"scripts.x wants 4 GPUs. Taken: GPU 1 of a by {HOLDER}"),
    ("a:4!13", "x:4", f"scripts.x wants 4 GPUs. Taken: GPU 1, 3 of a by {HOLDER}"),
    ("a:2!0 b:2!1", "x:2@b", f"scripts.x wants 2 GPUs on b. Taken: GPU 1 of b by {HOLDER}"),
    ("a:2!0 b=a:2!0", "x:2/1", f"scripts.x wants 2 GPUs on one host. Taken: GPU 0 of a by {HOLDER}"),
]


@pytest.mark.parametrize(("hosts", "meshes", "said"), BUSY)
def test_what_would_fit_but_for_others_names_them(hosts: str, meshes: str, said: str) -> None:
    with pytest.raises(BusyError) as caught:
        placed(*case(hosts, meshes))
    assert caught.value.exit_code == 75
    assert caught.value.message == f"not enough free GPUs: {said}"
    assert caught.value.hint


def test_a_service_that_does_not_fit_is_told_once_by_its_first_replica() -> None:
    hosts, facts = hosts_of("a:3")
    spec = spec_of(hosts + "services: {p: {class: m:C, with_gpus: true, procs: 2, num_replicas: 50}}")
    with pytest.raises(SpecError, match=r"services\.p\.procs: replica p\.1 wants 2 GPUs") as caught:
        placed(spec, facts)
    assert len(caught.value.problems) == 1
    assert "a has 3 GPUs (p.0 takes 2)" in caught.value.message


EVERYTHING = """
name: all
workdir: /tmp
hosts:
  - {name: gpu01}
  - {name: here, local: true, env: {WHERE: here, BOTH: host}}
  - {name: unused, local: true}
env: {BOTH: spec, ALL: "1"}
lease: 12s
log_limit: 1MiB
services: {policy: {class: m:P, num_replicas: 2, hosts: [here]}}
driver: {command: "sh -c true", env: {WHO: driver}}
actors: {trainer: {class: m:T, procs: 4, hosts: 2, with_gpus: true, python: /opt/py, env: {BOTH: mesh},
                   restart: {max: 3, within: 10m, on: [crash]}, start_method: spawn, preload: [torch, numpy]}}
scripts: {sft: {module: json.tool --help, hosts: [here]}}
"""


def everything_planned() -> Plan:
    _, facts = hosts_of("gpu01:2 here:4 unused:0")
    return placed(spec_of(EVERYTHING), facts)


def test_meshes_keep_a_fixed_order_with_the_driver_last() -> None:
    meshes = everything_planned().meshes
    assert [(m.mesh, m.kind) for m in meshes] == [
        ("sft", "script"),
        ("trainer", "actor"),
        ("policy.0", "service"),
        ("policy.1", "service"),
        ("driver", "driver"),
    ]
    assert [m.program for m in meshes] == [
        Program("module", "json.tool", ("--help",)),
        Program("actor", "m:T"),
        Program("actor", "m:P"),
        Program("actor", "m:P"),
        Program("command", "sh", ("-c", "true")),
    ]


def test_a_mesh_carries_what_its_spec_says() -> None:
    plan = everything_planned()
    assert (plan.name, plan.spec, plan.workdir, plan.lease, plan.log_limit) == (
        "all",
        "spec.yaml",
        "/tmp",
        12.0,
        1 << 20,
    )
    trainer = plan.mesh("trainer")
    assert trainer.hosts == ("gpu01", "here")
    assert trainer.python == {"gpu01": "/opt/py", "here": "/opt/py"}
    assert (trainer.restart.max, trainer.restart.within, trainer.restart.on) == (3, 600.0, ("crash",))
    assert (trainer.start_method, trainer.preload) == ("spawn", ("torch", "numpy"))
    assert [(r.rank, r.host, r.local_rank, r.gpus) for r in trainer.ranks] == [
        (0, "gpu01", 0, ("0",)),
        (1, "gpu01", 1, ("1",)),
        (2, "here", 0, ("0",)),
        (3, "here", 1, ("1",)),
    ]


def test_the_driver_is_one_process_on_the_first_local_host() -> None:
    driver = everything_planned().mesh("driver")
    assert (driver.hosts, driver.procs, driver.gpus, driver.preload) == (("here",), 1, {"here": ()}, ())
    assert driver.env["here"]["WHO"] == "driver"


@pytest.mark.parametrize("driver", ["driver: {command: 'true'}", ""])
def test_where_no_host_is_local_this_machine_takes_the_driver_and_nothing_else(driver: str) -> None:
    text = "hosts: [gpu01, gpu02]\nactors: {x: {class: m:C, procs: 4, hosts: 2}, y: {class: m:C}}\n" + driver
    plan = placed(spec_of(text), hosts_of("gpu01:0 gpu02:0 local:0")[1])
    assert {m.mesh: m.hosts for m in plan.meshes} == {"x": ("gpu01", "gpu02"), "y": ("gpu01",), "driver": ("local",)}
    assert [(h.name, h.local, h.gpus, h.slots) for h in plan.hosts] == [
        ("gpu01", False, "auto", None),
        ("gpu02", False, "auto", None),
        ("local", True, "none", 0),
    ]
    with pytest.raises(SpecError, match=r"actors\.x\.hosts: wants 3 hosts, but the spec has 2: gpu01, gpu02"):
        placed(spec_of(text.replace("4, hosts: 2", "3, hosts: 3")), hosts_of("gpu01:0 gpu02:0 local:0")[1])


def test_only_hosts_in_use_are_planned_each_with_its_interpreter() -> None:
    spec = spec_of("hosts: [gpu01, {name: here, local: true}, idle]\nscripts: {x: {command: 'true', hosts: [here]}}\n")
    plan = placed(spec, hosts_of("gpu01:0 here:0 idle:0")[1])
    assert [(h.name, h.python, h.local, h.ssh) for h in plan.hosts] == [("here", "/usr/bin/python3", True, None)]


def test_a_driver_may_add_meshes_on_any_host_so_all_are_planned() -> None:
    hosts = everything_planned().hosts
    assert [(h.name, h.python, h.local, h.ssh) for h in hosts] == [
        ("gpu01", "python3", False, "gpu01"),
        ("here", "/usr/bin/python3", True, None),
        ("unused", "/usr/bin/python3", True, None),
    ]


def test_one_machine_stays_on_loopback_and_several_use_their_addresses() -> None:
    text = "hosts: [{name: a, local: true, address: 10.0.0.1}, {name: b, address: 10.0.0.2}, c]\n"
    meshes = "scripts: {x: {command: 'true', hosts: %s, procs: 6}}\n"
    _, apart = hosts_of("a:0 b:0 c:0")
    alone = placed(spec_of(text + meshes % "[a]"), apart)
    assert [h.address for h in alone.hosts] == ["127.0.0.1"]
    spread = placed(spec_of(text + meshes % "3"), apart)
    assert [h.address for h in spread.hosts] == ["10.0.0.1", "10.0.0.2", ""]
    _, together = hosts_of("a:0 b=a:0 c=a:0")
    assert {h.address for h in placed(spec_of(text + meshes % "3"), together).hosts} == {"127.0.0.1"}


def test_a_network_tells_who_reaches_whom_on_loopback_better_than_a_machine() -> None:
    text = "hosts: [a, {name: b, address: 10.0.0.2}]\nscripts: {x: {command: 'true', hosts: 2, procs: 2}}\n"

    def addresses(*networks: str) -> list[str]:
        _, facts = hosts_of("a:0 b=a:0")
        for name, network in zip(facts, networks, strict=True):
            facts[name] = replace(facts[name], network=network, addresses=("10.9.9.1", "fe80::1"))
        return [h.address for h in placed(spec_of(text), facts).hosts]

    assert addresses("", "") == ["127.0.0.1"] * 2  # one machine
    assert addresses("n1", "n1") == ["127.0.0.1"] * 2
    assert addresses("n1", "n2") == ["10.9.9.1", "10.0.0.2"]  # two namespaces of one machine


def test_a_plan_says_where_things_are_on_each_host_and_how_they_get_there() -> None:
    spec = spec_of("hosts: [a]\nsync: none\nsync_limit: 4GiB\nscripts: {x: {command: 'true'}}\n")
    _, facts = hosts_of("a:0")
    facts["a"] = replace(facts["a"], root="/var/tmp/forgectl-0", workdir="/var/tmp/forgectl-0/work/w")
    plan = placed(spec, facts)
    assert (plan.sync, plan.sync_limit) == ("none", 4 << 30)
    assert (plan.hosts[0].root, plan.hosts[0].workdir) == ("/var/tmp/forgectl-0", "/var/tmp/forgectl-0/work/w")


def test_a_mesh_keeps_what_it_wished_for() -> None:
    trainer, sft = everything_planned().mesh("trainer"), everything_planned().mesh("sft")
    assert (trainer.unit.hosts, trainer.unit.env, trainer.unit.python) == (2, {"BOTH": "mesh"}, "/opt/py")
    assert (sft.unit.hosts, sft.unit.env, sft.unit.python) == (("here",), {}, None)

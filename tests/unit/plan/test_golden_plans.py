"""What `forgectl plan --json` prints for a few specs, byte for byte: scripts of users read it.

Where a change is meant, write the files anew: `python -m tests.unit.plan.test_golden_plans`.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from forgectl.cli.views.plan_view import plan_json
from forgectl.model.plan import Gpu, Plan, Program, RestartPolicy
from forgectl.plan.addition import held_by, place_more, replace_lost
from tests.unit.plan.plan_cases import hosts_of, placed, spec_of
from tests.unit.plan.test_addition import unit

FOLDER = Path(__file__).with_name("golden_plans")

SCRIPTS = """
name: scripts
hosts: [{name: a, local: true, env: {WHERE: a}}, {name: b, local: true, slots: 3}]
env: {PLAIN: "yes", EVIL: "\\e]52;c;aGk=\\a[red]x[/red]\\n\\u202e ümlaut"}
secrets: [HF_TOKEN]
scripts:
  sft: {module: train --lr 1e-4, procs: 4, hosts: 2, with_gpus: true, restart: {max: 3, within: 10m}}
  tidy: {command: [sh, -c, "echo hi there"], hosts: [b], env: {PLAIN: mesh}}
  tool: {module: json.tool --help, procs: 2, start_method: spawn, preload: []}
"""
EVERYTHING = """
name: all
workdir: /tmp
hosts:
  - {name: gpu01, address: 10.0.0.1}
  - {name: here, local: true, env: {WHERE: here, BOTH: host}}
  - {name: unused, local: true}
env: {BOTH: spec, ALL: "1"}
lease: 12s
log_limit: 1MiB
sync: none
services: {policy: {class: m:P, num_replicas: 2, hosts: [here], router: least_loaded, args: {size: 7b}}}
driver: {command: "sh -c true", env: {WHO: driver}}
actors: {trainer: {class: m:T, procs: 4, hosts: 2, with_gpus: true, python: /opt/py, env: {BOTH: mesh},
                   restart: {max: 3, within: 10m}, start_method: spawn, preload: [torch, numpy]}}
scripts: {sft: {module: json.tool --help, hosts: [here]}}
"""
RESIDENT = """
name: resident
hosts: [gpu01, gpu02]
actors: {x: {class: "m:C", procs: 4, hosts: 2, args: {a: [1, null, 0.5]}}}
"""
MANY = """
name: many
hosts: [{name: a, local: true}, {name: b, local: true}, {name: c, local: true}]
scripts: {wide: {module: x, procs: 24, hosts: 3, with_gpus: true}}
"""
SHARING = """
name: sharing
hosts: [{name: a, local: true}, {name: b, local: true}]
actors: {trainer: {class: m:T, procs: 4, hosts: 2, with_gpus: true}}
services: {judges: {class: m:J, num_replicas: 2, procs: 2, hosts: 1, share_gpus_with: trainer}}
"""


def everything() -> Plan:
    _, facts = hosts_of("gpu01:2 here:4 unused:0")
    facts["gpu01"] = replace(facts["gpu01"], root="/var/tmp/forgectl-0", workdir="/var/tmp/forgectl-0/work/w")
    return placed(spec_of(EVERYTHING), facts, inherited={"OMP_NUM_THREADS": "5"})


def of_mig_devices() -> Plan:
    """Each rank is shown a device of its own."""
    spec = spec_of("name: mig\nhosts: [{name: a, local: true}]\nscripts: {x: {module: x, procs: 2, with_gpus: true}}\n")
    _, facts = hosts_of("a:0")
    facts["a"] = replace(facts["a"], gpus=tuple(Gpu(f"MIG-{i}", f"MIG-{i}", "H200 MIG 1g.18gb") for i in range(2)))
    return placed(spec, facts)


def grown() -> Plan:
    """A mesh that code has added, and one that has moved."""
    _, facts = hosts_of("gpu01:2 here:4 unused:4")
    plan = placed(spec_of(EVERYTHING), facts)
    gpus = held_by(plan.meshes, {name: f.gpus for name, f in facts.items()})
    wanted = replace(unit(2, gpus=True), program=Program("file", "/tmp/train.py", ("-v",)), restart=RestartPolicy(2))
    added = place_more(plan, wanted, gpus, {}, plan.meshes)
    trainer = plan.mesh("trainer")
    gpus["here"] = trainer.gpus["here"]
    moved = replace_lost(plan, trainer, {"gpu01"}, gpus, {}, plan.meshes)
    return replace(plan, meshes=(*(m for m in plan.meshes if m is not trainer), added, moved))


PLANS = {
    "scripts": lambda: placed(
        spec_of(SCRIPTS, {"HF_TOKEN": "sesame-open"}), hosts_of("a:4 b:4")[1], inherited={"HF_TOKEN": "sesame-open"}
    ),
    "everything": everything,
    "resident": lambda: placed(spec_of(RESIDENT), hosts_of("gpu01:0 gpu02:0 local:0")[1]),
    "many": lambda: placed(spec_of(MANY), hosts_of("a:8 b:8 c:8")[1]),
    "mig": of_mig_devices,
    "sharing": lambda: placed(spec_of(SHARING), hosts_of("a:2 b:4")[1]),
    "grown": grown,
}


def printed(plan: Plan) -> bytes:
    """As the command prints it."""
    return (json.dumps(plan_json(plan), indent=2) + "\n").encode()


@pytest.mark.parametrize("name", PLANS)
def test_plan_json_is_as_it_was(name: str) -> None:
    assert printed(PLANS[name]()) == (FOLDER / f"{name}.json").read_bytes()


def test_no_file_is_left_over() -> None:
    assert {p.stem for p in FOLDER.iterdir()} == PLANS.keys()


if __name__ == "__main__":
    for name, make in PLANS.items():
        (FOLDER / f"{name}.json").write_bytes(printed(make()))

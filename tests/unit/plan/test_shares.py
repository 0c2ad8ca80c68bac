"""A mesh as a host is sent it: its own ranks, its own paths, and no more bytes for each further host of the mesh."""

from __future__ import annotations

from dataclasses import replace

import pytest

from forgectl.model.mesh_share import MeshShare
from forgectl.model.plan import Gpu, HostFacts, HostPlan, MeshPlan, Plan, Program
from forgectl.plan.shares import share_of
from forgectl.protocol.supervision import CONTROLLER_TO_AGENT, Prepare
from forgectl.wire.envelope import decode, encode
from tests.unit.plan.plan_cases import case, placed, spec_of
from tests.unit.plan.test_golden_plans import PLANS

HOST = HostPlan("a", False, "python3", "", workdir="/var/tmp/forgectl-0/work/w b")


def with_program(program: Program) -> MeshPlan:
    """On host a, in a workdir that HOST has elsewhere."""
    mesh = placed(*case("a:0", "x:2-")).meshes[0]
    return replace(mesh, workdir="/home/u/w", unit=replace(mesh.unit, program=program))


@pytest.mark.parametrize(
    ("program", "there"),
    [
        (Program("file", "/home/u/w/pkg/train.py", ("/home/u/w",)), "/var/tmp/forgectl-0/work/w b/pkg/train.py"),
        (Program("file", "/home/u/w.py"), "/home/u/w.py"),  # beside workdir, not in it
        (Program("file", "/opt/train.py"), "/opt/train.py"),
        (Program("module", "w.train"), "w.train"),
        (Program("command", "/home/u/w/run"), "/home/u/w/run"),
        (Program("actor", "m:C"), "m:C"),
    ],
)
def test_a_host_gets_its_own_paths(program: Program, there: str) -> None:
    share = share_of(with_program(program), HOST)
    assert (share.workdir, share.program) == (HOST.workdir, replace(program, target=there))


@pytest.mark.parametrize("workdir", ["", "/home/u/w"])
def test_where_workdir_is_the_same_paths_stay(workdir: str) -> None:
    program = Program("file", "/home/u/w/train.py")
    share = share_of(with_program(program), replace(HOST, workdir=workdir))
    assert (share.workdir, share.program) == ("/home/u/w", program)


@pytest.mark.parametrize("name", PLANS)
def test_a_share_has_all_that_the_plan_says_of_the_host(name: str) -> None:
    plan = PLANS[name]()
    for mesh in plan.meshes:
        for host in (h for h in plan.hosts if h.name in mesh.hosts):
            share = share_of(mesh, host)
            assert {n: share.environment(n) for n in share.ranks} == {r.rank: r.env for r in mesh.ranks_on(host.name)}
            assert (share.env, share.gpus) == (mesh.env[host.name], mesh.gpus[host.name])
            assert (share.world_size, share.hosts, share.python) == (
                len(mesh.ranks),
                len(mesh.hosts),
                mesh.python[host.name],
            )


def shares(plan: Plan) -> list[MeshShare]:
    hosts = {h.name: h for h in plan.hosts}
    return [share_of(mesh, hosts[name]) for mesh in plan.meshes for name in mesh.hosts]


def sent(plan: Plan) -> int:
    """Bytes of all that the hosts are sent of a plan's meshes."""
    return sum(len(encode(Prepare(share))) for share in shares(plan))


def large(hosts: int, each: int = 8) -> Plan:
    """A mesh that takes all GPUs of its hosts, named as NVML names them."""
    names = [f"node{i:03}" for i in range(hosts)]
    facts = {
        name: HostFacts(
            name,
            name,
            96,
            tuple(Gpu(str(j), f"GPU-{i:08x}-1111-2222-3333-{j:012x}", "NVIDIA H200") for j in range(each)),
        )
        for i, name in enumerate(names)
    }
    spec = spec_of(
        f"hosts: [{', '.join(f'{{name: {n}, local: true}}' for n in names)}]\n"
        "env: {NCCL_DEBUG: WARN, HF_HOME: /scratch/cache/huggingface}\n"
        f"scripts: {{sft: {{module: train --lr 1e-4, procs: {hosts * each}, hosts: {hosts}, with_gpus: true}}}}\n"
    )
    return placed(spec, facts)


def test_128_hosts_of_8_ranks_are_sent_less_than_a_megabyte() -> None:
    assert sent(large(128)) < 1_000_000


def test_a_host_is_sent_as_much_of_a_large_mesh_as_of_a_small_one() -> None:
    few, many = sent(large(2)) / 2, sent(large(64)) / 64
    assert many < few + 100  # longer numbers


def test_one_host_is_sent_no_more_than_the_plan_itself() -> None:
    plan = large(1)
    assert sent(plan) < len(encode(plan.meshes[0]))


@pytest.mark.parametrize("name", PLANS)
def test_a_share_comes_out_of_a_message_as_it_went_in(name: str) -> None:
    for share in shares(PLANS[name]()):
        assert decode(encode(Prepare(share, 2, 1)), CONTROLLER_TO_AGENT) == Prepare(share, 2, 1)


def test_what_ranks_have_in_common_is_sent_once() -> None:
    [share] = shares(large(1))
    assert share.common["WORLD_SIZE"] == "8"
    assert all(own.keys() == {"RANK", "LOCAL_RANK", "ROLE_RANK"} for own in share.ranks.values())
    [of_mig_devices] = shares(PLANS["mig"]())
    assert [own["CUDA_VISIBLE_DEVICES"] for own in of_mig_devices.ranks.values()] == ["MIG-0", "MIG-1"]

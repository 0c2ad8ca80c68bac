"""The variables of ranks: torchrun's meaning, the spec's precedence, threads by share of the machine."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import pytest

from forgectl.model.environment import AT_LAUNCH, host_environment, launch_environment, rank_environment
from forgectl.model.plan import Gpu, MeshPlan
from forgectl.system.shared_folders import SharedFolders
from tests.unit.plan.plan_cases import CORES, case, hosts_of, placed, spec_of


def variables(mesh: MeshPlan, rank: int) -> dict[str, str]:
    planned = mesh.ranks[rank]
    return {**mesh.env[planned.host], **planned.env}


def test_ranks_get_torchruns_numbers() -> None:
    mesh = placed(*case("a:2 b:2", "x:4@b+a")).mesh("x")
    assert mesh.ranks[3].env == {
        "RANK": "3",
        "LOCAL_RANK": "1",
        "WORLD_SIZE": "4",
        "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": "1",
        "GROUP_WORLD_SIZE": "2",
        "ROLE_RANK": "3",
        "ROLE_WORLD_SIZE": "4",
        "ROLE_NAME": "x",
        "TORCHELASTIC_MAX_RESTARTS": "0",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "FORGE_MESH": "x",
        "CUDA_VISIBLE_DEVICES": "0,1",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
    }
    assert [r.env["GROUP_RANK"] for r in mesh.ranks] == ["0", "0", "1", "1"]


def test_nothing_that_torchrun_gives_a_rank_is_missing() -> None:
    """Read from the source of the torch that is installed, without importing it."""
    torch = importlib.util.find_spec("torch")
    if torch is None or torch.origin is None:
        pytest.skip("torch is not installed")
    source = Path(torch.origin).parent / "distributed/elastic/agent/server/local_elastic_agent.py"
    keys = [
        key
        for node in ast.walk(ast.parse(source.read_text()))
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "worker_env"
        if isinstance(node.value, ast.Dict)
        for key in node.value.keys
    ]
    theirs = {key.value for key in keys if isinstance(key, ast.Constant)}
    assert "RANK" in theirs
    assert len(theirs) == len(keys), "each is written out"
    ours = {*variables(placed(*case("a:1", "x:1")).mesh("x"), 0), *AT_LAUNCH}
    assert theirs <= ours


def test_launch_adds_what_only_it_knows() -> None:
    env = launch_environment(
        "grpo-7f3a", 2, "127.0.0.1", 4242, "/run/error-0.json", SharedFolders(Path("/memory"), Path("/disk"))
    )
    assert env == {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "4242",
        "TORCHELASTIC_RESTART_COUNT": "2",
        "TORCHELASTIC_RUN_ID": "grpo-7f3a",
        "TORCHELASTIC_ERROR_FILE": "/run/error-0.json",
        "FORGE_RUN_ID": "grpo-7f3a",
        "FORGE_SHARED_MEMORY": "/memory",
        "FORGE_SHARED_DISK": "/disk",
    }
    assert tuple(env) == AT_LAUNCH


def test_ranks_without_gpus_leave_cuda_alone() -> None:
    env = variables(placed(*case("a:4", "x:1-")).mesh("x"), 0)
    assert not [n for n in env if n.startswith("CUDA")]


def test_a_mesh_wins_over_its_host_and_the_host_over_the_spec() -> None:
    spec = spec_of(
        "hosts: [{name: a, local: true, env: {B: host, C: host}}]\n"
        "env: {A: spec, B: spec, C: spec}\n"
        "scripts: {x: {command: 'true', env: {C: mesh}}}\n"
    )
    env = placed(spec, hosts_of("a:0")[1]).mesh("x").env["a"]
    assert {n: env[n] for n in "ABC"} == {"A": "spec", "B": "host", "C": "mesh"}


def test_meshes_of_equal_needs_start_from_equal_environments() -> None:
    plan = placed(*case("a:4", "x:2 y:2"))
    assert plan.mesh("x").env == plan.mesh("y").env


@pytest.mark.parametrize(
    ("hosts", "meshes", "threads"),
    [
        ("a:0", "x:1-", {"x": CORES}),
        ("a:0", "x:4-", {"x": CORES // 4}),
        ("a:0", "x:3- y:2-", {"x": CORES // 5, "y": CORES // 5}),
        ("a:0", "x:100-", {"x": 1}),
        ("a:0 b:0", "x:4-@a y:1-@b", {"x": CORES // 4, "y": CORES}),
        ("a:0 b=a:0", "x:4-@a y:4-@b", {"x": CORES // 8, "y": CORES // 8}),  # one machine, two names
    ],
)
def test_threads_are_the_cores_shared_by_all_ranks_of_the_machine(
    hosts: str, meshes: str, threads: dict[str, int]
) -> None:
    plan = placed(*case(hosts, meshes))
    given = {m.mesh: {e["OMP_NUM_THREADS"] for e in m.env.values()} for m in plan.meshes}
    assert given == {m: {str(n)} for m, n in threads.items()}


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "TORCH_NCCL_ASYNC_ERROR_HANDLING"])
def test_a_default_gives_way_to_the_spec_then_to_the_launching_environment(name: str) -> None:
    def value(*layers: dict[str, str], inherited: dict[str, str], secrets: tuple[str, ...] = ()) -> str | None:
        env = host_environment(*layers, host="a", cores=4, ranks=4, inherited=inherited, secrets=secrets)
        return env.get(name)

    assert value(inherited={}) == "1"
    assert value(inherited={name: "3"}) == "3"
    assert value({name: "5"}, {}, inherited={name: "3"}) == "5"
    assert value(inherited={name: "3"}, secrets=(name,)) is None  # a secret's value is in no plan


def test_the_launching_environment_is_not_that_of_hosts_elsewhere() -> None:
    spec = spec_of("hosts: [local, gpu01]\nscripts: {x: {command: 'true', hosts: 2, procs: 2}}\n")
    env = placed(spec, hosts_of("local:0 gpu01:0")[1], inherited={"OMP_NUM_THREADS": "3"}).mesh("x").env
    assert {host: variables["OMP_NUM_THREADS"] for host, variables in env.items()} == {
        "local": "3",
        "gpu01": str(CORES),
    }


def test_restarts_are_told_to_ranks() -> None:
    spec = spec_of("scripts: {x: {command: 'true', restart: {max: 2}}}")
    mesh = placed(spec, hosts_of("local:0")[1]).mesh("x")
    assert mesh.ranks[0].env["TORCHELASTIC_MAX_RESTARTS"] == "2"


def test_a_rank_on_a_mig_device_sees_only_its_own() -> None:
    """CUDA enumerates one MIG device a process, the first that is named."""
    gpus = [Gpu("MIG-a", "MIG-a"), Gpu("MIG-b", "MIG-b")]
    seen = [
        rank_environment(
            mesh="m",
            rank=rank,
            local_rank=rank,
            world_size=2,
            local_world_size=2,
            group_rank=0,
            group_world_size=1,
            max_restarts=0,
            gpus=gpus,
        )["CUDA_VISIBLE_DEVICES"]
        for rank in range(2)
    ]
    assert seen == ["MIG-a", "MIG-b"]

"""The environment variables of a rank: torchrun's, with the same meaning, and forgectl's."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from forgectl.model.plan import Gpu
from forgectl.system.shared_folders import SharedFolders

PER_RANK = ("RANK", "LOCAL_RANK", "ROLE_RANK")
"""Variables that differ between the ranks of one host and are known before launch."""

AT_LAUNCH = (
    "MASTER_ADDR",
    "MASTER_PORT",
    "TORCHELASTIC_RESTART_COUNT",
    "TORCHELASTIC_RUN_ID",
    "TORCHELASTIC_ERROR_FILE",
    "FORGE_RUN_ID",
    "FORGE_SHARED_MEMORY",
    "FORGE_SHARED_DISK",
)
"""Variables that are known only at launch: the keys of `launch_environment`."""


def host_environment(
    *layers: Mapping[str, str],
    host: str,
    cores: int,
    ranks: int,
    inherited: Mapping[str, str],
    secrets: Collection[str] = (),
) -> dict[str, str]:
    """The variables that all ranks of a mesh on a host share; their fork server starts with them.

    Later layers win. `ranks` counts every rank planned on the host's machine. torchrun's own defaults give way to the
    layers, to `inherited` (the launching environment) and to `secrets`, whose values are not in the plan.
    Nothing here names the mesh, so that meshes with equal needs can share a fork server.
    """
    env: dict[str, str] = {}
    for layer in layers:
        env.update(layer)
    threads = str(max(1, cores // max(1, ranks)))
    for name, default in (("OMP_NUM_THREADS", threads), ("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1")):
        if name not in env and name not in secrets:
            env[name] = inherited.get(name, default)
    env["FORGE_HOST"] = host
    return env


def rank_environment(
    *,
    mesh: str,
    rank: int,
    local_rank: int,
    world_size: int,
    local_world_size: int,
    group_rank: int,
    group_world_size: int,
    max_restarts: int,
    gpus: Sequence[Gpu] = (),
) -> dict[str, str]:
    """A rank's variables that are known before launch, in addition to its host's.

    A mesh has one role, its own name, so role rank and world size are those of the mesh (as in torchrun).
    `gpus` are all GPUs of the mesh on the host: a rank picks its own by LOCAL_RANK, modulo their number where several
    ranks use one. With MIG, each rank sees only its own device, as cuda:0.
    """
    env = {
        "RANK": str(rank),
        "LOCAL_RANK": str(local_rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(local_world_size),
        "GROUP_RANK": str(group_rank),
        "GROUP_WORLD_SIZE": str(group_world_size),
        "ROLE_RANK": str(rank),
        "ROLE_WORLD_SIZE": str(world_size),
        "ROLE_NAME": mesh,
        "TORCHELASTIC_MAX_RESTARTS": str(max_restarts),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # torch compares with str(True)
        "FORGE_MESH": mesh,
    }
    if gpus:
        mig = any(g.visible.startswith("MIG-") for g in gpus)  # CUDA shows a process only the first MIG device
        seen = [gpus[local_rank % len(gpus)]] if mig else gpus
        env["CUDA_VISIBLE_DEVICES"] = ",".join(g.visible for g in seen)
        env["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # the order of the indices in `visible`; CUDA's default is by speed
    return env


def in_common(environments: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """The variables that all of these environments have, with the same value."""
    first = environments[0] if environments else {}
    return {name: value for name, value in first.items() if all(env.get(name) == value for env in environments)}


def launch_environment(
    run_id: str, restarts: int, master_addr: str, master_port: int, error_file: str, shared: SharedFolders
) -> dict[str, str]:
    """The variables that a launch adds. `restarts` is the number of earlier generations of the mesh."""
    return {
        "MASTER_ADDR": master_addr,
        "MASTER_PORT": str(master_port),
        "TORCHELASTIC_RESTART_COUNT": str(restarts),
        "TORCHELASTIC_RUN_ID": run_id,
        "TORCHELASTIC_ERROR_FILE": error_file,
        "FORGE_RUN_ID": run_id,
        "FORGE_SHARED_MEMORY": str(shared.memory),
        "FORGE_SHARED_DISK": str(shared.disk),
    }

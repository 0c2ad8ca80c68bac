"""Makes the share of a mesh that each host receives: its own ranks, with that host's paths."""

from __future__ import annotations

import dataclasses
from pathlib import PurePosixPath

from forgectl.model.environment import in_common
from forgectl.model.mesh_share import MeshShare
from forgectl.model.plan import HostPlan, MeshPlan, Program


def share_of(mesh: MeshPlan, host: HostPlan) -> MeshShare:
    """The part of the mesh that `host` runs, in that host's copy of the workdir."""
    ranks = mesh.ranks_on(host.name)
    common = in_common([r.env for r in ranks])
    workdir = host.workdir or mesh.workdir
    return MeshShare(
        mesh=mesh.mesh,
        kind=mesh.kind,
        program=_moved(mesh.program, mesh.workdir, workdir),
        host=host.name,
        workdir=workdir,
        python=mesh.python[host.name],
        preload=mesh.preload,
        start_method=mesh.start_method,
        secrets=mesh.secrets,
        env=mesh.env[host.name],
        gpus=mesh.gpus.get(host.name, ()),
        common=common,
        ranks={r.rank: {name: value for name, value in r.env.items() if name not in common} for r in ranks},
        world_size=mesh.procs,
        hosts=len(mesh.hosts),
        hang=mesh.unit.hang,
    )


def _moved(program: Program, workdir: str, there: str) -> Program:
    """The program on a host where workdir is `there`: the path of a file in workdir changes accordingly."""
    target = PurePosixPath(program.target)
    if there == workdir or program.kind != "file" or not target.is_relative_to(workdir):
        return program
    return dataclasses.replace(program, target=str(PurePosixPath(there) / target.relative_to(workdir)))

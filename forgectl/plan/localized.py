"""A mesh as a host is told of it: with the paths that hold there."""

from __future__ import annotations

import dataclasses
from pathlib import PurePosixPath

from forgectl.model.plan import HostPlan, MeshPlan, Plan


def on_host(mesh: MeshPlan, plan: Plan, host: HostPlan) -> MeshPlan:
    """The mesh as `host` runs it: in that host's copy of the workdir, with its file from there."""
    if not host.workdir or host.workdir == plan.workdir:
        return mesh
    program = mesh.program
    target = PurePosixPath(program.target)
    if program.kind == "file" and target.is_relative_to(plan.workdir):
        moved = PurePosixPath(host.workdir) / target.relative_to(plan.workdir)
        program = dataclasses.replace(program, target=str(moved))
    return dataclasses.replace(mesh, unit=dataclasses.replace(mesh.unit, program=program), workdir=host.workdir)

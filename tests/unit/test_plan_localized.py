"""A mesh as an ssh host is told of it: its paths are those of the host."""

from __future__ import annotations

from dataclasses import replace

import pytest

from forgectl.model.plan import HostPlan, MeshPlan, Plan, Program
from forgectl.plan.localized import on_host
from tests.unit.plan_cases import case, placed

HOST = HostPlan("a", False, "python3", "", workdir="/var/tmp/forgectl-0/work/w b")


def with_program(mesh: MeshPlan, workdir: str, program: Program) -> MeshPlan:
    return replace(mesh, workdir=workdir, unit=replace(mesh.unit, program=program))


def planned(program: Program) -> Plan:
    plan = placed(*case("a:0", "x:2-"))
    return replace(plan, workdir="/home/u/w", meshes=(with_program(plan.meshes[0], "/home/u/w", program),))


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
    plan = planned(program)
    mesh = on_host(plan.meshes[0], plan, HOST)
    assert (mesh.workdir, mesh.program) == (HOST.workdir, replace(program, target=there))
    assert with_program(mesh, plan.workdir, program) == plan.meshes[0]


@pytest.mark.parametrize("workdir", ["", "/home/u/w"])
def test_where_workdir_is_the_same_nothing_changes(workdir: str) -> None:
    plan = planned(Program("file", "/home/u/w/train.py"))
    assert on_host(plan.meshes[0], plan, replace(HOST, workdir=workdir)) is plan.meshes[0]

"""Ends meshes of runs and prints how their ranks ended."""

from __future__ import annotations

import sys

from forgectl.cli.views import render
from forgectl.cli.views.host_news import HostNews
from forgectl.cli.watch import RunWatch
from forgectl.controller import client, run_dir
from forgectl.controller.run_dir import RunDir
from forgectl.errors import ForgeError
from forgectl.model.status import RunStatus


def end_all(targets: dict[str, tuple[str, ...] | None], grace: float) -> int:
    """End meshes of runs, all at once; returns 0 when every process is gone, 70 if one could not be killed.

    `targets`: run id → its meshes, None for all. Raises the first ForgeError, after the other runs were handled.
    """
    watches = {RunWatch(RunDir.existing(run_dir.runs_folder() / run)): meshes for run, meshes in targets.items()}
    asked: list[RunWatch] = []
    trouble: ForgeError | None = None
    for watch, meshes in watches.items():  # ask all runs before waiting for any
        try:
            watch.stop("forgectl shutdown", meshes=meshes, grace=grace)
            asked.append(watch)
        except ForgeError as e:  # the other runs must end all the same
            trouble = trouble or e
    worst = 0
    for watch in asked:
        try:
            worst = max(worst, _print_ends(_wait(watch, watches[watch]), watches[watch]))
        except ForgeError as e:
            trouble = trouble or e
    if trouble is not None:
        sys.stdout.flush()
        raise trouble
    if not targets:
        sys.stdout.write("nothing is running\n")
    return worst


def _wait(watch: RunWatch, meshes: tuple[str, ...] | None) -> RunStatus:
    """Follow a run until its meshes have ended; returns its last state."""
    news = HostNews()
    for status in watch.steps():
        if status is None:
            continue
        for sentence in news.of(status):
            render.stderr().print(render.plain(f"forgectl: {sentence}"), style="dim")
        if watch.ended or (meshes is not None and _are_over(meshes, status) and not _ends(watch.run, status)):
            return status
    raise AssertionError("the last step of a run has its final state")


def _are_over(meshes: tuple[str, ...], status: RunStatus) -> bool:
    return all(status.mesh(name).ended for name in meshes)


def _ends(run: RunDir, status: RunStatus) -> bool:
    """Whether the run itself is ending, and its final state will come. A script's own run goes on without meshes."""
    ends = all(m.ended for m in status.meshes)
    return ends and (status.state == "stopping" or not run.read_plan().open)


def _print_ends(status: RunStatus, meshes: tuple[str, ...] | None) -> int:
    """Print how the ranks of each mesh ended; returns 70 if a process outlived SIGKILL, else 0."""
    if status.ended:
        client.wait_gone(status)
    worst = 0
    for mesh in status.meshes:
        if meshes is not None and mesh.mesh not in meshes:
            continue
        ends: dict[str, int] = {}
        for rank in mesh.ranks:
            how = "never started" if rank.pid is None else render.how_ended(rank)
            how = how if how != "-" else rank.state
            ends[how] = ends.get(how, 0) + 1
        how_many = ", ".join(f"{count} × {how}" for how, count in ends.items())
        render.show(render.plain(f"{status.run}/{mesh.mesh} {mesh.state}: {how_many}"))
        if mesh.unkillable:
            unkillable = ", ".join(mesh.unkillable)
            render.show(render.plain(f"  not even SIGKILL ended {unkillable}; its GPUs stay leased"))
            worst = 70
    return worst

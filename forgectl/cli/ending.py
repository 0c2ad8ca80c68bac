"""Ends meshes of runs and prints how their ranks ended."""

from __future__ import annotations

import contextlib
import sys
import time

from forgectl.cli.views import render
from forgectl.cli.views.host_news import HostNews
from forgectl.controller import client, run_dir
from forgectl.controller.run_dir import RunDir
from forgectl.errors import ForgeError, InternalError
from forgectl.model.status import RunStatus
from forgectl.protocol.control import Attach, Shutdown, StatusReport
from forgectl.wire.envelope import ProtocolError
from forgectl.wire.unix_sockets import Connection


def end_all(targets: dict[str, tuple[str, ...] | None], grace: float) -> int:
    """End meshes of runs, all at once; returns 0 when every process is gone, 70 if one could not be killed.

    `targets`: run id → its meshes, None for all. Raises the first ForgeError, after the other runs were handled.
    """
    runs = [RunDir.existing(run_dir.runs_folder() / name) for name in targets]
    lines: dict[str, Connection | None] = {}
    trouble: ForgeError | None = None
    for run in runs:  # ask all runs before waiting for any
        try:
            lines[run.run] = _ask(run, targets[run.run], grace)
        except ForgeError as e:  # the other runs must end all the same
            trouble = trouble or e
    worst = 0
    for run in runs:
        if run.run not in lines:
            continue
        try:
            status = _wait(run, lines[run.run], targets[run.run], grace)
        except ForgeError as e:
            trouble = trouble or e
        else:
            worst = max(worst, _print_ends(status, targets[run.run]))
    if trouble is not None:
        sys.stdout.flush()
        raise trouble
    if not runs:
        sys.stdout.write("nothing is running\n")
    return worst


def _ask(run: RunDir, meshes: tuple[str, ...] | None, grace: float) -> Connection | None:
    """Ask a run's controller to end the meshes; returns the connection, None if the run has ended."""
    line = client.connect(run)
    if line is not None:
        with contextlib.suppress(ConnectionError):  # its controller died: the next read will show it
            line.send(Attach())
            line.send(Shutdown(meshes, grace, "forgectl shutdown"))
    return line


def _wait(run: RunDir, line: Connection | None, meshes: tuple[str, ...] | None, grace: float) -> RunStatus:
    """Follow a run until its meshes have ended; returns its last state. If its controller dies, start another one."""
    news = HostNews()
    while line is not None:
        try:
            report = line.receive()
        except OSError:
            report = None
        except ProtocolError as e:
            hint = f"see {run.path / 'controller.log'}"
            raise InternalError(f"the controller of run {run.run} broke the protocol: {e}", hint=hint) from None
        if isinstance(report, StatusReport):
            for sentence in news.of(report.run):
                render.stderr().print(render.plain(f"forgectl: {sentence}"), style="dim")
            over = meshes is not None and all(report.run.mesh(name).ended for name in meshes)
            if report.ended or (over and not _ends(run, report.run)):
                return report.run
            continue
        line.close()
        line = _ask(run, meshes, grace)
    final = run.read_final()
    while final is None:  # the controller is still writing it
        time.sleep(0.01)
        final = run.read_final()
    return final


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

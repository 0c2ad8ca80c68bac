"""A launch as its user sees it: until all meshes are up (`-d`), or with logs until the run has ended."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from forgectl.cli.find import all_living
from forgectl.cli.output import Output, check_ranks
from forgectl.cli.views import render
from forgectl.cli.views.hang_news import HangNews
from forgectl.cli.views.host_news import HostNews, only_waits_for
from forgectl.cli.views.json_text import json_text
from forgectl.cli.views.status_json import status_json
from forgectl.cli.watch import RunWatch, Signals, name_of
from forgectl.controller import client
from forgectl.controller.run_dir import RunDir
from forgectl.controller.start_run import begin_run
from forgectl.errors import TimedOutError, error_of
from forgectl.log_output.log_stream import LogSource, LogStream
from forgectl.log_output.log_writer import LogWriter
from forgectl.log_output.terminal_text import wants_color
from forgectl.model.plan import Plan
from forgectl.model.status import MeshStatus, RunStatus
from forgectl.protocol.control import FollowLogs
from forgectl.transport.survey import Hosts

if TYPE_CHECKING:
    from forgectl.cli.lent_input import LentInput


WAIT_SECONDS = 1.0
"""Time after which the user sees what a run that is over still waits for."""

EARLY_SECONDS = 5.0
"""Longest time for which the lines of a mesh's first ranks wait until all of its ranks run, and that is said."""


@dataclass(frozen=True)
class LaunchOptions:
    """Options of a launch: `detach`, `timeout` in seconds until all meshes must be up, `as_json`, and what is shown."""

    detach: bool
    timeout: float | None
    as_json: bool
    output: Output
    lends_input: bool = False  # to the one rank of the plan, if this command can


def launch_plan(plan: Plan, hosts: Hosts, spec_text: bytes, how: LaunchOptions, *, name_is_given: bool) -> int:
    """Launch a plan on its hosts, and wait as long as the user asked for; returns the exit code. Raises ForgeError."""
    deadline = None if how.timeout is None else time.monotonic() + how.timeout
    if not all(host.local for host in plan.hosts):
        from forgectl.cli.syncing import sync_workdir

        sync_workdir(plan, hosts, deadline, quiet=how.output.quiet)
    lent = None
    if how.lends_input and not how.detach:
        from forgectl.cli.lent_input import lent_input

        hidden = how.as_json or how.output.quiet
        lent = lent_input(hidden=hidden, restarts=any(m.restart.max for m in plan.meshes))
        plan = dataclasses.replace(plan, lends_input=lent is not None)
    with Signals().noted() as signals, lent.signals() if lent else contextlib.nullcontext():
        handed = hosts.descriptors({h.name for h in plan.hosts})
        run = begin_run(
            plan,
            spec_text,
            name_is_given=name_is_given,
            own=not how.detach,
            handed=handed,
            made=lent.open if lent else None,
        )
        hosts.hand_over()
        watch = RunWatch(run, signals, owner=not how.detach, logs=FollowLogs() if how.output.logs else None)
        launch = _Launch(run, watch, how.output, as_json=how.as_json, deadline=deadline, lent=lent)
        try:
            return launch.until_up() if how.detach else launch.until_ended()
        except BrokenPipeError:  # `forgectl launch … | head`: the reader has ended
            watch.end("the end of its reader", 141)
            raise
        finally:
            if lent:
                lent.close()


def follow(run: RunDir, last: int, output: Output) -> int:
    """Show a run from the `last` lines of its ranks on, until it has ended; returns its exit code."""
    stderr = render.stderr()
    plan = run.read_plan()
    check_ranks(output, [len(mesh.ranks) for mesh in plan.meshes], grows=plan.may_grow)
    if not run.has_ended and not output.quiet:
        stderr.print(render.plain(f"forgectl: attached to run {run.run}; Ctrl-C leaves it running"), style="dim")
    watch = RunWatch(run, logs=FollowLogs() if output.logs else None)
    try:
        return _Launch(run, watch, output, as_json=False, deadline=None, last=last).until_ended()
    except KeyboardInterrupt:
        stderr.print(render.plain(f"forgectl: left; run {run.run} goes on"), style="dim")
        raise


def end_living(name: str, by: str, *, quiet: bool) -> None:
    """End the living run of that name, if there is one; returns when nothing of it is left. `by`: what ends it."""
    for run in all_living():
        if run.name == name:
            watch = RunWatch(run)
            watch.end(by, 0)
            if watch.status is not None:
                client.wait_gone(watch.status)
            if not quiet:
                news = f"forgectl: run {run.run} ended; a new one takes its place"
                render.stderr().print(render.plain(news), style="dim")


class _Launch:
    def __init__(
        self,
        run: RunDir,
        watch: RunWatch,
        output: Output,
        *,
        as_json: bool,
        deadline: float | None,
        last: int | None = None,
        lent: LentInput | None = None,
    ) -> None:
        self._run = run
        self._watch = watch
        self._news = HostNews()
        self._hangs = HangNews()
        self._json = as_json
        self._shows = output
        self._last = last  # of logs that exist already, only so many lines
        self._deadline = deadline
        self._lent = lent
        self._stderr = render.stderr(lent.stderr if lent else None)
        self._shown: dict[str, tuple[str, int]] = {}  # mesh → the state and generation that were last printed
        self._early: dict[tuple[str, int], float] = {}  # mesh and generation → since when its first ranks run
        self._restarts: dict[str, int] = {}  # mesh → the number of the restart that was last printed
        self._interrupts = 0  # signals that were printed
        self._was_up = False
        self._over_since: float | None = None  # when only the run's own commands were left
        self._told_waiting = False
        self._late: list[str] = []  # meshes that were not up when the time was over
        self._output = stream = sys.stderr if as_json else sys.stdout
        terminal = stream.isatty()
        self._logs = LogStream(terminal=terminal, merged=last is not None)
        self._writer = LogWriter(stream.buffer, terminal=terminal, color=wants_color(stream), prefix=output.prefix)

    # ------------------------------------------------------------ the two ways

    def until_up(self) -> int:
        """`-d`: return when everything is up, or has been rolled back."""
        for status in self._watch.steps(self._next_deadline):
            self._take(status)
            now = self._watch.status
            if self._was_up and not self._watch.stopping and not (now and now.stopped_by):
                break
            self._leave_if_hurried()
        now = self._watch.status
        assert now is not None, "the run was up, or has ended"
        if self._watch.ended and (not self._was_up or now.exit_code):
            return self._finish()
        if self._json:
            _print_json(now)
        else:
            sys.stdout.write(f"{self._run.run}\n")
            sys.stdout.flush()
        return 0

    def until_ended(self) -> int:
        """In the foreground: show the logs until the run has ended."""
        for status in self._watch.steps(self._next_deadline):
            self._take(status)
            self._show_logs()
            self._leave_if_hurried()
            if self._lent and self._lent.unanswered():
                self._print("the program got Ctrl-C; again to end the run")
        if self._lent:
            self._lent.close()
        self._logs.end()
        while not self._logs.done:
            self._show_logs()
        self._writer.end()
        return self._finish()

    def _leave_if_hurried(self) -> None:
        """After a second Ctrl-C, stop waiting for hosts that are not reached: their agents end with their lease."""
        now = self._watch.status
        if self._watch.hurried and now is not None and (away := only_waits_for(now)):
            message = f"not waited for: {', '.join(away)}, not reached; what runs there ends by itself with its lease"
            raise error_of(self._watch.exit_code, message, f"run {self._run.run} ends then; see forgectl status")

    def _finish(self) -> int:
        status = self._watch.status
        assert status is not None, "a run that has ended has left its state"
        client.wait_gone(status)
        told = False
        for mesh in status.meshes:
            shown = mesh.failure is not None and self._shows.rank(mesh.failure.rank)
            seen = shown and _one_place(self._output, sys.stderr)
            report = render.failure_report(mesh, seen=seen) if mesh.state in ("failed", "lost") else None
            if report is not None and not _is_the_error(mesh, status) and not self._was_interrupted(mesh):
                self._stderr.print(report)
                told = True
        if told:
            self._print(f"`forgectl why {status.run}` tells more")
        if self._json:
            _print_json(status)
        if status.error is not None:
            raise status.error.error()
        if status.stopped_by == _TOO_LATE and status.exit_code == TimedOutError.exit_code:
            late = self._late or [status.meshes[0].mesh]
            raise TimedOutError(
                f"not up in time: {', '.join(late[:8])}; the run was shut down",
                hint=f"see what its ranks printed: forgectl logs {status.run}/{late[0]}",
            )
        return status.exit_code or 0

    def _was_interrupted(self, mesh: MeshStatus) -> bool:
        """Whether the program ended by the Ctrl-C that it got from its terminal."""
        by = [rank.signal or rank.exit_code for rank in mesh.ranks]
        return bool(self._lent and self._lent.interrupts) and by in ([signal.SIGINT], [128 + signal.SIGINT])

    # ------------------------------------------------------------ one step

    def _next_deadline(self) -> float | None:
        return None if self._was_up else self._deadline

    def _take(self, status: RunStatus | None) -> None:
        self._print_interrupts()
        if status is not None:
            self._was_up = self._was_up or status.was_up
            self._print_changes(status)
        if (now := self._watch.status) is not None and (status is not None or self._early):
            self._add_logs(now)
        self._print_waiting()
        late = self._next_deadline()
        if late is not None and time.monotonic() >= late:
            self._deadline = None
            now = self._watch.status
            self._late = [m.mesh for m in now.meshes if not m.up and not m.ended] if now else []
            self._watch.stop(_TOO_LATE, TimedOutError.exit_code)

    def _add_logs(self, status: RunStatus) -> None:
        early = {(m.mesh, m.generation) for m in status.meshes if m.state == "starting" and _runs_soon(m)}
        self._early = {key: self._early.get(key, time.monotonic()) for key in early}
        for mesh in status.meshes:
            since = self._early.get((mesh.mesh, mesh.generation))
            if since is not None and time.monotonic() - since < EARLY_SECONDS:
                continue
            for rank in mesh.ranks:
                if rank.log and self._lent and self._lent.terminal:
                    self._lent.write_log(Path(rank.log))
                elif rank.log and self._shows.rank(rank.rank):
                    self._logs.add(LogSource(f"{mesh.mesh}/{rank.rank}@{rank.host}", Path(rank.log)), self._last)
        self._last = None

    def _show_logs(self) -> None:
        for chunk in self._logs.poll():
            self._writer.write(chunk)

    def _tell(self, sentence: str, style: str = "dim") -> None:
        """Print news, which --quiet leaves out."""
        if not self._shows.quiet:
            self._print(sentence, style)

    def _print(self, sentence: str, style: str = "dim") -> None:
        self._stderr.print(render.plain(f"forgectl: {sentence}"), style=style)

    def _print_interrupts(self) -> None:
        """Print at once what a signal does, as it may take long."""
        signals, before = self._watch.signals, self._interrupts
        self._interrupts = len(signals)
        if signals and before == 0:
            name, again = name_of(signals[0]), "Ctrl-C again" if signals[0] == signal.SIGINT else "another signal"
            self._print(f"{name}: ending the run; waiting up to {self._watch.grace:g} s, {again} kills", style="")
        if len(signals) > 1 and before < 2:
            self._print(f"{name_of(signals[1])} again: killing what is left", style="")

    def _print_waiting(self) -> None:
        """Say once what a run waits for that is over: its commands for events."""
        now = self._watch.status
        if now is None or not now.ended or self._watch.ended or self._told_waiting:
            return
        self._over_since = self._over_since or time.monotonic()
        if time.monotonic() - self._over_since >= WAIT_SECONDS:
            self._told_waiting = True
            on = self._run.read_plan().on
            if on is not None:
                self._print(f"waiting for the commands of `on:`, up to {on.timeout:g} s; Ctrl-C twice ends them")

    def _print_changes(self, status: RunStatus) -> None:
        """Print on stderr how the states of meshes and hosts have changed."""
        for sentence in (*self._news.of(status), *self._hangs.of(status)):
            self._print(sentence)
        for mesh in status.meshes:
            if mesh.implicit and mesh.state not in ("failed", "lost"):
                continue  # nobody has written it
            restarts = list(render.restarts(mesh, self._restarts.get(mesh.mesh, 0)))
            state = (mesh.state, mesh.generation)
            changed = self._shown.get(mesh.mesh) != state and mesh.state != "pending" and not mesh.restarting
            if restarts or changed:
                self._show_logs()
            for sentence in restarts:
                self._tell(sentence)
            self._restarts[mesh.mesh] = render.last_restart(mesh)
            if changed:
                self._shown[mesh.mesh] = state
                self._print_state(mesh, status)

    def _print_state(self, mesh: MeshStatus, status: RunStatus) -> None:
        ends = status.ended or status.state == "stopping"
        if mesh.failure and ((ends and mesh.state in ("failed", "lost")) or _is_the_error(mesh, status)):
            return  # its report follows, after the logs, or the error of the launch
        if mesh.state == "stopping" and (not mesh.reason or self._watch.signals or self._was_interrupted(mesh)):
            return  # it is done, or ends as was just printed; its end follows
        if mesh.up:
            ranks = f"{mesh.desired} {'rank' if mesh.desired == 1 else 'ranks'}"
            self._tell(f"{mesh.mesh} {mesh.state} ({ranks}, run {status.run})")
        else:
            self._tell(render.state_sentence(mesh), style="dim" if mesh.state != "failed" else "")


def _runs_soon(mesh: MeshStatus) -> bool:
    """Whether some ranks of a mesh run that counts as up once all do; actors print much before they are ready."""
    return mesh.kind in ("script", "driver") and any(rank.log for rank in mesh.ranks)


def _one_place(*streams: TextIO) -> bool:
    """Whether what is written to the streams is read in one place, as in a terminal."""
    places = {(found.st_dev, found.st_ino) for found in (os.fstat(stream.fileno()) for stream in streams)}
    return len(places) == 1


def _is_the_error(mesh: MeshStatus, status: RunStatus) -> bool:
    """Whether a mesh's failure is no more than the error with which the launch ends."""
    why = mesh.failure
    return bool(why and status.error and not (why.traceback or why.log_tail) and why.message in status.error.message)


def _print_json(status: RunStatus) -> None:
    sys.stdout.write(json_text(status_json([status])))
    sys.stdout.flush()


_TOO_LATE = "its --timeout"

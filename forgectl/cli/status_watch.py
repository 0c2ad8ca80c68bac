"""`forgectl status -w`: shows what changes, in place on a terminal, line after line elsewhere."""

from __future__ import annotations

import contextlib
import select
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

from click.exceptions import Exit
from rich.console import Console, RenderableType
from rich.live import Live

from forgectl.cli.find import Found
from forgectl.cli.shown_runs import collect, look, nothing
from forgectl.cli.views import render, status_view
from forgectl.cli.views.host_news import HostNews
from forgectl.cli.views.json_text import json_text
from forgectl.cli.views.status_json import status_json
from forgectl.controller import client, run_dir
from forgectl.controller.run_dir import RunDir
from forgectl.errors import ForgeError, NotFoundError
from forgectl.model.status import RunStatus
from forgectl.protocol.control import Attach
from forgectl.wire.envelope import ProtocolError
from forgectl.wire.unix_sockets import Connection

EVERY = 1.0


def keep_showing(everything: bool, *, as_json: bool, ranks: bool) -> int:
    """Show all runs until Ctrl-C; those that end meanwhile stay for a while. Returns the exit code."""
    seen: set[str] = set()
    changes = ChangeWatch(run_dir.all_runs)
    with _display(as_json=as_json, ranks=ranks) as display, contextlib.suppress(KeyboardInterrupt):
        while True:
            runs, _ = collect(
                everything, recent=not as_json, stats=display.shows_use, metrics=display.shows_use, also=seen
            )
            seen |= {run.run for run in runs}
            display.show(runs)
            changes.wait(EVERY)
    return 0


def follow(named: Found, *, as_json: bool) -> int:
    """Show what was named until its run has ended, and return its exit code; 130 after a Ctrl-C.

    Raises NotFoundError if the run's folder is removed meanwhile, and what `client.document` raises.
    """
    changes = ChangeWatch(lambda: [named.run])
    with _display(as_json=as_json, ranks=True) as display:
        while True:
            try:
                found = look(named, stats=display.shows_use, metrics=display.shows_use)
            except (ForgeError, FileNotFoundError):
                if named.run.plan_file.exists():
                    raise
                raise NotFoundError(f"run {named.run.run} was removed") from None
            display.show([found])
            if found.ended:
                return found.exit_code or 0
            changes.wait(EVERY)


@contextlib.contextmanager
def _display(*, as_json: bool, ranks: bool) -> Iterator[_Display]:
    """A display of the kind that fits the output. SIGTERM restores a terminal, too."""
    console = render.stdout()
    if as_json:
        yield _Lines()
    elif not console.is_terminal or console.is_dumb_terminal:
        yield _News(ranks)
    else:
        before = signal.signal(signal.SIGTERM, _end)
        screen = _Screen(console, ranks)
        try:
            with screen.live:
                yield screen
        finally:
            signal.signal(signal.SIGTERM, before)
            if screen.is_over:
                console.print(screen.view)


def _end(number: int, frame: object) -> NoReturn:
    raise Exit(128 + number)


class _Display:
    """Shows the state of runs, time and again."""

    shows_use = True

    def show(self, runs: Sequence[RunStatus]) -> None:
        raise NotImplementedError


class _Screen(_Display):
    """The whole status in place, on a terminal. The last state of a run that has ended stays when the screen goes."""

    def __init__(self, console: Console, ranks: bool) -> None:
        self.live = Live(console=console, auto_refresh=False, screen=True)
        self.view: RenderableType = ""
        self.is_over = False
        self._ranks = ranks
        self.shows_use = ranks

    def show(self, runs: Sequence[RunStatus]) -> None:
        self.view = status_view.status_view(runs, ranks=self._ranks) if runs else nothing()
        self.is_over = bool(runs) and all(run.ended for run in runs)
        self.live.update(self.view, refresh=True)


class _News(_Display):
    """The rows that have changed, for a file, a pipe, or a terminal that can only append."""

    shows_use = False

    def __init__(self, ranks: bool) -> None:
        self._ranks = ranks
        self._rows = status_view.ChangedRows()
        self._hosts: dict[str, HostNews] = {}
        self._had_runs = True

    def show(self, runs: Sequence[RunStatus]) -> None:
        for view in status_view.news(runs, self._rows, ranks=self._ranks):
            render.show(view)
        for run in runs:
            for sentence in self._hosts.setdefault(run.run, HostNews()).of(run):
                render.show(render.plain(f"run {run.run}: {sentence}"))
        if not runs and self._had_runs:
            render.show(nothing())
        self._had_runs = bool(runs)
        sys.stdout.flush()


class _Lines(_Display):
    """A JSON document per line, when anything in it has changed."""

    def __init__(self) -> None:
        self._last = ""

    def show(self, runs: Sequence[RunStatus]) -> None:
        line = json_text(status_json(runs), indent=None)
        if line != self._last:
            sys.stdout.write(line)
            sys.stdout.flush()
        self._last = line


class ChangeWatch:
    """Waits until one of some runs changes: each controller sends reports, and only their arrival counts."""

    def __init__(self, runs: Callable[[], Sequence[RunDir]]) -> None:
        self._runs = runs
        self._lines: dict[str, Connection] = {}

    def wait(self, seconds: float) -> None:
        """Return at the next change, or after `seconds`."""
        if self._attach():
            return  # something may have changed before we connected
        ready, _, _ = select.select([line.socket.fileno() for line in self._lines.values()], [], [], seconds)
        for run, line in list(self._lines.items()):
            if line.socket.fileno() in ready and not self._receive(line):
                self._lines.pop(run).close()

    def _attach(self) -> bool:
        """Connect to runs that are new to us; whether there were any."""
        before = len(self._lines)
        for run in self._runs():
            if run.run not in self._lines and not run.has_ended:
                with contextlib.suppress(ForgeError, OSError):
                    line = client.connect(run)
                    if line is not None:
                        line.send(Attach())
                        self._receive(line)  # the present state
                        self._lines[run.run] = line
        return len(self._lines) > before

    @staticmethod
    def _receive(line: Connection) -> bool:
        """Receive all pending reports; False if the connection has ended."""
        try:
            received = line.receive(client.ANSWER_SECONDS) is not None
            while received and line.pending:
                received = line.receive(client.ANSWER_SECONDS) is not None
        except (OSError, ProtocolError):
            return False
        return received

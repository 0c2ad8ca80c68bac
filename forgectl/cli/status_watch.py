"""`forgectl status -w`: shows the status at every change and at least once a second, in place on a terminal."""

from __future__ import annotations

import contextlib
import json
import select
import sys
from collections.abc import Callable

from rich.live import Live

from forgectl.cli.views import render
from forgectl.cli.views.status_json import status_json
from forgectl.controller import client, run_dir
from forgectl.errors import ForgeError
from forgectl.model.status import RunStatus
from forgectl.protocol.control import Attach
from forgectl.wire.envelope import ProtocolError
from forgectl.wire.unix_sockets import Connection

EVERY = 1.0


def keep_showing(collect: Callable[[], list[RunStatus]], *, as_json: bool, ranks: bool) -> None:
    """Show what `collect` returns, again and again, until Ctrl-C."""
    changes = ChangeWatch()
    console = render.stdout()
    in_place = console.is_terminal and not as_json
    with contextlib.suppress(KeyboardInterrupt), contextlib.ExitStack() as stack:
        live = stack.enter_context(Live(console=console, auto_refresh=False, screen=True)) if in_place else None
        while True:
            runs = collect()
            if live is not None:
                live.update(render.status_view(runs, ranks=ranks), refresh=True)
            elif as_json:
                sys.stdout.write(json.dumps(status_json(runs)) + "\n")
            else:
                render.show(render.status_view(runs, ranks=ranks))
            sys.stdout.flush()
            changes.wait(EVERY)


class ChangeWatch:
    """Waits until a living run changes: each controller sends reports, and only their arrival counts."""

    def __init__(self) -> None:
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
        for run in run_dir.all_runs():
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

"""What all Rich output shares: consoles and styles that heed NO_COLOR, the width, and output that is no terminal.

All output passes through `_HarmlessConsole`, so text from a host, a rank or a spec cannot act on the terminal.
"""

from __future__ import annotations

import datetime
import os
import re
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.segment import Segment
from rich.text import Text

from forgectl.controller.hints import hint_for
from forgectl.log_output.terminal_text import harmless, wants_color
from forgectl.model.event import ranges
from forgectl.model.status import CollateralStatus, MeshStatus, RankStatus
from forgectl.system.processes import signal_name

STATE_STYLE = {
    "running": "green", "ready": "green", "succeeded": "green", "up": "green",
    "failed": "bold red", "lost": "bold red", "killed": "red",
    "starting": "yellow", "restarting": "yellow", "stopping": "yellow", "degraded": "yellow", "pending": "yellow",
    "reconnecting": "yellow", "stopped": "dim", "exited": "dim",
}  # fmt: skip
_RAISED = re.compile(r"rank \d+ on \S+ (?:raised |exited with code \d+: )(.+)", re.DOTALL)
_COMPARED = 100  # characters of two errors that must be equal
_SEEN_LINES = 5  # of a log's end that are shown again
WIDE = 100_000
"""Columns of a table that goes into a pipe: nothing is cut."""


def stdout() -> Console:
    """The console for data."""
    return _console(sys.stdout)


def stderr(stream: Any = None) -> Console:
    """The console for everything else; `stream` writes to standard error in its own way."""
    return _console(stream or sys.stderr)


class _HarmlessConsole(Console):
    """Makes all text harmless for a terminal; our own colours and cursor movements pass."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable():
                yield segment
            else:
                lines = (harmless(line, color=False) for line in segment.text.split("\n"))
                yield Segment("\n".join(lines), segment.style)


def _console(stream: Any) -> Console:
    width = None if stream.isatty() else int(os.environ.get("COLUMNS") or WIDE)
    no_color = not wants_color(stream)
    return _HarmlessConsole(file=stream, width=width, highlight=False, no_color=no_color, markup=False, emoji=False)


def show(what: RenderableType, *, width: int | None = None) -> None:
    """Print data; `width` in place of the terminal's. If stdout is no terminal, without trailing blanks."""
    console = stdout()
    if console.is_terminal and width is None:
        console.print(what)
        return
    console.width = width or console.width
    with console.capture() as capture:
        console.print(what)
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in capture.get().splitlines()))


def plain(text: str) -> Text:
    """Text from a host, rank or spec as it will be shown, so that the widths of columns are right."""
    return Text(harmless(text, color=False))


def state_text(state: str) -> Text:
    """A state in its colour."""
    return Text(state, style=STATE_STYLE.get(state, ""))


def how_ended(rank: RankStatus) -> str:
    """`exit 0`, `SIGTERM`, or `-` for a rank that has not ended."""
    if rank.signal is not None:
        return signal_name(rank.signal)
    return "-" if rank.exit_code is None else f"exit {rank.exit_code}"


def age(start: str | None, end: str | None = None) -> str:
    """The time since `start`, or from `start` to `end`: `12s`, `5m`, `3h`, `2d`."""
    if start is None:
        return "-"
    until = _time(end) if end else _now()
    return lasting((until - _time(start)).total_seconds())


def lasting(seconds: float) -> str:
    """A time as it is shown: `12s`, `5m`, `3h`, `2d`."""
    seconds = max(0, int(seconds))
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"


def clock(text: str | None, *, whole: bool = False) -> str:
    """A time in the viewer's zone: `14:03:22` today, else `Nov 22 14:03` or `2025-11-22`; `whole`: all of it."""
    if text is None:
        return "-"
    then, now = _time(text).astimezone(), _now().astimezone()
    if whole:
        return then.isoformat()
    if then.date() == now.date():
        return f"{then:%H:%M:%S}"
    return f"{then:%b %d %H:%M}" if abs(now - then).days < 180 else f"{then:%Y-%m-%d}"


def seconds_until(text: str) -> float:
    """The seconds that are left until a time; 0 once it has passed."""
    return max(0.0, (_time(text) - _now()).total_seconds())


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.timezone.utc)


def _time(text: str) -> datetime.datetime:
    return datetime.datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=datetime.timezone.utc)


# ---------------------------------------------------------------- changes of a mesh


def state_sentence(mesh: MeshStatus) -> str:
    """The state that a mesh has come to, and why; where ranks did not end by themselves, how many SIGKILL ended."""
    reason = mesh.reason if mesh.state in ("stopping", "stopped", "failed", "lost") else None
    by = (reason or "").removeprefix("stopped by ")
    if mesh.state == "stopped" and by != reason:
        killed = sum(r.signal == signal.SIGKILL for r in mesh.ranks)
        how = f"; SIGKILL ended {killed} of {mesh.desired} ranks" if killed else ""
        return f"{mesh.mesh} stopped by {by}{how}"
    return f"{mesh.mesh} {mesh.state}: {by}" if by else f"{mesh.mesh} {mesh.state}"


def last_restart(mesh: MeshStatus) -> int:
    """The number of the restart that is under way, else of the last one."""
    return mesh.restarting.number if mesh.restarting else mesh.restarts


def restarts(mesh: MeshStatus, shown: int) -> Iterator[str]:
    """`m: restart 3 of 30 in 4 s: why` for the restarts after number `shown`: no report need have come in between."""
    last = last_restart(mesh)
    if last <= shown:
        return
    if last - shown > 1:
        several = f"restart {shown + 1}" if last - shown == 2 else f"restarts {shown + 1} to {last - 1}"
        yield f"{mesh.mesh}: {several}{_at_most(mesh, last - 1)}"
    wait = mesh.restarting.wait if mesh.restarting else 0.0
    when = f" in {wait:g} s" if wait else ""
    why = f": {mesh.reason.removeprefix('restarted: ')}" if mesh.reason else ""
    yield f"{mesh.mesh}: restart {last}{_at_most(mesh, last)}{when}{why}"


def _at_most(mesh: MeshStatus, number: int) -> str:
    """More than the maximum are possible where only those within a time count."""
    return f" of {mesh.max_restarts}" if number <= mesh.max_restarts else ""


# ---------------------------------------------------------------- failures


def failure_report(mesh: MeshStatus, *, seen: bool = False) -> RenderableType | None:
    """Why a mesh failed: the root cause with its traceback, or else its last log lines, then the collateral ranks.

    Ranks with the same error are one line. If the output of ranks was `seen` where this is shown, it is not repeated
    in full: of a traceback only the last frame, of log lines only the last few.
    """
    failure = mesh.failure
    if failure is None:
        return None
    lines = [
        Text.assemble(
            (f"{mesh.mesh} {mesh.state}", "bold red"), ": ", Text(harmless(failure.message, color=False), "bold")
        )
    ]
    if failure.traceback:
        trace = failure.traceback.rstrip().splitlines()
        lines += [Text("  ") + plain(line) for line in (_last_frame(trace) if seen else trace)]
    elif failure.log_tail:
        lines.append(Text("  its last log lines:", style="dim"))
        lines += [Text("  │ ", style="dim") + plain(line) for line in failure.log_tail[-_SEEN_LINES if seen else 0 :]]
    if failure.log:
        lines.append(Text("  log: ", style="dim") + plain(failure.log))
    alike = [c for c in failure.collateral if _error(c.message) and _error(c.message) == _error(failure.message)]
    if alike and failure.rank is not None:
        ranks = ranges([failure.rank, *(c.rank for c in alike)])
        lines.append(Text(f"  ranks {ranks}: the same error", style="dim"))
    if others := [c for c in failure.collateral if c not in alike]:
        lines.append(Text(f"  fell with it: {_folded(others)}", style="dim"))
    if hint := hint_for(failure):
        lines.append(Text("  try: ", style="dim") + plain(hint))
    return Group(*lines)


def _last_frame(trace: list[str]) -> list[str]:
    """The end of a traceback, from its last frame on."""
    frames = [i for i, line in enumerate(trace) if line.startswith('  File "')]
    return trace[frames[-1] :] if frames else trace[-1:]


def _error(message: str) -> str:
    """What a rank raised, from the sentence about its end; "" if it did not say. Long ones come cut."""
    match = _RAISED.fullmatch(message)
    return match[1][:_COMPARED] if match else ""


def _folded(collateral: Sequence[CollateralStatus]) -> str:
    """`rank 0 on local exited with code 1; and 6 more`: one line, since these ranks are not the cause."""
    first = harmless(collateral[0].message, color=False)
    return first if len(collateral) == 1 else f"{first}; and {len(collateral) - 1} more"

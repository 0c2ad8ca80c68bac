"""Copies the workdir to ssh hosts before a launch, with a progress bar on a terminal."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from forgectl.cli.views import render
from forgectl.controller import run_dir
from forgectl.errors import ForgeError
from forgectl.model.plan import Plan
from forgectl.sync.scan import scan
from forgectl.sync.sender import Pushed, push
from forgectl.transport.survey import Hosts, combined_error, for_all, workdir_key

SLOW_SECONDS = 3.0
"""Seconds after which the user sees that the workdir is still being scanned."""
SHOWN = 5
"""Notices about a workdir that are printed; others are only counted."""


def sync_workdir(plan: Plan, hosts: Hosts, deadline: float | None = None, *, quiet: bool = False) -> None:
    """Send every ssh host of the plan what it lacks of workdir; raises one ForgeError for all hosts that failed.

    `deadline`: when to give up, by the monotonic clock. `quiet`: without the bar; notices come all the same.
    """
    remote = [h.name for h in plan.hosts if not h.local]
    if plan.sync == "none" or not remote:
        return
    slow = threading.Timer(SLOW_SECONDS, _print_notice, [f"looking through the workdir {plan.workdir}"])
    slow.start()
    try:
        tree = scan(Path(plan.workdir), plan.sync_limit, run_dir.cache_folder())
    finally:
        slow.cancel()
    for notice in tree.notices[:SHOWN]:
        _print_notice(notice)
    if len(tree.notices) > SHOWN:
        _print_notice(f"and {len(tree.notices) - SHOWN} more files of workdir are not synced")
    with _shown(remote, quiet=quiet) as bars:
        key = workdir_key(Path(plan.workdir))

        def sync(name: str) -> Pushed:
            try:
                return push(hosts.connections[name].line, tree, key, name, bars.of(name), deadline)
            except ForgeError:
                hosts.connections[name].close()  # its relay may lock a tree, on a shared disk, that others wait for
                raise

        def job(name: str) -> Callable[[], Pushed]:
            return lambda: sync(name)

        pushed, errors = for_all({name: job(name) for name in remote}, hosts)
    if errors:
        raise combined_error(errors)
    _report_changed_files(pushed)


def _report_changed_files(pushed: dict[str, Pushed]) -> None:
    changed = sorted({path for p in pushed.values() for path in p.changed})
    if changed:
        named = ", ".join(changed[:SHOWN]) + (f" and {len(changed) - SHOWN} more" if len(changed) > SHOWN else "")
        _print_notice(f"changed while they were copied, so hosts may have different versions: {named}")


def _print_notice(text: str) -> None:
    render.stderr().print(render.plain(f"forgectl: {text}"))


class _Bars:
    """Bytes sent of bytes to send, over all hosts."""

    def __init__(self, progress: Progress, hosts: int) -> None:
        self._progress = progress
        self._lock = threading.Lock()
        self._counts: dict[str, tuple[int, int]] = {}
        where = f"{hosts} hosts" if hosts > 1 else "1 host"
        self._bar = progress.add_task(f"forgectl: copying workdir to {where}", total=None, visible=False)

    def of(self, host: str) -> Callable[[int, int], None]:
        """A function that takes one host's progress: bytes sent, and bytes to send."""

        def advance(done: int, total: int) -> None:
            with self._lock:
                self._counts[host] = (done, total)
                done = sum(d for d, _ in self._counts.values())
                total = sum(t for _, t in self._counts.values())
            self._progress.update(self._bar, completed=done, total=total, visible=total > 0)

        return advance


@contextlib.contextmanager
def _shown(hosts: list[str], *, quiet: bool) -> Iterator[_Bars]:
    """A bar while something is sent, on a terminal; gone when it is done."""
    console = render.stderr()
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as progress:
        yield _Bars(progress, len(hosts))

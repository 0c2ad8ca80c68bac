"""Runs the commands of `on:` for events of the run: a few at once, each once, and for no longer than it may take."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass

from forgectl.boot import BOOT
from forgectl.controller.hook import CLEAN_SECONDS, HookCommand
from forgectl.controller.records import HookBegun, HookEnded, Record
from forgectl.controller.run_dir import RunDir
from forgectl.model.event import HookName, RunEvent, event_json
from forgectl.model.plan import HookPlan, Plan
from forgectl.redaction import Redaction
from forgectl.system.tasks import on_exit, within

AT_ONCE = 4
MOST_WAITING = 100
"""Most events that wait for their command; a mesh that restarts all the time makes many. The oldest are dropped."""
HURRY_SECONDS = 5.0
"""What commands may still take once somebody ends the run at once, as by a second Ctrl-C."""
START_SECONDS = 5.0


@dataclass
class _Running:
    seq: int
    hook: HookName
    process: subprocess.Popen[bytes]


class Hooks:
    """The commands of one run. `record` writes a record of the run; `plan` is None where it has no commands."""

    def __init__(self, run_dir: RunDir, plan: Plan, redact: Redaction, record: Callable[[Record], None]) -> None:
        self._dir = run_dir
        self._plan: HookPlan = plan.on or HookPlan({}, "/", 0.0)
        self._about = {"name": run_dir.name, "spec": plan.spec, "run_dir": str(run_dir.path)}
        self._redact = redact
        self._record = record
        self._waiting: deque[RunEvent] = deque()
        self._running: dict[int, _Running] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._hurried = asyncio.Event()

    def take(self, event: RunEvent) -> None:
        """Run the command for an event soon, if there is one."""
        if event.hook not in self._plan.commands:
            return
        self._idle.clear()
        self._waiting.append(event)
        asyncio.get_running_loop().call_soon(self._begin_more)  # not now: a record is being written

    def hurry(self) -> None:
        """Let commands end soon."""
        self._hurried.set()

    async def finish(self) -> None:
        """Wait for all commands. What takes too long is ended."""
        waits = [asyncio.ensure_future(self._idle.wait()), asyncio.ensure_future(self._hurried.wait())]
        await asyncio.wait(
            waits, timeout=self._plan.timeout + START_SECONDS + CLEAN_SECONDS, return_when=asyncio.FIRST_COMPLETED
        )
        for wait in waits:
            wait.cancel()
        for number, seconds in ((None, HURRY_SECONDS), (signal.SIGTERM, CLEAN_SECONDS + 1.0), (signal.SIGKILL, 1.0)):
            if self._idle.is_set():
                return
            if number is not None:
                self._drop(0, "the run has ended")
                self._signal(number)
            elif not self._hurried.is_set():
                continue
            with contextlib.suppress(asyncio.TimeoutError):
                await within(seconds, self._idle.wait())

    def _signal(self, number: int) -> None:
        for running in self._running.values():
            running.process.send_signal(number)

    def _drop(self, but: int, why: str) -> None:
        """Leave out the oldest events that wait, but so many."""
        while len(self._waiting) > but:
            event = self._waiting.popleft()
            assert event.hook is not None
            self._record(HookEnded(event.seq, event.hook, f"was not run: {why}"))

    def _begin_more(self) -> None:
        self._drop(MOST_WAITING, f"{MOST_WAITING} others waited")
        while self._waiting and len(self._running) < AT_ONCE:
            event = self._waiting.popleft()
            assert event.hook is not None
            self._record(HookBegun(event.seq, event.hook))
            try:
                self._begin(event, event.hook)
            except OSError as e:
                self._record(HookEnded(event.seq, event.hook, f"could not be started: {e.strerror or e}"))
        if not (self._waiting or self._running):
            self._idle.set()

    def _begin(self, event: RunEvent, hook: HookName) -> None:
        words, plan = self._plan.commands[hook], self._plan
        title = f"{hook} (event {event.seq})"
        command = HookCommand(title, words, plan.folder, plan.timeout, str(self._dir.hooks_log))
        document = {**event_json(event), "hook": hook, **self._about}
        given = os.memfd_create("event")
        try:
            with open(os.dup(given), "w", encoding="utf-8") as file:
                file.write(self._redact(json.dumps(document)) + "\n")
            os.lseek(given, 0, os.SEEK_SET)
            process = subprocess.Popen(
                [sys.executable, BOOT, "hook", json.dumps(asdict(command))],
                env=self._environment(hook),
                cwd="/",
                stdin=given,
                stdout=subprocess.PIPE,
                start_new_session=True,
            )
        finally:
            os.close(given)
        self._running[event.seq] = _Running(event.seq, hook, process)
        on_exit(process.pid, lambda: self._ended(event.seq))

    def _environment(self, hook: HookName) -> dict[str, str]:
        """That of the controller, but with no variable by which a process belongs to a mesh."""
        ours = {
            "FORGE_RUN_ID": self._dir.run,
            "FORGE_ROLE": "hook",
            "FORGE_EVENT": hook,
            "FORGE_RUN_DIR": str(self._dir.path),
        }
        return {name: v for name, v in os.environ.items() if not name.startswith("FORGE_")} | ours

    def _ended(self, seq: int) -> None:
        running = self._running.pop(seq)
        assert running.process.stdout is not None
        with running.process.stdout as stdout:
            why = stdout.read(4096).decode(errors="replace").strip()
        code = running.process.wait()
        why = why or (f"its supervisor ended with {code}" if code else "")
        self._record(HookEnded(seq, running.hook, why or None))
        self._begin_more()

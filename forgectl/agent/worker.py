"""Monarch's worker on this host, where a run has actors on several: started, heard, ended and missed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from forgectl.agent.reaper import Reaper
from forgectl.boot import BOOT
from forgectl.codec import to_json
from forgectl.protocol import Membership, OpenWorker, WorkerGone, WorkerOpened

FORWARDER = str(Path(BOOT).parent / "rank" / "forward.py")


class Worker:
    """One worker process, a child of the agent that dies with it."""

    def __init__(
        self,
        order: OpenWorker,
        membership: Membership,
        folder: Path,
        log: Path,
        reaper: Reaper,
        emit: Callable[[WorkerOpened | WorkerGone], None],
    ) -> None:
        self.generation = order.generation
        self._emit = emit
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._said = b""
        self._report, theirs = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            self._process = self._start(theirs)
        except OSError:
            os.close(self._report)
            raise
        finally:
            os.close(theirs)
        reaper.claim(self._process.pid, self._on_end)
        self._loop.add_reader(self._report, self._on_report)
        request = {"address": order.address, "folder": str(folder), **to_json(membership)}
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError), self._process.stdin as stdin:
            stdin.write(json.dumps(request).encode() + b"\n")

    def _start(self, report: int) -> subprocess.Popen[bytes]:
        os.set_inheritable(report, True)
        with self._log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, BOOT, "worker", str(os.getpid()), str(report)],
                env={**os.environ, "FORGE_ROLE": "worker"},
                cwd="/",
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=[report],
            )

    def _on_report(self) -> None:
        chunk = os.read(self._report, 1 << 16)
        self._said += chunk
        if chunk and not self._said.endswith(b"\n"):
            return
        self._close_report()
        with contextlib.suppress(ValueError):
            port = json.loads(self._said).get("port")
            if port:
                self._emit(WorkerOpened(self.generation, port, sys.executable, FORWARDER))

    def _close_report(self) -> None:
        if self._report >= 0:
            self._loop.remove_reader(self._report)
            os.close(self._report)
            self._report = -1

    def _on_end(self, status: int) -> None:
        if self._report >= 0:
            self._on_report()
            self._close_report()
        self._process.returncode = os.waitstatus_to_exitcode(status)
        self._emit(WorkerGone(self.generation, self._why()))

    def _why(self) -> str:
        """What it said before it ended, or how it did."""
        with contextlib.suppress(ValueError):
            if error := json.loads(self._said or b"{}").get("error"):
                return str(error)
        code = self._process.returncode
        return f"it ended by {f'signal {-code}' if code and code < 0 else f'exit code {code}'}"

    def stop(self) -> None:
        """End it at once; the ranks that it speaks for are ended apart."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGKILL)

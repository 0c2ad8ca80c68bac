"""Starts this host's messenger, if the run has actors on several machines, and tunnels to hosts it cannot dial.

Each is a process of its own, a child of the agent that dies with it. It reads its configuration on standard input.
"""

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
from typing import Any

from forgectl.agent.reaper import Reaper
from forgectl.boot import BOOT
from forgectl.names import NET_SOCKET
from forgectl.protocol.supervision import Links, Membership, MessengerGone, MessengerOpened, Tunnel
from forgectl.wire.codec import to_json

TUNNEL_PAUSE = 1.0
"""Seconds after which a tunnel that has ended is opened again."""


class MessengerProcess:
    """One process with a role. It reads JSON lines, and writes one to a descriptor once it serves."""

    def __init__(
        self, role: str, config: dict[str, Any], log: Path, reaper: Reaper, on_report: Callable[[dict[str, Any]], None]
    ) -> None:
        """Start it; raises OSError. `on_report` gets the line that it writes, or {} if it ends without one."""
        self._loop = asyncio.get_running_loop()
        self._take_report = on_report
        self._output = b""
        self._report, theirs = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.ended: asyncio.Future[int] = self._loop.create_future()
        try:
            self._process = _start(role, theirs, log)
        except OSError:
            os.close(self._report)
            raise
        finally:
            os.close(theirs)
        assert self._process.stdin is not None
        os.set_blocking(self._process.stdin.fileno(), False)
        reaper.claim(self._process.pid, self._on_end)
        self._loop.add_reader(self._report, self._on_report)
        self.send(config)

    def send(self, message: dict[str, Any]) -> None:
        """Send it a line. If it does not read any more, end it: the agent never blocks."""
        line = json.dumps(message).encode() + b"\n"
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            try:
                written = os.write(self._process.stdin.fileno(), line)
            except BlockingIOError:
                written = 0
            if written < len(line):
                self.stop()

    def _on_report(self) -> None:
        chunk = os.read(self._report, 1 << 16)
        self._output += chunk
        if chunk and not self._output.endswith(b"\n"):
            return
        self._close_report()
        with contextlib.suppress(ValueError):
            self._take_report(json.loads(self._output or b"{}"))

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
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self.ended.set_result(self._process.returncode)

    def how_ended(self) -> str:
        """The error that it reported before it ended, or else its exit code or signal."""
        with contextlib.suppress(ValueError):
            if error := json.loads(self._output or b"{}").get("error"):
                return str(error)
        code = self._process.returncode
        return f"it ended by {f'signal {-code}' if code and code < 0 else f'exit code {code}'}"

    def stop(self) -> None:
        """End it at once."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGKILL)


def _start(role: str, report: int, log: Path) -> subprocess.Popen[bytes]:
    os.set_inheritable(report, True)
    with log.open("ab") as out:
        return subprocess.Popen(
            [sys.executable, BOOT, role, str(os.getpid()), str(report)],
            env={**os.environ, "FORGE_ROLE": role},
            cwd="/",
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=out,
            pass_fds=[report],
        )


class Messengers:
    """This host's messenger and its tunnels. Every command may arrive twice."""

    def __init__(
        self,
        membership: Membership,
        folder: Path,
        logs: Callable[[str], Path],
        reaper: Reaper,
        emit: Callable[[MessengerOpened | MessengerGone], None],
    ) -> None:
        """`logs` names the log file of a role."""
        self._membership = membership
        self._folder = folder
        self._logs = logs
        self._reaper = reaper
        self._emit = emit
        self._generation = -1
        self._messenger: MessengerProcess | None = None
        self._tunnels: dict[str, tuple[Tunnel, MessengerProcess]] = {}
        self._stopped = False

    def open(self, generation: int) -> None:
        """Start the messenger of that generation, unless it was started before."""
        if self._generation >= generation or self._stopped:
            return
        self._generation = generation

        def on_report(report: dict[str, Any]) -> None:
            if "port" in report:
                self._emit(MessengerOpened(generation, report["port"], str(self._folder / NET_SOCKET)))

        try:
            config = {**to_json(self._membership), "folder": str(self._folder)}
            child = self._messenger = MessengerProcess(
                "messenger", config, self._logs("messenger"), self._reaper, on_report
            )
        except OSError as e:
            self._emit(MessengerGone(generation, f"it could not be started: {e}"))
            return
        child.ended.add_done_callback(lambda _: self._on_end(generation, child))

    def _on_end(self, generation: int, child: MessengerProcess) -> None:
        if not self._stopped:
            self._messenger = None
            self._emit(MessengerGone(generation, child.how_ended()))

    def link(self, links: Links) -> None:
        """Make the messenger dial these places, and no others."""
        if self._messenger is None:
            return
        for place in [p for p, (tunnel, _) in self._tunnels.items() if links.tunnels.get(p) != tunnel]:
            self._tunnels.pop(place)[1].stop()
        for place, tunnel in links.tunnels.items():
            if place not in self._tunnels:
                self._open_tunnel(place, tunnel)
        ways = {place: f"ipc://{self._entry(t)}" for place, t in links.tunnels.items()}
        self._messenger.send({"links": {**links.dialled, **ways}})

    def _entry(self, tunnel: Tunnel) -> Path:
        """The socket where the tunnel to a host begins. It has a number, since a host's name may be too long."""
        return self._folder / f"tunnel-{sorted(self._membership.members).index(tunnel.host)}"

    def _open_tunnel(self, place: str, tunnel: Tunnel) -> None:
        config = {**to_json(tunnel), "entry": str(self._entry(tunnel))}
        with contextlib.suppress(OSError):  # the messenger keeps trying to dial, and logs why it fails
            child = MessengerProcess("tunnel", config, self._logs("tunnel"), self._reaper, lambda _: None)
            self._tunnels[place] = tunnel, child
            child.ended.add_done_callback(lambda _: self._reopen_tunnel(place, tunnel, child))

    def _reopen_tunnel(self, place: str, tunnel: Tunnel, child: MessengerProcess) -> None:
        """Replace a tunnel that has ended, by being killed: a living one redials its host itself."""

        def again() -> None:
            if self._tunnels.get(place) == (tunnel, child) and not self._stopped:
                self._open_tunnel(place, tunnel)

        asyncio.get_running_loop().call_later(TUNNEL_PAUSE, again)

    def ended(self, prefix: str, generation: int) -> None:
        """Report to the messenger that ranks with that socket prefix have ended, up to and with a generation."""
        if self._messenger is not None:
            self._messenger.send({"ended": [prefix, generation]})

    def stop(self) -> None:
        """SIGKILL the messenger and the tunnels."""
        self._stopped = True
        for child in (self._messenger, *(c for _, c in self._tunnels.values())):
            if child is not None:
                child.stop()

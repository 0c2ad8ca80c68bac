"""What becomes of the run's meshes, as this machine's agent tells every process that follows it."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from forgectl.protocol.supervision import AGENT_TO_FOLLOWER, Follow, MeshNews, Synced
from forgectl.version import __version__
from forgectl.wire.envelope import ProtocolError
from forgectl.wire.unix_sockets import Connection, dial

Watcher = Callable[[MeshNews], None]

AGAIN_SECONDS = 0.2
TRIES = 25
"""How often an agent is dialled anew, when the connection to it was lost, before the run counts as over."""


class Follower:
    """A connection to an agent, in a thread of its own; watchers are called there."""

    def __init__(self, run: str, agent: str) -> None:
        self.heard: concurrent.futures.Future[None] = concurrent.futures.Future()
        """Done once the agent has told of all meshes that there are."""
        self._run = run
        self._agent = Path(agent)
        self._lock = threading.Lock()
        self._latest: dict[str, MeshNews] = {}
        self._watchers: dict[str, list[Watcher]] = {}
        self._over = False
        threading.Thread(target=self._follow, name="forgectl-news", daemon=True).start()

    def watch(self, mesh: str, watcher: Watcher) -> None:
        """Have `watcher` called with what there is to know of a mesh, and with whatever comes later."""
        with self._lock:
            self._watchers.setdefault(mesh, []).append(watcher)
            latest = self._latest.get(mesh) or (_lost(mesh) if self._over else None)
            if latest is not None:
                watcher(latest)

    def _follow(self) -> None:
        failures = 0
        while failures < TRIES:
            with contextlib.suppress(OSError, ProtocolError), contextlib.closing(self._connect()) as line:
                failures = 0
                while (message := line.receive()) is not None:
                    self._take(message)
            failures += 1
            time.sleep(AGAIN_SECONDS)
        with self._lock:
            self._over = True
            for mesh, watchers in self._watchers.items():
                for watcher in watchers:
                    watcher(_lost(mesh))
        if not self.heard.done():
            self.heard.set_result(None)

    def _connect(self) -> Connection:
        line = Connection(dial(self._agent, 5.0), AGENT_TO_FOLLOWER)
        line.send(Follow(__version__, self._run))
        return line

    def _take(self, message: MeshNews | Synced) -> None:
        if isinstance(message, Synced):
            if not self.heard.done():
                self.heard.set_result(None)
            return
        with self._lock:
            self._latest[message.mesh] = message
            for watcher in self._watchers.get(message.mesh, ()):
                watcher(message)


def _lost(mesh: str) -> MeshNews:
    return MeshNews(mesh, 2**31, "lost", reason="its run has ended")


_followers: dict[tuple[int, str, str], Follower] = {}
_lock = threading.Lock()


def follower(run: str, agent: str) -> Follower:
    """This process's follower of an agent."""
    key = os.getpid(), run, agent
    with _lock:
        if key not in _followers:
            _followers[key] = Follower(run, agent)
        return _followers[key]

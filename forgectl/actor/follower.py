"""Receives the state of the run's meshes from this machine's agent."""

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
NEWS_SECONDS = 30.0
"""How long the agent of a host may take to send the state of the meshes."""
TRIES = 25
"""Failed attempts to connect to the agent, one after another, before the run counts as ended."""


class Follower:
    """A connection to an agent. It has its own thread, and calls watchers in that thread or in `watch`."""

    def __init__(self, run: str, agent: str) -> None:
        self.synced: concurrent.futures.Future[None] = concurrent.futures.Future()
        """Done once the agent has sent the state of every existing mesh."""
        self._run = run
        self._agent = Path(agent)
        self._lock = threading.Lock()
        self._latest: dict[str, MeshNews] = {}
        self._watchers: dict[str, list[Watcher]] = {}
        self._over = False
        threading.Thread(target=self._follow, name="forgectl-news", daemon=True).start()

    def knows(self, mesh: str) -> bool:
        """Whether there is, or was, a mesh of that name, as far as was reported."""
        with self._lock:
            return self._over or mesh in self._latest

    def watch(self, mesh: str, watcher: Watcher) -> None:
        """Call `watcher` with the latest news of a mesh, if there is any, and with all later news."""
        with self._lock:
            self._watchers.setdefault(mesh, []).append(watcher)
            latest = self._latest.get(mesh) or (_lost(mesh) if self._over else None)
            if latest is not None:
                watcher(latest)

    def _follow(self) -> None:
        failures = 0
        while failures < TRIES:
            with contextlib.suppress(OSError, ProtocolError), contextlib.closing(self._connect()) as connection:
                failures = 0
                while (message := connection.receive()) is not None:
                    self._take(message)
            failures += 1
            time.sleep(AGAIN_SECONDS)
        with self._lock:
            self._over = True
            for mesh, watchers in self._watchers.items():
                for watcher in watchers:
                    watcher(_lost(mesh))
        if not self.synced.done():
            self.synced.set_result(None)

    def _connect(self) -> Connection:
        connection = Connection(dial(self._agent, 5.0), AGENT_TO_FOLLOWER)
        connection.send(Follow(__version__, self._run))
        return connection

    def _take(self, message: MeshNews | Synced) -> None:
        if isinstance(message, Synced):
            if not self.synced.done():
                self.synced.set_result(None)
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
    """The follower of an agent in this process; created on first use."""
    key = os.getpid(), run, agent
    with _lock:
        if key not in _followers:
            _followers[key] = Follower(run, agent)
        return _followers[key]

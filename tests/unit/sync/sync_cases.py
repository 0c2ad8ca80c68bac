"""Both ends of a sync in one process, over a socket pair; and trees as values that can be compared."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from forgectl.protocol.tree_sync import RELAY_TO_SYNC, SYNC_TO_RELAY, Sync
from forgectl.sync.receiver import receive
from forgectl.sync.scan import Tree, scan
from forgectl.sync.sender import Pushed, push
from forgectl.wire.unix_sockets import Connection

LIMIT = 1 << 30
Node = tuple[str, bytes, bool]
"""Kind (d, f, l or ? for anything else), content or target, executable."""
Snapshot = dict[str, Node]


def snapshot(top: Path) -> Snapshot:
    """Everything below a folder, by its relative path; links are not followed."""
    found: Snapshot = {}
    for folder, folders, files in os.walk(top):
        for name in folders + files:
            path = os.path.join(folder, name)
            found[os.path.relpath(path, top)] = node(path)
    return found


def node(path: str) -> Node:
    info = os.lstat(path)
    if stat.S_ISLNK(info.st_mode):
        return "l", os.fsencode(os.readlink(path)), False
    if stat.S_ISDIR(info.st_mode):
        return "d", b"", False
    if stat.S_ISREG(info.st_mode):
        return "f", Path(path).read_bytes(), bool(info.st_mode & 0o100)
    return "?", b"", False


def delete(path: Path) -> None:
    """Remove whatever is there."""
    with contextlib.suppress(OSError):  # nothing there, or links in a circle
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


class Host:
    """A host's root folder; each sync is served by a thread."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.errors: list[BaseException] = []
        root.mkdir(mode=0o700, exist_ok=True)

    def tree(self, key: str = "key") -> Path:
        return self.root / "work" / key

    def sync(self, workdir: Path, key: str = "key") -> Pushed:
        """Scan and push; the host's end must have gone well, too."""
        return self.push(scan(workdir, LIMIT), key)

    def push(self, tree: Tree, key: str = "key", **more: Any) -> Pushed:
        with self.connected() as line:
            pushed = push(line, tree, key, "there", **more)
        assert not self.errors
        return pushed

    @contextlib.contextmanager
    def connected(self) -> Iterator[Connection]:
        """A line to a host that serves one sync; what that raises goes to `errors`."""
        ours, theirs = socket.socketpair()
        thread = threading.Thread(target=self._serve, args=[theirs], daemon=True)
        thread.start()
        with ours:
            yield Connection(ours, RELAY_TO_SYNC)
        thread.join(60)
        assert not thread.is_alive()

    def _serve(self, sock: socket.socket) -> None:
        with sock:
            line = Connection(sock, SYNC_TO_RELAY)
            try:
                request = line.receive()
                if request is not None:
                    assert isinstance(request, Sync)
                    receive(line, request, self.root)
                    assert line.receive() is None, "the line went out of step"
            except BaseException as e:
                self.errors.append(e)

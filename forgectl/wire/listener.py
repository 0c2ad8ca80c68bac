"""A listening Unix socket that stays reachable: it is bound again after its file was removed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path

from forgectl.wire.envelope import MAX_LINE
from forgectl.wire.unix_sockets import listen, private_folder

LOOK_SECONDS = 2.0

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Listener:
    """A daemon's socket. Logout empties $XDG_RUNTIME_DIR, and cleaners empty /var/tmp; a run must survive both."""

    def __init__(self, path: Path, serve: Serve) -> None:
        self._path = path
        self._serve = serve
        self._server: asyncio.AbstractServer | None = None
        self._file: tuple[int, int] | None = None

    async def open(self) -> None:
        """Listen; raises OSError."""
        self._server = await asyncio.start_unix_server(self._answer, sock=listen(self._path), limit=MAX_LINE)
        self._file = self._file_id()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection. Python 3.11 prints a traceback if the daemon's end cancels this task."""
        with contextlib.suppress(asyncio.CancelledError):
            await self._serve(reader, writer)

    async def keep_open(self) -> None:
        """Bind the socket again whenever its file is gone, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if self._file_id() != self._file:
                self.close()
                with contextlib.suppress(OSError):  # the folder cannot be made yet: try again later
                    self._make_folders()
                    await self.open()

    def _make_folders(self) -> None:
        """Make the two folders around the socket and all missing ones above them, closed to others."""
        above = [p for p in self._path.parents[2:] if not p.exists()]
        for folder in (*reversed(above), self._path.parent.parent, self._path.parent):
            private_folder(folder)

    def close(self) -> None:
        """Stop listening; connections stay."""
        if self._server is not None:
            self._server.close()
            self._server = None

    def _file_id(self) -> tuple[int, int] | None:
        try:
            info = self._path.lstat()
        except OSError:
            return None
        return info.st_dev, info.st_ino

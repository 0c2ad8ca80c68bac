"""A daemon's doorway: what is left open at its end."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from forgectl.wire.listener import Listener
from forgectl.wire.unix_sockets import private_folder


def test_a_connection_that_is_being_served_at_the_end_of_the_daemon_leaves_no_traceback(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "run"
    private_folder(folder)
    served: list[str] = []

    async def daemon() -> None:
        begun = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                served.append("cancelled")
                writer.close()

        door = Listener(folder / "door", serve)
        await door.open()
        await asyncio.open_unix_connection(folder / "door")
        await begun.wait()
        door.close()

    with caplog.at_level(logging.DEBUG, "asyncio"):
        asyncio.run(daemon())
    assert served == ["cancelled"]
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING], caplog.text

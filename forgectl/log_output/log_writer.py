"""Writes chunks of rank logs for the user: `trainer/3@gpu01 │ line`."""

from __future__ import annotations

from typing import Protocol

from forgectl.log_output.log_stream import Chunk, LogSource
from forgectl.log_output.terminal_text import RESET, harmless
from forgectl.system.times import timestamp

WIDEST_LABEL = 32
"""Columns up to which shorter labels are padded on a terminal."""

PALETTE = (36, 33, 32, 35, 34, 96, 93, 92, 95, 94)
"""SGR colors of the meshes, in order of appearance: without red, which is for errors, and black and white."""


class ByteStream(Protocol):
    """A stream to write to, for example `sys.stdout.buffer`."""

    def write(self, data: bytes, /) -> object: ...

    def flush(self) -> object: ...


class LogWriter:
    """Adds a prefix to lines. On a terminal they are made harmless, colored and aligned; elsewhere their bytes stay.

    Elsewhere, the next chunk of a source continues its unfinished line, unless another source has written meanwhile:
    then it starts a new line. With `times`, lines also get the time of their chunk. Errors of the stream
    (BrokenPipeError) are raised.
    """

    def __init__(
        self,
        stream: ByteStream,
        *,
        terminal: bool = False,
        color: bool = False,
        prefix: bool = True,
        times: bool = False,
    ) -> None:
        self._stream = stream
        self._terminal = terminal
        self._color = color and terminal
        self._prefix = prefix
        self._times = times
        self._colors: dict[str, int] = {}
        self._width = 0
        self._open: LogSource | None = None  # the source whose line is unfinished

    def write(self, chunk: Chunk) -> None:
        """Write and flush one chunk."""
        if chunk.data:
            self._stream.write(self._for_terminal(chunk) if self._terminal else self._for_pipe(chunk))
            self._stream.flush()

    def end(self) -> None:
        """Note that nothing follows: with prefixes, a last line that is unfinished gets its end."""
        if self._prefix and self._open is not None:
            self._open = None
            self._stream.write(b"\n")
            self._stream.flush()

    def _for_terminal(self, chunk: Chunk) -> bytes:
        start = self._terminal_prefix(chunk.source.label) if self._prefix else ""
        start += self._time(chunk)
        lines = chunk.data.removesuffix(b"\n").split(b"\n")
        return "".join(f"{start}{harmless(line, color=self._color)}\n" for line in lines).encode()

    def _time(self, chunk: Chunk) -> str:
        return timestamp(chunk.when, "milliseconds") + " " if self._times else ""

    def _terminal_prefix(self, label: str) -> str:
        label = harmless(label, color=False)
        self._width = max(self._width, min(len(label), WIDEST_LABEL))
        text = f"{label:<{self._width}} │ "
        if not self._color:
            return text
        mesh = label.partition("/")[0]
        color = self._colors.setdefault(mesh, PALETTE[len(self._colors) % len(PALETTE)])
        return f"\x1b[{color}m{text}{RESET}"

    def _for_pipe(self, chunk: Chunk) -> bytes:
        start = f"{chunk.source.label} │ ".encode() if self._prefix else b""
        start += self._time(chunk).encode()
        goes_on = self._open == chunk.source
        ends = chunk.data.endswith(b"\n")
        body = chunk.data.removesuffix(b"\n").replace(b"\n", b"\n" + start) + b"\n" * ends
        before = b"" if goes_on else b"\n" * (self._open is not None) + start
        self._open = None if ends else chunk.source
        return before + body

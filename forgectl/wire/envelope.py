"""The envelope of all messages: a line of JSON that names a type from a table of types; anything else is refused.

Nothing is ever unpickled.
"""

from __future__ import annotations

import json
from typing import Any

from forgectl.errors import ForgeError, error_of
from forgectl.frozen import dataclass
from forgectl.wire.codec import CodecError, from_tagged, to_tagged

MAX_LINE = 4 * 1024 * 1024
"""Bytes that one message may take; a longer one ends the connection."""


class ProtocolError(Exception):
    """The other end sent something that is not a message."""


@dataclass(frozen=True)
class Hello:
    """First line on any connection. A controller's journal has events up to `since` of the agent with pid `of`."""

    version: str
    run: str
    since: int = 0
    of: int = 0


@dataclass(frozen=True)
class Refusal:
    """Why the other end will not continue, as an error for the user."""

    code: int
    message: str
    hint: str | None = None

    @classmethod
    def of(cls, error: ForgeError) -> Refusal:
        """The refusal that carries this error."""
        return cls(error.exit_code, error.message, error.hint)

    def error(self, where: str = "") -> ForgeError:
        """The error that was sent, as an exception again; `where` comes before its message."""
        return error_of(self.code, where + self.message, self.hint)


def encode(message: Any) -> bytes:
    """A message as one line."""
    return json.dumps(to_tagged(message), separators=(",", ":")).encode() + b"\n"


def decode(line: bytes, table: tuple[type, ...]) -> Any:
    """The message on one line; raises ProtocolError."""
    try:
        return from_tagged(table, json.loads(line))
    except CodecError as e:
        raise ProtocolError(str(e)) from None
    except (ValueError, RecursionError) as e:
        raise ProtocolError(f"not JSON: {e}") from None

"""Calls from the shell: plain data as arguments and values, and readable errors for wrong arguments."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from forgectl.actor.endpoint import interface_of, signature_of
from forgectl.errors import NotFoundError, UsageError


def check(cls: type, endpoint: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Raises NotFoundError if the class has no such endpoint, UsageError if the arguments do not fit it."""
    interface = interface_of(cls)
    if endpoint not in interface.endpoints:
        raise NotFoundError(interface.unknown(endpoint))
    if endpoint in interface.streaming:
        raise UsageError(f"{endpoint} yields a stream of values, which only Python code can take: {endpoint}.stream(…)")
    signature = signature_of(cls, endpoint)
    try:
        signature.bind(*args, **kwargs)
    except TypeError as e:
        raise UsageError(f"{endpoint}{signature}: {e}") from None


def plain(value: Any) -> Any:
    """The value itself if JSON can hold it, else its repr."""
    try:
        json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        return repr(value)
    return value

"""Asks the driver of a run, over its Unix socket."""

from __future__ import annotations

import contextlib
from typing import Any, TypeVar

from forgectl.controller import client
from forgectl.controller.run_dir import RunDir
from forgectl.errors import InternalError, NotFoundError, NotOursError, TimedOutError
from forgectl.protocol.endpoint_calls import DRIVER_TO_CLI
from forgectl.version import __version__
from forgectl.wire.envelope import Hello, ProtocolError, Refusal
from forgectl.wire.unix_sockets import Connection, dial

T = TypeVar("T")


def ask_driver(
    run: RunDir, request: Any, answer: type[T], seconds: float | None, *, greeting: float = client.ANSWER_SECONDS
) -> T:
    """Send a request to the driver; returns its answer. `seconds` is how long to wait for it; None for ever.

    `greeting` is how long, in seconds, the driver may take to accept the connection.

    Raises NotFoundError if the run has no driver that answers, TimedOutError, InternalError, or the driver's error.
    """
    try:
        line = Connection(dial(run.driver_socket, greeting), DRIVER_TO_CLI)
    except NotOursError:
        raise
    except OSError:
        raise NotFoundError(
            f"run {run.run} has no driver that could be asked",
            hint="calls go to runs of a spec with actors or services, once its driver is up",
        ) from None
    with contextlib.closing(line):
        try:
            line.send(Hello(__version__, run.run))
            received = line.receive(greeting)
            if isinstance(received, Hello):
                line.send(request)
                received = line.receive(seconds)
        except TimeoutError:
            raise TimedOutError(f"the driver of run {run.run} does not answer") from None
        except (OSError, ProtocolError) as e:
            raise InternalError(f"the driver of run {run.run}: {e}") from None
    if isinstance(received, Refusal):
        raise received.error()
    if not isinstance(received, answer):
        raise NotFoundError(f"the driver of run {run.run} ended before it answered", hint="see `forgectl status -a`")
    return received

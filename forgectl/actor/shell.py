"""The one Monarch actor in each rank: every ForgeActor is performed by it, so that calls and errors go one way."""

from __future__ import annotations

import asyncio
import functools
import importlib
import logging
import os
import sys
from typing import Any

import cloudpickle

from forgectl.actor.engine import Actor, concurrent_endpoint
from forgectl.actor.performer import Chain, Performer
from forgectl.actor.raised import Raised, carrier, shown

unobserved: Any = functools.partial(concurrent_endpoint, instrument=False)
"""Without a span of Monarch's telemetry for each call, all of one name."""


class Shell(Actor):  # type: ignore[misc]
    """Empty until `construct`; its endpoints are Monarch's, those of the user's class are names to it."""

    def __init__(self) -> None:
        self._performer: Performer | None = None
        self._errors: Any = None

    @unobserved  # type: ignore[untyped-decorator]
    async def construct(
        self, path: list[str], mesh: str, handle: Any, payload: bytes, errors: Any, number: int
    ) -> None:
        """Make the user's object from (class, args, kwargs).

        `path` is the sys.path that its class was found by, `errors` a port of the driver, `number` that of the call.
        """
        self._errors = errors if int(os.environ.get("WORLD_SIZE", "1")) > 1 else None
        sys.path += [p for p in path if p not in sys.path]
        try:
            cls, args, kwargs = cloudpickle.loads(payload)
            made = cls.__new__(cls)
            made.__dict__["mesh"] = handle
            made.__init__(*args, **kwargs)
        except BaseException as e:
            raise self._sent(e, number) from None
        self._performer = Performer(mesh, made)

    @unobserved  # type: ignore[untyped-decorator]
    async def invoke(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], chain: Chain, number: int) -> Any:
        """Run an endpoint; its value or exception goes to the caller. `number`: of a call by the driver, else 0."""
        assert self._performer is not None, "it is constructed before anybody has its handle"
        try:
            return await self._performer.perform(name, args, kwargs, chain)
        except BaseException as e:
            raise self._sent(e, number) from None

    @unobserved  # type: ignore[untyped-decorator]
    async def cast(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], chain: Chain) -> None:
        """Run an endpoint of which nobody awaits an answer: an exception goes to the rank's log."""
        assert self._performer is not None, "it is constructed before anybody has its handle"
        try:
            await self._performer.perform(name, args, kwargs, chain)
        except Exception:
            logging.getLogger("forgectl").exception("endpoint %s, called by broadcast, raised", name)
        except BaseException as e:
            raise _sent(e) from None

    @unobserved  # type: ignore[untyped-decorator]
    async def hear(self, generation: int, document: dict[str, Any]) -> None:
        """Take the driver's word on the end of another mesh: calls to it must not wait for ever."""
        importlib.import_module("forgectl.actor.foreign_mesh").hear(generation, document)

    def _sent(self, error: BaseException, number: int) -> BaseException:
        """What to raise for the caller; its driver is told at once, as other ranks may wait for this one for ever."""
        sent = _sent(error)
        if number and self._errors is not None and isinstance(sent, Raised):
            self._errors.send((number, sent))
        return sent


def _sent(error: BaseException) -> BaseException:
    """What to raise for the caller of an endpoint.

    An exit that the user's code asks for is one of the rank, as in any program; Monarch would make an error of it.
    """
    if isinstance(error, Exception):
        return carrier(error)
    if isinstance(error, asyncio.CancelledError):
        return error  # the rank is ending
    code: Any = error.code if isinstance(error, SystemExit) else 130 if isinstance(error, KeyboardInterrupt) else 1
    if not isinstance(error, SystemExit):
        sys.stderr.write(shown(error))
    if code is not None and not isinstance(code, int):
        sys.stderr.write(f"{code}\n")
        code = 1
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code or 0)


def serve() -> None:
    """Be the process that Monarch meant to start; returns, or exits, when it ends."""
    config: Any = importlib.import_module("monarch._src.actor.config")
    config.prefix_python_logs_with_actor = False  # ours name the rank
    importlib.import_module("monarch._src.actor.bootstrap_main").invoke_main()

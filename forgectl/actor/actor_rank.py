"""The process of an actor's rank: it constructs the user's object and runs the endpoints that callers request."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from pathlib import Path
from typing import Any

from forgectl.actor.callers import Caller
from forgectl.actor.ending import Ending
from forgectl.actor.origin import join
from forgectl.actor.outflow import Outflow
from forgectl.actor.performer import Chain, Performer, call_ids
from forgectl.actor.plain_calls import check, plain
from forgectl.actor.rank_streams import Streams
from forgectl.actor.remote_errors import RemoteError, carrier, user_traceback
from forgectl.actor.surroundings import Surroundings
from forgectl.actor.value_mesh import serving
from forgectl.actor.verbs import ASK, CONSTRUCT, INVOKE, LEAVE, NEXT, STREAM
from forgectl.errors import NotFoundError, UsageError
from forgectl.messages import pickling
from forgectl.messages.frames import socket_name
from forgectl.messages.serving import Server
from forgectl.rank.progress import endpoint_call
from forgectl.redaction import of_process
from forgectl.system.loops import standing_still

CANCEL_SECONDS = 1.0
"""How long cancelled endpoints may take before the cleanup begins."""


class ActorRank:
    """One rank: empty until it is constructed, then the user's object."""

    def __init__(self, ending: Ending) -> None:
        self._performer: Performer | None = None
        self._subject: object = None
        self._streams = Streams()
        self._ending = ending

    async def perform(self, request: Any) -> Any:
        """Handle one request; raises what the user's code raises."""
        verb, *rest = request
        if verb == INVOKE:
            return await self._constructed().perform(*rest)
        if verb == NEXT:
            return await self._streams.next(*rest)
        if verb == STREAM:
            return await self._stream(*rest)
        if verb == LEAVE:
            return self._streams.close(*rest)
        if verb == CONSTRUCT:
            return self._construct(*rest)
        if verb == ASK:
            return await self._answer(*rest)
        raise ValueError(f"unknown verb in a request: {str(verb)[:40]!r}")

    def _constructed(self) -> Performer:
        if self._performer is None:
            raise RuntimeError("this rank is not constructed yet")
        return self._performer

    def _construct(self, surroundings: Surroundings, handle: Any, payload: list[Any]) -> None:
        if self._performer is not None:
            raise RuntimeError("this rank is constructed already")
        surroundings.enter()
        cls, args, kwargs = pickling.loads(payload)
        serving.set(True)
        made = cls.__new__(cls)
        made.__dict__["mesh"] = handle
        join(handle._mesh.origin)
        with endpoint_call(), standing_still():  # so that it may wait for calls and launches by `get()`
            made.__init__(*args, **kwargs)
        self._subject, self._performer = made, Performer(made)
        self._ending.subject = made

    async def _stream(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], chain: Chain, caller: Caller, first_only: bool
    ) -> None:
        outflow = Outflow(muted=first_only and os.environ["RANK"] != "0")
        work = self._constructed().perform(name, args, kwargs, chain, outflow)
        await self._streams.run(chain[-1], caller, outflow, work)

    async def _answer(self, name: str, args: list[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Answer `forgectl call`, which may not know the user's classes: a value that JSON can hold, or an error."""
        performer = self._constructed()
        try:
            check(type(self._subject), name, args, kwargs)
        except (NotFoundError, UsageError) as e:
            return {"code": e.exit_code, "message": e.message}
        try:
            return {"value": plain(await performer.perform(name, tuple(args), kwargs, (next(call_ids),)))}
        except Exception as e:
            where = f"{os.environ['FORGE_MESH']}.{name}"
            what = f"{where} raised {type(e).__name__}: {e}\n{user_traceback(e).strip()}"
            return {"code": 1, "message": of_process()(what)}


def _to_remote_error(error: BaseException) -> RemoteError:
    """The error to send to the caller of an endpoint that raised.

    SystemExit and KeyboardInterrupt end the rank, as they end any program.
    """
    if isinstance(error, (Exception, asyncio.CancelledError)):
        return carrier(error)
    code: Any = error.code if isinstance(error, SystemExit) else 130 if isinstance(error, KeyboardInterrupt) else 1
    if not isinstance(error, SystemExit):
        sys.stderr.write(user_traceback(error))
    if code is not None and not isinstance(code, int):
        sys.stderr.write(f"{code}\n")
        code = 1
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code or 0)


def _cast_failed(request: Any, error: Exception) -> None:
    """Log what a broadcast call raised, because no caller awaits its answer."""
    name = request[1] if isinstance(request, tuple) and len(request) > 1 else "?"
    trace = error.with_traceback(error.__traceback__)
    logging.getLogger("forgectl").error("endpoint %s, called by broadcast, raised", name, exc_info=trace)


def serve() -> None:
    """Serve calls as this rank until it has to end; then clean up and exit."""
    ending = Ending()
    asyncio.set_event_loop(ending.loop)
    ending.loop.run_until_complete(_serve(ending))
    serving.set(True)
    ending.finish()


async def _serve(ending: Ending) -> None:
    mesh, rank = os.environ["FORGE_MESH"], int(os.environ["RANK"])
    generation = int(os.environ["FORGE_GENERATION"])
    path = Path(os.environ["FORGE_MESSAGES"], socket_name(mesh, generation, rank))
    server = Server(path, ActorRank(ending).perform, _to_remote_error, _cast_failed)
    await ending.wait()
    await server.stop(CANCEL_SECONDS)

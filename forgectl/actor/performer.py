"""Runs the endpoints of the user's object in a rank: one at a time, plain ones in a thread."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from forgectl.actor import torch_state
from forgectl.actor.endpoint import endpoints_of, interface_of, method_of, streaming_of, streams_only
from forgectl.actor.outflow import Outflow
from forgectl.actor.value_mesh import serving
from forgectl.rank.progress import endpoint_call

Chain = tuple[int, ...]
"""The id of a call, last, and before it those of the calls whose endpoints made it, the first one first."""

calling: contextvars.ContextVar[Chain] = contextvars.ContextVar("forgectl_calling", default=())
"""The chain of the call that the code which runs now serves."""


class CallIds:
    """Numbers of calls, the same on all ranks of a call and unlike those of any other process."""

    def __init__(self) -> None:
        self.begin()
        os.register_at_fork(after_in_child=self.begin)

    def begin(self) -> None:
        """Begin anew."""
        self._numbers = itertools.count(int.from_bytes(os.urandom(7), "big"))

    def __next__(self) -> int:
        return next(self._numbers)


call_ids = CallIds()


class Performer:
    """Runs endpoints on the object of one rank. Create and use it in one event loop."""

    def __init__(self, subject: object) -> None:
        self._subject = subject
        self._endpoints = endpoints_of(type(subject))
        self._streaming = streaming_of(type(subject))
        self._methods: dict[str, tuple[Callable[..., Any], bool, bool]] = {}  # (method, is async, is concurrent)
        self._turns = asyncio.Lock()
        self._turn: int | None = None  # the id of the call that has the turn
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="endpoint")
        self._left: torch_state.TorchState | None = None  # as the last endpoint left that thread

    async def perform(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], chain: Chain, into: Outflow | None = None
    ) -> Any:
        """Run an endpoint after those that arrived earlier; raises what the endpoint raises.

        `into` takes what a streaming endpoint yields. Its turn lasts until its generator has ended.
        """
        method, is_async, concurrent = self._methods.get(name) or self._find(name)
        if into is None and name in self._streaming:
            raise TypeError(streams_only(f"{type(self._subject).__name__}.{name}", name))
        calling.set(chain)
        serving.set(True)
        is_callback = self._turn in chain[:-1]  # the endpoint that has the turn may wait for this call
        if concurrent or is_callback:
            return await self._run(method, is_async, args, kwargs, into, in_turn=False)
        async with self._turns:
            self._turn = chain[-1]
            try:
                return await self._run(method, is_async, args, kwargs, into, in_turn=True)
            finally:
                self._turn = None

    async def _run(
        self,
        method: Callable[..., Any],
        is_async: bool,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        into: Outflow | None,
        *,
        in_turn: bool,
    ) -> Any:
        with endpoint_call():
            if into is not None:
                return await into.fill(method(self._subject, *args, **kwargs))
            if is_async:
                return await method(self._subject, *args, **kwargs)
            return await self._in_thread(functools.partial(method, self._subject, *args, **kwargs), in_turn)

    def _find(self, name: str) -> tuple[Callable[..., Any], bool, bool]:
        cls = type(self._subject)
        if name not in self._endpoints:
            raise AttributeError(interface_of(cls).unknown(name))
        method = method_of(cls, name)
        found = self._methods[name] = method, inspect.iscoroutinefunction(method), self._endpoints[name].concurrent
        return found

    async def _in_thread(self, run: Callable[[], Any], in_turn: bool) -> Any:
        """Run it in a thread with this thread's torch settings; this thread takes over those that it changes."""
        before = torch_state.take()
        after = before

        def work() -> Any:
            nonlocal after
            if not in_turn or before != self._left:
                torch_state.give(before)
            try:
                return run()
            finally:
                after = torch_state.take()
                if in_turn:
                    self._left = after

        executor = self._thread if in_turn else None  # for a call back, the one thread may be waiting
        context = contextvars.copy_context()
        try:
            return await asyncio.get_running_loop().run_in_executor(executor, context.run, work)
        finally:
            if after != before:
                torch_state.give(after)

"""Runs the endpoints of the user's object in a rank: one at a time, plain ones in a thread."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import inspect
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from forgectl.actor.endpoint import endpoints_of, interface_of, method_of
from forgectl.actor.value_mesh import serving

Chain = tuple[str, ...]

calling: contextvars.ContextVar[Chain] = contextvars.ContextVar("forgectl_calling", default=())
"""The meshes whose endpoints wait for the code that runs now: a call back to one of them must not wait for its turn."""


class Performer:
    """Runs endpoints on the object of one rank. Create and use it in one event loop."""

    def __init__(self, mesh: str, subject: object) -> None:
        self._mesh = mesh
        self._subject = subject
        self._endpoints = endpoints_of(type(subject))
        self._methods: dict[str, tuple[Callable[..., Any], bool, bool]] = {}  # (method, is async, is concurrent)
        self._turns = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="endpoint")

    async def perform(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], chain: Chain) -> Any:
        """Run an endpoint after those that arrived earlier; raises what the endpoint raises."""
        method, is_async, concurrent = self._methods.get(name) or self._find(name)
        is_callback = self._mesh in chain  # the endpoint that has the turn waits for this call
        calling.set((*chain, self._mesh))
        serving.set(True)
        out_of_turn = is_callback or concurrent
        async with contextlib.nullcontext() if out_of_turn else self._turns:
            if is_async:
                return await method(self._subject, *args, **kwargs)
            run = functools.partial(method, self._subject, *args, **kwargs)
            return await self._in_thread(run, out_of_turn)

    def _find(self, name: str) -> tuple[Callable[..., Any], bool, bool]:
        cls = type(self._subject)
        if name not in self._endpoints:
            raise AttributeError(interface_of(cls).unknown(name))
        method = method_of(cls, name)
        found = self._methods[name] = method, inspect.iscoroutinefunction(method), self._endpoints[name].concurrent
        return found

    async def _in_thread(self, run: Callable[[], Any], out_of_turn: bool) -> Any:
        """Run it in a thread with this thread's selected GPU. If it selects another GPU, this thread does so too."""
        context = contextvars.copy_context()
        work = functools.partial(context.run, _on_device, _device(), run)
        executor = None if out_of_turn else self._thread  # for a call back, the one thread may be waiting
        result, device = await asyncio.get_running_loop().run_in_executor(executor, work)
        _select(device)
        return result


def _on_device(device: int | None, run: Callable[[], Any]) -> tuple[Any, int | None]:
    _select(device)
    return run(), _device()


def _device() -> int | None:
    """The CUDA device that this thread has selected, if CUDA is in use. Every thread has its own selection."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    return int(torch.cuda.current_device())


def _select(device: int | None) -> None:
    if device is not None:
        sys.modules["torch"].cuda.set_device(device)

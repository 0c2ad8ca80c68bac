"""Meshes that answer, fail, die and come back when a test says so; and services made of them."""

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from forgectl.actor.endpoint import EndpointInfo
from forgectl.actor.service.service import ServiceConfig, ServiceCore
from forgectl.errors import ActorDied

ENDPOINTS = {
    "plain": EndpointInfo(),
    "safe": EndpointInfo(idempotent=True),
    "batched": EndpointInfo(batch_size=3, batch_timeout=0.0),
    "gathered": EndpointInfo(batch_size=3, batch_timeout=3600.0),
    "safely_batched": EndpointInfo(idempotent=True, batch_size=3, batch_timeout=0.0),
}


class UserError(Exception):
    """What an endpoint of the user raises."""


@dataclass(eq=False)
class Running:
    """A call that a mesh runs, until the test ends it."""

    endpoint: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    future: asyncio.Future[Any] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def finish(self, result: Any = None) -> None:
        """Answer with the arguments themselves, unless told otherwise: an echo."""
        if not self.future.done():
            self.future.set_result(self.args[0] if result is None and self.args else result)

    def fail(self, error: BaseException) -> None:
        if not self.future.done():
            self.future.set_exception(error)


@dataclass(eq=False)
class FakeStream:
    """A stream, whose generators end when the test finishes what runs."""

    opened: asyncio.Future[Any]


class FakeMesh:
    """A ReplicaMesh. With `answer` it answers calls at once, else `running` holds them until they are finished."""

    def __init__(self, index: int, answer: Callable[..., Any] | None = None) -> None:
        self.name = f"fake.{index}"
        self.healthy = True
        self.adopted = False
        self.ended: Exception | None = None
        self.answer = answer
        self.running: list[Running] = []
        self.started: list[Running] = []
        self.most = 0
        self.shutdowns = 0
        self._listeners: list[Callable[[], None]] = []

    def subscribe(self, listener: Callable[[], None]) -> None:
        self._listeners.append(listener)

    def notify(self) -> None:
        for listener in self._listeners:
            listener()

    async def call(self, endpoint: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self.healthy:
            raise self.death()
        if self.answer is not None:
            return self.answer(*args, **kwargs)
        run = Running(endpoint, args, kwargs)
        self.running.append(run)
        self.started.append(run)
        self.most = max(self.most, len(self.running))
        try:
            return await run.future
        finally:
            self.running.remove(run)

    def stream(self, endpoint: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> "FakeStream":
        return FakeStream(asyncio.ensure_future(self.call(endpoint, args, kwargs)))

    def death(self) -> ActorDied:
        return ActorDied(f"{self.name} died", mesh=self.name, rank=0, rank_exit_code=-9, signal=9)

    def die(self, for_good: bool = False) -> None:
        self.healthy = False
        if for_good:
            self.ended = self.death()
        self.notify()
        for run in self.running:
            run.fail(self.death())

    def recover(self) -> None:
        if self.ended is None:
            self.healthy = True
            self.notify()

    async def shutdown(self) -> None:
        self.shutdowns += 1
        await asyncio.sleep(0)
        self.die(for_good=True)

    def values(self) -> list[Any]:
        """The first argument of each call that it started, in order."""
        return [run.args[0] for run in self.started]


async def settle() -> None:
    """Let everything run that can."""
    for _ in range(30):
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def no_complaints(generation: int = 2) -> AsyncIterator[None]:
    """The loop has none: not even of what nobody has looked at, once that is freed."""
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
    yield
    gc.collect(generation)
    assert not complaints


def finish_all(rig: "Rig") -> None:
    """Every call that runs now is answered."""
    for mesh in rig.meshes.values():
        for run in list(mesh.running):
            run.finish()


class Rig:
    """A service on fake meshes: `meshes` by index, in the order of their start."""

    def __init__(self, endpoints: dict[str, EndpointInfo] | None = None, answer: Any = None, **config: Any) -> None:
        self.meshes: dict[int, FakeMesh] = {}
        self.answer = answer
        self.gate: asyncio.Event | None = None  # starts wait for it
        self.refuse: set[int] = set()  # indexes whose start fails
        self.service = ServiceCore("fake", ServiceConfig(**config), endpoints or ENDPOINTS, self._start)

    async def _start(self, index: int) -> FakeMesh:
        if self.gate is not None:
            await self.gate.wait()
        if index in self.refuse:
            raise UserError(f"replica {index} does not start")
        self.meshes[index] = FakeMesh(index, self.answer)
        return self.meshes[index]

    def call(self, value: Any, endpoint: str = "plain", session: str | None = None) -> "asyncio.Task[Any]":
        return asyncio.ensure_future(self.service.route(endpoint, (value,), {}, session))

    async def __aenter__(self) -> "Rig":
        await self.service.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        """End it, and prove that nothing is left: no task, no slot, no place in a line."""
        with contextlib.suppress(UserError):
            await self.service.shutdown(0)
        await settle()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        numbers = self.service.metrics()
        assert (numbers.active, numbers.queued) == (0, 0)
        assert all(mesh.shutdowns == 1 for mesh in self.meshes.values())


async def outcome(task: "asyncio.Task[Any]") -> Any:
    """Its result, or its exception."""
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.wait([task])
    return asyncio.CancelledError() if task.cancelled() else task.exception() or task.result()

"""Actors that use services and launch others. Tests copy this file into their working folder, beside replicas.py."""

import asyncio
import os
from typing import Any

from forgectl import ActorHandle, ForgeActor, endpoint
from forgectl.actor.errands import Errand
from forgectl.errors import NotFoundError
from players import BadStart, Counter, SlowSetup
from playing import raised
from replicas import Worker

Small = Counter.options(preload=[])


def named(error: BaseException) -> tuple[str, str, str]:
    """An exception as text that any process can read: type, message, cause."""
    return type(error).__name__, str(error), str(error.__cause__)


class Caller(ForgeActor):
    """Uses a service, which it is given at its construction or later."""

    def __init__(self, service: Worker | None = None) -> None:
        self.service = service
        self.calls: list[Any] = []

    @endpoint
    async def use(self, service: Worker) -> Worker:
        self.service = service
        return service

    def endpoint_of(self, name: str) -> Any:
        return getattr(self.service, name)

    @endpoint(concurrent=True)
    async def route(self, name: str, *args: Any, **kwargs: Any) -> Any:
        return await self.endpoint_of(name).route(*args, **kwargs)

    @endpoint
    def route_plain(self, name: str, *args: Any) -> Any:
        return self.endpoint_of(name).route(*args).get()

    @endpoint
    async def stream(self, name: str, *args: Any) -> list[Any]:
        return [value async for value in self.endpoint_of(name).stream(*args)]

    @endpoint(concurrent=True)
    async def fanout(self, name: str, *args: Any) -> Any:
        return await self.endpoint_of(name).fanout(*args)

    @endpoint(concurrent=True)
    async def many(self, name: str, count: int, *args: Any) -> list[Any]:
        """The values, or the names of the exceptions, of so many calls at once."""
        calls = [self.endpoint_of(name).route(*args) for _ in range(count)]
        found = await asyncio.gather(*calls, return_exceptions=True)
        return [named(value) if isinstance(value, BaseException) else value for value in found]

    @endpoint(concurrent=True)
    async def on_and_on(self, until: str) -> list[Any]:
        """Route one after the other until there is a file: the values, and what was raised."""
        found: list[Any] = []
        while not os.path.exists(until):
            try:
                found.append(await self.endpoint_of("echo").route(len(found)))
            except Exception as e:
                found.append(named(e))
        return found

    @endpoint
    async def in_session(self, count: int, *ids: str) -> list[int]:
        assert self.service
        async with self.service.session(*ids):
            return [await self.service.pid.route() for _ in range(count)]

    @endpoint
    async def steps_of_a_session(self) -> list[int]:
        assert self.service
        session = await self.service.start_session()
        found = [await self.service.pid.route(sess_id=session) for _ in range(3)]
        await self.service.terminate_session(session)
        await raised(NotFoundError, self.service.pid.route(sess_id=session))
        return found

    @endpoint
    async def begin(self, name: str, *args: Any) -> None:
        self.calls.append(self.endpoint_of(name).route(*args))

    @endpoint
    async def begin_to_stop(self) -> None:
        assert self.service
        self.calls.append(self.service.shutdown(60))

    @endpoint
    async def lose_reports(self) -> None:
        """As if the connection had broken at each end of a call."""
        setattr(Errand, "tell", lambda *_: None)  # noqa: B010

    @endpoint
    async def cancel(self) -> None:
        for call in self.calls:
            call.cancel()

    @endpoint(concurrent=True)
    async def scale_to(self, replicas: int) -> None:
        assert self.service
        await self.service.scale(replicas)

    @endpoint(concurrent=True)
    async def stop(self, timeout: float) -> None:
        assert self.service
        await self.service.shutdown(timeout)

    @endpoint
    async def numbers(self) -> Any:
        assert self.service
        return self.service.metrics()

    @endpoint
    async def pid(self) -> int:
        return os.getpid()


class Boss(Counter):
    """Launches others, when it is told to."""

    @endpoint(concurrent=True)
    async def make(self, /, *, start: int = 0, **options: Any) -> Counter:
        made: Counter = await Small.options(**options).as_actor(start)
        return made

    @endpoint
    def make_plain(self) -> Counter:
        return Small.as_actor(start=5).get()

    @endpoint
    async def make_slow(self, folder: str) -> None:
        await SlowSetup.options(preload=[], mesh_name="slow").as_actor(folder)

    @endpoint
    async def make_bad(self) -> None:
        await BadStart.options(preload=[], procs=2, mesh_name="bad").as_actor("value", rank=1)

    @endpoint
    async def make_local(self, text: str) -> Any:
        class Local(Counter):
            """A class that only this process has."""

            @endpoint
            async def tell(self) -> str:
                return text

        return await (await Local.options(preload=[]).as_actor()).tell.call_one()

    @endpoint(concurrent=True)
    async def serve(self, /, folder: str, **options: Any) -> Worker:
        return await Worker.options(preload=[], **options).as_service(folder, start=3)

    @endpoint
    async def serve_overridden(self) -> None:
        class Several(Counter):
            @classmethod
            async def launch(cls, *args: Any, **kwargs: Any) -> ActorHandle:
                return await super().launch(*args, **kwargs)

        await Several.as_service()

    @endpoint(concurrent=True)
    async def end(self, other: Any) -> None:
        await other.shutdown()

    @endpoint
    async def make_and_use(self) -> list[int]:
        helper = await Small.options(procs=2).as_actor(start=1)
        found = list((await helper.add.call(1)).values())
        await helper.shutdown()
        await helper.shutdown()
        return found


class Parent(Counter):
    """Has children from the start: one of its constructor, one of its `setup`."""

    def __init__(self, *, bad: str = "") -> None:
        self.n = 0
        self.mine = (BadStart if bad == "constructor" else Counter).options(preload=[]).as_actor().get()
        assert self.mine.add.call_one(2).get() == 2

    @endpoint
    async def setup(self) -> None:
        self.theirs = await Small.as_actor(start=10)

    @endpoint
    async def sum(self) -> int:
        return sum([await child.state.call_one() for child in (self.mine, self.theirs)])

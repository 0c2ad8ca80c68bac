"""What users may write, and the types that it has. test_types.py has mypy and pyright look at it; nothing runs it."""

from __future__ import annotations

import abc
import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any, TypeVar

from typing_extensions import assert_type

import forgectl
from forgectl import (
    ActorDied,
    ActorHandle,
    BusyError,
    ForgeActor,
    Future,
    Point,
    Router,
    ServiceHandle,
    ServiceOverloaded,
    ServiceStopped,
    ServiceUnavailable,
    Session,
    Settings,
    ValueMesh,
    current_rank,
    endpoint,
    service_endpoint,
)

F = TypeVar("F", bound=ForgeActor)


class Counter(ForgeActor):
    procs = 4
    hosts = ["gpu01", "gpu02"]
    with_gpus = True
    mesh_name = "counter"

    def __init__(self, start: int = 0) -> None:
        super().__init__()
        self.n = start
        self.name = "named as its handle's"
        self.metrics: dict[str, int] = {}
        self.scale = 0.5

    @endpoint
    async def setup(self) -> None:
        assert_type((self.rank, self.size), tuple[int, int])
        self.logger.info("%s of %s", self.rank, self.name)

    @endpoint
    async def add(self, k: int) -> int:
        self.n += k
        return self.n

    @endpoint
    def plain(self, word: str, *, times: int = 1) -> list[str]:
        return [word] * times

    @endpoint(concurrent=True)
    async def wait(self, other: Counter) -> None:
        assert_type(await self.add(2), int)
        assert_type(self.plain("a"), list[str])
        assert_type(self.mesh.add.call_one(2), Future[int])
        assert_type(await other.slice(procs=self.rank).add.call_one(2), int)

    @endpoint(idempotent=True)
    def read(self) -> dict[str, int]:
        return self.metrics

    @service_endpoint(router="least_loaded", idempotent=True)
    async def where(self, point: Point | None = None) -> int:
        return (point or current_rank()).rank

    @service_endpoint(batch_size=8, batch_timeout=0.1)
    async def lengths(self, words: list[str]) -> list[int]:
        return [len(word) for word in words]

    @endpoint
    async def tokens(self, prompt: str) -> AsyncIterator[str]:
        for word in prompt.split():
            yield word

    @endpoint(concurrent=True)
    async def steps(self) -> AsyncGenerator[int, None]:
        yield 1

    def not_an_endpoint(self) -> str:
        return self.name


class Faster(Counter):
    @endpoint
    async def add(self, k: int) -> int:
        return await super().add(2 * k)


class Model(ForgeActor, abc.ABC):
    @endpoint
    @abc.abstractmethod
    def loss(self, batch: list[int]) -> float: ...


class Small(Model):
    def __init__(self, width: int, *, depth: int = 1) -> None:
        self.width = width * depth

    @endpoint
    def loss(self, batch: list[int]) -> float:
        return sum(batch) / self.width


class Plain(ForgeActor):
    """It has no constructor of its own."""


class First(Router):
    def pick(self, replicas: Sequence[Any]) -> Any:
        return replicas[0]


async def actors() -> None:
    counter = await Counter.options(procs=4).as_actor(start=1)
    assert_type(counter, Counter)
    assert_type(counter.add.call(2), Future[ValueMesh[int]])
    assert_type(counter.add.call_one(2), Future[int])
    assert_type(counter.add.choose(k=2), Future[int])
    assert_type(counter.plain.call_one("a", times=2), Future[list[str]])
    assert_type(await counter.wait.call_one(counter), None)
    assert_type(await counter.read.choose(), dict[str, int])
    assert_type(await counter.where.call_one(), int)
    assert_type(await counter.lengths.call_one(["a", "b"]), list[int])
    counter.add.broadcast(2)
    async for value in counter.add.stream(2):
        assert_type(value, int)
    async for token in counter.tokens.stream("a b"):
        assert_type(token, str)
    async for step in counter.steps.stream():
        assert_type(step, int)
    for point, value in await counter.add.call(2):
        assert_type((point, value), tuple[Point, int])
    assert_type((await counter.add.call(2)).get(0), int)
    assert_type(await asyncio.gather(counter.add.call_one(1), counter.plain.choose("a")), tuple[int, list[str]])


async def handles() -> None:
    counter = await Counter.as_actor()
    assert_type(counter.slice(procs=0), Counter)
    assert_type(counter.slice(procs=slice(2, 4)).add.call(1), Future[ValueMesh[int]])
    assert_type(counter.options(timeout=5).add.call_one(1), Future[int])
    assert_type(counter.options(timeout=None), Counter)
    assert_type((len(counter), counter.size), tuple[int, int])
    print(counter.mesh_name.upper())
    async with await Counter.as_actor() as another:
        assert_type(another, Counter)
    assert_type(await counter.shutdown(), None)
    assert_type(counter.shutdown(grace=2), Future[None])
    counter.shutdown(0.5).get(timeout=5)
    await Counter.shutdown(counter)
    await ForgeActor.shutdown(counter)


async def services() -> None:
    service = await Counter.options(num_replicas=2, procs=2).as_service(start=1)
    assert_type(service, Counter)
    assert_type(service.add.route(1), Future[int])
    assert_type(service.add.fanout(1), Future[list[int]])
    assert_type(service.plain.route("a", times=2), Future[list[str]])
    assert_type(service.lengths.route("a"), Future[int])
    async with service.session():
        await service.add.route(1)
    session = await service.start_session()
    assert_type(await service.add.route(1, sess_id=session), int)
    assert_type(await service.lengths.route("a", sess_id=session), int)
    await service.terminate_session(session)
    await service.shutdown(timeout=2)


def settings() -> None:
    assert_type(Counter.options(), type[Counter])
    assert_type(Counter.options(procs=2).options(with_gpus=True), type[Counter])
    Counter.options(
        procs=2,
        hosts=["gpu01"],
        with_gpus=False,
        num_replicas=3,
        mesh_name="three",
        env={"A": "1"},
        restart={"max": 3, "within": 600, "backoff": 0},
        time_limit=7200,
        hang={"after": 600.0},
        start_method="spawn",
        preload=[],
        python="/opt/venv/bin/python",
        router=First,
        health_poll_rate=0.5,
        max_concurrent_requests=4,
        max_queue=100,
        unavailable_timeout=10,
        return_first_rank_result=True,
    )
    Counter.options(hosts=2, restart=1, router=First(), max_queue=None)


async def launches() -> None:
    assert_type(await Faster.options(procs=2).as_actor(2), Faster)
    assert_type(await Small.as_actor(8, depth=2), Small)
    assert_type(await Small.options(num_replicas=2).as_service(width=8), Small)
    assert_type(await Plain.options(procs=2).as_actor(), Plain)
    await end(await Plain.as_actor(), await Small.as_actor(8))


async def end(*handles: ForgeActor) -> None:
    """ForgeActor is the type of any handle."""
    await asyncio.gather(*(handle.shutdown() for handle in handles))


async def launch(cls: type[F], *args: Any) -> F:
    return await cls.options(procs=2).as_actor(*args)


async def launch_counters(cls: type[Counter]) -> list[Counter]:
    return [await cls.as_actor(start=1), await launch(Counter, 1), await launch(Faster)]


def plain_code() -> int:
    counter = Counter.as_actor(start=1).get()
    assert_type(counter.add.call(1).get(), ValueMesh[int])
    return counter.add.call_one(1).get(timeout=5)


async def a_unit_test_of_the_class() -> None:
    counter = Counter(1)
    assert_type(await counter.add(2), int)
    assert_type(counter.plain("a", times=2), list[str])


def of_a_spec() -> None:
    assert_type(forgectl.get("counter", Counter), Counter)
    assert_type(forgectl.get("counter").anything, Any)
    assert_type(forgectl.get("counter", Counter).add.route(1), Future[int])


def names(handle: ActorHandle | ServiceHandle, session: Session, settings: Settings) -> None:
    """What else forgectl exports."""
    print(handle, session, settings.router)
    try:
        print(forgectl.__version__)
    except (BusyError, ServiceOverloaded, ServiceUnavailable, ServiceStopped, forgectl.NotFoundError) as e:
        assert_type(e.hint, str | None)
    except ActorDied as e:
        assert_type(e.rank, int | None)
    except (forgectl.UnreachableError, forgectl.TimedOutError) as e:
        assert_type(e.exit_code, int)

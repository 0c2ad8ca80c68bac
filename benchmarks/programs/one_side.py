"""One side of the benchmarks of actors: forgectl, plain Monarch or Ray: `one_side.py SIDE`.

Each line of input is a question, as a JSON list: the name of a method of the side, then its arguments. The answer is
one line, {"value": …} or {"error": …}.
"""

import asyncio
import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Awaitable, Callable
from typing import Any


class Side:
    """How one side launches `n` actors and calls them: forgectl's handles and Monarch's are called alike."""

    actor: Any  # a handle, of all ranks
    first: Any  # the same of the first rank
    data: Any  # an array or a tensor

    # ------------------------------------------------------------ up and down

    async def launch(self, n: int) -> None:
        """Bring up n processes, each of which has imported torch."""
        raise NotImplementedError

    async def stop(self) -> None:
        """End what `launch` brought up."""
        raise NotImplementedError

    async def first_answer(self, n: int) -> float:
        """Launch n actors; when the first call to all of them was answered, on the clock that all processes share."""
        await self.launch(n)
        await self.call(1)
        return time.monotonic()

    async def pids(self) -> list[int]:
        """The pid of every rank."""
        return list((await self.actor.pid.call()).values())

    # ------------------------------------------------------------ calls

    async def call(self, n: int) -> Any:
        """Of every rank."""
        return await self.actor.echo.call(n)

    async def one(self, n: int) -> Any:
        """Of one rank of several."""
        return await self.first.echo.call_one(n)

    async def choose(self, n: int) -> Any:
        """Of any rank."""
        return await self.actor.echo.choose(n)

    async def casts(self, n: int) -> Any:
        """A thousand broadcasts, then a call that waits until they have run."""
        for i in range(1000):
            self.actor.echo.broadcast(i)
        return await self.actor.echo.call(n)

    async def yields(self, n: int) -> Any:
        """Of one rank, whose endpoint lets other tasks run first."""
        return await self.first.turn.call_one(n)

    async def take(self, _: int) -> Any:
        """With the data as its argument."""
        return await self.first.take.call_one(self.data)

    async def take_all(self, _: int) -> Any:
        """With the data as the argument of every rank."""
        return await self.actor.take.call(self.data)

    async def give(self, _: int) -> Any:
        """With the data as its result."""
        return await self.first.give.call_one()

    async def prepare(self, kind: str, size: int) -> None:
        """Have data of so many bytes here and in the first rank; `kind` is numpy or torch."""
        from data import made

        self.data = made(kind, size)
        await self.first.prepare.call_one(kind, size)

    # ------------------------------------------------------------ measured

    async def seconds(self, what: str, count: int) -> float:
        """Of one of `count` calls, one after the other."""
        do = getattr(self, what)
        began = time.perf_counter()
        for i in range(count):
            await do(i)
        return (time.perf_counter() - began) / count

    async def flight(self, count: int, *ranks: int) -> float:
        """Answers a second of calls that are all begun before the first is awaited, to these ranks in turn."""
        parts = [self.actor.slice(procs=rank) for rank in ranks]

        async def ask(i: int) -> Any:
            return await parts[i % len(parts)].echo.call_one(i)

        return await self._at_once(count, ask)

    async def flood(self, what: str, count: int) -> float:
        """The same for one of the methods above, named `what`."""
        return await self._at_once(count, getattr(self, what))

    async def _at_once(self, count: int, do: Callable[[int], Awaitable[Any]]) -> float:
        began = time.perf_counter()
        answers = await asyncio.gather(*(do(i) for i in range(count)))
        took = time.perf_counter() - began
        if any(answer != i for i, answer in enumerate(answers)):
            raise SystemExit("an answer is not what was sent")
        return count / took

    async def many(self, what: str, count: int) -> None:
        """Make so many calls, 50 at once."""
        do = getattr(self, what)
        for _ in range(0, count, 50):
            await asyncio.gather(*(do(i) for i in range(50)))

    async def deaths(self, count: int) -> list[float]:
        """Seconds from the SIGKILL of a rank to the exception of a call that waits, so many times."""
        return [await self._death() for _ in range(count)]

    async def _death(self) -> float:
        pids = await self.pids()
        waiting = asyncio.ensure_future(self.sleep(600))
        await asyncio.sleep(random.uniform(0.1, 0.2))  # so that no poll is always met at the same point
        os.kill(pids[-1], signal.SIGKILL)
        killed = time.perf_counter()
        try:
            await waiting
        except Exception:
            return time.perf_counter() - killed
        raise SystemExit("the call came back although its rank is dead")

    async def sleep(self, seconds: float) -> None:
        """A call that waits."""
        await self.actor.sleep.call(seconds)


class Forgectl(Side):
    def __init__(self) -> None:
        self.service: Any = None
        self.caller: Any = None

    async def launch(self, n: int, **settings: Any) -> None:
        from echo_forge import Echo

        self.actor = await Echo.options(procs=n, **settings).as_actor()
        self.first = self.actor.slice(procs=0)

    async def stop(self) -> None:
        await self.actor.shutdown()

    async def serve(self, replicas: int) -> None:
        """A service of so many replicas, in place of the one before."""
        from echo_forge import Echo

        if self.service is not None:
            await self.service.shutdown()
        self.service = await Echo.options(num_replicas=replicas).as_service()

    async def route(self, n: int) -> Any:
        """Of one replica."""
        return await self.service.echo.route(n)

    async def fanout(self, n: int) -> Any:
        """Of every replica."""
        return await self.service.echo.fanout(n)

    async def in_actor(self, what: str, count: int) -> Any:
        """A measurement of routes from an actor."""
        from echo_forge import Caller

        if self.caller is None:
            self.caller = await Caller.as_actor()
        return await getattr(self.caller, what).call_one(self.service, count)

    async def served_pids(self) -> Any:
        """The pid of every replica."""
        return await self.service.pid.fanout()

    async def streamed(self, count: int) -> float:
        """Values a second of a generator in the first rank that never waits."""
        began, expected = time.perf_counter(), 0
        async for value in self.first.upto.stream(count):
            if value != expected:
                raise SystemExit("a value is not what was yielded")
            expected += 1
        return count / (time.perf_counter() - began)

    async def underway(self, count: int) -> list[float]:
        """Seconds from the `yield` of a value to its receipt, by the clock that all processes share, so many times."""
        return [time.monotonic() - yielded async for yielded in self.first.clock.stream(count)]

    async def all_routed(self, count: int) -> tuple[int, float]:
        """How many of so many concurrent requests had no answer or another's, and after how many seconds."""
        began = time.perf_counter()
        answers = await asyncio.gather(*(self.route(i) for i in range(count)), return_exceptions=True)
        took = time.perf_counter() - began
        return sum(answer != i for i, answer in enumerate(answers)), took


class Monarch(Side):
    async def launch(self, n: int) -> None:
        import monarch.actor
        from echo_monarch import Echo
        from monarch.actor import this_host

        monarch.actor.unhandled_fault_hook = lambda failure: None  # the default one ends this process
        self.procs = this_host().spawn_procs(per_host={"procs": n})
        self.actor = self.procs.spawn("echo", Echo)
        await self.actor.initialized
        self.first = self.actor.slice(procs=0)

    async def stop(self) -> None:
        await self.procs.stop()


class Ray(Side):
    async def launch(self, n: int) -> None:
        import ray
        from echo_ray import Echo

        ray.init(num_cpus=n, include_dashboard=False, log_to_driver=False)
        remote = ray.remote(num_cpus=1)(Echo)
        self.actors = [remote.remote() for _ in range(n)]

    async def call(self, n: int) -> Any:
        return await asyncio.gather(*(a.echo.remote(n) for a in self.actors))

    async def pids(self) -> list[int]:
        return list(await asyncio.gather(*(a.pid.remote() for a in self.actors)))

    async def sleep(self, seconds: float) -> None:
        await asyncio.gather(*(a.sleep.remote(seconds) for a in self.actors))


SIDES: dict[str, Callable[[], Side]] = {"forgectl": Forgectl, "monarch": Monarch, "ray": Ray}


async def perform(side: Side, lines: asyncio.StreamReader, say: Callable[[str], Any]) -> None:
    """Do what each line asks, until there are no more. `say` takes each answer."""
    while line := await lines.readline():
        what, *arguments = json.loads(line)
        settings = arguments.pop() if arguments and isinstance(arguments[-1], dict) else {}
        try:
            answer = {"value": await getattr(side, what)(*arguments, **settings)}
        except Exception:
            answer = {"error": traceback.format_exc()}
        say(f"{json.dumps(answer)}\n")


async def by_standard_streams(side: Side) -> None:
    """Take questions from standard input. What libraries print goes to standard error, not among the answers."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    await perform(side, lines, answers.write)


if __name__ == "__main__":
    asyncio.run(by_standard_streams(SIDES[sys.argv[1]]()))

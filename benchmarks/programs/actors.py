"""Actors by forgectl, by plain Monarch and by Ray, doing the same: `actors.py WORK SIDE FOLDER [N]`.

WORK: start (up to the first answer), call, service, death, memory. What was measured goes to FOLDER/result as JSON.
"""

import asyncio
import json
import os
import signal
import sys
import time
from pathlib import Path

CALLS, ROUNDS = 200, 10


class Side:
    """How one side launches `n` actors and calls them: forgectl's handles and Monarch's are called alike."""

    async def launch(self, n):
        """Bring up n processes, each of which has imported torch."""
        raise NotImplementedError

    async def all(self, n):
        """Call `echo(n)` on every rank."""
        return await self.actor.echo.call(n)

    async def pids(self):
        """The pid of every rank."""
        return list((await self.actor.pid.call()).values())

    async def sleep(self, seconds):
        """A call that waits."""
        await self.actor.sleep.call(seconds)


class Forgectl(Side):
    async def launch(self, n):
        from echo_forge import Echo

        self.actor = await Echo.options(procs=n).as_actor()


class Monarch(Side):
    async def launch(self, n):
        import monarch.actor
        from echo_monarch import Echo
        from monarch.actor import this_host

        monarch.actor.unhandled_fault_hook = lambda failure: None  # the default one ends this process
        self.procs = this_host().spawn_procs(per_host={"procs": n})
        self.actor = self.procs.spawn("echo", Echo)
        await self.actor.initialized


class Ray(Side):
    async def launch(self, n):
        import ray
        from echo_ray import Echo

        ray.init(num_cpus=n, include_dashboard=False, log_to_driver=False)
        remote = ray.remote(num_cpus=1)(Echo)
        self.actors = [remote.remote() for _ in range(n)]

    async def all(self, n):
        return await asyncio.gather(*(a.echo.remote(n) for a in self.actors))

    async def pids(self):
        return await asyncio.gather(*(a.pid.remote() for a in self.actors))

    async def sleep(self, seconds):
        await asyncio.gather(*(a.sleep.remote(seconds) for a in self.actors))


SIDES = {"forgectl": Forgectl, "monarch": Monarch, "ray": Ray}


async def start(side, n):
    """When the first call to all of n actors was answered, on the clock that all processes share."""
    await side.launch(n)
    await side.all(1)
    return time.monotonic()


async def seconds(do):
    """Of one of CALLS calls, one after the other."""
    began = time.perf_counter()
    for i in range(CALLS):
        await do(i)
    return (time.perf_counter() - began) / CALLS


async def call(_, n):
    """Seconds of a call to 1 and to n ranks, ours and Monarch's by turns in one process."""
    result = {}
    for ranks in (1, n):
        ours, plain = Forgectl(), Monarch()
        await ours.launch(ranks)
        await plain.launch(ranks)
        await seconds(ours.all), await seconds(plain.all)  # warm
        both = [(await seconds(ours.all), await seconds(plain.all)) for _ in range(ROUNDS)]
        result[ranks] = both
    return result


async def service(_, n):
    """Seconds of a route and of a plain call, by turns; and what 2,000 concurrent requests came to."""
    from echo_forge import Echo

    served = await Echo.options(num_replicas=2).as_service()
    plain = Monarch()
    await plain.launch(1)
    await seconds(served.echo.route), await seconds(plain.all)
    both = [(await seconds(served.echo.route), await seconds(plain.all)) for _ in range(ROUNDS)]
    began = time.perf_counter()
    answers = await asyncio.gather(*(served.echo.route(i) for i in range(2000)))
    took = time.perf_counter() - began
    lost = sum(a != i for i, a in enumerate(answers))
    return {"both": both, "lost": lost, "seconds": took}


async def death(side, n):
    """Seconds from the SIGKILL of a rank to the exception of a call that waits."""
    await side.launch(n)
    pids = await side.pids()
    waiting = asyncio.ensure_future(side.sleep(600))
    await asyncio.sleep(0.5)
    os.kill(pids[-1], signal.SIGKILL)
    killed = time.perf_counter()
    try:
        await waiting
    except Exception:
        return time.perf_counter() - killed
    raise SystemExit("the call came back although its rank is dead")


def rss():
    """Bytes that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def memory(_, n):
    """Bytes by which this process grows per call, over n calls: through a handle, a service, and plain Monarch."""
    from echo_forge import Echo

    handle = await Echo.as_actor()
    served = await Echo.as_service()
    plain = Monarch()
    await plain.launch(1)
    result = {}
    sides = {"plain": plain.all, "handle": handle.echo.call, "service": served.echo.route, "plain again": plain.all}
    for name, do in sides.items():
        for size in (n // 5, n):  # first until every pool and cache is full
            before = rss()
            for _ in range(0, size, 50):
                await asyncio.gather(*(do(i) for i in range(50)))
            result[name] = (rss() - before) / size
    return result


async def main():
    work, side, folder, n = sys.argv[1], SIDES[sys.argv[2]](), Path(sys.argv[3]), int(sys.argv[4])
    result = await {"start": start, "call": call, "service": service, "death": death, "memory": memory}[work](side, n)
    draft = folder / "draft"
    draft.write_text(json.dumps(result))
    draft.rename(folder / "result")


if __name__ == "__main__":
    asyncio.run(main())

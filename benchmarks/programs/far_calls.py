"""The driver of a run with an actor on another host: calls it, and plain Monarch's on the same worker, by turns."""

import asyncio
import json

import monarch.actor
from actors import ROUNDS, seconds
from monarch.actor import Actor, endpoint

import forgectl
from forgectl.actor import home, places


class Plain(Actor):
    """What plain Monarch has: sent by value, as it is of this main module."""

    @endpoint
    async def echo(self, value):
        return value


async def main():
    """Print the seconds of a call, ours and plain Monarch's, as pairs."""
    run = home.home()
    ours = forgectl.get("echo")
    [host] = [h for h in run.plan.hosts if not h.local]
    worker = places.worker_of(host, run.crossing.hosts)
    there = monarch.actor.attach_to_workers(ca="trust_all_connections", workers=[worker.address], name="plain")
    plain = there.spawn_procs(per_host={"procs": 1}).spawn("plain", Plain)
    await plain.initialized
    await seconds(ours.echo.call), await seconds(plain.echo.call)  # warm
    print(
        "RESULT", json.dumps([(await seconds(ours.echo.call), await seconds(plain.echo.call)) for _ in range(ROUNDS)])
    )


asyncio.run(main())

"""What scripts with a service share. Tests copy it to where the script is, beside playing.py and replicas.py."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from playing import HERE
from replicas import Worker

V = TypeVar("V")
W = Worker.options(preload=[], mesh_name="svc")
WHERE = str(HERE)


def soon(awaitable: Awaitable[V]) -> asyncio.Future[V]:
    return asyncio.ensure_future(awaitable)


async def until(condition: Callable[[], V], seconds: float = 30) -> V:
    """The first true value of `condition`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "it took too long"
        await asyncio.sleep(0.005)
    return value


def lines(name: str = "notes") -> list[str]:
    """What replicas have written to a file so far."""
    return (HERE / name).read_text().splitlines() if (HERE / name).exists() else []


def go(*keys: str) -> None:
    """Let replicas go on."""
    for key in keys:
        (HERE / f"go-{key}").touch()


def seen(service: Worker, **wanted: list[Any]) -> bool:
    """Whether one of the numbers of each replica, in their order, is as wanted."""
    [(name, values)] = wanted.items()
    return [r[name] for r in service.metrics()["replicas"]] == values


async def pids_of(service: Worker) -> dict[str, int]:
    return {w["mesh"]: w["pid"] for w in await service.who.fanout()}


async def kill(service: Worker, mesh: str, pid: int) -> None:
    """Kill a replica, and wait until the service knows."""
    os.kill(pid, signal.SIGKILL)
    await until(lambda: not next(r for r in service.metrics()["replicas"] if r["mesh"] == mesh)["healthy"])


async def healthy(service: Worker, *values: bool) -> None:
    await until(lambda: seen(service, healthy=list(values)))

"""What scripts with actors share. Tests copy it to where the script is, beside players.py."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from forgectl.actor.driver.run_client import RunClient, living_run_client
from forgectl.actor.ranks import Ranks
from players import Counter

E = TypeVar("E", bound=BaseException)
HERE = Path(__file__).parent
Fast = Counter.options(preload=[])


async def exists(*names: str) -> None:
    """Wait for files beside the script."""
    while not all((HERE / name).exists() for name in names):
        await asyncio.sleep(0.005)


async def raised(kind: type[E], awaitable: Awaitable[object]) -> E:
    """The error that it must raise."""
    try:
        got = await awaitable
    except kind as e:
        return e
    raise AssertionError(f"no {kind}, but {got!r}")


def refused(kind: type[E], call: Callable[[], object]) -> E:
    """The error that a plain call must raise."""
    try:
        got = call()
    except kind as e:
        return e
    raise AssertionError(f"no {kind}, but {got!r}")


def own_run() -> RunClient:
    """The run that this script has begun."""
    run = living_run_client()
    assert run
    return run


def pids_of(mesh: str) -> list[int]:
    """The pids of the ranks of a mesh of this script."""
    return [int(rank.pid or 0) for rank in own_run()._latest[mesh].ranks]


def ranks_of(handle: Any) -> Ranks:
    """The ranks of a mesh that is up, as its callers know them."""
    ranks: Ranks | None = handle._mesh.now()
    assert ranks
    return ranks


def play(scenes: Mapping[str, Callable[..., Any]]) -> None:
    """Run the function that the command line names, with the words after it; a coroutine has a minute."""
    name, *words = sys.argv[1:]
    scene = scenes[name](*words)
    if asyncio.iscoroutine(scene):
        asyncio.run(asyncio.wait_for(scene, 60))

"""Generators of real ranks: `python generate.py FUNCTION`. Tests copy it beside playing.py."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import Any

import torch

from actors.generator import Generator
from actors.models import load_model
from actors.types import Completion
from actors.weights import WeightStore
from forgectl import ForgeActor, endpoint
from playing import HERE, pids_of, raised

TINY: dict[str, Any] = {
    "characters": "0123456789+=.",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.3,
}
LONG = {"max_tokens": 800, "temperature": 9.0}
STORE = WeightStore("policy", HERE / "weights")


def publish(version: int) -> None:
    STORE.publish(version, dict(load_model({**TINY, "seed": version}).module.named_parameters()))


class Endless(Generator):
    """Its texts are as long as they may be, so a request is under way when a test says that it is."""

    @endpoint
    async def setup(self) -> None:
        """No token is an end token."""
        await super().setup()
        self._backend._loop.tokenizer.end_ids = frozenset()  # type: ignore[attr-defined]

    @endpoint
    def break_it(self) -> None:
        """Have the model fail."""

        def fail(*args: object) -> None:
            raise RuntimeError("the model is broken")

        self._backend._loop.module.register_forward_pre_hook(fail)  # type: ignore[attr-defined]


class Rollouts(ForgeActor):
    """Asks for completions from another process."""

    def __init__(self, generator: Generator) -> None:
        super().__init__()
        self.generator = generator

    @endpoint
    async def collect(self, count: int) -> list[list[Completion]]:
        asked = (self.generator.generate.route("1+", {"max_tokens": 20}, request_id=str(i)) for i in range(count))
        return await asyncio.gather(*asked)


async def weights_come_in_while_actors_ask() -> None:
    generators = await Generator.options(num_replicas=2).as_service(TINY, weights=STORE)
    rollouts = await Rollouts.as_actor(generators)
    under_way = [asyncio.ensure_future(generators.generate.route("1", LONG)) for _ in range(8)]
    publish(3)
    assert await generators.update_weights.fanout() == [3, 3]
    assert await generators.get_version.fanout() == [3, 3]
    first = await rollouts.collect.call_one(40)
    again = await generators.generate.route("1+", {"max_tokens": 20}, request_id="7")  # perhaps by the other replica
    assert torch.equal(first[7][0].token_ids, again[0].token_ids)
    assert all(completion.version == 3 for (completion,) in first)
    assert {len(c.prompt_ids) for (c,) in await asyncio.gather(*under_way)} == {1}


async def a_killed_replica_loses_nothing() -> None:
    publish(1)
    generators = await Endless.options(num_replicas=2, mesh_name="g").as_service(TINY, weights=STORE)
    publish(2)
    await generators.update_weights.fanout()
    asked = [asyncio.ensure_future(generators.generate.route("1", LONG, request_id=str(i))) for i in range(8)]
    while not all(stats["batch"] for stats in await generators.stats.fanout()):
        await asyncio.sleep(0.005)
    os.kill(pids_of("g.1")[0], signal.SIGKILL)
    for i, (completion,) in enumerate(await asyncio.gather(*asked)):
        assert completion.request_id == str(i) and completion.version == 2 and len(completion.token_ids) == 800
    while await generators.get_version.fanout() != [2, 2]:  # from the store
        await asyncio.sleep(0.01)


async def a_failure_ends_the_launch() -> None:
    generator = await Endless.as_actor(TINY)
    waiting = [asyncio.ensure_future(generator.generate.call_one("1", {**LONG, "max_tokens": 2000})) for _ in range(3)]
    await generator.break_it.call_one()
    for task in waiting[:2]:
        assert "the model is broken" in str(await raised(RuntimeError, task))
    await waiting[2]  # not caught: the script ends with it


async def several_processes_are_refused() -> None:
    error = await raised(ValueError, Generator.options(procs=2).as_actor(TINY))
    assert "num_replicas=2" in str(error)


if __name__ == "__main__":
    asyncio.run(globals()[sys.argv[1]]())

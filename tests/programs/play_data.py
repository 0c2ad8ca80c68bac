"""Scenes in which actors exchange weights, rows and metrics: `play_data.py FUNCTION`."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import torch

from actors import DatasetActor, MetricLogger, WeightStore, collect_metrics, record_metric
from actors.metrics import Reduce, Tally
from forgectl import ActorDied, ForgeActor, endpoint

WEIGHTS = {"x": torch.arange(3 << 20)}  # 24 MiB: several messages


class Lender(ForgeActor):
    """Publishes weights in the shared memory of its host, and lends them to others."""

    @endpoint
    def setup(self) -> None:
        self.store = WeightStore("policy")
        self.store.publish(7, WEIGHTS)
        self.whole = 0

    @endpoint(concurrent=True)
    async def read_weights(self, name: str, version: int | None) -> AsyncIterator[tuple[int, int] | bytes]:
        left = -1
        async for part in self.store.stream_file(version):
            left = left - len(part) if isinstance(part, bytes) else part[1]
            self.whole += left == 0  # before the last part: its reader asks for no more
            yield part
            if name == "dying" and isinstance(part, bytes):
                os.kill(os.getpid(), signal.SIGKILL)

    @endpoint
    def sent_whole(self) -> int:
        return self.whole


class Reader(ForgeActor):
    """A process that stands for one of another host, since its store has a folder of its own."""

    @endpoint
    async def receive(self, source: Lender, name: str, folder: str) -> tuple[int, bool]:
        fetched = await WeightStore(name, folder).receive(source)
        return fetched.version, torch.equal(fetched.tensors["x"], WEIGHTS["x"])

    @endpoint
    def fetch(self) -> int:
        return WeightStore("policy").fetch().version

    @endpoint
    def measure(self) -> dict[str, Tally]:
        record_metric("rank", self.rank)
        record_metric("ranks", 1, Reduce.SUM)
        return collect_metrics()


async def weights_come_once_to_a_host() -> None:
    lender = await Lender.options(procs=1).as_actor()
    readers = await Reader.options(procs=3).as_actor()
    assert [*(await readers.fetch.call()).values()] == [7] * 3
    folder = str(Path("other_host").absolute())
    assert [*(await readers.receive.call(lender, "policy", folder)).values()] == [(7, True)] * 3
    assert await lender.sent_whole.call_one() == 1
    with pytest.raises(ActorDied, match="SIGKILL"):
        await readers.receive.call(lender, "dying", folder + "2")
    assert sorted(os.listdir(folder + "2")) == ["receive.lock"]


async def rows_and_metrics() -> None:
    Path("rows.jsonl").write_text("".join(f'{{"prompt": "{i}"}}\n' for i in range(5)))
    data = await DatasetActor.options(procs=2).as_actor(Path("rows.jsonl").absolute(), shuffle=False, epochs=1)
    parts = [[row["prompt"] for row in rows] for rows in (await data.batch.call(10)).values()]
    assert parts == [["0", "2", "4"], ["1", "3"]], parts
    measured = await (await Reader.options(procs=3).as_actor()).measure.call()
    logger = await MetricLogger.as_actor(Path("log").absolute())
    assert await logger.log.call_one(1, [*measured.values()]) == {"rank": 1.0, "ranks": 3.0}
    assert [row["step"] for row in await logger.history.call_one()] == [1]


if __name__ == "__main__":
    asyncio.run(globals()[sys.argv[1]]())

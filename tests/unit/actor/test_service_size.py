"""A service starts, changes its size, ends; its numbers, its memory, its errors."""

import asyncio
import copy
import gc
import json
import pickle
import tracemalloc
from typing import Any

import pytest

from forgectl.actor.service.metrics import SAMPLES, AnswerCounts
from forgectl.errors import ActorDied, ServiceOverloaded, ServiceStopped, ServiceUnavailable
from forgectl.model.status import ServiceStatus
from forgectl.wire.codec import from_json, to_json
from tests.unit.actor.fakes_service import Rig, UserError, finish_all, outcome, settle

# Start, scale, shutdown


def test_a_start_that_fails_leaves_nothing() -> None:
    async def main() -> None:
        rig = Rig(num_replicas=3)
        rig.refuse = {1}
        with pytest.raises(UserError, match="replica 1"):
            await rig.service.start()
        assert {mesh.shutdowns for mesh in rig.meshes.values()} == {1}
        with pytest.raises(ServiceUnavailable, match="no replicas"):
            await rig.call(1)
        await rig.service.shutdown()

    asyncio.run(main())


@pytest.mark.parametrize("how", ["cancel", "shutdown"])
def test_a_start_may_be_given_up(how: str) -> None:
    async def main() -> None:
        rig = Rig(num_replicas=2)
        rig.gate = asyncio.Event()
        start = asyncio.ensure_future(rig.service.start())
        waiting = rig.call(1)
        await settle()
        assert not waiting.done()
        if how == "cancel":
            start.cancel()
            await settle()
            assert start.cancelled() and isinstance(await outcome(waiting), ServiceUnavailable)
        await rig.service.shutdown()
        if how == "shutdown":
            assert isinstance(await outcome(start), ServiceStopped)
            assert isinstance(await outcome(waiting), ServiceStopped)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


def test_scale_up_and_down_loses_nothing() -> None:
    async def main() -> None:
        async with Rig(max_concurrent_requests=1) as rig:
            await rig.service.scale(3)
            tasks = [rig.call(n) for n in range(9)]
            fan = asyncio.ensure_future(rig.service.fanout("plain", ("fan",), {}))
            await settle()
            down = asyncio.ensure_future(rig.service.scale(1))
            up = asyncio.ensure_future(rig.service.scale(2))
            await settle()
            assert not down.done() and set(rig.meshes) == {0, 1, 2}
            while not all(task.done() for task in [*tasks, down, up, fan]):
                finish_all(rig)
                await settle()
            assert [task.result() for task in tasks] == list(range(9))
            assert await fan == ["fan"] * 3
            assert [rig.meshes[i].values() for i in (1, 2)] == [[1, "fan"], [2, "fan"]]
            assert [rig.meshes[i].shutdowns for i in range(4)] == [0, 1, 1, 0]
            assert [r.index for r in rig.service.metrics().replicas] == [0, 3]
            with pytest.raises(ValueError, match="at least 1"):
                await rig.service.scale(0)

    asyncio.run(main())


def test_a_cancelled_or_failed_scale() -> None:
    async def main() -> None:
        async with Rig(num_replicas=2) as rig:
            tasks = [rig.call(n) for n in range(2)]
            await settle()
            down = asyncio.ensure_future(rig.service.scale(1))
            await settle()
            down.cancel()
            await settle()
            assert rig.meshes[1].shutdowns == 0
            finish_all(rig)
            await settle()
            assert rig.meshes[1].shutdowns == 1  # it goes all the same
            rig.refuse = {3}
            with pytest.raises(UserError):
                await rig.service.scale(3)
            assert rig.meshes[2].shutdowns == 1
            assert [r.index for r in rig.service.metrics().replicas] == [0]
            assert await asyncio.gather(*tasks) == [0, 1]

    asyncio.run(main())


def test_a_session_on_a_replica_that_goes_moves() -> None:
    async def main() -> None:
        async with Rig(num_replicas=2, answer=lambda value: value) as rig:
            sessions = [rig.service.start_session() for _ in range(2)]
            for session in sessions * 2:
                await rig.call(1, session=session)
            await rig.service.scale(1)
            for session in sessions:
                await rig.call(1, session=session)
            assert rig.service.metrics().replicas[0].sessions == 2

    asyncio.run(main())


def test_shutdown_lets_running_calls_finish() -> None:
    async def main() -> None:
        async with Rig(max_concurrent_requests=2) as rig:
            tasks = [rig.call(n) for n in range(4)] + [rig.call(5, "gathered")]
            await settle()
            end = asyncio.ensure_future(rig.service.shutdown(3600))
            for task in (tasks[2], tasks[3], tasks[4], rig.call(6)):
                assert isinstance(await outcome(task), ServiceStopped)
            assert not end.done() and rig.meshes[0].shutdowns == 0
            finish_all(rig)
            await end
            assert await asyncio.gather(*tasks[:2]) == [0, 1]
            await rig.service.shutdown()
            with pytest.raises(ServiceStopped):
                await rig.service.scale(2)
            with pytest.raises(ServiceStopped):
                await rig.service.fanout("plain", (1,), {})

    asyncio.run(main())


def test_a_second_shutdown_may_be_more_urgent_and_ends_what_runs() -> None:
    async def main() -> None:
        async with Rig(num_replicas=2) as rig:
            tasks = [rig.call(1, "safe"), rig.call(2, "safely_batched")]
            await settle()
            scaling = asyncio.ensure_future(rig.service.scale(1))
            await settle()
            patient = asyncio.ensure_future(rig.service.shutdown(3600))
            await settle()
            await rig.service.shutdown(0)
            await patient
            for task in tasks:
                assert isinstance(await outcome(task), ServiceStopped)
            await scaling

    asyncio.run(main())


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_replicas": 0},
        {"max_concurrent_requests": 0},
        {"max_queue": -1},
        {"unavailable_timeout": -1},
        {"health_poll_rate": 0},
        {"router": "nearest"},
    ],
)
def test_settings_that_make_no_sense(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Rig(**wrong)


# Numbers, memory


def test_metrics_are_plain_and_right() -> None:
    now = [100.0]
    stats = AnswerCounts(clock=lambda: now[0])
    for n in range(2 * SAMPLES):
        now[0] += 0.01
        stats.succeeded(now[0] - (0.5 if n >= SAMPLES else 9.0))
    stats.failed(now[0] - 2.5)
    got = stats.numbers()
    assert (got["total"], got["successes"], got["failures"]) == (2001, 2000, 1)
    assert got["latency_p50"] == got["latency_p99"] == pytest.approx(0.5)
    assert got["latency_mean"] == pytest.approx(0.502)
    assert got["requests_per_second"] == pytest.approx(2001 / 20)
    now[0] += 61
    assert stats.rate() == 0

    async def main() -> None:
        async with Rig(num_replicas=2) as rig:
            rig.meshes[1].die(for_good=True)
            numbers = rig.service.metrics()
            assert from_json(ServiceStatus, json.loads(json.dumps(to_json(numbers)))) == numbers
            assert numbers.replicas[1].ended == "fake.1 died"
            assert numbers.latency_p50 is None

    asyncio.run(main())


@pytest.mark.thorough
def test_calls_leave_no_memory_behind() -> None:
    async def main() -> None:
        async with Rig(num_replicas=2, answer=lambda value: value, max_concurrent_requests=4) as rig:

            async def calls(count: int) -> None:
                for n in range(0, count, 20):
                    await asyncio.gather(*(rig.call(n, ("plain", "batched")[i % 2]) for i in range(20)))

            rig.answer = None
            for mesh in rig.meshes.values():
                mesh.answer = lambda value: value
            await calls(4000)
            gc.collect()
            tracemalloc.start()
            before, _ = tracemalloc.get_traced_memory()
            await calls(10_000)
            gc.collect()
            after, _ = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert after - before < 100_000  # bytes: less than ten a call

    asyncio.run(main())


def test_errors_survive_a_pickle() -> None:
    died = ActorDied("m", hint="h", mesh="p.0", rank=1, host="h1", rank_exit_code=3, signal=9, log_tail=["a", "b"])
    for error in (died, ActorDied("m"), ServiceStopped("m", hint="h"), ServiceUnavailable("m"), ServiceOverloaded("m")):
        for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):  # noqa: S301
            assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))
    assert died.log_tail == ("a", "b")
    assert [e.exit_code for e in (ActorDied, ServiceStopped, ServiceUnavailable, ServiceOverloaded)] == [1, 66, 75, 75]

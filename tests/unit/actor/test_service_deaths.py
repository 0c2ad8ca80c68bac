"""Replicas that die, come back, or do not: what their callers see."""

import asyncio

import pytest

from forgectl.actor.service.replica import ATTEMPTS
from forgectl.errors import ActorDied, ServiceUnavailable
from tests.unit.actor.fakes_service import Rig, finish_all, no_complaints, outcome, settle


def test_what_waits_for_a_dead_replica_moves_in_order() -> None:
    async def main() -> None:
        async with Rig(num_replicas=2, max_concurrent_requests=1) as rig:
            tasks = [rig.call(n) for n in range(8)]
            await settle()
            rig.meshes[0].die()
            while not all(task.done() for task in tasks):
                await settle()
                rig.meshes[1].running[0].finish()
                await settle()
            assert isinstance(await outcome(tasks[0]), ActorDied)
            assert rig.meshes[1].values() == [1, 3, 5, 7, 2, 4, 6]

    asyncio.run(main())


def test_a_request_about_to_start_on_a_replica_that_dies_moves_too() -> None:
    async def main() -> None:
        async with Rig(num_replicas=2, max_concurrent_requests=1) as rig:
            tasks = [rig.call(n) for n in range(3)]
            await settle()
            run = rig.meshes[0].running[0]
            run.future.add_done_callback(lambda _: rig.meshes[0].die())  # after the slot is free, before 2 wakes up
            run.finish()
            await settle()
            assert rig.meshes[0].values() == [0]
            rig.meshes[1].running[0].finish()
            await settle()
            finish_all(rig)
            assert await asyncio.gather(*tasks) == [0, 1, 2]

    asyncio.run(main())


def test_an_idempotent_call_runs_again_but_does_not_kill_every_replica() -> None:
    async def main() -> None:
        async with Rig(num_replicas=ATTEMPTS + 1) as rig:
            once, poison = rig.call("once", "safe"), rig.call("poison", "safe")
            await settle()
            rig.meshes[0].die()
            await settle()
            finished = [r for m in rig.meshes.values() for r in m.running if r.args == ("once",)]
            finished[0].finish()
            assert await once == "once"
            while not poison.done():
                next(m for m in rig.meshes.values() if m.running).die()
                await settle()
            assert isinstance(await outcome(poison), ActorDied)
            assert sum(m.values().count("poison") for m in rig.meshes.values()) == ATTEMPTS
            assert rig.service.metrics().failures == 1

    asyncio.run(main())


def test_a_death_known_only_from_a_call_takes_the_replica_out() -> None:
    async def main() -> None:
        async with Rig(num_replicas=2, max_concurrent_requests=1) as rig:
            tasks = [rig.call(n, "safe") for n in range(4)]
            await settle()
            rig.meshes[0].running[0].fail(rig.meshes[0].death())
            while not all(task.done() for task in tasks):
                await settle()
                rig.meshes[1].running[0].finish()
                await settle()
            assert rig.meshes[0].values() == [0]
            assert sorted(rig.meshes[1].values()) == [0, 1, 2, 3]
            rig.meshes[0].notify()  # or the next look
            assert [r.healthy for r in rig.service.metrics().replicas] == [True, True]

    asyncio.run(main())


def test_late_news_of_a_death_is_not_held_against_the_next_mesh() -> None:
    async def main() -> None:
        async with Rig() as rig:
            task = rig.call(1)
            await settle()
            rig.meshes[0].die()
            rig.meshes[0].recover()
            assert isinstance(await outcome(task), ActorDied)
            assert rig.service.metrics().replicas[0].healthy

    asyncio.run(main())


def test_a_free_slot_of_a_mesh_that_died_silently_is_given_to_nobody() -> None:
    async def main() -> None:
        async with Rig(num_replicas=2, max_concurrent_requests=1) as rig:
            tasks = [rig.call(n) for n in range(3)]
            await settle()
            rig.meshes[0].healthy = False
            rig.meshes[0].running[0].finish()
            await settle()
            assert rig.meshes[0].values() == [0]
            while not all(task.done() for task in tasks):
                finish_all(rig)
                await settle()
            assert await asyncio.gather(*tasks) == [0, 1, 2]

    asyncio.run(main())


@pytest.mark.parametrize("endpoint", ["plain", "batched"])
def test_a_caller_cancelled_as_it_fails_leaves_no_complaint(endpoint: str) -> None:
    async def main() -> None:
        async with no_complaints(), Rig() as rig:
            rig.meshes[0].die()
            task = rig.call(1, endpoint)
            await settle()
            rig.meshes[0].die(for_good=True)
            task.cancel()
            await settle()
            assert task.cancelled()
            del task

    asyncio.run(main())


def test_a_caller_cancelled_as_its_slot_is_revoked_leaves_no_complaint() -> None:
    async def main() -> None:
        async with no_complaints(), Rig(max_concurrent_requests=1) as rig:
            tasks = [rig.call(1), rig.call(2)]
            await settle()

            def happen(_: object) -> None:
                rig.meshes[0].die(for_good=True)
                tasks[1].cancel()

            rig.meshes[0].running[0].future.add_done_callback(happen)
            finish_all(rig)
            await settle()
            assert (await tasks[0], tasks[1].cancelled()) == (1, True)
            tasks.clear()

    asyncio.run(main())


def test_callers_wait_for_a_replica_to_come_back() -> None:
    async def main() -> None:
        async with Rig(max_concurrent_requests=2) as rig:
            rig.meshes[0].die()
            tasks = [rig.call(n) for n in range(4)] + [rig.call(n, "batched") for n in (4, 5)]
            fan = asyncio.ensure_future(rig.service.fanout("plain", (6,), {}))
            await settle()
            assert rig.service.metrics().queued == 7
            rig.meshes[0].recover()
            while not all(task.done() for task in [*tasks, fan]):
                await settle()
                finish_all(rig)
            assert await asyncio.gather(*tasks) == [0, 1, 2, 3, 4, 5]
            assert await fan == [6]
            assert rig.meshes[0].values()[:4] == [0, 1, 2, 3]

    asyncio.run(main())


def test_the_safety_net_sees_what_no_event_told() -> None:
    async def main() -> None:
        async with Rig(health_poll_rate=0.001) as rig:
            rig.meshes[0].healthy = False
            task = rig.call(1)
            await settle()
            rig.meshes[0].answer = lambda value: value
            rig.meshes[0].healthy = True
            assert await task == 1

    asyncio.run(main())


@pytest.mark.parametrize("endpoint", ["plain", "batched"])
def test_callers_wait_only_so_long(endpoint: str) -> None:
    async def main() -> None:
        async with Rig(unavailable_timeout=0.0) as rig:
            rig.meshes[0].die()
            tasks = [rig.call(n, endpoint) for n in range(3)]
            for task in tasks:
                error = await outcome(task)
                assert isinstance(error, ServiceUnavailable) and "no healthy replica for 0 s (fake.0)" in str(error)

    asyncio.run(main())


def test_each_caller_waits_its_own_time() -> None:
    async def main() -> None:
        async with Rig(unavailable_timeout=0.02) as rig:
            rig.meshes[0].die()
            first = rig.call(1)
            await settle()
            await asyncio.sleep(0.002)
            second = rig.call(2)
            for task in (first, second):
                assert isinstance(await outcome(task), ServiceUnavailable)

    asyncio.run(main())


@pytest.mark.parametrize("endpoint", ["plain", "batched"])
def test_when_all_have_ended_callers_hear_why_at_once(endpoint: str) -> None:
    async def main() -> None:
        async with Rig(num_replicas=2) as rig:
            for mesh in rig.meshes.values():
                mesh.die()
            held = rig.call(1, endpoint)
            await settle()
            for mesh in rig.meshes.values():
                mesh.die(for_good=True)
            fan = asyncio.ensure_future(rig.service.fanout("plain", (6,), {}))
            for task in (held, rig.call(2, endpoint), fan):
                error = await outcome(task)
                assert isinstance(error, ServiceUnavailable) and "fake.1: fake.1 died" in str(error)
                assert isinstance(error.__cause__, ActorDied)
            await rig.service.scale(1)  # those that ended do not count
            rig.meshes[2].answer = lambda value: [7] if endpoint == "batched" else 7
            assert await rig.call(3, endpoint) == 7

    asyncio.run(main())

"""The service on fake meshes: routing, queues, deaths, fanout."""

import asyncio

import pytest

from forgectl.actor.endpoint import EndpointInfo
from forgectl.actor.replica import ATTEMPTS
from forgectl.actor.router import Router
from forgectl.errors import ActorDied, NotFoundError, ServiceOverloaded, ServiceUnavailable
from tests.unit.fakes_service import Rig, UserError, finish_all, outcome, settle

# Routing and queues


def test_calls_take_turns_and_queue_in_order():
    async def main():
        async with Rig(num_replicas=2, max_concurrent_requests=2) as rig:
            tasks = [rig.call(n) for n in range(10)]
            await settle()
            numbers = rig.service.metrics()
            assert (numbers["active"], numbers["queued"]) == (4, 6)
            while not all(task.done() for task in tasks):
                finish_all(rig)
                await settle()
            assert [mesh.values() for mesh in rig.meshes.values()] == [[0, 2, 4, 6, 8], [1, 3, 5, 7, 9]]
            assert [task.result() for task in tasks] == list(range(10))
            assert {mesh.most for mesh in rig.meshes.values()} == {2}

    asyncio.run(main())


def test_nobody_overtakes_one_that_is_about_to_start():
    async def main():
        async with Rig(max_concurrent_requests=2) as rig:
            running = [rig.call(n) for n in range(2)]
            await settle()
            waiting = rig.call(2)
            await settle()
            finish_all(rig)
            late = rig.call(3)  # comes once there is room, and before `waiting` knows of it
            await settle()
            assert rig.meshes[0].values() == [0, 1, 2, 3]
            finish_all(rig)
            await asyncio.gather(*running, waiting, late)

    asyncio.run(main())


def test_the_users_exceptions_change_no_health():
    def answer(value):
        raise UserError(value)

    async def main():
        async with Rig(answer=answer) as rig:
            for n in range(3):
                assert str(await outcome(rig.call(n))) == str(n)
            numbers = rig.service.metrics()
            assert (numbers["failures"], numbers["replicas"][0]["healthy"]) == (3, True)

    asyncio.run(main())


def test_another_mesh_that_died_is_the_users_exception():
    async def main():
        async with Rig(num_replicas=2) as rig:
            task = rig.call(1, "safe")
            await settle()
            rig.meshes[0].running[0].fail(ActorDied("the trainer died", mesh="trainer"))
            assert (await outcome(task)).mesh == "trainer"
            assert [r["healthy"] for r in rig.service.metrics()["replicas"]] == [True, True]

    asyncio.run(main())


def test_an_endpoint_may_have_its_own_router_and_routers_may_be_wrong():
    class Last(Router):
        def pick(self, replicas):
            return replicas[-1]

    class Wrong(Router):
        def pick(self, replicas):
            return replicas[7] if len(replicas) > 2 else None

    async def main():
        endpoints = {"last": EndpointInfo(router=Last), "wrong": EndpointInfo(router=Wrong()), "plain": EndpointInfo()}
        async with Rig(endpoints, num_replicas=2, answer=lambda value: value) as rig:
            assert [await rig.call(n, "last") for n in range(3)] == [0, 1, 2]
            assert [r["total"] for r in rig.service.metrics()["replicas"]] == [0, 3]
            with pytest.raises(TypeError, match=r"Wrong\.pick returned None"):
                await rig.call(0, "wrong")
            await rig.service.scale(3)
            with pytest.raises(IndexError):
                await rig.call(0, "wrong")
            with pytest.raises(NotFoundError, match="did you mean 'plain'"):
                await rig.call(0, "plane")

    asyncio.run(main())


def test_a_full_queue_refuses_at_once():
    async def main():
        async with Rig(max_concurrent_requests=1, max_queue=2) as rig:
            tasks = [rig.call(n) for n in range(3)]
            await settle()
            with pytest.raises(ServiceOverloaded, match="max_queue is 2"):
                await rig.call(3)
            tasks[1].cancel()
            await settle()
            tasks[1] = rig.call(4)
            while not all(task.done() for task in tasks):
                await settle()
                finish_all(rig)
            assert rig.meshes[0].values() == [0, 2, 4]

    asyncio.run(main())


def test_a_cancelled_caller_leaves_its_place():
    async def main():
        async with Rig(max_concurrent_requests=1) as rig:
            tasks = [rig.call(n) for n in range(4)]
            await settle()
            tasks[0].cancel()  # running
            tasks[1].cancel()  # waiting
            await settle()
            assert rig.meshes[0].values() == [0, 2]
            rig.meshes[0].running[0].finish()
            tasks[3].cancel()  # before it knows that it could start
            await settle()
            assert [task.cancelled() for task in tasks] == [True, True, False, True]
            assert rig.service.metrics()["cancelled"] == 3

    asyncio.run(main())


# Deaths


def test_what_waits_for_a_dead_replica_moves_in_order():
    async def main():
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


def test_a_request_about_to_start_on_a_replica_that_dies_moves_too():
    async def main():
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


def test_an_idempotent_call_runs_again_but_does_not_kill_every_replica():
    async def main():
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
            assert rig.service.metrics()["failures"] == 1

    asyncio.run(main())


def test_a_death_known_only_from_a_call_takes_the_replica_out():
    async def main():
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
            assert [r["healthy"] for r in rig.service.metrics()["replicas"]] == [True, True]

    asyncio.run(main())


def test_callers_wait_for_a_replica_to_come_back():
    async def main():
        async with Rig(max_concurrent_requests=2) as rig:
            rig.meshes[0].die()
            tasks = [rig.call(n) for n in range(4)] + [rig.call(n, "batched") for n in (4, 5)]
            fan = asyncio.ensure_future(rig.service.fanout("plain", (6,), {}))
            await settle()
            assert rig.service.metrics()["queued"] == 7
            rig.meshes[0].recover()
            while not all(task.done() for task in [*tasks, fan]):
                await settle()
                finish_all(rig)
            assert await asyncio.gather(*tasks) == [0, 1, 2, 3, 4, 5]
            assert await fan == [6]
            assert rig.meshes[0].values()[:4] == [0, 1, 2, 3]

    asyncio.run(main())


def test_the_safety_net_sees_what_no_event_told():
    async def main():
        async with Rig(health_poll_rate=0.001) as rig:
            rig.meshes[0].healthy = False
            task = rig.call(1)
            await settle()
            rig.meshes[0].answer = lambda value: value
            rig.meshes[0].healthy = True
            assert await task == 1

    asyncio.run(main())


@pytest.mark.parametrize("endpoint", ["plain", "batched"])
def test_callers_wait_only_so_long(endpoint):
    async def main():
        async with Rig(unavailable_timeout=0.0) as rig:
            rig.meshes[0].die()
            tasks = [rig.call(n, endpoint) for n in range(3)]
            for task in tasks:
                error = await outcome(task)
                assert isinstance(error, ServiceUnavailable) and "no healthy replica for 0 s (fake.0)" in str(error)

    asyncio.run(main())


@pytest.mark.parametrize("endpoint", ["plain", "batched"])
def test_when_all_have_ended_callers_hear_why_at_once(endpoint):
    async def main():
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


# Fanout


def test_fanout_asks_every_healthy_replica():
    async def main():
        async with Rig(num_replicas=3, max_concurrent_requests=1) as rig:
            rig.meshes[1].die()
            busy = rig.call("busy")
            await settle()
            fan = asyncio.ensure_future(rig.service.fanout("plain", ("all",), {}))
            batched = asyncio.ensure_future(rig.service.fanout("batched", ("all",), {}))
            await settle()
            while not batched.done():
                for index, mesh in rig.meshes.items():
                    for run in list(mesh.running):
                        run.finish([index] if run.endpoint == "batched" else index)
                await settle()
            assert (await busy, await fan, await batched) == (0, [0, 2], [0, 2])
            assert rig.meshes[0].values() == ["busy", "all", ["all"]]

    asyncio.run(main())


def test_fanout_raises_once_all_have_answered_and_never_asks_one_twice():
    async def main():
        async with Rig(num_replicas=3, max_concurrent_requests=1) as rig:
            fan = asyncio.ensure_future(rig.service.fanout("plain", (1,), {}))
            await settle()
            rig.meshes[1].running[0].fail(UserError("one"))
            rig.meshes[2].running[0].finish(2)
            await settle()
            assert not fan.done()
            waiting = asyncio.ensure_future(rig.service.fanout("safe", (2,), {}))
            await settle()
            rig.meshes[0].die()  # one runs there, one waits there
            assert (await outcome(fan)).mesh == "fake.0"
            finish_all(rig)
            assert (await outcome(waiting)).mesh == "fake.0"
            assert [len(mesh.started) for mesh in rig.meshes.values()] == [1, 2, 2]

    asyncio.run(main())


def test_a_cancelled_fanout_leaves_every_line():
    async def main():
        async with Rig(num_replicas=2, max_concurrent_requests=1) as rig:
            for ticks in (0, 1, 30):
                fans = [asyncio.ensure_future(rig.service.fanout("plain", (n,), {})) for n in range(3)]
                for _ in range(ticks):
                    await asyncio.sleep(0)
                for fan in fans:
                    fan.cancel()
                await settle()
                numbers = rig.service.metrics()
                assert (numbers["active"], numbers["queued"]) == (0, 0)

    asyncio.run(main())

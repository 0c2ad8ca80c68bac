"""The service on fake meshes: routing, queues, fanout."""

import asyncio
from collections.abc import Sequence

import pytest

from forgectl.actor.endpoint import EndpointInfo
from forgectl.actor.service.routing import Load, Router
from forgectl.errors import ActorDied, NotFoundError, ServiceOverloaded
from tests.unit.actor.fakes_service import Rig, UserError, finish_all, outcome, settle

# Routing and queues


def test_calls_take_turns_and_queue_in_order() -> None:
    async def main() -> None:
        async with Rig(num_replicas=2, max_concurrent_requests=2) as rig:
            tasks = [rig.call(n) for n in range(10)]
            await settle()
            numbers = rig.service.metrics()
            assert (numbers.active, numbers.queued) == (4, 6)
            while not all(task.done() for task in tasks):
                finish_all(rig)
                await settle()
            assert [mesh.values() for mesh in rig.meshes.values()] == [[0, 2, 4, 6, 8], [1, 3, 5, 7, 9]]
            assert [task.result() for task in tasks] == list(range(10))
            assert {mesh.most for mesh in rig.meshes.values()} == {2}

    asyncio.run(main())


def test_nobody_overtakes_one_that_is_about_to_start() -> None:
    async def main() -> None:
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


def test_a_stream_is_a_running_request_until_it_has_ended() -> None:
    async def main() -> None:
        async with Rig(num_replicas=2, max_concurrent_requests=1) as rig:
            service = rig.service
            for n in range(2):
                await service.stream("safe", (n,), {})
            third = asyncio.ensure_future(service.stream("safe", (2,), {}))
            gone = asyncio.ensure_future(service.stream("safe", (3,), {}))
            await settle()
            numbers = service.metrics()
            assert (numbers.active, numbers.queued) == (2, 2)
            gone.cancel()
            rig.meshes[0].running[0].finish()
            await third
            assert [mesh.values() for mesh in rig.meshes.values()] == [[0, 2], [1]]
            rig.meshes[0].die()  # not begun again on another replica, although the endpoint is idempotent
            await settle()
            rig.meshes[1].running[0].fail(UserError())
            await settle()
            numbers = service.metrics()
            assert (numbers.active, numbers.queued) == (0, 0)
            assert (numbers.successes, numbers.failures, numbers.replicas[0].healthy) == (1, 2, False)

    asyncio.run(main())


def test_streams_of_a_session_go_to_one_replica_and_are_its_calls_until_they_have_ended() -> None:
    async def main() -> None:
        async with Rig(num_replicas=2) as rig:
            for n in range(3):
                await rig.service.stream("plain", (n,), {}, "user-17")
            await settle()
            assert sorted(len(mesh.values()) for mesh in rig.meshes.values()) == [0, 3]
            assert rig.service._sessions._calls == {"user-17": 3}
            finish_all(rig)
            await settle()
            assert not rig.service._sessions._calls and rig.service.metrics().sessions == 1

    asyncio.run(main())


def test_a_stream_that_cannot_begin_leaves_no_slot() -> None:
    async def main() -> None:
        async with Rig(max_concurrent_requests=1) as rig:
            rig.meshes[0].stream = None  # type: ignore[assignment,method-assign]
            with pytest.raises(TypeError):
                await rig.service.stream("plain", (1,), {})
            with pytest.raises(NotFoundError):
                await rig.service.stream("plain", (1,), {}, "session-terminated")
            assert rig.service.metrics().active == 0

    asyncio.run(main())


def test_the_users_exceptions_change_no_health() -> None:
    def answer(value: int) -> None:
        raise UserError(value)

    async def main() -> None:
        async with Rig(answer=answer) as rig:
            for n in range(3):
                assert str(await outcome(rig.call(n))) == str(n)
            numbers = rig.service.metrics()
            assert (numbers.failures, numbers.replicas[0].healthy) == (3, True)

    asyncio.run(main())


def test_another_mesh_that_died_is_the_users_exception() -> None:
    async def main() -> None:
        async with Rig(num_replicas=2) as rig:
            task = rig.call(1, "safe")
            await settle()
            rig.meshes[0].running[0].fail(ActorDied("the trainer died", mesh="trainer"))
            assert (await outcome(task)).mesh == "trainer"
            assert [r.healthy for r in rig.service.metrics().replicas] == [True, True]

    asyncio.run(main())


def test_an_endpoint_may_have_its_own_router_and_routers_may_be_wrong() -> None:
    class Last(Router):
        def pick(self, replicas: Sequence[Load]) -> Load:
            return replicas[-1]

    class Wrong(Router):
        def pick(self, replicas: Sequence[Load]) -> Load:
            return replicas[7] if len(replicas) > 2 else None  # type: ignore[return-value]

    async def main() -> None:
        endpoints = {"last": EndpointInfo(router=Last), "wrong": EndpointInfo(router=Wrong()), "plain": EndpointInfo()}
        async with Rig(endpoints, num_replicas=2, answer=lambda value: value) as rig:
            assert [await rig.call(n, "last") for n in range(3)] == [0, 1, 2]
            assert [r.total for r in rig.service.metrics().replicas] == [0, 3]
            with pytest.raises(TypeError, match=r"Wrong\.pick returned None"):
                await rig.call(0, "wrong")
            await rig.service.scale(3)
            with pytest.raises(IndexError):
                await rig.call(0, "wrong")
            with pytest.raises(NotFoundError, match="did you mean 'plain'"):
                await rig.call(0, "plane")

    asyncio.run(main())


def test_a_full_queue_refuses_at_once() -> None:
    async def main() -> None:
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


def test_a_cancelled_caller_leaves_its_place() -> None:
    async def main() -> None:
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
            assert rig.service.metrics().cancelled == 3

    asyncio.run(main())


# Fanout


def test_fanout_asks_every_healthy_replica() -> None:
    async def main() -> None:
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


def test_fanout_raises_once_all_have_answered_and_never_asks_one_twice() -> None:
    async def main() -> None:
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


def test_a_cancelled_fanout_leaves_every_line() -> None:
    async def main() -> None:
        async with Rig(num_replicas=2, max_concurrent_requests=1) as rig:
            for ticks in (0, 1, 30):
                fans = [asyncio.ensure_future(rig.service.fanout("plain", (n,), {})) for n in range(3)]
                for _ in range(ticks):
                    await asyncio.sleep(0)
                for fan in fans:
                    fan.cancel()
                await settle()
                numbers = rig.service.metrics()
                assert (numbers.active, numbers.queued) == (0, 0)

    asyncio.run(main())

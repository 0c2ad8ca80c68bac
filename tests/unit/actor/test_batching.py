"""Batches: nothing lost, nothing twice, order kept, and errors where they belong."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forgectl.actor.endpoint import EndpointInfo
from forgectl.actor.service.replica import ATTEMPTS
from forgectl.errors import ActorDied, ServiceOverloaded
from tests.unit.actor.fakes_service import Rig, UserError, finish_all, no_complaints, outcome, settle

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("call"), st.integers(0, 2)),  # of this shape
        st.tuples(st.just("cancel"), st.integers(0, 30)),
        st.tuples(st.just("tick"), st.integers(0, 3)),
        st.tuples(st.just("finish"), st.booleans()),
    ),
    max_size=40,
)
SHAPES: list[Callable[[int], tuple[tuple[Any, ...], dict[str, Any]]]] = [
    lambda v: ((v,), {}),
    lambda v: ((), {"x": v}),
    lambda v: ((v,), {"y": -v}),
]


@settings(deadline=None, max_examples=150)
@given(STEPS, st.integers(2, 4), st.integers(1, 2))
def test_each_caller_gets_its_own_result_once(steps: list[tuple[str, int]], size: int, limit: int) -> None:
    async def main() -> None:
        endpoints = {"echo": EndpointInfo(batch_size=size, batch_timeout=0.0)}
        async with Rig(endpoints, max_concurrent_requests=limit) as rig:
            tasks: list[asyncio.Task[Any]] = []
            cancelled: set[int] = set()
            shapes: list[int] = []
            mesh = rig.meshes[0]

            def end(ok: bool) -> None:
                for run in list(mesh.running):
                    values = run.args[0] if run.args else run.kwargs["x"]
                    run.finish([v * 10 for v in values]) if ok else run.fail(UserError(tuple(values)))

            for step, n in steps:
                if step == "call":
                    args, kwargs = SHAPES[n](len(tasks))
                    shapes.append(n)
                    tasks.append(asyncio.ensure_future(rig.service.route("echo", args, kwargs, None)))
                elif step == "cancel" and n < len(tasks) and tasks[n].cancel():
                    cancelled.add(n)
                elif step == "tick":
                    for _ in range(n):
                        await asyncio.sleep(0)
                elif step == "finish":
                    end(bool(n))
            while not all(task.done() for task in tasks):
                await asyncio.sleep(0)
                end(True)
            ran = [run.args[0] if run.args else run.kwargs["x"] for run in mesh.started]
            assert all(0 < len(values) <= size and len({shapes[v] for v in values}) == 1 for values in ran)
            assert all(run.kwargs.get("y", [-v for v in run.args[0]]) == [-v for v in run.args[0]]
                       for run in mesh.started if run.args)  # fmt: skip
            flat = [v for values in ran for v in values]
            assert len(set(flat)) == len(flat)
            assert set(range(len(tasks))) - cancelled <= set(flat)
            for shape in range(3):
                of_shape = [v for v in flat if shapes[v] == shape]
                assert of_shape == sorted(of_shape)
            assert mesh.most <= limit
            for n, task in enumerate(tasks):
                got = await outcome(task)
                if n not in cancelled:
                    assert got == n * 10 or n in got.args[0]

    asyncio.run(main())


def test_a_batch_starts_when_it_is_full() -> None:
    async def main() -> None:
        async with Rig(answer=lambda values: values) as rig:
            tasks = [rig.call(n, "gathered") for n in range(6)]
            assert await asyncio.gather(*tasks) == list(range(6))

    asyncio.run(main())


def test_a_batch_starts_some_time_after_its_first_call() -> None:
    async def main() -> None:
        endpoints = {"slow": EndpointInfo(batch_size=100, batch_timeout=0.01)}
        async with Rig(endpoints, answer=lambda values: [(v, len(values)) for v in values]) as rig:
            first, second = rig.call(1, "slow"), rig.call(2, "slow")
            assert (await first, await second) == ((1, 2), (2, 2))

    asyncio.run(main())


def test_a_cancelled_call_is_left_out_unless_the_batch_runs() -> None:
    async def main() -> None:
        async with Rig(max_concurrent_requests=1) as rig:
            gathering = [rig.call(n, "gathered") for n in range(2)]
            await settle()
            gathering[0].cancel()
            await settle()
            gathering += [rig.call(n, "gathered") for n in (2, 3)]
            await settle()
            queued = [rig.call(n, "gathered") for n in (4, 5, 6)]
            alone = [rig.call(n, "batched") for n in (7, 8)]
            await settle()
            assert rig.service.metrics().queued == 5
            for task in (gathering[1], queued[1], *alone):
                task.cancel()
            await settle()
            assert rig.service.metrics().queued == 2
            for _ in range(2):
                rig.meshes[0].running[0].finish()
                await settle()
            assert rig.meshes[0].values() == [[1, 2, 3], [4, 6]]
            assert [await gathering[2], await gathering[3], await queued[0], await queued[2]] == [2, 3, 4, 6]
            assert rig.service.metrics().cancelled == 5

    asyncio.run(main())


@pytest.mark.parametrize(
    ("answer", "error", "says"),
    [
        (lambda values: values[:-1], ValueError, "each of the 3 calls, not 2"),
        (lambda values: [*values, 1], ValueError, "each of the 3 calls, not 4"),
        (lambda values: "abc", TypeError, "not str"),
        (lambda values: None, TypeError, "not NoneType"),
        (lambda values: {1: 2, 2: 3, 3: 4}, TypeError, "not dict"),
    ],
)
def test_results_that_fit_nobody_are_an_error_for_all(
    answer: Callable[[list[int]], Any], error: type[Exception], says: str
) -> None:
    async def main() -> None:
        async with Rig(answer=answer) as rig:
            for got in await asyncio.gather(*(rig.call(n, "batched") for n in range(3)), return_exceptions=True):
                assert isinstance(got, error) and says in str(got) and "batched" in str(got)
            assert rig.service.metrics().failures == 3

    asyncio.run(main())


def test_an_exception_goes_to_the_callers_of_that_batch_only() -> None:
    async def main() -> None:
        async with Rig() as rig:
            tasks = [rig.call(n, "batched") for n in range(6)]
            await settle()
            first, second = rig.meshes[0].running
            first.fail(UserError("first"))
            second.finish()
            got = [await outcome(task) for task in tasks]
            assert [str(g) for g in got[:3]] == ["first"] * 3
            assert got[3:] == [3, 4, 5]

    asyncio.run(main())


def test_sessions_share_a_batch_only_on_the_same_replica() -> None:
    async def main() -> None:
        async with Rig(num_replicas=2) as rig:
            sessions = [rig.service.start_session() for _ in range(4)]  # 0 and 2 live together, so do 1 and 3
            tasks = [rig.call(n, "batched", session=s) for n, s in enumerate(sessions)]
            tasks.append(rig.call("free", "batched"))
            await settle()
            ran = sorted(map(str, (v for mesh in rig.meshes.values() for v in mesh.values())))
            assert ran == ["['free']", "[0, 2]", "[1, 3]"]
            finish_all(rig)
            assert await asyncio.gather(*tasks) == [0, 1, 2, 3, "free"]

    asyncio.run(main())


@pytest.mark.parametrize("state", ["gathering", "queued"])
def test_a_batch_of_sessions_is_split_when_their_replica_dies(state: str) -> None:
    async def main() -> None:
        async with Rig(num_replicas=3, max_concurrent_requests=1) as rig:
            sessions = [rig.service.start_session() for _ in range(9)]
            for session in sessions:
                task = rig.call("warm", session=session)
                await settle()
                finish_all(rig)
                await task
            blockers = [rig.call("block") for _ in range(3)]
            await settle()
            tasks = [rig.call(n, "gathered", session=sessions[n]) for n in ((0, 3, 6) if state == "queued" else (0, 3))]
            await settle()
            rig.meshes[0].die()
            while not all(task.done() for task in tasks):
                await settle()
                for mesh in (rig.meshes[1], rig.meshes[2]):
                    for run in list(mesh.running):
                        run.finish()
            assert [task.result() for task in tasks] == ([0, 3, 6] if state == "queued" else [0, 3])
            batches = [r.args[0] for i in (1, 2) for r in rig.meshes[i].started if r.endpoint == "gathered"]
            assert sorted(n for batch in batches for n in batch) == ([0, 3, 6] if state == "queued" else [0, 3])
            assert len(batches) == 2
            await asyncio.gather(*blockers, return_exceptions=True)

    asyncio.run(main())


@pytest.mark.parametrize("endpoint", ["batched", "safely_batched"])
def test_a_batch_whose_replica_dies_runs_again_only_if_that_is_safe(endpoint: str) -> None:
    async def main() -> None:
        async with Rig(num_replicas=2) as rig:
            tasks = [rig.call(n, endpoint) for n in range(3)]
            await settle()
            rig.meshes[0].die()
            await settle()
            tasks[1].cancel()
            for run in list(rig.meshes[1].running):
                run.finish()
            got = [await outcome(task) for task in tasks]
            if endpoint == "batched":
                assert all(isinstance(g, ActorDied) for g in got)
            else:
                assert (got[0], got[2], tasks[1].cancelled()) == (0, 2, True)

    asyncio.run(main())


@pytest.mark.parametrize("event", ["death", "cancel"])
def test_a_batch_about_to_start_when_its_replica_or_all_its_callers_go(event: str) -> None:
    async def main() -> None:
        async with no_complaints(), Rig(num_replicas=2, max_concurrent_requests=1) as rig:
            tasks = [rig.call(n) for n in range(2)]
            await settle()
            batch = [rig.call(n, "batched") for n in (2, 3)]
            await settle()
            run = rig.meshes[0].running[0]  # once it is done the batch has its slot, and starts one step later
            if event == "death":
                run.future.add_done_callback(lambda _: rig.meshes[0].die())
            else:
                run.future.add_done_callback(lambda _: [task.cancel() for task in batch])
            while not all(task.done() for task in [*tasks, *batch]):
                finish_all(rig)
                await settle()
            assert rig.meshes[0].values() == [0]
            assert [await task for task in tasks] == [0, 1]
            assert all(task.cancelled() if event == "cancel" else task.result() for task in batch)
            assert rig.service.metrics().active == 0

    asyncio.run(main())


@pytest.mark.parametrize("endpoint", ["safe", "safely_batched"])
def test_runs_again_so_often_and_no_queue_is_too_full_for_it(endpoint: str) -> None:
    async def main() -> None:
        async with Rig(num_replicas=ATTEMPTS + 1, max_concurrent_requests=1, max_queue=0) as rig:
            task = rig.call("poison", endpoint)
            await settle()
            busy = [rig.call(n) for n in range(ATTEMPTS)]
            while not task.done():
                mine = [m for m in rig.meshes.values() if m.running and m.running[0].endpoint == endpoint]
                mine[0].die() if mine else finish_all(rig)
                await settle()
            assert isinstance(await outcome(task), ActorDied)
            assert sum(run.endpoint == endpoint for m in rig.meshes.values() for run in m.started) == ATTEMPTS
            finish_all(rig)
            assert await asyncio.gather(*busy) == list(range(ATTEMPTS))

    asyncio.run(main())


def test_calls_without_arguments_share_no_batch() -> None:
    async def main() -> None:
        async with Rig(answer=lambda: [7]) as rig:
            assert await asyncio.gather(*(rig.service.route("gathered", (), {}) for _ in range(2))) == [7, 7]

    asyncio.run(main())


def test_a_full_queue_refuses_calls_of_batches() -> None:
    async def main() -> None:
        async with Rig(max_concurrent_requests=1, max_queue=3) as rig:
            tasks = [rig.call(n, "gathered") for n in range(7)]
            await settle()
            assert isinstance(await outcome(tasks[6]), ServiceOverloaded)
            for _ in range(2):
                rig.meshes[0].running[0].finish()
                await settle()
            assert [await task for task in tasks[:6]] == [*range(6)]

    asyncio.run(main())

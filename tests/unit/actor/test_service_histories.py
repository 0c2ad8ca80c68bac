"""Random histories: calls, cancels, deaths, recoveries, scaling, the end. Every caller has exactly one outcome."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forgectl.actor.service.replica import ATTEMPTS
from forgectl.errors import ActorDied, ServiceStopped, ServiceUnavailable
from tests.unit.actor.fakes_service import FakeMesh, Rig, UserError, finish_all, no_complaints, outcome

WHICH = st.integers(0, 40)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("call"), st.sampled_from(["plain", "safe", "batched", "safely_batched"]), st.integers(-3, 2)),
        st.tuples(st.just("call"), st.sampled_from(["plain", "safe"]), st.just(-1)),
        st.tuples(st.just("fanout"), st.sampled_from(["plain", "batched"])),
        st.tuples(st.just("finish"), WHICH, WHICH),
        st.tuples(st.just("fail"), WHICH, WHICH),
        st.tuples(st.just("cancel"), WHICH),
        st.tuples(st.just("tick"), st.integers(1, 4)),
        st.tuples(st.sampled_from(["die", "recover", "fault", "end", "look"]), WHICH),
        st.tuples(st.just("scale"), st.integers(1, 3)),
    ),
    max_size=60,
)


class History:
    """Plays steps on a service, and checks what every caller and every mesh has seen."""

    def __init__(self, rig: Rig, limit: int) -> None:
        self.rig = rig
        self.limit = limit
        self.tasks: dict[int, asyncio.Task[Any]] = {}  # by number
        self.kinds: dict[int, str] = {}  # number → endpoint
        self.cancelled: set[int] = set()
        self.never_start: set[int] = set()
        self.failed: set[Any] = set()
        self.others: list[asyncio.Task[Any]] = []  # fanouts, scales
        self.moved = False  # whether requests may have changed replicas
        self.sessions = [rig.service.start_session() for _ in range(3)]

    def mesh(self, n: int) -> FakeMesh:
        meshes = list(self.rig.meshes.values())
        return meshes[n % len(meshes)]

    def starts(self) -> Iterator[tuple[FakeMesh, Any]]:
        """(mesh, number) of every call that was started, batches taken apart."""
        for mesh in self.rig.meshes.values():
            for value in mesh.values():
                for each in value if isinstance(value, list) else [value]:
                    yield mesh, each

    async def step(self, kind: str, *args: Any) -> None:
        rig = self.rig
        if kind == "call":
            endpoint, session = args
            number = len(self.tasks)
            self.kinds[number] = endpoint
            self.tasks[number] = rig.call(number, endpoint, self.sessions[session] if session >= 0 else None)
        elif kind == "fanout":
            self.others.append(asyncio.ensure_future(rig.service.fanout(args[0], ("fan",), {})))
        elif kind == "scale":
            self.moved = True
            self.others.append(asyncio.ensure_future(rig.service.scale(args[0])))
        elif kind == "cancel":
            if args[0] in self.tasks and self.tasks[args[0]].cancel():
                self.cancelled.add(args[0])
                self.never_start = {n for n in self.cancelled if n not in {s for _, s in self.starts()}}
        elif kind == "tick":
            for _ in range(args[0]):
                await asyncio.sleep(0)
        elif kind in ("finish", "fail", "fault"):
            self.end_one(kind, self.mesh(args[0]), args[-1])
        elif kind == "look":
            self.mesh(args[0]).notify()
        else:
            mesh = self.mesh(args[0])
            self.moved = self.moved or len(rig.meshes) > 1
            mesh.recover() if kind == "recover" else mesh.die(for_good=kind == "end")

    def end_one(self, kind: str, mesh: FakeMesh, n: int) -> None:
        if not mesh.running:
            return
        run = mesh.running[n % len(mesh.running)]
        if run.future.done():
            return
        if kind == "finish":
            run.finish()
        elif kind == "fault":
            self.moved = self.moved or len(self.rig.meshes) > 1
            run.fail(mesh.death())
        else:
            value = run.args[0]
            self.failed |= set(value if isinstance(value, list) else [value])
            run.fail(UserError(value))

    async def check(self, stopped: bool) -> None:
        """`stopped`: whether the service was shut down before every caller had an answer."""
        for number, task in self.tasks.items():
            got = await outcome(task)
            ran = [mesh for mesh, each in self.starts() if each == number]
            if not self.kinds[number].startswith("safe"):
                assert len(ran) <= 1
            assert len(ran) <= ATTEMPTS
            if isinstance(got, asyncio.CancelledError):
                assert number in self.cancelled
            elif isinstance(got, UserError):
                assert number in self.failed
            elif isinstance(got, ActorDied):
                assert ran and (stopped or self.kinds[number] in ("plain", "batched") or len(ran) == ATTEMPTS)
            elif isinstance(got, ServiceStopped):
                assert stopped
            elif not isinstance(got, ServiceUnavailable):
                assert got == number and ran
        for task in self.others:
            got = await outcome(task)
            wanted = (type(None), list, UserError, ActorDied, ServiceStopped, ServiceUnavailable)
            assert isinstance(got, wanted), got
        assert not self.never_start & {n for _, n in self.starts()} - self.batched()
        assert all(mesh.most <= self.limit for mesh in self.rig.meshes.values())
        self.check_order()

    def batched(self) -> set[int]:
        return {n for n, kind in self.kinds.items() if "batched" in kind}

    def check_order(self) -> None:
        """Each mesh starts single calls in the order in which they came, as long as none had to move."""
        if self.moved:
            return
        for mesh in self.rig.meshes.values():
            first = list(dict.fromkeys(n for m, n in self.starts() if m is mesh and n != "fan"))
            single = [n for n in first if n not in self.batched()]
            assert single == sorted(single)


@pytest.mark.thorough
@settings(deadline=None, max_examples=300)
@given(STEPS, st.integers(1, 3), st.integers(1, 2), st.sampled_from(["round_robin", "least_loaded", "session"]))
def test_random_histories(steps: list[tuple[Any, ...]], replicas: int, limit: int, router: str) -> None:
    async def main() -> None:
        rig = Rig(num_replicas=replicas, max_concurrent_requests=limit, router=router)
        async with no_complaints(generation=0), rig:
            history = History(rig, limit)
            for step in steps:
                await history.step(*step)
            await rig.service.shutdown(0)
            await history.check(stopped=True)

    asyncio.run(main())


@settings(deadline=None, max_examples=100)
@given(STEPS, st.integers(1, 3), st.integers(1, 2))
def test_without_an_end_every_caller_is_answered(steps: list[tuple[Any, ...]], replicas: int, limit: int) -> None:
    async def main() -> None:
        async with Rig(num_replicas=replicas, max_concurrent_requests=limit) as rig:
            history = History(rig, limit)
            for step in steps:
                await history.step(*step)
            while not all(task.done() for task in [*history.tasks.values(), *history.others]):
                for mesh in rig.meshes.values():
                    mesh.recover()
                    mesh.notify()
                finish_all(rig)
                await asyncio.sleep(0)
            await history.check(stopped=False)
            numbers = rig.service.metrics()
            assert (numbers.active, numbers.queued) == (0, 0)

    asyncio.run(main())

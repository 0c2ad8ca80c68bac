"""What test_service_replicas.py has scripts do whose replicas come and go."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import signal
from collections import Counter as Counted
from typing import Any

import replicas
from forgectl import ActorDied, endpoint
from forgectl.actor.handle import ActorHandle
from forgectl.errors import BusyError, ServiceStopped, ServiceUnavailable
from playing import HERE, exists, play, raised
from replicas import SecondFails, SlowToComeBack, Worker
from serving import WHERE, W, go, healthy, kill, lines, pids_of, seen, soon, until


async def a_killed_replica_is_left_out_and_comes_back() -> None:
    s = await W.options(num_replicas=2, procs=2, max_concurrent_requests=1).as_service(WHERE, start=40)
    pids = await pids_of(s)
    held = {mesh: soon(s.hold.route(mesh)) for mesh in ("svc.0", "svc.1")}
    await exists("at-svc.0", "at-svc.1")
    queued = [soon(s.who.route()) for _ in range(6)]
    await until(lambda: seen(s, queued=[3, 3]))
    os.kill(pids["svc.0"], signal.SIGKILL)
    error = await raised(ActorDied, held["svc.0"])
    assert (error.mesh, error.rank, error.signal, error.host) == ("svc.0", 0, signal.SIGKILL, "local"), error
    go("svc.1")
    assert await held["svc.1"] is None
    assert len(await asyncio.gather(*queued)) == 6
    await healthy(s, True, True)
    found = {f["mesh"]: f for f in await s.who.fanout()}
    assert {m: (f["generation"], f["start"]) for m, f in found.items()} == {"svc.0": (1, 40), "svc.1": (0, 40)}
    assert found["svc.0"]["pid"] != pids["svc.0"] and found["svc.1"]["pid"] == pids["svc.1"]
    assert {(await s.who.route())["mesh"] for _ in range(2)} == {"svc.0", "svc.1"}
    assert (s.metrics()["failures"], s.metrics()["queued"]) == (1, 0)


async def new_requests_meet_no_error_while_one_is_away() -> None:
    s = await SlowToComeBack.options(preload=[], mesh_name="svc", num_replicas=2).as_service(WHERE)
    pids = await pids_of(s)
    await kill(s, "svc.0", pids["svc.0"])
    assert {await s.pid.route() for _ in range(50)} == {pids["svc.1"]}
    assert [f["mesh"] for f in await s.who.fanout()] == ["svc.1"]
    await exists("coming")
    assert {await s.pid.route() for _ in range(50)} == {pids["svc.1"]}
    (HERE / "come").touch()
    await healthy(s, True, True)
    assert len({await s.pid.route() for _ in range(4)}) == 2


async def an_idempotent_request_runs_again_elsewhere() -> None:
    s = await W.options(num_replicas=2).as_service(WHERE)
    pids = await pids_of(s)
    calls = [soon(s.hold_safely.route("k", "v")), soon(s.hold.route("k"))]
    await until(lambda: len(lines("at-k")) == 2)
    assert len(lines("at-k")) == 2
    for mesh in ("svc.0", "svc.1"):
        os.kill(pids[mesh], signal.SIGKILL)
    await raised(ActorDied, calls[1])
    await until(lambda: len(lines("at-k")) == 3)
    go("k")
    assert await calls[0] == "v"
    numbers = s.metrics()
    assert (numbers["successes"], numbers["failures"]) == (3, 1), numbers


async def five_hundred_requests_lose_none_while_replicas_are_killed() -> None:
    s = await W.options(num_replicas=3, restart={"max": 20, "backoff": 0}).as_service(WHERE)
    pids = await pids_of(s)
    calls: list[asyncio.Future[Any]] = [soon((s.gather_safely if n % 5 == 0 else s.echo).route(n)) for n in range(500)]
    await until(lambda: len(lines()) > 20)
    os.kill(pids["svc.1"], signal.SIGKILL)
    await until(lambda: sum(c.done() for c in calls) > 200)
    os.kill(pids["svc.2"], signal.SIGKILL)
    found = await asyncio.gather(*calls)
    assert [f if n % 5 == 0 else f[0] for n, f in enumerate(found)] == list(range(500))
    times = Counted(map(int, lines()))
    assert set(times) == set(range(500))
    assert sum(times.values()) <= 500 + 3 * 20, times.most_common(5)  # only what ran on the dead ones, twice
    numbers = s.metrics()
    assert (numbers["successes"], numbers["failures"], numbers["active"], numbers["queued"]) == (503, 0, 0, 0)
    await healthy(s, True, True, True)


async def the_restart_limit_and_the_end_of_all_replicas() -> None:
    s = await W.options(num_replicas=2, restart=1).as_service(WHERE)
    for generation in range(2):
        pids = await pids_of(s)
        await kill(s, "svc.0", pids["svc.0"])
        if generation == 0:
            await healthy(s, True, True)
    await until(lambda: s.metrics()["replicas"][0]["ended"])
    assert {await s.pid.route() for _ in range(10)} == {pids["svc.1"]}
    assert seen(s, healthy=[False, True])
    await kill(s, "svc.1", pids["svc.1"])
    await healthy(s, False, True)
    last = await s.who.route()
    assert (last["mesh"], last["generation"]) == ("svc.1", 1)
    running = soon(s.hold.route("x"))
    await exists("at-x")
    os.kill(last["pid"], signal.SIGKILL)
    await raised(ActorDied, running)
    error = await raised(ServiceUnavailable, s.pid.route())
    text = str(error)
    assert "none of its 2 replicas will come back" in text and "svc.0" in text and "killed by SIGKILL" in text, text
    assert isinstance(error.__cause__, ActorDied)
    for call in (s.who.fanout(), s.double.route(1)):
        await raised(ServiceUnavailable, call)
    await s.scale(1)
    assert (await s.who.route())["mesh"] == "svc.2"  # a new one, in place of those
    await s.shutdown()
    await raised(ServiceStopped, s.pid.route())


async def callers_wait_for_the_one_that_is_coming_back() -> None:
    S = SlowToComeBack.options(preload=[], mesh_name="svc", restart=2)
    s = await S.as_service(WHERE)
    await kill(s, "svc.0", (await s.who.route())["pid"])
    calls: list[asyncio.Future[Any]] = [
        soon(s.who.route()),
        soon(s.who.fanout()),
        soon(s.gather.route(1, plus=1)),
        soon(s.who.route()),
    ]
    await exists("coming")
    await until(lambda: s.metrics()["queued"] == 4)
    calls[3].cancel()
    await until(lambda: s.metrics()["queued"] == 3)
    assert not any(c.done() for c in calls[:3])
    (HERE / "come").touch()
    await raised(asyncio.CancelledError, calls[3])
    one, many, sum_ = await asyncio.gather(*calls[:3])
    assert (one["generation"], many[0]["pid"], sum_) == (1, one["pid"], (2, "svc.0"))
    await s.shutdown()

    (HERE / "come").unlink()
    s = await S.options(unavailable_timeout=0.3, mesh_name="brief").as_service(WHERE)
    await kill(s, "brief.0", (await s.who.route())["pid"])
    error = await raised(ServiceUnavailable, s.who.route())
    assert "no healthy replica for 0.3 s (brief.0)" in str(error), error
    await s.shutdown(0)

    s = await S.options(mesh_name="last").as_service(WHERE)
    await kill(s, "last.0", (await s.who.route())["pid"])
    waiting = soon(s.who.route())
    await until(lambda: s.metrics()["queued"])
    await s.shutdown()
    await raised(ServiceStopped, waiting)


async def a_setup_that_fails_after_a_relaunch_ends_that_replica_alone() -> None:
    class Once(Worker):
        @endpoint
        async def setup(self) -> None:
            if self.generation:
                raise LookupError("not twice")

    s = await Once.options(preload=[], mesh_name="svc", num_replicas=2).as_service(WHERE)
    pids = await pids_of(s)
    await kill(s, "svc.1", pids["svc.1"])
    ended = await until(lambda: s.metrics()["replicas"][1]["ended"])
    assert "not twice" in ended, ended
    assert {await s.pid.route() for _ in range(4)} == {pids["svc.0"]}


async def an_endpoint_that_exits_ends_its_replica_which_comes_back() -> None:
    s = await W.options(num_replicas=2).as_service(WHERE)
    error = await raised(ActorDied, s.leave.route(3))
    assert (error.mesh, error.rank_exit_code) == ("svc.0", 3)
    await until(lambda: seen(s, healthy=[True, True]))
    assert [f["generation"] for f in await s.who.fanout()] == [1, 0]


async def all_of_a_batch_are_told_of_a_death() -> None:
    s = await W.options(num_replicas=2, procs=2).as_service(WHERE)
    pids = await pids_of(s)
    calls = [soon(s.hold_batch.route(n)) for n in range(4)]
    await exists("at-batch")
    [mesh] = set(lines("at-batch"))
    os.kill(pids[mesh], signal.SIGKILL)
    errors = [await raised(ActorDied, call) for call in calls]
    assert {(e.mesh, e.signal) for e in errors} == {(mesh, signal.SIGKILL)}
    go("batch")
    assert sorted(await asyncio.gather(*(s.hold_batch.route(n) for n in range(4)))) == list(range(4))


async def the_death_of_an_actor_that_a_replica_called_is_not_its_own() -> None:
    a = await W.options(mesh_name="other").as_actor(WHERE)
    s = await W.options(num_replicas=2).as_service(WHERE)
    before = await pids_of(s)
    assert await s.ask.route(a, "add", 5) == 5
    pid = await a.pid.call_one()
    asked = soon(s.ask.route(a, "hold", "a"))
    await exists("at-a")
    assert lines("at-a") == ["other"]
    os.kill(pid, signal.SIGKILL)
    error = await raised(ActorDied, asked)
    assert (error.mesh, error.signal) == ("other", signal.SIGKILL), error
    assert [r["healthy"] for r in s.metrics()["replicas"]] == [True, True]
    assert await pids_of(s) == before


async def a_replica_is_relaunched_by_a_controller_that_took_over() -> None:
    s = await W.options(num_replicas=2, procs=2).as_service(WHERE, start=7)
    print("up", flush=True)
    await exists("controller-is-dead")
    assert len(set(await asyncio.gather(*(s.pid.route() for _ in range(10))))) == 2
    pids = await pids_of(s)
    await kill(s, "svc.1", pids["svc.1"])
    assert {await s.pid.route() for _ in range(10)} == {pids["svc.0"]}
    await healthy(s, True, True)
    assert [(f["generation"], f["start"]) for f in await s.who.fanout()] == [(0, 7), (1, 7)]


async def scale_up_and_down_under_load() -> None:
    s = await W.options(num_replicas=2, max_concurrent_requests=2).as_service(WHERE, start=3)
    first = await pids_of(s)
    answers: list[int] = []
    over = False

    async def caller(n: int) -> None:
        k = n
        while not over:
            value, pid = await s.echo.route(k)
            assert value == k
            answers.append(pid)
            k += 20

    callers = [soon(caller(n)) for n in range(20)]
    await s.scale(4)
    more = await pids_of(s)
    assert list(more) == ["svc.0", "svc.1", "svc.2", "svc.3"]
    assert {m: more[m] for m in first} == first
    await until(lambda: set(more.values()) <= set(answers))
    await s.scale(1)
    assert [r["mesh"] for r in s.metrics()["replicas"]] == ["svc.0"]
    assert not any(os.path.exists(f"/proc/{pid}") for mesh, pid in more.items() if mesh != "svc.0")
    await asyncio.gather(s.scale(3), s.scale(2))
    assert [r["mesh"] for r in s.metrics()["replicas"]] == ["svc.0", "svc.4"]
    assert [f["start"] for f in await s.who.fanout()] == [3, 3]
    await raised(ValueError, s.scale(0))
    over = True
    await asyncio.gather(*callers)
    assert s.metrics()["failures"] == 0
    times = Counted(map(int, lines()))
    assert len(times) == len(answers) and set(times.values()) == {1}


async def shutdown_drains() -> None:
    s = await W.options(num_replicas=2, max_concurrent_requests=1).as_service(WHERE)
    pids = await pids_of(s)
    running = [soon(s.hold.route(key, key)) for key in "ab"]
    await exists("at-a", "at-b")
    queued = [soon(s.each.route(n)) for n in range(5)] + [soon(s.double.route(1)), soon(s.pid.fanout())]
    await until(lambda: s.metrics()["queued"] == 8)
    end = [soon(s.shutdown(60)), soon(s.shutdown(60)), soon(W.shutdown(s))]
    for call in [*queued, s.pid.route()]:
        error = await raised(ServiceStopped, call)
        assert "service svc is shut down" in str(error)
    assert not any(c.done() for c in [*running, *end])
    go("a", "b")
    assert await asyncio.gather(*running) == ["a", "b"]
    await asyncio.gather(*end)
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids.values())
    assert lines() == []
    await s.shutdown()

    again = await W.as_service(WHERE)  # the name is free
    await s.shutdown()
    assert await again.add.route() == 1
    await raised(BusyError, W.as_service(WHERE))  # and taken, whatever the earlier one is told
    cut_off = soon(again.hold.route("never"))
    await exists("at-never")
    await again.shutdown(0)
    error = await raised(ServiceStopped, cut_off)
    assert "svc.0 was shut down while it ran hold" in str(error), error


async def a_script_that_ends_with_requests_under_way() -> None:
    s = await W.options(num_replicas=2, max_concurrent_requests=1).as_service(WHERE)
    calls = [soon(s.hold.route("never")) for _ in range(6)]
    await exists("at-never")
    assert not any(call.done() for call in calls)


async def a_start_that_is_cancelled_leaves_nothing() -> None:
    class SlowWorker(Worker):
        @endpoint
        async def setup(self) -> None:
            self.note(os.getpid(), "pids")
            await self.until("go-slow")

    Slow = SlowWorker.options(preload=[], mesh_name="svc", num_replicas=2)
    task = soon(Slow.as_service(WHERE))
    await until(lambda: len(lines("pids")) == 2)
    task.cancel()
    await raised(asyncio.CancelledError, task)
    assert not any(os.path.exists(f"/proc/{pid}") for pid in lines("pids"))
    go("slow")
    s = await Slow.as_service(WHERE)
    assert len(set(await s.pid.fanout())) == 2


async def names_of_services() -> None:
    made = await asyncio.gather(*(Worker.options(preload=[]).as_service(WHERE) for _ in range(2)))
    assert sorted(s.name for s in made) == ["worker", "worker-2"]
    assert sorted([(await s.who.route())["mesh"] for s in made]) == ["worker-2.0", "worker.0"]
    s = await replicas._Private.options(preload=[]).as_service(WHERE)
    assert (s.name, (await s.who.route())["mesh"]) == ("private", "private.0")


async def launch_and_shutdown_of_a_class_serve_each_replica() -> None:
    class Pair(Worker):
        helpers: dict[str, Worker] = {}

        @classmethod
        async def launch(cls, *args: Any, **kwargs: Any) -> ActorHandle:
            handle = await super().launch(*args, **kwargs)
            helper = Worker.options(preload=[], mesh_name=f"helper-{handle.mesh_name}")
            cls.helpers[handle.mesh_name] = await helper.as_actor(WHERE)
            return handle

        @classmethod
        async def shutdown(cls, actor: Any) -> None:  # type: ignore[override]
            await super().shutdown(actor)
            await cls.helpers.pop(actor.mesh_name).shutdown()

    s: Any = await Pair.options(preload=[], mesh_name="svc", num_replicas=2).as_service(WHERE)
    assert sorted(Pair.helpers) == ["svc.0", "svc.1"]
    await s.scale(1)
    assert sorted(Pair.helpers) == ["svc.0"]
    await s.shutdown()
    assert Pair.helpers == {}


async def none_is_lost_while_replicas_die_and_their_number_changes() -> None:
    random.seed(3)
    s = await W.options(num_replicas=3, restart={"max": 200, "backoff": 0}, max_concurrent_requests=3).as_service(WHERE)
    answered, over = 0, False

    async def request(n: int, k: int) -> None:
        if n % 4 == 0:
            async with s.session():
                for _ in range(3):
                    assert (await s.echo.route(k))[0] == k
        elif n % 4 == 1:
            assert await s.gather_safely.route(k) == k
        elif n % 4 == 2:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(s.echo.route(k), random.random() / 50)
        else:
            assert (await s.echo.route(k))[0] == k

    async def caller(n: int) -> None:
        nonlocal answered
        for k in itertools.count(n, 100):
            if over:
                break
            await request(n, k)
            answered += 1

    async def more_answers(count: int) -> None:
        before = answered
        await until(lambda: answered > before + count or any(c.done() for c in callers))

    callers = [soon(caller(n)) for n in range(100)]
    for size in (3, 1, 4, 2, 3):
        await more_answers(100)
        pids = await pids_of(s)
        mesh = random.choice(list(pids))
        await kill(s, mesh, pids[mesh])
        await s.scale(size)
        await until(lambda: all(r["healthy"] for r in s.metrics()["replicas"]))
    over = True
    await asyncio.gather(*callers)
    n = s.metrics()
    assert [n[name] for name in ("failures", "active", "queued", "sessions")] == [0] * 4, n


async def a_scale_that_fails_and_one_without_a_replica_that_is_away() -> None:
    s = await SecondFails.options(preload=[], mesh_name="svc").as_service(WHERE, "raises")
    assert str(await raised(ValueError, s.scale(3))) == "the second has no data"
    assert [f["mesh"] for f in await s.who.fanout()] == ["svc.0"]
    await s.scale(2)
    assert [f["mesh"] for f in await s.who.fanout()] == ["svc.0", "svc.3"]

    slow = await SlowToComeBack.options(preload=[], mesh_name="slow", num_replicas=2).as_service(WHERE)
    pids = await pids_of(slow)
    await kill(slow, "slow.1", pids["slow.1"])
    await exists("coming")
    await slow.scale(1)
    assert {await slow.pid.route() for _ in range(4)} == {pids["slow.0"]}
    assert [r["mesh"] for r in slow.metrics()["replicas"]] == ["slow.0"]


async def one_replica_that_does_not_start_takes_all_down(how: str) -> None:
    S = SecondFails.options(preload=[], mesh_name="svc", num_replicas=3, restart=0)
    starting = S.as_service(WHERE, how)
    if how == "dies":
        death = await raised(ActorDied, starting)
        assert (death.mesh, death.rank, death.rank_exit_code) == ("svc.1", 0, 5)
    else:
        error = await raised({"raises": ValueError, "first waits": LookupError}[how], starting)
        assert "replicas.py" in str(error.__cause__), error.__cause__
    assert not any(os.path.exists(f"/proc/{pid}") for pid in lines("pids")), lines("pids")
    fine = await S.as_service(WHERE, "not at all")
    assert len(await fine.pid.fanout()) == 3


if __name__ == "__main__":
    play(globals())

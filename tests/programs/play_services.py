"""What test_services.py has scripts do that launch services."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections import Counter as Counted
from typing import Any

from forgectl.actor.service.routing import Router
from forgectl.errors import BusyError, NotFoundError, ServiceOverloaded, ServiceUnavailable
from playing import HERE, exists, play, raised, refused
from replicas import Worker
from serving import WHERE, W, go, healthy, kill, lines, pids_of, seen, soon, until


async def route_and_fanout() -> None:
    s = await W.options(num_replicas=3, procs=2).as_service(WHERE, start=5)
    found = await s.who.fanout()
    told = [(f["mesh"], f["rank"], f["size"], f["start"]) for f in found]
    assert told == [(f"svc.{i}", 0, 2, 5) for i in range(3)]
    assert len({f["pid"] for f in found}) == 3
    routed = [(await s.pid.route()) for _ in range(7)]
    assert routed == [found[i % 3]["pid"] for i in range(7)], (routed, found)
    assert await s.each.route("one") == 0
    await until(lambda: len(lines()) == 2)
    assert sorted(lines()) == ["one svc.1 0", "one svc.1 1"]
    assert await s.each.fanout("all") == [0, 0, 0]
    assert sorted(lines()[2:]) == sorted(f"all svc.{i} {r}" for i in range(3) for r in range(2))
    assert await s.add.route(k=2) == 7
    assert await s.add_plain.fanout(10) == [15, 15, 17]  # the turn was replica 2's
    await s.shutdown()


async def the_verbs_of_actors_and_what_there_is_not() -> None:
    s = await W.as_service(WHERE)
    for verb, instead in {
        "call": "fanout",
        "call_one": "route",
        "choose": "route",
        "broadcast": "fanout",
        "stream": "fanout",
    }.items():
        missing = refused(NotImplementedError, functools.partial(getattr(s.add, verb), 1))
        assert f"add.{instead}(…) in place of {verb}" in str(missing) and "svc is a service" in str(missing), missing
    a = await W.options(mesh_name="actor").as_actor(WHERE)
    for verb in ("route", "fanout"):
        missing = refused(NotImplementedError, functools.partial(getattr(a.add, verb), 1))
        assert "is an actor, not a service: use call" in str(missing), missing
    unknown = refused(AttributeError, lambda: s.ad)  # type: ignore[attr-defined]
    assert "did you mean 'add'" in str(unknown) and "double(xs: list" in str(unknown), unknown
    assert "svc of Worker" in repr(s)
    assert (await raised(TypeError, s.add.route(1, 2, 3))).args  # type: ignore[call-overload]
    error: Exception = await raised(BusyError, W.as_service(WHERE))
    assert "a service svc already" in str(error)
    assert await s.add.route() == 1


async def values_of_all_ranks_where_asked_for() -> None:
    s = await W.options(procs=2, num_replicas=2, return_first_rank_result=False).as_service(WHERE)
    values: Any = await s.who.route()  # its type is that of one rank
    assert type(values).__name__ == "ValueMesh"
    assert [(v["mesh"], v["rank"]) for v in values.values()] == [("svc.0", 0), ("svc.0", 1)]
    both: list[Any] = await s.each.fanout("x")
    assert [list(v.values()) for v in both] == [[0, 1], [0, 1]]


async def exceptions_reach_the_caller_and_are_no_reason_to_relaunch() -> None:
    s = await W.options(num_replicas=2, procs=2).as_service(WHERE)
    before = await pids_of(s)
    errors = await asyncio.gather(*(s.fail.route(str(n)) for n in range(20)), return_exceptions=True)
    assert [(type(e), str(e)) for e in errors] == [(ValueError, str(n)) for n in range(20)]
    assert "replicas.py" in str(errors[0].__cause__)
    assert str(await raised(ValueError, s.fail.fanout("all"))) == "all"
    assert await pids_of(s) == before
    numbers = s.metrics()
    assert (numbers["failures"], [r["failures"] for r in numbers["replicas"]]) == (22, [11, 11])
    await healthy(s, True, True)


async def least_loaded_avoids_the_busy_one() -> None:
    s = await W.options(num_replicas=2, router="least_loaded").as_service(WHERE)
    held = soon(s.hold.route("a"))
    await exists("at-a")
    [busy] = lines("at-a")
    free = [(await s.who.route())["mesh"] for _ in range(6)]
    assert set(free) == {"svc.0", "svc.1"} - {busy}
    go("a")
    await held
    assert Counted([(await s.who.route())["mesh"] for _ in range(6)]) == {"svc.0": 3, "svc.1": 3}


async def an_endpoint_has_a_router_of_its_own() -> None:
    class Last(Router):
        def pick(self, replicas: Any) -> Any:
            return replicas[-1]

    s = await W.options(num_replicas=3, router=Last).as_service(WHERE)
    assert {(await s.who.route())["mesh"] for _ in range(5)} == {"svc.2"}
    held = soon(s.hold.route("a"))
    await exists("at-a")
    assert Counted([await s.where.route() for _ in range(6)]) == {"svc.0": 3, "svc.1": 3}
    go("a")
    await held


async def sessions_stick_and_do_not_leak() -> None:
    a, b = await asyncio.gather(
        W.options(num_replicas=2, mesh_name="a").as_service(WHERE),
        W.options(num_replicas=2, mesh_name="b", router="session").as_service(WHERE),
    )

    async def pids(service: Worker, n: int = 4, sess_id: str | None = None) -> list[int]:
        return [await service.pid.route(sess_id=sess_id) for _ in range(n)]

    async with a.session() as outer:
        stuck = await pids(a)
        assert len(set(stuck)) == 1
        assert len(set(await pids(b))) == 2  # a's session is not b's
        async with b.session():
            assert len(set(await pids(b))) == 1
            assert set(await pids(a)) == set(stuck)
            async with a.session() as inner:
                assert inner != outer
                assert len(set(await pids(a))) == 1
            assert set(await pids(a)) == set(stuck)
        assert len(set(await pids(b))) == 2
        assert {pid for found in await asyncio.gather(*(pids(a) for _ in range(3))) for pid in found} == set(stuck)
    assert len(set(await pids(a))) == 2

    async def one_session() -> int:
        async with a.session():
            found = await pids(a, 5)
            assert len(set(found)) == 1
            return found[0]

    assert set(Counted(await asyncio.gather(*(one_session() for _ in range(8)))).values()) == {4}

    one, two = await a.start_session(), await a.start_session()
    first, second = await pids(a, sess_id=one), await pids(a, sess_id=two)
    assert len(set(first)) == len(set(second)) == 1 and set(first) != set(second)
    assert a.metrics()["sessions"] == 2 and [r["sessions"] for r in a.metrics()["replicas"]] == [1, 1]
    error: Exception = await raised(NotFoundError, b.pid.route(sess_id=one))
    assert "service b: unknown session" in str(error)
    await a.terminate_session(one)
    await raised(NotFoundError, a.terminate_session(one))
    await raised(NotFoundError, a.pid.route(sess_id=one))
    assert set(await pids(a, sess_id=two)) == set(second)
    assert (a.metrics()["sessions"], b.metrics()["sessions"]) == (1, 0)


async def a_session_moves_when_its_replica_dies_and_stays_there() -> None:
    s = await W.options(num_replicas=2).as_service(WHERE)
    async with s.session():
        old = await s.who.route()
        await kill(s, old["mesh"], old["pid"])
        moved = await s.who.route()
        assert moved["mesh"] != old["mesh"]
        await healthy(s, True, True)
        assert {(await s.pid.route()) for _ in range(4)} == {moved["pid"]}
    assert len(set(await asyncio.gather(*(s.pid.route() for _ in range(4))))) == 2


async def batches() -> None:
    s = await W.options(num_replicas=2, procs=2).as_service(WHERE)
    assert await asyncio.gather(*(s.double.route(n) for n in range(8))) == [2 * n for n in range(8)]
    # on both ranks of each replica
    assert Counted(lines()) == {"svc.0 4": 2, "svc.1 4": 2}, lines()
    (HERE / "notes").unlink()

    calls = [s.double.route(n) for n in (1, 2, "bad", 3)] + [s.double.route(xs=n) for n in range(4)]
    calls += [s.too_few.route(n) for n in range(2)]
    errors = await asyncio.gather(*calls, return_exceptions=True)
    assert errors[4:8] == [0, 2, 4, 6]
    assert [str(e) for e in errors[:4]] == ["bad among [1, 2, 'bad', 3]"] * 4
    for e in errors[8:]:
        assert type(e) is ValueError and "must return a list with a result for each of the 2 calls" in str(e), e

    found = await asyncio.gather(*(s.gather.route(n, plus=10) for n in range(5)))
    assert [value for value, _ in found] == [10, 11, 12, 13, 14]
    assert len({mesh for _, mesh in found}) == 1
    assert await s.gather.fanout(1, plus=1) == [(2, "svc.0"), (2, "svc.1")]

    async def one(n: int) -> list[Any]:
        async with s.session():
            return [await s.gather.route(n, plus=0) for _ in range(3)]

    for n, found in enumerate(await asyncio.gather(*(one(n) for n in range(6)))):
        assert [value for value, _ in found] == [n] * 3
        assert len({mesh for _, mesh in found}) == 1, found
    numbers = s.metrics()
    assert (numbers["successes"], numbers["failures"]) == (8 + 4 + 5 + 2 + 18, 6)


async def a_cancelled_caller_leaves_its_place() -> None:
    s = await W.options(max_concurrent_requests=1).as_service(WHERE)
    held = soon(s.hold.route("a"))
    await exists("at-a")
    waiting = [soon(s.each.route(n)) for n in range(4)]
    await until(lambda: seen(s, queued=[4]))
    waiting[1].cancel()
    await raised(asyncio.CancelledError, waiting[1])
    await raised(asyncio.TimeoutError, asyncio.wait_for(s.each.route("late"), 0.05))
    assert seen(s, queued=[3])
    go("a")
    await asyncio.gather(held, waiting[0], waiting[2], waiting[3])
    assert [line.split()[0] for line in lines()] == ["0", "2", "3"]

    running = soon(s.hold.route("b"))
    await exists("at-b")
    running.cancel()
    await raised(asyncio.CancelledError, running)
    assert seen(s, active=[0])
    go("b")
    assert await s.add.route() == 1
    assert s.metrics()["cancelled"] == 3


async def a_bounded_queue_refuses() -> None:
    s = await W.options(max_concurrent_requests=1, max_queue=2).as_service(WHERE)
    calls = [soon(s.hold.route("a"))]
    await exists("at-a")
    calls += [soon(s.pid.route()) for _ in range(2)]
    await until(lambda: seen(s, queued=[2]))
    error = await raised(ServiceOverloaded, s.pid.route())
    assert "2 requests wait already, and max_queue is 2" in str(error)
    await raised(ServiceOverloaded, s.pid.fanout())
    go("a")
    await asyncio.gather(*calls)
    await s.pid.route()


async def metrics_add_up() -> None:
    s = await W.options(num_replicas=3, max_concurrent_requests=2).as_service(WHERE)
    calls: list[asyncio.Future[Any]] = [soon(s.add.route()) for _ in range(60)] + [
        soon(s.fail.route()) for _ in range(30)
    ]
    calls += [soon(s.gather.route(n, plus=1)) for n in range(60)]

    async def look() -> None:
        while not all(c.done() for c in calls):
            n = s.metrics()
            assert n["active"] == sum(r["active"] for r in n["replicas"]) <= 6
            await asyncio.sleep(0)

    await asyncio.gather(look(), *calls, return_exceptions=True)
    n = s.metrics()
    assert n["service"] == "svc"
    assert (n["total"], n["successes"], n["failures"], n["cancelled"]) == (150, 120, 30, 0)
    for name in ("total", "successes", "failures", "cancelled", "active"):
        assert n[name] == sum(r[name] for r in n["replicas"]), name
    for part in [n, *n["replicas"]]:
        assert 0 < part["latency_p50"] <= part["latency_p99"] and part["latency_mean"] > 0
        assert part["requests_per_second"] > 0
    assert (n["active"], n["queued"]) == (0, 0)


def a_service_is_used_from_several_event_loops() -> None:
    async def begin() -> Worker:
        return await W.options(num_replicas=2, max_concurrent_requests=1).as_service(WHERE)

    async def use(s: Worker) -> tuple[int, ...]:
        async with s.session():
            assert len({await s.pid.route() for _ in range(3)}) == 1
        found = await asyncio.gather(*(s.double.route(n) for n in range(8)), s.pid.fanout())
        assert found[:8] == [2 * n for n in range(8)]
        return tuple(found[8])

    s = asyncio.run(begin())
    assert asyncio.run(use(s)) == asyncio.run(use(s))
    asyncio.run(s.start_session())

    async def cancelled() -> list[asyncio.Future[Any]]:
        tasks = [soon(s.hold.route("a")) for _ in range(4)]
        await exists("at-a")
        return tasks

    assert all(task.cancelled() for task in asyncio.run(cancelled()))
    go("a")
    found: list[tuple[int, ...]] = []
    threads = [threading.Thread(target=lambda: found.append(asyncio.run(use(s)))) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        s.metrics()
    assert len(found) == 4 and len(set(found)) == 1
    n = s.metrics()
    assert (n["failures"], n["active"], n["queued"], n["sessions"]) == (0, 0, 0, 1)
    asyncio.run(s.shutdown())
    asyncio.run(s.shutdown())


async def the_shell_asks_and_ends_the_service_of_a_script() -> None:
    s = await W.options(num_replicas=2).as_service(WHERE, start=1)
    print("up", flush=True)
    await exists("stop")
    for call in (s.who.route(), s.who.fanout(), s.double.route(1)):
        error = await raised(ServiceUnavailable, call)
        assert "stopped by" in str(error), error
    await s.shutdown()


if __name__ == "__main__":
    play(globals())

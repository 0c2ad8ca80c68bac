"""What test_inside.py has scripts do with actors that use services and launch others."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import sys
from collections import Counter as Counted

from forgectl import ActorDied, ForgeError
from forgectl.actor.driver import errand_table
from forgectl.errors import BusyError, ServiceStopped
from inside import Boss, Caller, Parent
from playing import HERE, Fast, exists, own_run, pids_of, play, raised
from serving import WHERE, W, go, healthy, kill, lines, seen, soon, until

Calls = Caller.options(preload=[])
Bosses = Boss.options(preload=[])


# ---------------------------------------------------------------- services in actors


async def a_service_may_be_given_to_actors() -> None:
    s = await W.options(num_replicas=2, procs=2).as_service(WHERE, start=5)
    built, told = await asyncio.gather(Calls.as_actor(s), Calls.as_actor())
    back = await told.use.call_one(s)
    assert back.metrics()["service"] == "svc"  # here it is the service itself
    for caller in (built, told):
        who = [await caller.route.call_one("who") for _ in range(4)]
        assert [w["mesh"] for w in who] == ["svc.0", "svc.1"] * 2 and {w["rank"] for w in who} == {0}
        assert [w["mesh"] for w in await caller.fanout.call_one("who")] == ["svc.0", "svc.1"]
    assert await built.route.call_one("each", "one") == 0
    await until(lambda: len(lines()) == 2)
    assert sorted(lines()) == ["one svc.0 0", "one svc.0 1"]
    assert await built.route_plain.call_one("add", 1) == 6
    error: Exception = await raised(ValueError, told.route.call_one("fail", "not so"))
    assert str(error) == "not so" and "replicas.py" in str(error.__cause__)
    error = await raised(ForgeError, told.numbers.call_one())
    assert "the metrics of service svc are in the driver of its run" in str(error)
    error = await raised(NotImplementedError, told.stream.call_one("tell", "x"))
    assert "svc.tell: a service streams only to the driver" in str(error)
    error = await raised(TypeError, told.route.call_one("tell", "x"))
    assert "svc.tell yields a stream" in str(error)
    await until(lambda: s.metrics()["total"] == 8 + 4 + 3)
    assert (s.metrics()["failures"], s.metrics()["active"]) == (1, 0)
    go("big")
    big = bytes(8 << 20)
    assert await told.route.call_one("hold_safely", "big", big) == big


async def values_and_batches_of_actors() -> None:
    s = await W.options(num_replicas=2).as_service(WHERE)
    a, b = await asyncio.gather(Calls.as_actor(s), Calls.as_actor(s))
    calls = [caller.route.call_one("double", n) for n, caller in enumerate([a, b] * 2)]
    assert await asyncio.gather(*calls) == [0, 2, 4, 6]
    assert [line.split()[1] for line in lines()] == ["4"]  # one batch of calls of two processes
    errors = await asyncio.gather(*(a.route.call_one("double", "bad") for _ in range(4)), return_exceptions=True)
    assert ["bad among" in str(e) for e in errors] == [True] * 4
    assert await a.fanout.call_one("double", 4) == [8, 8]
    assert await a.route.call_one("gather", 1, plus=2, sess_id="s") == await b.route.call_one(
        "gather", 1, plus=2, sess_id="s"
    )
    every = await W.options(procs=2, return_first_rank_result=False, mesh_name="all").as_service(WHERE)
    await a.use.call(every)
    assert [v["rank"] for v in (await a.route.call_one("who")).values()] == [0, 1]


async def actors_wait_in_the_services_queue() -> None:
    s = await W.options(max_concurrent_requests=1, max_queue=2).as_service(WHERE)
    a = await Calls.as_actor(s)
    held = a.route.call_one("hold", "a", 1)
    await exists("at-a")
    found = a.many.call_one("each", 3, "x")
    await until(lambda: seen(s, queued=[2]))
    assert seen(s, active=[1])
    go("a")
    assert await held == 1
    assert Counted(f if f == 0 else f[0] for f in await found) == {0: 2, "ServiceOverloaded": 1}
    await until(lambda: seen(s, active=[0]))


async def thousands_of_requests_of_an_actor_wait() -> None:
    """More than may be under way to a rank: the reports that free replicas are not held up by them."""
    s = await W.options(num_replicas=2, max_concurrent_requests=2).as_service(WHERE)
    a = await Calls.as_actor(s)
    found = await a.many.call_one("pid", 3000)
    assert Counted(found) == {pids_of("svc.0")[0]: 1500, pids_of("svc.1")[0]: 1500}


async def a_replica_dies_while_an_actor_routes() -> None:
    s = await W.options(num_replicas=2).as_service(WHERE)
    a = await Calls.as_actor(s)
    safe = [a.route.call_one("hold_safely", "safe", n) for n in range(4)]
    unsafe = [a.route.call_one("hold", "safe") for _ in range(2)]
    await until(lambda: seen(s, active=[3, 3]) and sorted(lines("at-safe")) == ["svc.0", "svc.1"])
    await kill(s, "svc.1", pids_of("svc.1")[0])
    await until(lambda: seen(s, active=[5, 0]))  # the idempotent ones have moved
    go("safe")
    assert await asyncio.gather(*safe) == [0, 1, 2, 3]
    died = [e for e in await asyncio.gather(*unsafe, return_exceptions=True) if e is not None]
    assert [(type(e), getattr(e, "mesh", "")) for e in died] == [(ActorDied, "svc.1")], died
    await healthy(s, True, True)
    assert {(await a.route.call_one("who"))["generation"] for _ in range(2)} == {0, 1}
    await until(lambda: s.metrics()["successes"] == 5 + 2)  # whoever has a value reports that a moment later
    assert (s.metrics()["failures"], s.metrics()["active"]) == (1, 0)


async def replicas_are_killed_under_load_from_actors() -> None:
    s = await W.options(num_replicas=2, restart={"max": 10, "backoff": 0}).as_service(WHERE)
    callers = await asyncio.gather(*(Calls.as_actor(s) for _ in range(2)))
    loads = [caller.on_and_on.call_one(f"{HERE}/enough") for caller in callers]
    for n in range(4):
        had = s.metrics()["successes"]
        await until(lambda had=had: s.metrics()["successes"] > had + 20)  # type: ignore[misc]
        name = f"svc.{n % 2}"
        os.kill(pids_of(name)[0], signal.SIGKILL)
        await until(lambda n=n: seen(s, healthy=[n % 2 != 0, n % 2 != 1]))  # type: ignore[misc]
        await healthy(s, True, True)
    go("enough")
    (HERE / "enough").touch()
    for found in await asyncio.gather(*loads):
        assert [k for k, _ in found] == list(range(len(found))), found  # echo is idempotent: nothing is lost
    await until(lambda: s.metrics()["active"] == 0)


async def scaled_while_an_actor_routes() -> None:
    s = await W.as_service(WHERE)
    a, b = await asyncio.gather(Calls.as_actor(s), Calls.as_actor(s))
    load = a.on_and_on.call_one(f"{HERE}/enough")

    async def all_serve() -> None:
        had = [r["successes"] for r in s.metrics()["replicas"]]
        await until(lambda: all(r["successes"] > h for r, h in zip(s.metrics()["replicas"], had, strict=True)))

    for replicas, scaler in ((3, s.scale), (1, s.scale), (2, b.scale_to.call_one), (1, b.scale_to.call_one)):
        await scaler(replicas)
        assert len(s.metrics()["replicas"]) == replicas
        await all_serve()
    (HERE / "enough").touch()
    found = await load
    assert [k for k, _ in found] == list(range(len(found)))
    assert len({pid for _, pid in found}) == 4
    assert s.metrics()["failures"] == 0
    await raised(ValueError, b.scale_to.call_one(0))


async def shut_down_while_actors_wait() -> None:
    s = await W.options(max_concurrent_requests=1).as_service(WHERE)
    a, b = await asyncio.gather(Calls.as_actor(s), Calls.as_actor(s))
    running = a.route.call_one("hold", "never")
    await exists("at-never")
    waiting = [caller.route.call_one("pid") for caller in (a, b)]
    await until(lambda: seen(s, queued=[2]))
    await b.stop.call_one(0.05)
    for call in (running, *waiting, a.route.call_one("pid"), s.pid.route()):
        await raised(ServiceStopped, call)
    later = await W.as_service(WHERE)
    await raised(ServiceStopped, a.route.call_one("pid"))  # not that of the later one with its name
    await raised(ServiceStopped, a.scale_to.call_one(2))
    await a.stop.call_one(1)
    assert await later.add.route() == 1
    await a.use.call(later)
    assert await a.route.call_one("add") == 2


async def a_drained_service_lets_calls_of_actors_end() -> None:
    s = await W.as_service(WHERE)
    a = await Calls.as_actor(s)
    running = a.route.call_one("hold", "a", 7)
    await exists("at-a")
    ends = soon(s.shutdown(60))
    await raised(ServiceStopped, a.route.call_one("pid"))
    assert not ends.done()
    go("a")
    assert await running == 7
    await ends


async def a_shutdown_that_its_actor_gives_up_goes_on() -> None:
    s = await W.as_service(WHERE)
    a = await Calls.as_actor(s)
    running = a.route.call_one("hold", "a", 7)
    await exists("at-a")
    await a.begin_to_stop.call_one()
    await raised(ServiceStopped, a.route.call_one("pid"))
    await a.cancel.call_one()
    assert "svc" in own_run().services
    go("a")
    assert await running == 7
    await until(lambda: "svc" not in own_run().services)
    assert await (await W.as_service(WHERE)).add.route() == 1


async def a_caller_that_dies_or_gives_up_leaves_its_slot() -> None:
    errand_table.MOST_MISSED = 1  # 4 s
    s = await W.options(max_concurrent_requests=1).as_service(WHERE)
    a, b = await asyncio.gather(Calls.as_actor(s), Calls.as_actor(s))
    await a.begin.call_one("hold", "a")
    await exists("at-a")
    await b.begin.call_one("pid")
    await until(lambda: seen(s, queued=[1]))
    await b.cancel.call_one()
    await until(lambda: seen(s, queued=[0]))
    await b.begin.call_one("hold", "b")
    await until(lambda: seen(s, queued=[1]))
    os.kill(await a.pid.call_one(), signal.SIGKILL)
    await until(lambda: s.metrics()["cancelled"] == 2)
    await until(lambda: seen(s, active=[1]))
    go("a", "b")
    await until(lambda: seen(s, active=[0]) and not len(own_run().desk._errands))
    assert await s.add.route() == 1


async def the_slot_of_a_lost_report_is_given_up() -> None:
    s = await W.options(max_concurrent_requests=1).as_service(WHERE)
    a, b = await asyncio.gather(Calls.as_actor(s), Calls.as_actor(s))
    await a.lose_reports.call_one()
    assert [await a.route.call_one("add", 1) for _ in range(2)] == [1, 2]  # the second waits for a sign of life
    assert await b.route.call_one("add", 1, sess_id="x") == 3  # this one, until there was none for long enough


async def a_session_of_ones_own_from_two_actors() -> None:
    s = await W.options(num_replicas=3).as_service(WHERE)
    a, b = await asyncio.gather(Calls.as_actor(s), Calls.as_actor(s))
    for user in ("user-17", "user-18", "user-19"):
        found = [await caller.route.call_one("pid", sess_id=user) for caller in (a, b, a, b)]
        found += await a.in_session.call_one(2, user) + await b.in_session.call_one(2, user)
        assert len(set(found)) == 1, found
        async with s.session(user):
            assert await s.pid.route() == found[0]
    assert (s.metrics()["sessions"], [r["sessions"] for r in s.metrics()["replicas"]]) == (3, [1, 1, 1])
    old = await s.who.route(sess_id="user-17")
    await kill(s, old["mesh"], old["pid"])
    moved = [await caller.route.call_one("who", sess_id="user-17") for caller in (a, b)]
    assert len({w["mesh"] for w in moved}) == 1 and moved[0]["mesh"] != old["mesh"]
    await s.terminate_session("user-17")
    await raised(ForgeError, s.terminate_session("user-17"))
    assert s.metrics()["sessions"] == 2
    await s.pid.route(sess_id="user-17")
    assert s.metrics()["sessions"] == 3
    assert len(set(await a.in_session.call_one(3))) == 1
    assert len(set(await a.steps_of_a_session.call_one())) == 1
    assert s.metrics()["sessions"] == 3


OUTSIDE = """
import asyncio, pickle, sys
from forgectl import ActorDied
service = pickle.load(sys.stdin.buffer)
async def main():
    print(await service.add.route(1), await service.add.fanout(1), flush=True)
    async with service.session("mine"):
        await service.pid.route()
    try:
        await service.hold.route("outside")
    except ActorDied as e:
        open("told", "w").write(str(e))
asyncio.run(main())
"""


async def a_service_in_another_process_of_this_machine(how: str = "") -> None:
    s = await W.as_service(WHERE)
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", OUTSIDE, stdin=pipe, stdout=pipe)
    assert process.stdin and process.stdout
    process.stdin.write(pickle.dumps(s))
    process.stdin.close()
    assert await process.stdout.readline() == b"1 [2]\n"
    await exists("at-outside")
    assert (s.metrics()["active"], s.metrics()["sessions"]) == (1, 1)
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    go("outside")
    assert await process.wait() == 0


# ---------------------------------------------------------------- launches in actors


async def an_actor_launches_and_ends_others() -> None:
    boss = await Bosses.as_actor()
    child = await boss.make.call_one(procs=2, start=1)
    assert child.mesh_name == "counter"
    assert list((await child.add.call(1)).values()) == [2, 2]
    assert await boss.ask.call_one(child, "add", 1) == [3, 3]
    plain = await boss.make_plain.call_one()
    assert (plain.mesh_name, await plain.add.call_one(1)) == ("counter-2", 6)
    assert await boss.make_local.call_one("here") == "here"
    assert await boss.make_and_use.call_one() == [2, 2]
    await boss.end.call_one(child)
    death = await raised(ActorDied, child.add.call(1))
    assert death.mesh == "counter"
    await boss.end.call_one(child)
    again = await boss.make.call_one(mesh_name="counter")
    await boss.end.call_one(child)  # the earlier one of that name
    assert await again.add.call_one(1) == 1
    own = await Fast.options(mesh_name="of-the-driver").as_actor()
    await boss.end.call_one(own)
    await raised(ActorDied, own.add.call(1))
    assert pids_of("counter") and pids_of("counter-2")  # left to the end of the run


async def errors_of_launches_reach_the_actor() -> None:
    boss = await Bosses.as_actor()
    error: Exception = await raised(ValueError, boss.make_bad.call_one())
    assert str(error) == "no such model" and "players.py" in str(error.__cause__)
    assert own_run().meshes["bad"].ended
    error = await raised(BusyError, boss.make.call_one(mesh_name="boss"))
    assert "mesh boss already" in str(error)
    refused = await raised(ForgeError, boss.make.call_one(with_gpus=True, procs=64))
    assert "GPU" in str(refused) and refused.exit_code == 64, (refused, refused.exit_code)
    assert await boss.add.call_one(1) == 1


async def two_actors_launch_at_once() -> None:
    bosses = await asyncio.gather(Bosses.as_actor(), Bosses.as_actor())
    children = await asyncio.gather(*(boss.make.call_one(start=n) for boss in bosses for n in range(2)))
    assert sorted(c.mesh_name for c in children) == ["counter", "counter-2", "counter-3", "counter-4"]
    assert [await c.state.call_one() for c in children] == [0, 1, 0, 1]
    ways = [await boss.ask.call_one(child, "add", 1) for boss in bosses for child in children]
    assert ways == [[1], [2], [1], [2], [2], [3], [2], [3]]
    named = [boss.make.call_one(mesh_name="one") for boss in bosses]
    found = await asyncio.gather(*named, return_exceptions=True)
    assert sorted(type(f).__name__ for f in found) == ["ActorHandle", "BusyError"]


async def launched_by_a_constructor_and_in_setup() -> None:
    parent = await Parent.options(preload=[]).as_actor()
    assert await parent.sum.call_one() == 12
    error = await raised(ValueError, Parent.options(preload=[], mesh_name="unlucky").as_actor(bad="constructor"))
    assert str(error) == "no such model"
    assert await parent.add.call_one(1) == 1


async def an_actor_that_dies_while_it_launches_leaves_nothing() -> None:
    errand_table.MOST_MISSED = 1
    boss = await Bosses.as_actor()
    pid = pids_of("boss")[0]
    launch = boss.make_slow.call_one(str(HERE))
    await exists("waiting-0")
    os.kill(pid, signal.SIGKILL)
    await raised(ActorDied, launch)
    await until(lambda: own_run().meshes["slow"].ended)


async def an_actor_serves() -> None:
    boss, caller = await asyncio.gather(Bosses.as_actor(), Calls.as_actor())
    s = await boss.serve.call_one(WHERE, num_replicas=2, mesh_name="svc", router="least_loaded")
    assert [w["mesh"] for w in await s.who.fanout()] == ["svc.0", "svc.1"]
    assert s.metrics()["service"] == "svc"
    await caller.use.call_one(s)
    assert await caller.route.call_one("add", 1) == 4
    assert await asyncio.gather(*(caller.route.call_one("double", n) for n in range(4))) == [0, 2, 4, 6]
    pid = pids_of("svc.0")[0]
    await kill(s, "svc.0", pid)
    await healthy(s, True, True)
    await caller.scale_to.call_one(3)
    assert sorted(w["mesh"] for w in await s.who.fanout()) == ["svc.0", "svc.1", "svc.2"]
    error: Exception = await raised(BusyError, boss.serve.call_one(WHERE, mesh_name="svc"))
    assert "a service svc already" in str(error)
    assert await shell("call", "svc", "each", '"from the shell"', "--json") == (0, "[0]\n")
    assert (await shell("call", "svc", "no_such_endpoint"))[0] == 66
    again = await boss.serve.call_one(WHERE)
    assert again.name == "worker"
    overrides = await raised(ForgeError, boss.serve_overridden.call_one())
    assert "overrides launch or shutdown" in str(overrides)
    await boss.end.call_one(s)
    await raised(ServiceStopped, caller.route.call_one("pid"))
    again = await boss.serve.call_one(WHERE, mesh_name="svc")
    assert await again.add.route() == 4


async def shell(*words: str) -> tuple[int | None, str]:
    """The exit code of a forgectl command and what it prints."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "forgectl", *words, stdout=pipe, stderr=pipe)
    out, _ = await process.communicate()
    return process.returncode, out.decode()


if __name__ == "__main__":
    play(globals())

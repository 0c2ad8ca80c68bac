"""What test_actor_faults.py has scripts do whose actors die."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from forgectl import ActorDied, ForgeError
from forgectl.actor.driver import run_client
from players import BadSetup, BadStart, Counter, DeadSetup, Lasting, SlowSetup
from playing import HERE, Fast, exists, pids_of, play, raised


async def a_constructor_that_raises() -> None:
    Bad = BadStart.options(preload=[], procs=2, mesh_name="bad")
    for rank in (None, 1):
        error: Exception = await raised(ValueError, Bad.as_actor(rank=rank))
        assert str(error) == "no such model"
        assert 'raise ValueError("no such model")' in str(error.__cause__)
    error = await raised(RuntimeError, Bad.as_actor("needs"))
    assert "NeedsArguments: 7 at start" in str(error)
    error = await raised(TypeError, Bad.as_actor(1, 2, 3, 4))  # type: ignore[call-arg, arg-type]
    assert "positional arguments" in str(error)
    for how, number, code in (("kill", signal.SIGKILL, None), ("_exit", None, 7)):
        death = await raised(ActorDied, Bad.as_actor(how, rank=1))
        assert (death.mesh, death.rank, death.signal, death.rank_exit_code) == ("bad", 1, number, code), death
    fine = await Bad.as_actor(rank=5)
    assert len(await fine.add.call(1)) == 2


async def a_setup_that_raises_or_dies() -> None:
    error = await raised(LookupError, BadSetup.options(preload=[], procs=2).as_actor())
    assert "finds no data" in str(error)
    assert "players.py" in str(error.__cause__)
    death = await raised(ActorDied, DeadSetup.options(preload=[], procs=2).as_actor())
    assert (death.mesh, death.rank, death.rank_exit_code) == ("deadsetup", 1, 3)


async def arguments_that_cannot_be_sent() -> None:
    error = await raised(TypeError, Fast.as_actor(threading.Lock()))  # type: ignore[arg-type]
    assert "pickle" in str(error)
    c = await Fast.as_actor()
    assert await c.add.call_one(1) == 1


async def a_plain_endpoint_that_exits_ends_its_rank() -> None:
    c = await Fast.options(procs=2).as_actor()
    error = await raised(ActorDied, c.slice(procs=1).die_plain.call_one("SystemExit"))
    assert (error.rank, error.rank_exit_code) == (1, 9), str(error)


async def a_rank_killed_from_outside_while_its_thread_is_held() -> None:
    c = await Fast.options(procs=2).as_actor()
    pids = [f["pid"] for f in (await c.whoami.call()).values()]
    waiting: asyncio.Future[Any] = asyncio.ensure_future(c.block.call(str(HERE / "blocks")))
    await exists("blocks-0", "blocks-1")
    os.kill(pids[0], signal.SIGKILL)
    error = await raised(ActorDied, waiting)
    assert (error.rank, error.signal) == (0, signal.SIGKILL)
    await c.shutdown(0)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


async def a_broadcast_may_kill() -> None:
    c = await Fast.options(procs=2).as_actor()
    waiting = [asyncio.ensure_future(c.hang.call(str(HERE / "hangs")))]
    await exists("hangs-0", "hangs-1")
    c2 = await Fast.options(procs=2, mesh_name="second").as_actor()
    c2.die.broadcast("_exit", 1)
    error = await raised(ActorDied, c2.add.call(1))
    assert (error.mesh, error.rank, error.rank_exit_code) == ("second", 1, 7)
    assert not waiting[0].done()  # the other mesh does not mind
    await c.shutdown(0)
    await raised(ActorDied, waiting[0])


async def a_restart_makes_the_same_actors_again() -> None:
    notes = HERE / "notes"
    c = await Lasting.options(preload=[], procs=2, restart={"max": 2}).as_actor(str(notes))
    for generation in range(3):
        assert list((await c.add.call(5)).values()) == [5, 5]
        pids = [f["pid"] for f in (await c.whoami.call()).values()]
        inside = asyncio.ensure_future(c.hang.call(str(HERE / f"hangs{generation}")))
        await exists(f"hangs{generation}-0", f"hangs{generation}-1")
        queued = asyncio.ensure_future(c.note.call("queued"))
        late = asyncio.ensure_future(raised(ActorDied, c.hang.call()))
        await asyncio.sleep(0.05)  # time for the messages to reach the ranks
        os.kill(pids[1], signal.SIGKILL)
        for call in (inside, queued):
            error = await raised(ActorDied, call)
            assert (error.rank, error.signal) == (1, signal.SIGKILL)
        await late
    error = await raised(ActorDied, c.add.call(1))
    assert (error.rank, error.signal) == (1, signal.SIGKILL)
    await c.shutdown()
    lines = notes.read_text().splitlines()
    assert sorted(lines) == sorted(f"setup {g} {r}" for g in range(3) for r in range(2)), lines


async def calls_wait_while_a_mesh_waits_for_its_restart() -> None:
    c = await Fast.options(procs=2, restart={"max": 3, "backoff": 0.3}).as_actor()
    for wait in (0.0, 0.3, 0.6):
        inside = asyncio.ensure_future(c.hang.call(str(HERE / f"hangs{wait}")))
        await exists(f"hangs{wait}-0", f"hangs{wait}-1")
        began = time.monotonic()
        os.kill(pids_of(c.mesh_name)[0], signal.SIGKILL)
        await raised(ActorDied, inside)
        assert list((await c.add.call(5)).values()) == [5, 5]
        assert time.monotonic() - began >= wait
    await c.shutdown()


async def a_time_limit_is_told_to_callers() -> None:
    c = await Fast.options(procs=2, restart=3, time_limit=4).as_actor()
    error = await raised(ActorDied, c.hang.call())
    assert (str(error), error.rank) == (f"mesh {c.mesh_name}: time limit of 4s", None), error
    await raised(ActorDied, c.add.call(1))


async def a_setup_that_fails_after_a_restart_is_the_end() -> None:
    c = await Lasting.options(preload=[], procs=2, restart=1).as_actor(str(HERE / "notes"), fail_after=0)
    await raised(ActorDied, c.die.call("_exit", 0))
    error = await raised(RuntimeError, c.add.call(1))
    assert str(error) == "generation 1 will not do"
    await raised(RuntimeError, c.add.call(1))
    await c.shutdown()


async def a_shutdown_while_it_restarts() -> None:
    class Slow(SlowSetup):
        async def nothing(self) -> None: ...

    (HERE / "go").touch()
    c = await Slow.options(preload=[], procs=2, restart=9).as_actor(str(HERE))
    (HERE / "go").unlink()
    (HERE / "waiting-0").unlink()
    await raised(ActorDied, c.die.call("_exit", 1))
    waiting = asyncio.ensure_future(c.add.call(1))
    await exists("waiting-0")
    await c.shutdown(0)
    await raised(ActorDied, waiting)


async def pair() -> Counter:
    """A mesh of two, and the word that it is up."""
    made = await Fast.options(procs=2, mesh_name="pair").as_actor()
    print("up", flush=True)
    return made


async def end(how: str) -> None:
    """A script that ends by itself."""
    c = await pair()
    if how == "raises":
        raise ValueError("of the script")
    if how == "sys.exit":
        sys.exit(5)
    if how == "while a call waits":
        waiting.add(asyncio.ensure_future(c.hang.call()))
    if how == "after a death":
        await raised(ActorDied, c.die.call("_exit"))
    if how == "after a shutdown":
        await c.shutdown()


waiting: set[asyncio.Future[Any]] = set()
"""Calls that nobody awaits."""


async def hang() -> None:
    await (await pair()).hang.call()


async def call_once(name: str) -> None:
    """Once there is a file of that name."""
    c = await pair()
    await exists(name)
    assert (await c.add.call(1)).item(procs=0) == 1


async def call_when_told() -> None:
    """A call for each line of standard input."""
    c = await pair()
    for _ in iter(sys.stdin.readline, ""):
        try:
            value = str(list((await c.add.call(1)).values()))
        except ActorDied as e:
            value = f"{e.rank} {e.signal}"
        print(value, flush=True)


async def all_who_wait_are_told_how_a_rank_died(how: str, number: str, code: str, text: str, last: str) -> None:
    """By which signal or with which code ("None": not so); `text` is in what is said, `last` in the log's end."""
    c = await Fast.options(procs=3).as_actor()

    async def stream() -> None:
        async for value in c.add.stream(1):
            raise AssertionError(value)

    dying = asyncio.ensure_future(c.die.call(how, 1))
    calls = [dying, c.add.call(1), c.slice(procs=0).add.call_one(1), c.options(timeout=50).add.call(1), stream()]
    errors = await asyncio.gather(*calls, return_exceptions=True)
    errors += [await raised(ActorDied, c.add.call(1)), await raised(ActorDied, c.slice(procs=2).add.call_one(1))]
    for e in errors:
        assert type(e) is ActorDied, repr(e)
        assert (e.mesh, e.rank, e.host) == ("counter", 1, "local"), vars(e)
        assert (str(e.signal and int(e.signal)), str(e.rank_exit_code)) == (number, code), (number, code, str(e))
        assert text in str(e), str(e)
        assert last in "\n".join(e.log_tail) and last in str(e), str(e)
    assert len({id(e) for e in errors}) == len(errors)
    c.add.broadcast(1)
    await c.shutdown()
    other = await Fast.as_actor()
    assert await other.add.call_one(1) == 1


async def only_the_store_listens() -> None:
    c = await Fast.options(procs=2).as_actor()
    d = await Fast.options(procs=2).as_actor()
    await c.ask.call(d, "add", 1)
    print("up", flush=True)
    print((await c.slice(procs=0).env.call_one("MASTER_PORT"))[0], flush=True)
    print((await d.slice(procs=0).env.call_one("MASTER_PORT"))[0], flush=True)
    await c.hang.call()


async def a_run_that_is_shut_down_under_its_script() -> None:
    c = await Fast.options(procs=2, mesh_name="pair").as_actor()
    print("up", flush=True)
    error = await raised(ActorDied, c.hang.call())
    assert "forgectl shutdown" in str(error) or "stopped" in str(error), str(error)
    await raised(ForgeError, c.add.call(1))
    await raised(ForgeError, Fast.as_actor())
    await exists("end")


async def a_fork_of_the_script_does_not_end_its_run() -> None:
    def forked() -> None:
        assert run_client.living_run_client() is None
        assert run_client._run_client
        run_client._run_client.close()

    c = await Fast.as_actor()
    child = multiprocessing.get_context("fork").Process(target=forked)
    child.start()
    child.join()
    assert child.exitcode == 0
    assert await c.add.call_one(1) == 1


if __name__ == "__main__":
    play(globals())

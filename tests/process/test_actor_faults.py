"""Actors that fail to start, die, or lose the script that launched them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time

import pytest

from forgectl.wire.listener import LOOK_SECONDS
from tests.conftest import Forge, listening_ports, processes_of, processes_with, until
from tests.process.actor_scripts import background, ended, play, the_run
from tests.process.deaths import agent_of, controller_of, end

# ---------------------------------------------------------------- a mesh that does not start


def test_a_constructor_that_raises(forge: Forge) -> None:
    play(
        forge,
        """
        Bad = BadStart.options(preload=[], procs=2, mesh_name="bad")
        for rank in (None, 1):
            error = await raised(ValueError, Bad.as_actor(rank=rank))
            assert str(error) == "no such model"
            assert 'raise ValueError("no such model")' in str(error.__cause__)
        error = await raised(RuntimeError, Bad.as_actor("needs"))
        assert "NeedsArguments: 7 at start" in str(error)
        error = await raised(TypeError, Bad.as_actor(1, 2, 3, 4))
        assert "positional arguments" in str(error)
        for how, number, code in (("kill", signal.SIGKILL, None), ("_exit", None, 7)):
            error = await raised(ActorDied, Bad.as_actor(how, rank=1))
            assert (error.mesh, error.rank, error.signal, error.rank_exit_code) == ("bad", 1, number, code), error
        fine = await Bad.as_actor(rank=5)
        assert len(await fine.add.call(1)) == 2
        """,
    )
    [mesh] = [m for m in forge.document(the_run(forge))["meshes"] if m["mesh"] == "bad"]
    assert mesh["state"] == "stopped"


def test_a_setup_that_raises_or_dies(forge: Forge) -> None:
    play(
        forge,
        """
        error = await raised(LookupError, BadSetup.options(preload=[], procs=2).as_actor())
        assert "finds no data" in str(error)
        assert "players.py" in str(error.__cause__)
        error = await raised(ActorDied, DeadSetup.options(preload=[], procs=2).as_actor())
        assert (error.mesh, error.rank, error.rank_exit_code) == ("deadsetup", 1, 3)
        """,
    )
    found = {m["mesh"]: m for m in forge.document(the_run(forge))["meshes"]}
    assert {n: m["state"] for n, m in found.items()} == {"badsetup": "failed", "deadsetup": "failed"}
    assert "its constructor or setup raised LookupError: rank" in found["badsetup"]["reason"]
    assert "rank 1 on local exited with code 3" in found["deadsetup"]["reason"]


def test_arguments_that_cannot_be_sent(forge: Forge) -> None:
    play(
        forge,
        """
        import threading

        error = await raised(TypeError, Fast.as_actor(threading.Lock()))
        assert "pickle" in str(error)
        c = await Fast.as_actor()
        assert await c.add.call_one(1) == 1
        """,
    )


# ---------------------------------------------------------------- a rank dies


@pytest.mark.parametrize(
    ("how", "number", "code", "text"),
    [
        ("kill", 9, None, "killed by SIGKILL"),
        ("segv", 11, None, "killed by SIGSEGV"),
        ("_exit", None, 7, "exited with code 7"),
        ("SystemExit", None, 9, "exited with code 9"),
        ("sys.exit", None, 1, "exited with code 1"),
        ("KeyboardInterrupt", None, 130, "KeyboardInterrupt"),
        ("Refusal", None, 1, "Refusal"),
    ],
)
def test_all_who_wait_are_told_how_a_rank_died(
    forge: Forge, how: str, number: int | None, code: int | None, text: str
) -> None:
    last = {"KeyboardInterrupt": text, "Refusal": text, "segv": "File "}.get(how, "last words of 1")  # or a traceback
    play(
        forge,
        f"""
        c = await Fast.options(procs=3).as_actor()

        async def stream():
            async for value in c.add.stream(1):
                raise AssertionError(value)

        async def soon():
            await asyncio.sleep(0)
            return await c.add.call(1)

        dying = asyncio.ensure_future(c.die.call({how!r}, 1))
        calls = [dying, c.add.call(1), c.slice(procs=0).add.call_one(1), c.options(timeout=50).add.call(1), stream()]
        errors = await asyncio.gather(*calls, return_exceptions=True)
        errors += [await raised(ActorDied, c.add.call(1)), await raised(ActorDied, c.slice(procs=2).add.call_one(1))]
        for e in errors:
            assert type(e) is ActorDied, repr(e)
            assert (e.mesh, e.rank, e.host) == ("counter", 1, "local"), vars(e)
            assert (e.signal, e.rank_exit_code) == ({number}, {code}), (e.signal, e.rank_exit_code, str(e))
            assert {text!r} in str(e), str(e)
            assert {last!r} in "\\n".join(e.log_tail) and {last!r} in str(e), str(e)
        assert len({{id(e) for e in errors}}) == len(errors)
        c.add.broadcast(1)
        await c.shutdown()
        other = await Fast.as_actor()
        assert await other.add.call_one(1) == 1
        """,
    )


def test_a_plain_endpoint_that_exits_ends_its_rank(forge: Forge) -> None:
    play(
        forge,
        """
        c = await Fast.options(procs=2).as_actor()
        error = await raised(ActorDied, c.slice(procs=1).die_plain.call_one("SystemExit"))
        assert (error.rank, error.rank_exit_code) == (1, 9), str(error)
        """,
    )


def test_a_rank_killed_from_outside_while_its_thread_is_held(forge: Forge) -> None:
    play(
        forge,
        """
        c = await Fast.options(procs=2).as_actor()
        pids = [f["pid"] for f in (await c.whoami.call()).values()]
        waiting = asyncio.ensure_future(c.block.call(str(HERE / "blocks")))
        await exists("blocks-0", "blocks-1")
        os.kill(pids[0], signal.SIGKILL)
        error = await raised(ActorDied, waiting)
        assert (error.rank, error.signal) == (0, signal.SIGKILL)
        await c.shutdown(0)
        assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
        """,
    )


def test_a_broadcast_may_kill(forge: Forge) -> None:
    play(
        forge,
        """
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
        """,
    )


def test_a_restart_makes_the_same_actors_again(forge: Forge) -> None:
    """Later calls wait for it, those in flight are not repeated, and after the last restart it is over."""
    play(
        forge,
        """
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
        """,
    )
    [mesh] = forge.document(the_run(forge))["meshes"]
    assert (mesh["state"], mesh["restarts"]) == ("failed", 2)


def test_a_setup_that_fails_after_a_restart_is_the_end(forge: Forge) -> None:
    play(
        forge,
        """
        c = await Lasting.options(preload=[], procs=2, restart=1).as_actor(str(HERE / "notes"), fail_after=0)
        await raised(ActorDied, c.die.call("_exit", 0))
        error = await raised(RuntimeError, c.add.call(1))
        assert str(error) == "generation 1 will not do"
        await raised(RuntimeError, c.add.call(1))
        await c.shutdown()
        """,
    )


def test_a_shutdown_while_it_restarts(forge: Forge) -> None:
    play(
        forge,
        """
        class Slow(SlowSetup):
            async def nothing(self): ...

        (HERE / "go").touch()
        c = await Slow.options(preload=[], procs=2, restart=9).as_actor(str(HERE))
        (HERE / "go").unlink()
        (HERE / "waiting-0").unlink()
        await raised(ActorDied, c.die.call("_exit", 1))
        waiting = asyncio.ensure_future(c.add.call(1))
        await exists("waiting-0")
        await c.shutdown(0)
        await raised(ActorDied, waiting)
        """,
    )


# ---------------------------------------------------------------- the script ends

LIVES = """
    c = await Fast.options(procs=2, mesh_name="pair").as_actor()
    print("up", flush=True)
    {then}
"""
BY_ITSELF = {
    "returns": ("pass", 0),
    "raises": ("raise ValueError('of the script')", 1),
    "sys.exit": ("sys.exit(5)", 5),
    "while a call waits": ("asyncio.ensure_future(c.hang.call())", 0),
    "after a death": ("await raised(ActorDied, c.die.call('_exit'))", 0),
    "after a shutdown": ("await c.shutdown()", 0),
}


@pytest.mark.parametrize("how", BY_ITSELF)
def test_a_script_that_ends_by_itself_leaves_nothing(forge: Forge, how: str) -> None:
    then, code = BY_ITSELF[how]
    result = play(forge, LIVES.format(then=then), code=code)
    assert ("of the script" in result.stderr) == (how == "raises")
    document = forge.document(the_run(forge))
    assert document["stopped_by"] == "the end of its script"
    assert document["state"] == ("failed" if how == "after a death" else "stopped")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT, signal.SIGHUP])
def test_a_script_that_is_ended_leaves_nothing(forge: Forge, number: signal.Signals) -> None:
    script = background(forge, LIVES.format(then="await c.hang.call()"))
    run = the_run(forge)
    [document] = forge.status()
    assert (document["run"], document["state"], document["name"]) == (run, "running", "script")
    [mesh] = document["meshes"]
    assert (mesh["mesh"], mesh["kind"], mesh["state"], mesh["ready"]) == ("pair", "actor", "ready", 2)
    row = forge.ok("status").splitlines()[1]
    assert row.split()[:4] == ["pair", "actor", "ready", "2/2"]
    script.send_signal(number)
    script.communicate(timeout=60)
    assert script.returncode in (-number, 1, 130)
    document = ended(forge, run)
    assert document["state"] in ("stopped", "failed")
    assert forge.status() == []


def test_ctrl_c_reaches_the_whole_process_group(forge: Forge) -> None:
    script = background(forge, LIVES.format(then="await c.hang.call()"))
    os.killpg(script.pid, signal.SIGINT)
    _, stderr = script.communicate(timeout=60)
    assert "KeyboardInterrupt" in stderr
    assert ended(forge, the_run(forge))["state"] == "stopped"


def test_two_scripts_at_once(forge: Forge) -> None:
    one = background(forge, LIVES.format(then="await exists('one'); assert (await c.add.call(1)).item(procs=0) == 1"))
    two = background(forge, LIVES.format(then="await exists('two'); assert (await c.add.call(1)).item(procs=0) == 1"))
    assert [r["state"] for r in forge.status()] == ["running"] * 2
    assert sorted(r["name"] for r in forge.status()) == ["script", "script-2"]
    (forge.folder / "two").touch()
    assert two.wait(60) == 0
    [left] = forge.status()
    assert left["name"] == "script"
    (forge.folder / "one").touch()
    assert one.wait(60) == 0
    assert forge.status() == []


def test_only_the_store_listens(forge: Forge) -> None:
    script = background(
        forge,
        """
        c = await Fast.options(procs=2).as_actor()
        d = await Fast.options(procs=2).as_actor()
        await c.ask.call(d, "add", 1)
        print("up", flush=True)
        print((await c.slice(procs=0).env.call_one("MASTER_PORT"))[0], flush=True)
        print((await d.slice(procs=0).env.call_one("MASTER_PORT"))[0], flush=True)
        await c.hang.call()
        """,
    )
    assert script.stdout
    ports = {int(script.stdout.readline()) for _ in range(2)}
    every = set(processes_with(f"FORGECTL_HOME={forge.home}"))
    assert script.pid in every
    assert listening_ports(every) == {("127.0.0.1", port) for port in ports}


def test_a_run_that_is_shut_down_under_its_script(forge: Forge) -> None:
    """The script lives on, is told, and leaves no socket when it ends much later."""
    script = background(
        forge,
        """
        c = await Fast.options(procs=2, mesh_name="pair").as_actor()
        print("up", flush=True)
        error = await raised(ActorDied, c.hang.call())
        assert "forgectl shutdown" in str(error) or "stopped" in str(error), str(error)
        await raised(ForgeError, c.add.call(1))
        await raised(ForgeError, Fast.as_actor())
        await exists("end")
        """,
    )
    run = the_run(forge)
    forge.ok("shutdown", "--run", run)
    socket = forge.home / "sockets" / run / "driver"
    begun = time.monotonic()
    until(lambda: socket.exists() or time.monotonic() > begun + 1.5 * LOOK_SECONDS, "a socket, or none")
    assert not socket.exists()
    (forge.folder / "end").touch()
    _, stderr = script.communicate(timeout=60)
    assert (script.returncode, stderr) == (0, "")


def test_a_fork_of_the_script_does_not_end_its_run(forge: Forge) -> None:
    play(
        forge,
        """
        import multiprocessing

        def forked():
            assert forgectl.actor.driver.run_client._home is None
            forgectl.actor.driver.run_client._home.close()

        c = await Fast.as_actor()
        child = multiprocessing.get_context("fork").Process(target=forked)
        child.start()
        child.join()
        assert child.exitcode == 0
        assert await c.add.call_one(1) == 1
        """,
    )


# ---------------------------------------------------------------- parts of forgectl die

CALLS = """
    c = await Fast.options(procs=2, mesh_name="pair").as_actor()
    print("up", flush=True)
    for line in iter(sys.stdin.readline, ""):
        try:
            value = list((await c.add.call(1)).values())
        except ActorDied as e:
            value = f"{e.rank} {e.signal}"
        print(value, flush=True)
"""


class Caller:
    """A script that makes a call for each line that it is told."""

    def __init__(self, forge: Forge) -> None:
        from tests.process.actor_scripts import write

        self.process = forge.python(write(forge, CALLS), stdin=subprocess.PIPE)
        assert self.said() == "up"

    def said(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def call(self) -> str:
        assert self.process.stdin
        self.process.stdin.write("call\n")
        self.process.stdin.flush()
        return self.said()

    def close(self) -> None:
        _, stderr = self.process.communicate(timeout=60)
        assert (self.process.returncode, stderr) == (0, "")


def test_calls_go_on_without_a_controller_and_a_later_death_is_noticed(forge: Forge) -> None:
    caller = Caller(forge)
    run = the_run(forge)
    [pair] = forge.document(run)["meshes"]
    assert caller.call() == "[1, 1]"
    for count in (2, 3):
        old = controller_of(forge, run)
        end(old)
        assert caller.call() == f"[{count}, {count}]"
        assert controller_of(forge, run) != old
    [after] = forge.document(run)["meshes"]
    assert [r["pid"] for r in after["ranks"]] == [r["pid"] for r in pair["ranks"]]
    assert (after["state"], after["generation"]) == ("ready", 0)
    end(controller_of(forge, run))
    end(after["ranks"][1]["pid"])
    until(lambda: caller.call() == "1 9", "the news of the death")
    caller.close()
    assert ended(forge, run)["stopped_by"] == "the end of its script"


def test_an_agent_that_is_killed_takes_its_actors_along(forge: Forge) -> None:
    caller = Caller(forge)
    run = the_run(forge)
    assert caller.call() == "[1, 1]"
    end(agent_of(forge, run))
    until(lambda: not re.match(r"\[", caller.call()), "the news of the death")
    caller.close()
    ended(forge, run)


def test_sockets_for_messages_are_gone_with_the_run(forge: Forge) -> None:
    from forgectl.controller.run_dir import RunDir

    script = background(forge, LIVES.format(then="await c.hang.call()"))
    folder = RunDir(forge.run_dir(the_run(forge))).messages
    assert list(folder.iterdir())
    assert folder.stat().st_mode & 0o777 == 0o700
    script.kill()
    ended(forge, the_run(forge))
    until(lambda: not folder.exists(), "the end of its sockets")
    assert processes_of(the_run(forge)) == {}

"""The class API in Python scripts outside any launch, each with a run of its own."""

from __future__ import annotations

import pytest

from tests.conftest import Forge
from tests.process.actor_scripts import play, the_run
from tests.process.outputs import log_of

# ---------------------------------------------------------------- what a rank is


def test_ranks_know_who_they_are_without_super_init(forge: Forge) -> None:
    play(
        forge,
        """
        counter = await Fast.options(procs=3, mesh_name="trio").as_actor(start=5)
        found = list((await counter.whoami.call()).values())
        assert [f["rank"] for f in found] == [0, 1, 2]
        assert {(f["size"], f["mesh"]) for f in found} == {(3, "trio")}
        assert len({f["pid"] for f in found} | {os.getpid()}) == 4
        assert list((await counter.add.call(k=2)).values()) == [7, 7, 7]
        assert counter.mesh_name == "trio"
        """,
    )


def test_a_rank_logs_its_name_and_leaves_the_root_logger_alone(forge: Forge) -> None:
    body = """
        import logging

        class Own(Counter):
            @endpoint
            def root(self):
                return len(logging.getLogger().handlers)

            @endpoint
            def configure(self):
                logging.basicConfig(level=logging.INFO, format="MINE %(message)s")

        own = await Own.options(procs=2, preload=[]).as_actor()
        before = (len(logging.getLogger().handlers), logging.getLogger().level)
        await own.say.call("first")
        assert set((await own.root.call()).values()) == {0}
        await own.configure.call()
        await own.say.call("second")
        assert before == (len(logging.getLogger().handlers), logging.getLogger().level)
        """
    play(forge, body)
    for rank in range(2):
        lines = log_of(forge, the_run(forge), "own", rank).splitlines()
        [first] = [line for line in lines if line.endswith("first") and "printed" not in line]
        assert first.endswith(f"Own {rank}/2] first"), lines
        assert [line for line in lines if line.endswith("second")] == ["MINE second", "printed second"]


def test_a_class_of_the_script_itself(forge: Forge) -> None:
    """It is pickled by value: no rank runs the script again."""
    play(
        forge,
        """
        print("once")
        SECRET = 42

        class Local(ForgeActor):
            @endpoint
            def give(self):
                return SECRET, type(self).__name__

        async def main():
            async def inner():
                local = await Local.options(preload=[]).as_actor()
                return await local.give.call_one()

            assert await inner() == (42, "Local")

        asyncio.run(main())
        """,
        main=False,
    )


def test_current_rank_and_size(forge: Forge) -> None:
    play(
        forge,
        """
        class Where(ForgeActor):
            @endpoint
            async def where(self):
                return dict(forgectl.current_rank()), dict(forgectl.current_size())

        where = await Where.options(procs=2, preload=[]).as_actor()
        assert list((await where.where.call()).values()) == [({"procs": n}, {"procs": 2}) for n in range(2)]
        """,
    )


# ---------------------------------------------------------------- calls


def test_every_way_to_call(forge: Forge) -> None:
    play(
        forge,
        """
        c = await Fast.options(procs=4).as_actor(start=1)
        values = await c.add.call(2)
        assert type(values).__name__ == "ValueMesh"
        assert [v for _, v in values.items()] == [3] * 4
        assert values.item(procs=2) == 3
        assert len(c) == 4 and c.size == {"procs": 4}

        error = await raised(ValueError, c.add.call_one(1))
        assert "counter.add.call_one needs one rank, but the handle has 4" in str(error)
        first = c.slice(procs=0)
        assert len(first) == 1 and first.size == {"procs": 1}
        assert await first.add.call_one(10) == 13
        assert list((await c.state.call()).values()) == [13, 3, 3, 3]

        part = c.slice(procs=slice(1, 4))
        assert len(part) == 3
        assert list((await part.add.call(1)).values()) == [4, 4, 4]
        assert await part.slice(procs=2).add.call_one(1) == 5  # rank 3
        assert list((await c.state.call()).values()) == [13, 4, 4, 5]
        for wrong in ({"procs": 4}, {"procs": -1}, {"hosts": 0}, {"procs": slice(9, 12)}):
            try:
                c.slice(**wrong)
            except ValueError as e:
                assert "counter" in str(e)
            else:
                raise AssertionError(wrong)

        ranks = {(await c.whoami.choose())["rank"] for _ in range(60)}
        assert len(ranks) > 1 and ranks <= {0, 1, 2, 3}

        c.add.broadcast(100)
        assert min((await c.state.call()).values()) > 100  # in order: the call comes after it

        seen = []
        async for value in c.whoami.stream():
            seen.append(value["rank"])
        assert sorted(seen) == [0, 1, 2, 3]

        assert list((await c.add_plain.call(0)).values()) == list((await c.state.call()).values())
        for call in (c.add.route, c.add.fanout):
            try:
                call(1)
            except NotImplementedError as e:
                assert "use call, call_one or choose" in str(e)
        try:
            c.add(1)
        except TypeError as e:
            assert "use add.call" in str(e)
        """,
    )


def test_an_unknown_endpoint_names_the_nearest(forge: Forge) -> None:
    play(
        forge,
        """
        c = await Fast.as_actor()
        for name, text in {"ad": "did you mean 'add'", "helper": "Counter.helper is not marked @endpoint"}.items():
            try:
                getattr(c, name)
            except AttributeError as e:
                assert text in str(e) and "add(k=1)" in str(e), e
            else:
                raise AssertionError(name)
        assert not hasattr(c, "__len") and not hasattr(c, "nothing")
        """,
    )


def test_ordinary_exceptions_leave_the_actor_alive(forge: Forge) -> None:
    play(
        forge,
        """
        import traceback

        c = await Fast.options(procs=2).as_actor(start=3)
        before = list((await c.whoami.call()).values())
        for endpoint in (c.fail, c.fail_plain):
            error = await raised(ValueError, endpoint.call())
            assert str(error) == "no 3"
            remote = str(error.__cause__)
            assert "players.py" in remote and 'raise ValueError(f"no {self.n}")' in remote, remote
            shown = "".join(traceback.format_exception(error))
            assert shown.count("players.py") == 1, shown
        assert type(await raised(ValueError, c.slice(procs=1).fail.call_one())) is ValueError
        assert type(await raised(TypeError, c.add.call(1, 2, 3))) is TypeError
        error = await raised(RuntimeError, c.fail.call("chained"))
        assert str(error) == "second" and "KeyError" in str(error.__cause__)
        error = await raised(ValueError, c.fail.call("huge"))
        assert len(str(error)) == 5_000_000
        error = await raised(RuntimeError, c.fail.call("stop"))
        assert "StopIteration: odd" in str(error.__cause__)
        for kind, text in {"needs": "7 at here", "unpicklable": "held"}.items():
            error = await raised(Exception, c.fail.call(kind))
            assert text in str(error) or text in str(error.__cause__), (kind, repr(error), str(error.__cause__)[-300:])
            assert not isinstance(error, ActorDied), repr(error)
        async def streamed():
            async for value in c.fail.stream():
                raise AssertionError(value)
        assert str(await raised(ValueError, streamed())) == "no 3"
        c.fail.broadcast()
        assert list((await c.whoami.call()).values()) == before
        """,
    )
    assert "called by broadcast, raised" in log_of(forge, the_run(forge), "counter", 0)


def test_arguments_and_values_that_cannot_be_pickled_are_the_callers_error(forge: Forge) -> None:
    play(
        forge,
        """
        import threading

        class Odd(Counter):
            @endpoint
            async def lock(self):
                return threading.Lock()

        c = await Odd.options(preload=[]).as_actor()
        await raised(TypeError, c.add.call_one(threading.Lock()))
        error = await raised(Exception, asyncio.wait_for(c.lock.call_one(), 20))
        assert "pickle" in str(error) or "pickle" in str(error.__cause__), repr(error)
        assert await c.add.call_one(1) == 1
        """,
    )


def test_a_deadline_ends_the_call_and_not_the_rank(forge: Forge) -> None:
    play(
        forge,
        """
        c = await Fast.options(procs=2).as_actor()
        late = c.options(timeout=0.2)
        class Napper(Counter):
            @endpoint
            async def nap(self, folder):
                while not (Path(folder) / "wake").exists():
                    await asyncio.sleep(0.01)
                return "slept"
        n = await Napper.options(preload=[], procs=2).as_actor()
        await raised(asyncio.TimeoutError, n.options(timeout=0.1).nap.call(str(HERE)))
        await raised(asyncio.TimeoutError, n.slice(procs=1).options(timeout=0.1).nap.call_one(str(HERE)))
        assert len(n.slice(procs=1).options(timeout=0.1)) == 1
        if sys.version_info >= (3, 11):
            try:
                async with asyncio.timeout(0.1):
                    await n.nap.call(str(HERE))
            except TimeoutError:
                pass
            else:
                raise AssertionError
        task = asyncio.ensure_future(n.nap.call(str(HERE)))
        await asyncio.sleep(0)
        task.cancel()
        await raised(asyncio.CancelledError, task)
        (HERE / "wake").touch()
        assert list((await n.nap.call(str(HERE))).values()) == ["slept"] * 2
        assert list((await late.add.call(1)).values()) == [1, 1]
        """,
    )


def test_a_rank_runs_one_endpoint_at_a_time_in_order(forge: Forge) -> None:
    play(
        forge,
        """
        class Order(ForgeActor):
            def __init__(self):
                self.log, self.inside = [], 0

            @endpoint
            async def later(self, k):
                self.inside += 1
                assert self.inside == 1
                await asyncio.sleep(0.001)
                self.log.append(k)
                self.inside -= 1

            @endpoint
            def plain(self, k):
                self.inside += 1
                assert self.inside == 1
                self.log.append(k)
                self.inside -= 1

            @endpoint
            async def read(self):
                return self.log

        order = await Order.options(preload=[], procs=2).as_actor()
        await asyncio.gather(*((order.later if k % 3 else order.plain).call(k) for k in range(100)))
        assert list((await order.read.call()).values()) == [list(range(100))] * 2
        """,
    )


def test_calls_from_several_event_loops_and_threads(forge: Forge) -> None:
    play(
        forge,
        """
        import threading

        async def launch():
            return await Fast.options(procs=2).as_actor()

        async def use(c):
            return list((await c.add.call(1)).values())

        c = asyncio.run(launch())
        assert asyncio.run(use(c)) == [1, 1]
        assert asyncio.run(use(c)) == [2, 2]
        found = []
        threads = [threading.Thread(target=lambda: found.append(asyncio.run(use(c)))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(found) == [[n, n] for n in range(3, 7)], found

        async def cancelled():
            task = asyncio.ensure_future(c.hang.call(str(HERE / "hangs")))
            await exists("hangs-0", "hangs-1")

        asyncio.run(cancelled())  # asyncio.run cancels what is left

        async def end():
            await c.shutdown()
            return await raised(ActorDied, c.add.call(1))

        assert asyncio.run(end()).mesh == "counter"
        """,
        main=False,
    )


# ---------------------------------------------------------------- handles in other hands


def test_a_handle_works_in_other_actors_and_comes_back(forge: Forge) -> None:
    play(
        forge,
        """
        a = await Fast.options(procs=2, mesh_name="a").as_actor(start=1)
        b = await Fast.options(procs=2, mesh_name="b").as_actor()
        assert sorted(v for found in (await b.ask.call(a, "add", 1)).values() for v in found) == [2, 2, 3, 3]
        assert list((await a.state.call()).values()) == [3, 3]
        await b.keep.call(a.slice(procs=1))
        assert list((await b.ask_kept.call("whoami")).values())[0][0]["rank"] == 1
        theirs, own = await b.slice(procs=0).give.call_one()
        assert (theirs.mesh_name, len(theirs), own.mesh_name) == ("a", 1, "b")
        assert await theirs.add.call_one(1) == 4
        assert list((await own.state.call()).values()) == [0, 0]
        error = await raised(ValueError, b.ask.call(a, "fail"))
        assert "players.py" in str(error.__cause__)
        error = await raised(AttributeError, b.ask.call(a, "ad"))
        assert "did you mean 'add'" in str(error)
        await theirs.shutdown()  # it is the driver's again
        await raised(ActorDied, a.add.call(1))
        """,
    )


def test_an_actor_may_call_itself(forge: Forge) -> None:
    play(
        forge,
        """
        c = await Fast.options(procs=2).as_actor()
        assert list((await asyncio.wait_for(c.ask_self.call(3), 20)).values()) == [3, 3]
        """,
    )


def test_an_actor_that_holds_a_handle_learns_of_a_death_and_follows_the_restart(forge: Forge) -> None:
    """The call that waits is told; later ones go to the generation after it, until there is none any more."""
    play(
        forge,
        """
        a = await Fast.options(procs=2, mesh_name="a", restart=1).as_actor()
        b = await Fast.options(mesh_name="b").as_actor()
        await b.keep.call(a)
        waiting = asyncio.ensure_future(b.died.call_one("hang", str(HERE / "hangs")))
        await exists("hangs-0", "hangs-1")
        told = asyncio.ensure_future(raised(ActorDied, a.hang.call()))
        ranks = forgectl.actor.driver.run_client.living_run_client()._latest["a"].ranks
        os.kill(ranks[1].pid, signal.SIGKILL)
        mesh, rank, number, text = await waiting
        assert (mesh, rank, number) == ("a", 1, signal.SIGKILL), text
        await told
        assert list((await a.add.call(1)).values()) == [1, 1]
        assert await b.ask_kept.call_one("add", 1) == [2, 2]
        await raised(ActorDied, a.die.call("_exit", 1))
        for _ in range(2):
            mesh, rank, number, text = await b.died.call_one("add", 1)
            assert (mesh, rank, number) == ("a", 1, None) and "exited with code 7" in text, text
        """,
    )


def test_an_actor_can_neither_launch_nor_shut_down(forge: Forge) -> None:
    play(
        forge,
        """
        class Boss(Counter):
            @endpoint
            async def launch_one(self):
                await Counter.options(preload=[]).as_actor()

            @endpoint
            async def end(self, other):
                await other.shutdown()

        a = await Fast.as_actor()
        boss = await Boss.options(preload=[]).as_actor()
        error = await raised(ForgeError, boss.launch_one.call_one())
        assert "launched by the driver" in str(error)
        error = await raised(ForgeError, boss.end.call_one(a))
        assert "shut down by the driver" in str(error)
        assert await a.add.call_one(1) == 1
        """,
    )


# ---------------------------------------------------------------- launching and shutting down


def test_shutdown_twice_and_the_same_name_again(forge: Forge) -> None:
    play(
        forge,
        """
        Named = Fast.options(procs=2, mesh_name="same")
        for start in range(3):
            c = await Named.as_actor(start=start)
            assert list((await c.add.call(0)).values()) == [start, start]
            error = await raised(BusyError, Named.as_actor())
            assert "mesh same already" in str(error), error
            await (c.shutdown() if start else Counter.shutdown(c))
            await c.shutdown()
            await Named.shutdown(c)
            await asyncio.gather(c.shutdown(), c.shutdown())
            error = await raised(ActorDied, c.add.call(1))
            assert error.mesh == "same"
            c.add.broadcast(1)
        """,
    )


def test_unnamed_meshes_of_one_class_are_numbered(forge: Forge) -> None:
    play(
        forge,
        """
        made = await asyncio.gather(*(Fast.as_actor(start=n) for n in range(4)))
        assert sorted(m.mesh_name for m in made) == ["counter", "counter-2", "counter-3", "counter-4"]
        assert [await m.state.call_one() for m in made] == [0, 1, 2, 3]
        await asyncio.gather(*(m.shutdown() for m in made))
        """,
    )


def test_launch_and_shutdown_can_be_overridden_together(forge: Forge) -> None:
    play(
        forge,
        """
        class Pair(Counter):
            @classmethod
            async def launch(cls, *args, **kwargs):
                helper = await Fast.options(mesh_name="helper").as_actor()
                handle = await super().launch(*args, **kwargs)
                await handle.keep.call(helper)
                cls.helpers = {handle.mesh_name: helper}
                return handle

            @classmethod
            async def shutdown(cls, actor):
                await super().shutdown(actor)
                await cls.helpers[actor.mesh_name].shutdown()

        P = Pair.options(preload=[])
        pair = await P.as_actor()
        assert await pair.ask_kept.call_one("add", 2) == [2]
        await P.shutdown(pair)
        home = forgectl.actor.driver.run_client.living_run_client()
        assert all(mesh.state == "stopped" for mesh in home._latest.values())
        """,
    )


def test_as_actor_cancelled_midway_leaves_nothing(forge: Forge) -> None:
    play(
        forge,
        """
        import json
        import subprocess

        def states():
            command = [sys.executable, "-m", "forgectl", "status", "--json"]
            [run] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)["runs"]
            return {m["mesh"]: (m["state"], [r["pid"] for r in m["ranks"]]) for m in run["meshes"]}

        keeper = await Fast.options(mesh_name="keeper").as_actor()
        Slow = SlowSetup.options(preload=[], procs=2, mesh_name="slow")
        task = asyncio.ensure_future(Slow.as_actor(str(HERE)))
        await exists("waiting-0", "waiting-1")
        pids = states()["slow"][1]
        task.cancel()
        await raised(asyncio.CancelledError, task)
        for wait in (0, 0.02, 0.05, 0.1, 0.2):
            await raised(asyncio.TimeoutError, asyncio.wait_for(Slow.as_actor(str(HERE)), wait))
            assert states().get("slow", ["stopped"])[0] == "stopped"
        assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
        (HERE / "go").touch()
        again = await Slow.as_actor(str(HERE))
        assert list((await again.add.call(1)).values()) == [1, 1]
        assert await keeper.add.call_one(1) == 1
        """,
    )


# ---------------------------------------------------------------- what is launched


def test_torch_distributed_in_an_actor_mesh(forge: Forge) -> None:
    pytest.importorskip("torch")
    play(
        forge,
        """
        r = await Reducer.options(procs=2, env={"OMP_NUM_THREADS": "1"}).as_actor()
        assert list((await r.reduce.call(10)).values()) == [30.0, 30.0]
        found = list((await r.names.call()).values())
        first = found[0]
        assert None not in first.values(), first
        assert [f["RANK"] for f in found] == ["0", "1"]
        assert [f["LOCAL_RANK"] for f in found] == ["0", "1"]
        assert (first["WORLD_SIZE"], first["LOCAL_WORLD_SIZE"], first["FORGE_MESH"]) == ("2", "2", "reducer")
        assert (first["TORCHELASTIC_RESTART_COUNT"], first["OMP_NUM_THREADS"]) == ("0", "1")
        assert first["MASTER_ADDR"] == "127.0.0.1"
        """,
    )


def test_spawned_ranks_and_their_env(forge: Forge) -> None:
    play(
        forge,
        """
        os.environ["FROM_HERE"] = "yes"
        for method in ("fork", "spawn"):
            c = await Fast.options(procs=2, start_method=method, env={"MINE": method}, mesh_name=method).as_actor(7)
            assert list((await c.env.call("MINE", "RANK")).values()) == [[method, "0"], [method, "1"]]
            assert list((await c.add.call(1)).values()) == [8, 8]
        """,
    )


def test_too_much_is_refused_and_leaves_the_run_usable(forge: Forge) -> None:
    play(
        forge,
        """
        error = await raised(ForgeError, Fast.options(procs=2, hosts=2).as_actor())
        assert "host" in str(error), error
        error = await raised(ForgeError, Fast.options(hosts=["gpu99"]).as_actor())
        assert "gpu99" in str(error), error
        error = await raised(ForgeError, Fast.options(python="/no/such/python").as_actor())
        assert "/no/such/python" in str(error), error
        error = await raised(ForgeError, Counter.options(preload=["no_such_module"]).as_actor())
        assert "cannot preload no_such_module" in str(error), error
        error = await raised(ForgeError, Counter.options(preload=["monarch.actor"]).as_actor())
        assert "cannot preload monarch.actor" in str(error) and "imports monarch" in str(error), error
        c = await Fast.as_actor()
        assert await c.add.call_one(1) == 1
        """,
    )


@pytest.mark.parametrize("how", ["launch", "call", "shutdown"])
def test_nothing_is_printed_by_us(forge: Forge, how: str) -> None:
    result = play(
        forge,
        f"""
        c = await Fast.options(procs=2).as_actor()
        if {how != "launch"}:
            await c.add.call(1)
        if {how == "shutdown"}:
            await c.shutdown()
        """,
    )
    assert (result.stdout, result.stderr) == ("", "")

"""What test_actors.py has scripts do that launch actors."""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

import forgectl
from forgectl import ActorDied, ForgeActor, ForgeError, endpoint
from forgectl.actor.handle import ActorHandle
from forgectl.errors import BusyError, ServiceStopped
from players import Counter, Reducer, SlowSetup
from playing import HERE, Fast, exists, own_run, pids_of, play, raised, refused


async def ranks_know_who_they_are_without_super_init() -> None:
    counter = await Fast.options(procs=3, mesh_name="trio").as_actor(start=5)
    found = list((await counter.whoami.call()).values())
    assert [f["rank"] for f in found] == [0, 1, 2]
    assert {(f["size"], f["mesh"]) for f in found} == {(3, "trio")}
    assert len({f["pid"] for f in found} | {os.getpid()}) == 4
    assert list((await counter.add.call(k=2)).values()) == [7, 7, 7]
    assert counter.mesh_name == "trio"


async def a_rank_logs_its_name_and_leaves_the_root_logger_alone() -> None:
    class Own(Counter):
        @endpoint
        def root(self) -> int:
            return len(logging.getLogger().handlers)

        @endpoint
        def configure(self) -> None:
            logging.basicConfig(level=logging.INFO, format="MINE %(message)s")

    own = await Own.options(procs=2, preload=[]).as_actor()
    before = (len(logging.getLogger().handlers), logging.getLogger().level)
    await own.say.call("first")
    assert set((await own.root.call()).values()) == {0}
    await own.configure.call()
    await own.say.call("second")
    assert before == (len(logging.getLogger().handlers), logging.getLogger().level)


SECRET = 42


class Local(ForgeActor):
    @endpoint
    def give(self) -> tuple[int, str, bool]:
        """The last: whether this process has run the script."""
        return SECRET, type(self).__name__, hasattr(sys.modules["__main__"], "SECRET")


def a_class_of_the_script_itself() -> None:
    async def launch() -> tuple[int, str, bool]:
        local = await Local.options(preload=[]).as_actor()
        given: tuple[int, str, bool] = await local.give.call_one()
        return given

    assert asyncio.run(launch()) == (42, "Local", False)


async def current_rank_and_size() -> None:
    class Where(ForgeActor):
        @endpoint
        async def where(self) -> tuple[dict[str, int], dict[str, int]]:
            return dict(forgectl.current_rank()), dict(forgectl.current_size())

    where = await Where.options(procs=2, preload=[]).as_actor()
    assert list((await where.where.call()).values()) == [({"procs": n}, {"procs": 2}) for n in range(2)]


async def every_way_to_call() -> None:
    c = await Fast.options(procs=4).as_actor(start=1)
    values = await c.add.call(2)
    assert type(values).__name__ == "ValueMesh"
    assert [v for _, v in values.items()] == [3] * 4
    assert values.item(procs=2) == 3
    assert len(c) == 4 and c.size == 4

    error = await raised(ValueError, c.add.call_one(1))
    assert "counter.add.call_one needs one rank, but the handle has 4" in str(error)
    first = c.slice(procs=0)
    assert len(first) == 1 and first.size == 1
    assert await first.add.call_one(10) == 13
    assert list((await c.state.call()).values()) == [13, 3, 3, 3]

    part = c.slice(procs=slice(1, 4))
    assert len(part) == 3
    assert list((await part.add.call(1)).values()) == [4, 4, 4]
    assert await part.slice(procs=2).add.call_one(1) == 5  # rank 3
    assert list((await c.state.call()).values()) == [13, 4, 4, 5]
    for wrong in ({"procs": 4}, {"procs": -1}, {"hosts": 0}, {"procs": slice(9, 12)}):
        error = refused(ValueError, functools.partial(c.slice, **wrong))
        assert "counter" in str(error)

    ranks = {(await c.whoami.choose())["rank"] for _ in range(60)}
    assert len(ranks) > 1 and ranks <= {0, 1, 2, 3}

    c.add.broadcast(100)
    assert min((await c.state.call()).values()) > 100  # in order: the call comes after it

    assert sorted([value["rank"] async for value in c.whoami.stream()]) == [0, 1, 2, 3]

    assert list((await c.add_plain.call(0)).values()) == list((await c.state.call()).values())
    for call in (c.add.route, c.add.fanout):
        missing = refused(NotImplementedError, functools.partial(call, 1))
        assert "use call, call_one or choose" in str(missing)
    assert "use add.call" in str(refused(TypeError, lambda: c.add(1)))


async def an_unknown_endpoint_names_the_nearest() -> None:
    c = await Fast.as_actor()
    for name, text in {"ad": "did you mean 'add'", "helper": "Counter.helper is not marked @endpoint"}.items():
        error = refused(AttributeError, functools.partial(getattr, c, name))
        assert text in str(error) and "add(k: int = 1) -> int" in str(error), error
    assert not hasattr(c, "__len") and not hasattr(c, "nothing")


async def ordinary_exceptions_leave_the_actor_alive() -> None:
    c = await Fast.options(procs=2).as_actor(start=3)
    before = list((await c.whoami.call()).values())
    error: Exception
    failing: Any
    for failing in (c.fail, c.fail_plain):
        error = await raised(ValueError, failing.call())
        assert str(error) == "no 3"
        remote = str(error.__cause__)
        assert "players.py" in remote and 'raise ValueError(f"no {self.n}")' in remote, remote
        shown = "".join(traceback.format_exception(error))
        assert shown.count("players.py") == 1, shown
    assert type(await raised(ValueError, c.slice(procs=1).fail.call_one())) is ValueError
    assert type(await raised(TypeError, c.add.call(1, 2, 3))) is TypeError  # type: ignore[call-arg]
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

    async def streamed() -> None:
        value: object
        async for value in c.fail.stream():
            raise AssertionError(value)

    assert str(await raised(ValueError, streamed())) == "no 3"
    c.fail.broadcast()
    assert list((await c.whoami.call()).values()) == before


async def arguments_and_values_that_cannot_be_pickled_are_the_callers_error() -> None:
    class Odd(Counter):
        @endpoint
        async def lock(self) -> Any:
            return threading.Lock()

    c = await Odd.options(preload=[]).as_actor()
    await raised(TypeError, c.add.call_one(threading.Lock()))  # type: ignore[arg-type]
    error = await raised(Exception, asyncio.wait_for(c.lock.call_one(), 20))
    assert "pickle" in str(error) or "pickle" in str(error.__cause__), repr(error)
    assert await c.add.call_one(1) == 1


async def a_deadline_ends_the_call_and_not_the_rank() -> None:
    c = await Fast.options(procs=2).as_actor()
    late = c.options(timeout=0.2)

    class Napper(Counter):
        @endpoint
        async def nap(self, folder: str) -> str:
            while not (Path(folder) / "wake").exists():
                await asyncio.sleep(0.01)
            return "slept"

    n = await Napper.options(preload=[], procs=2).as_actor()
    await raised(TimeoutError, n.options(timeout=0.1).nap.call(str(HERE)))
    await raised(TimeoutError, n.slice(procs=1).options(timeout=0.1).nap.call_one(str(HERE)))
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


async def a_rank_runs_one_endpoint_at_a_time_in_order() -> None:
    class Order(ForgeActor):
        def __init__(self) -> None:
            self.log: list[int] = []
            self.inside = 0

        @endpoint
        async def later(self, k: int) -> None:
            self.inside += 1
            assert self.inside == 1
            await asyncio.sleep(0.001)
            self.log.append(k)
            self.inside -= 1

        @endpoint
        def plain(self, k: int) -> None:
            self.inside += 1
            assert self.inside == 1
            self.log.append(k)
            self.inside -= 1

        @endpoint
        async def read(self) -> list[int]:
            return self.log

    order = await Order.options(preload=[], procs=2).as_actor()
    await asyncio.gather(*((order.later if k % 3 else order.plain).call(k) for k in range(100)))
    assert list((await order.read.call()).values()) == [list(range(100))] * 2


def calls_from_several_event_loops_and_threads() -> None:
    async def launch() -> Counter:
        return await Fast.options(procs=2).as_actor()

    async def use(c: Counter) -> list[int]:
        return list((await c.add.call(1)).values())

    c = asyncio.run(launch())
    assert asyncio.run(use(c)) == [1, 1]
    assert asyncio.run(use(c)) == [2, 2]
    found: list[list[int]] = []
    threads = [threading.Thread(target=lambda: found.append(asyncio.run(use(c)))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [[n, n] for n in range(3, 7)], found

    async def cancelled() -> asyncio.Task[Any]:
        task = asyncio.create_task(c.hang.call(str(HERE / "hangs")))
        await exists("hangs-0", "hangs-1")
        return task

    assert asyncio.run(cancelled()).cancelled()  # asyncio.run cancels what is left

    async def end() -> ActorDied:
        await c.shutdown()
        return await raised(ActorDied, c.add.call(1))

    assert asyncio.run(end()).mesh == "counter"


async def a_handle_works_in_other_actors_and_comes_back() -> None:
    a = await Fast.options(procs=2, mesh_name="a").as_actor(start=1)
    b = await Fast.options(procs=2, mesh_name="b").as_actor()
    assert sorted(v for found in (await b.ask.call(a, "add", 1)).values() for v in found) == [2, 2, 3, 3]
    assert list((await a.state.call()).values()) == [3, 3]
    await b.keep.call(a.slice(procs=1))
    [[kept], _] = (await b.ask_kept.call("whoami")).values()
    assert kept["rank"] == 1
    theirs: Any
    own: Any
    theirs, own = await b.slice(procs=0).give.call_one()
    assert (theirs.mesh_name, len(theirs), own.mesh_name) == ("a", 1, "b")
    assert await theirs.add.call_one(1) == 4
    assert list((await own.state.call()).values()) == [0, 0]
    error: Exception = await raised(ValueError, b.ask.call(a, "fail"))
    assert "players.py" in str(error.__cause__)
    error = await raised(AttributeError, b.ask.call(a, "ad"))
    assert "did you mean 'add'" in str(error)
    await theirs.shutdown()  # it is the driver's again
    await raised(ActorDied, a.add.call(1))


async def an_actor_may_call_itself() -> None:
    c = await Fast.options(procs=2).as_actor()
    assert list((await asyncio.wait_for(c.ask_self.call(3), 20)).values()) == [3, 3]


async def an_actor_that_holds_a_handle_learns_of_a_death_and_follows_the_restart() -> None:
    a = await Fast.options(procs=2, mesh_name="a", restart=1).as_actor()
    b = await Fast.options(mesh_name="b").as_actor()
    await b.keep.call(a)
    waiting = asyncio.ensure_future(b.died.call_one("hang", str(HERE / "hangs")))
    await exists("hangs-0", "hangs-1")
    told = asyncio.ensure_future(raised(ActorDied, a.hang.call()))
    os.kill(pids_of("a")[1], signal.SIGKILL)
    mesh, rank, number, text = await waiting
    assert (mesh, rank, number) == ("a", 1, signal.SIGKILL), text
    await told
    assert list((await a.add.call(1)).values()) == [1, 1]
    assert await b.ask_kept.call_one("add", 1) == [2, 2]
    await raised(ActorDied, a.die.call("_exit", 1))
    for _ in range(2):
        mesh, rank, number, text = await b.died.call_one("add", 1)
        assert (mesh, rank, number) == ("a", 1, None) and "exited with code 7" in text, text


async def shutdown_twice_and_the_same_name_again() -> None:
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
        death = await raised(ActorDied, c.add.call(1))
        assert death.mesh == "same"
        c.add.broadcast(1)


async def a_block_ends_its_mesh_or_service() -> None:
    async with await Fast.options(procs=2).as_actor(start=1) as c:
        assert list((await c.add.call(1)).values()) == [2, 2]
    await raised(ActorDied, c.add.call(1))
    service = await Fast.options(num_replicas=2, mesh_name="svc").as_service()

    async def leave_by_an_error() -> None:
        async with service as s:
            assert s is service and await s.add.fanout(1) == [1, 1]
            raise KeyError("of the block")

    assert "of the block" in str(await raised(KeyError, leave_by_an_error()))
    await raised(ServiceStopped, service.add.route(1))
    assert all(mesh.state == "stopped" for mesh in own_run()._latest.values())


async def unnamed_meshes_of_one_class_are_numbered() -> None:
    made = await asyncio.gather(*(Fast.as_actor(start=n) for n in range(4)))
    assert sorted(m.mesh_name for m in made) == ["counter", "counter-2", "counter-3", "counter-4"]
    assert [await m.state.call_one() for m in made] == [0, 1, 2, 3]
    await asyncio.gather(*(m.shutdown() for m in made))


async def launch_and_shutdown_can_be_overridden_together() -> None:
    class Pair(Counter):
        helpers: dict[str, Counter] = {}

        @classmethod
        async def launch(cls, *args: Any, **kwargs: Any) -> ActorHandle:
            helper = await Fast.options(mesh_name="helper").as_actor()
            handle = await super().launch(*args, **kwargs)
            await handle.keep.call(helper)
            cls.helpers[handle.mesh_name] = helper
            return handle

        @classmethod
        async def shutdown(cls, actor: Any) -> None:  # type: ignore[override]
            await super().shutdown(actor)
            await cls.helpers[actor.mesh_name].shutdown()

    P = Pair.options(preload=[])
    pair = await P.as_actor()
    assert await pair.ask_kept.call_one("add", 2) == [2]
    await P.shutdown(pair)
    assert all(mesh.state == "stopped" for mesh in own_run()._latest.values())


async def as_actor_cancelled_midway_leaves_nothing() -> None:
    def states() -> dict[str, tuple[str, list[int]]]:
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
        assert states().get("slow", ("stopped", []))[0] == "stopped"
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    (HERE / "go").touch()
    again = await Slow.as_actor(str(HERE))
    assert list((await again.add.call(1)).values()) == [1, 1]
    assert await keeper.add.call_one(1) == 1


async def torch_distributed_in_an_actor_mesh() -> None:
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


async def spawned_ranks_and_their_env() -> None:
    os.environ["FROM_HERE"] = "yes"
    for method in ("fork", "spawn"):
        c = await Fast.options(procs=2, start_method=method, env={"MINE": method}, mesh_name=method).as_actor(7)
        assert list((await c.env.call("MINE", "RANK")).values()) == [[method, "0"], [method, "1"]]
        assert list((await c.add.call(1)).values()) == [8, 8]


async def too_much_is_refused_and_leaves_the_run_usable() -> None:
    error = await raised(ForgeError, Fast.options(procs=2, hosts=2).as_actor())
    assert "host" in str(error), error
    error = await raised(ForgeError, Fast.options(hosts=["gpu99"]).as_actor())
    assert "gpu99" in str(error), error
    error = await raised(ForgeError, Fast.options(python="/no/such/python").as_actor())
    assert "/no/such/python" in str(error), error
    error = await raised(ForgeError, Counter.options(preload=["no_such_module"]).as_actor())
    assert "has no no_such_module, which `preload` names" in str(error), error
    error = await raised(ForgeError, Counter.options(preload=["monarch.actor"]).as_actor())
    assert "cannot preload monarch.actor" in str(error) and "imports monarch" in str(error), error
    c = await Fast.as_actor()
    assert await c.add.call_one(1) == 1


async def nothing_is_printed_by_us(how: str) -> None:
    c = await Fast.options(procs=2).as_actor()
    if how != "launch":
        await c.add.call(1)
    if how == "shutdown":
        await c.shutdown()


if __name__ == "__main__":
    play(globals())

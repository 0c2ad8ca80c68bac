"""What test_life.py has scripts do with actors from their constructor to their end."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import gc
import inspect
import os
import signal
import time
from pathlib import Path
from typing import Any, NoReturn

import forgectl
from forgectl import ActorDied, ForgeActor, endpoint
from forgectl.actor.driver.run_client import living_run_client
from forgectl.errors import ServiceStopped
from playing import HERE, exists, own_run, pids_of, play, raised, refused


def note(text: str) -> None:
    """Add a line to what the test reads."""
    with (HERE / "notes").open("a") as file:
        file.write(f"{text}\n")


def notes() -> list[str]:
    """What ranks have noted, sorted."""
    path = HERE / "notes"
    return sorted(path.read_text().splitlines()) if path.exists() else []


class Plain(ForgeActor):
    """Its cleanup is no coroutine."""

    def __init__(self) -> None:
        atexit.register(note, f"atexit {self.rank}")

    def setup(self) -> Any:
        """Not marked as an endpoint."""
        self.ready = True

    def __cleanup__(self, exc: Exception | None) -> Any:
        note(f"cleanup {self.rank} {type(exc).__name__} {getattr(exc, 'by', '')}{getattr(exc, 'rank', '')}")

    @endpoint
    def is_ready(self) -> bool:
        return self.ready

    @endpoint
    def hold(self, mark: str) -> NoReturn:
        """Never returns, and holds its thread."""
        Path(HERE / f"{mark}-{self.rank}").touch()
        while True:
            time.sleep(1)

    @endpoint
    async def hold_loop(self, mark: str) -> NoReturn:
        """Never returns, and holds the event loop."""
        Path(HERE / f"{mark}-{self.rank}").touch()
        while True:
            time.sleep(1)  # noqa: ASYNC251 (that is what it is for)

    @endpoint
    async def wait(self, mark: str) -> None:
        """Waits until it is cancelled."""
        Path(HERE / f"{mark}-{self.rank}").touch()
        try:
            await asyncio.Event().wait()
        finally:
            note(f"cancelled {self.rank}")


class Async(Plain):
    """Its cleanup is a coroutine, and needs the event loop of its endpoints."""

    async def setup(self) -> None:
        self.ready = True
        self.over = asyncio.Event()
        self.task = asyncio.create_task(self.over.wait())

    async def __cleanup__(self, exc: Exception | None) -> None:
        self.over.set()
        await self.task
        super().__cleanup__(exc)


class Fails(Plain):
    def __cleanup__(self, exc: Exception | None) -> None:
        raise ValueError("no cleanup today")


class Hangs(Plain):
    def __cleanup__(self, exc: Exception | None) -> None:
        note(f"cleanup {self.rank}")
        time.sleep(1000)


class OwnHandler(Plain):
    def __init__(self) -> None:
        super().__init__()
        signal.signal(signal.SIGTERM, self.on_term)

    def on_term(self, *_: object) -> None:
        note("own handler")
        os._exit(0)


class Forks(Plain):
    @endpoint
    def fork(self) -> int:
        """A child that has to die at SIGTERM like any other."""
        if (pid := os.fork()) == 0:
            while True:
                time.sleep(1)
        return pid

    @endpoint
    def ended(self, pid: int) -> int:
        os.kill(pid, signal.SIGTERM)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


class FailsInSetup(Plain):
    def setup(self) -> None:
        raise LookupError("no data")


class Infers(ForgeActor):
    """Enters inference mode in its constructor, and a default device in `setup`."""

    def __init__(self) -> None:
        import torch

        self.entered = torch.inference_mode()
        self.entered.__enter__()

    def setup(self) -> None:
        import torch

        torch.set_default_device("meta")

    def look(self) -> tuple[bool, bool, str]:
        import torch

        made = torch.ones(2)
        return made.is_inference(), torch.is_grad_enabled(), made.device.type

    @endpoint
    def plain(self) -> tuple[bool, bool, str]:
        return self.look()

    @endpoint
    async def is_async(self) -> tuple[bool, bool, str]:
        return self.look()


CLASSES: dict[str, Any] = {
    c.__name__: c.options(preload=[]) for c in (Plain, Async, Fails, FailsInSetup, Hangs, OwnHandler, Forks)
}


def _cleaned(by: str, *ranks: int) -> list[str]:
    return sorted(line for rank in ranks for line in (f"atexit {rank}", f"cleanup {rank} {by}"))


async def a_handle_ends_its_mesh(name: str) -> None:
    handle = await CLASSES[name].options(procs=2).as_actor()
    assert list((await handle.is_ready.call()).values()) == [True, True]
    await handle.shutdown()
    assert notes() == _cleaned("NoneType ", 0, 1)


async def a_class_without_setup_has_one() -> None:
    handle = await CLASSES["Plain"].options(procs=2).as_actor()
    assert list((await handle.setup.call()).values()) == [None, None]

    class Bare(ForgeActor):
        pass

    bare = await Bare.options(preload=[]).as_actor()
    assert await bare.setup.call_one() is None


async def a_spawned_rank_cleans_up_too() -> None:
    async with await CLASSES["Async"].options(start_method="spawn").as_actor() as handle:
        assert await handle.is_ready.call_one()
    assert notes() == _cleaned("NoneType ", 0)


async def what_setup_began_is_cleaned_up_if_it_fails() -> None:
    error = await raised(LookupError, CLASSES["FailsInSetup"].options(procs=2).as_actor())
    assert str(error) == "no data"
    assert notes() == _cleaned("ActorDied None", 0, 1), notes()


async def cleanup_runs_while_an_endpoint_does(name: str, how: str) -> None:
    handle = await CLASSES[name].as_actor()
    call = getattr(handle, how).call_one("mark")
    await exists("mark-0")
    await handle.shutdown()
    await raised(ActorDied, call)
    cancelled = ["cancelled 0"] if how == "wait" else []
    assert notes() == sorted(_cleaned("NoneType ", 0) + cancelled), notes()


async def the_rest_cleans_up_after_a_death(name: str) -> None:
    handle = await CLASSES[name].options(procs=3).as_actor()
    os.kill(pids_of(handle.mesh_name)[1], signal.SIGKILL)
    await raised(ActorDied, handle.setup.call())
    await handle.shutdown()
    assert notes() == _cleaned("ActorDied 1", 0, 2), notes()


async def sigterm_of_somebody_else_is_a_death() -> None:
    handle = await CLASSES["Async"].options(restart=1).as_actor()
    os.kill(pids_of(handle.mesh_name)[0], signal.SIGTERM)
    error = await raised(ActorDied, handle.wait.call("mark"))
    assert error.rank_exit_code == 128 + signal.SIGTERM
    assert await handle.is_ready.call_one()
    found = [line for line in notes() if line != "cancelled 0"]
    assert found == _cleaned("MeshStopped SIGTERM", 0), found


async def a_failing_cleanup_is_logged() -> None:
    handle = await CLASSES["Fails"].as_actor()
    await handle.shutdown()
    assert notes() == ["atexit 0"]


async def a_cleanup_that_hangs_has_the_grace() -> None:
    handle = await CLASSES["Hangs"].as_actor()
    await handle.shutdown(grace=0.5)
    assert notes() == ["cleanup 0"]


async def a_second_sigterm_shows_where_it_hangs() -> None:
    handle = await CLASSES["Hangs"].as_actor()
    [pid] = pids_of(handle.mesh_name)
    ending = handle.shutdown(grace=60)
    while notes() != ["cleanup 0"]:
        await asyncio.sleep(0.005)
    os.kill(pid, signal.SIGTERM)
    log = own_run().run.log(handle.mesh_name, 0, 0)
    while "in __cleanup__" not in log.read_text():
        await asyncio.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    await ending
    assert notes() == ["cleanup 0"]


async def a_handler_of_the_user_wins() -> None:
    handle = await CLASSES["OwnHandler"].as_actor()
    await handle.shutdown()
    assert notes() == ["own handler"]


async def a_child_of_a_rank_dies_of_sigterm() -> None:
    handle = await CLASSES["Forks"].as_actor()
    child = await handle.fork.call_one()
    assert await handle.ended.call_one(child) == -signal.SIGTERM
    assert await handle.is_ready.call_one()
    assert notes() == []


async def with_ends_a_mesh() -> None:
    async with await CLASSES["Plain"].as_actor() as handle:
        assert await handle.is_ready.call_one()
        assert "async with" in str(refused(RuntimeError, handle.__enter__))
    await raised(ActorDied, handle.is_ready.call_one())
    assert notes() == _cleaned("NoneType ", 0)
    with contextlib.suppress(KeyError):
        async with await CLASSES["Plain"].as_service() as service:
            assert await service.is_ready.route()
            raise KeyError
    await raised(ServiceStopped, service.is_ready.route())


def with_ends_a_mesh_in_plain_code() -> None:
    try:
        with CLASSES["Plain"].options(procs=2).as_actor().get() as handle:
            assert handle.is_ready.call().get().get(1)
            raise KeyError
    except KeyError:
        pass
    assert notes() == _cleaned("NoneType ", 0, 1)
    with CLASSES["Plain"].as_service().get() as service:
        assert service.is_ready.route().get()
    assert len(notes()) == 6


async def shutdown_ends_the_run_and_the_next_launch_begins_another() -> None:
    await forgectl.shutdown()  # of nothing
    handle = await CLASSES["Plain"].as_actor()
    service = await CLASSES["Plain"].as_service()
    waits, first = handle.wait.call("mark"), own_run()
    await exists("mark-0")
    await forgectl.shutdown()
    await raised(ActorDied, waits)
    await raised(ServiceStopped, service.is_ready.route())
    assert not first.run.control_socket.exists() and living_run_client() is None
    assert notes() == sorted([*_cleaned("NoneType ", 0), *_cleaned("NoneType ", 0), "cancelled 0"])
    again = await CLASSES["Plain"].as_actor()
    assert await again.is_ready.call_one()
    assert own_run().run.run != first.run.run
    await handle.shutdown()  # of the run that is over: nothing
    await forgectl.shutdown(grace=1)
    await forgectl.shutdown()


async def help_and_completion_know_the_endpoints() -> None:
    handle = await CLASSES["Plain"].as_actor()
    service = await CLASSES["Plain"].as_service()
    pair = await CLASSES["Plain"].options(procs=2).as_actor()
    for each in (handle, service):
        assert {"hold", "setup", "shutdown"} <= set(dir(each))
        assert each.hold.__doc__ == "Never returns, and holds its thread."
        assert str(inspect.signature(each.hold)) == "(mark: str) -> NoReturn"
    assert repr(handle) == "<Plain mesh plain, 1 rank>"
    assert repr(pair) == f"<Plain mesh {pair.mesh_name}, 2 ranks>"
    assert repr(handle.hold) == "<endpoint plain.hold(mark: str) -> NoReturn>"
    assert repr(service.hold) == f"<endpoint {service.name}.hold(mark: str) -> NoReturn>"


async def dropped_handles_keep_their_mesh() -> None:
    name = (await CLASSES["Plain"].as_actor()).mesh_name
    gc.collect()
    other = await CLASSES["Plain"].as_actor()
    assert other.mesh_name != name
    [pid] = pids_of(name)
    os.kill(pid, 0)


async def torchs_modes_of_setup_hold() -> None:
    handle = await Infers.options(procs=2).as_actor()
    for name in ("plain", "is_async", "plain"):
        assert list((await getattr(handle, name).call()).values()) == [(True, False, "meta")] * 2


async def stay(name: str, procs: str = "2") -> None:
    """Launch actors, say so, and wait to be interrupted."""
    await CLASSES[name].options(procs=int(procs)).as_actor()
    print("up", flush=True)
    await asyncio.Event().wait()


async def end(name: str) -> None:
    """A script that does not shut its actors down."""
    await CLASSES[name].as_actor()


if __name__ == "__main__":
    play(globals())

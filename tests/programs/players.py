"""Actors for tests. Tests copy this file into their working folder: scripts and specs import it from there."""

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NoReturn

from forgectl import ActorDied, ForgeActor, endpoint


class NeedsArguments(Exception):
    """Cannot be unpickled: its constructor wants more than `args`."""

    def __init__(self, code: int, *, where: str) -> None:
        super().__init__(f"{code} at {where}")
        self.code = code


class Unpicklable(Exception):
    """Cannot be pickled."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()


class Refusal(BaseException):
    """No Exception, and no exit."""


class Counter(ForgeActor):
    """Counts, tells of itself, and fails in every way. It forgets super().__init__(), which must not matter."""

    def __init__(self, start: int = 0) -> None:
        self.n = start

    @endpoint
    async def add(self, k: int = 1) -> int:
        self.n += k
        return self.n

    @endpoint
    def add_plain(self, k: int = 1) -> int:
        self.n += k
        return self.n

    @endpoint
    async def whoami(self) -> dict[str, Any]:
        return {"rank": self.rank, "size": self.size, "mesh": self.mesh.mesh_name, "pid": os.getpid()}

    @endpoint
    def env(self, *names: str) -> list[str | None]:
        return [os.environ.get(name) for name in names]

    @endpoint
    async def say(self, text: str) -> None:
        self.logger.info(text)
        print(f"printed {text}", flush=True)

    @endpoint
    async def fail(self, kind: str = "value") -> NoReturn:
        if kind == "value":
            raise ValueError(f"no {self.n}")
        if kind == "needs":
            raise NeedsArguments(7, where="here")
        if kind == "unpicklable":
            raise Unpicklable("held")
        if kind == "chained":
            try:
                raise KeyError("first")
            except KeyError as e:
                raise RuntimeError("second") from e
        if kind == "huge":
            raise ValueError("x" * 5_000_000)
        if kind == "stop":
            raise StopIteration("odd")
        raise AssertionError(kind)

    @endpoint
    def fail_plain(self) -> NoReturn:
        raise ValueError(f"no {self.n}")

    @endpoint
    async def hang(self, mark: str | None = None) -> None:
        """Never returns; leaves a file as soon as it runs."""
        if mark:
            Path(f"{mark}-{self.rank}").touch()
        await asyncio.Event().wait()

    @endpoint
    def block(self, mark: str) -> NoReturn:
        """Never returns, and holds its thread."""
        Path(f"{mark}-{self.rank}").touch()
        while True:
            time.sleep(1)

    @endpoint
    async def die(self, how: str, rank: int = 0) -> None:
        """End the process in some way, on one rank; the others hang."""
        if self.rank != rank:
            await asyncio.Event().wait()
        print(f"last words of {self.rank}", flush=True)
        leave(how)

    @endpoint
    def die_plain(self, how: str) -> None:
        leave(how)

    @endpoint
    async def ask(self, other: ForgeActor, name: str, *args: Any) -> list[Any]:
        """Call another mesh."""
        return list((await getattr(other, name).call(*args)).values())

    @endpoint
    async def keep(self, other: ForgeActor) -> None:
        self.other = other

    @endpoint
    async def ask_kept(self, name: str, *args: Any) -> list[Any]:
        return list((await getattr(self.other, name).call(*args)).values())

    @endpoint
    async def died(self, name: str, *args: Any) -> tuple[str | None, int | None, int | None, str]:
        """What a call of the kept handle is told, which must not return."""
        try:
            await getattr(self.other, name).call(*args)
        except ActorDied as e:
            return e.mesh, e.rank, e.signal, str(e)
        raise AssertionError("it returned")

    @endpoint
    async def give(self) -> tuple[ForgeActor, ForgeActor]:
        """The handle that it was given, and its own mesh's."""
        return self.other, self.mesh

    @endpoint
    async def ask_self(self, depth: int) -> int:
        """Call one's own rank while one's own call runs."""
        if depth == 0:
            return 0
        deeper: int = await self.mesh.slice(procs=self.rank).ask_self.call_one(depth - 1)
        return 1 + deeper

    @endpoint
    async def state(self) -> int:
        return self.n

    @endpoint
    async def count(self, n: int) -> AsyncIterator[int]:
        """Yield so many numbers, and count them."""
        for i in range(n):
            self.n += 1
            yield i

    def helper(self) -> None:
        """Not an endpoint."""


def leave(how: str) -> NoReturn:
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
        threading.Event().wait()  # the signal may come to another thread, which takes its time
    elif how == "segv":
        os.kill(os.getpid(), signal.SIGSEGV)
        threading.Event().wait()
    elif how == "_exit":
        os._exit(7)
    elif how == "SystemExit":
        raise SystemExit(9)
    elif how == "sys.exit":
        sys.exit("cannot go on")
    elif how == "KeyboardInterrupt":
        raise KeyboardInterrupt
    elif how == "Refusal":
        raise Refusal("not this one")
    raise AssertionError(how)


class Lasting(Counter):
    """Its count outlives a generation: `setup` reads it from a file, and notes that it was there."""

    def __init__(self, path: str, fail_after: int | None = None) -> None:
        super().__init__()
        self.path = Path(path)
        self.fail_after = fail_after

    @endpoint
    async def setup(self) -> None:
        generation = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
        with self.path.open("a") as file:
            file.write(f"setup {generation} {self.rank}\n")
        if self.fail_after is not None and generation > self.fail_after:
            raise RuntimeError(f"generation {generation} will not do")

    @endpoint
    async def note(self, text: str) -> None:
        with self.path.open("a") as file:
            file.write(f"{text} {self.rank}\n")


class BadStart(Counter):
    """Its constructor raises, on one rank or all."""

    def __init__(self, how: str = "value", rank: int | None = None) -> None:
        super().__init__()
        if rank is not None and rank != self.rank:
            return
        if how == "value":
            raise ValueError("no such model")
        if how == "needs":
            raise NeedsArguments(7, where="start")
        leave(how)


class BadSetup(Counter):
    """Its `setup` raises, plain or async."""

    @endpoint
    def setup(self) -> None:
        raise LookupError(f"rank {self.rank} finds no data")


class DeadSetup(Counter):
    @endpoint
    async def setup(self) -> None:
        if self.rank == self.size - 1:
            os._exit(3)
        await asyncio.Event().wait()


class SlowSetup(Counter):
    """Waits in `setup` until a file is there; says that it waits by another."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = Path(folder)

    @endpoint
    async def setup(self) -> None:
        (self.folder / f"waiting-{self.rank}").touch()
        while not (self.folder / "go").exists():
            await asyncio.sleep(0.01)


class Reducer(ForgeActor):
    """Meets the other ranks of its mesh in an all_reduce."""

    @endpoint
    def setup(self) -> None:
        import torch.distributed as dist

        dist.init_process_group("gloo")

    @endpoint
    def reduce(self, x: float) -> float:
        import torch
        import torch.distributed as dist

        value = torch.tensor([float(x) * (self.rank + 1)])
        dist.all_reduce(value)
        return float(value.item())

    @endpoint
    def names(self) -> dict[str, str | None]:
        names = """
            RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE GROUP_RANK GROUP_WORLD_SIZE ROLE_RANK ROLE_WORLD_SIZE ROLE_NAME
            MASTER_ADDR MASTER_PORT TORCHELASTIC_RESTART_COUNT TORCHELASTIC_MAX_RESTARTS TORCHELASTIC_RUN_ID
            TORCHELASTIC_USE_AGENT_STORE TORCHELASTIC_ERROR_FILE OMP_NUM_THREADS FORGE_RUN_ID FORGE_MESH FORGE_HOST
        """
        return {name: os.environ.get(name) for name in names.split()}


class NotAnActor:
    pass

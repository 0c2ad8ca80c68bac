"""Actors for tests. Tests copy this file into their working folder: scripts and specs import it from there."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from pathlib import Path

from forgectl import ForgeActor, endpoint


class NeedsArguments(Exception):
    """Cannot be unpickled: its constructor wants more than `args`."""

    def __init__(self, code, *, where):
        super().__init__(f"{code} at {where}")
        self.code = code


class Unpicklable(Exception):
    """Cannot be pickled."""

    def __init__(self, text):
        super().__init__(text)
        self.lock = threading.Lock()


class Refusal(BaseException):
    """No Exception, and no exit."""


class Counter(ForgeActor):
    """Counts, tells of itself, and fails in every way. It forgets super().__init__(), which must not matter."""

    def __init__(self, start=0):
        self.n = start

    @endpoint
    async def add(self, k=1):
        self.n += k
        return self.n

    @endpoint
    def add_plain(self, k=1):
        self.n += k
        return self.n

    @endpoint
    async def whoami(self):
        return {"rank": self.rank, "size": self.size, "mesh": self.mesh.mesh_name, "pid": os.getpid()}

    @endpoint
    def env(self, *names):
        return [os.environ.get(name) for name in names]

    @endpoint
    async def say(self, text):
        self.logger.info(text)
        print(f"printed {text}", flush=True)

    @endpoint
    async def fail(self, kind="value"):
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
    def fail_plain(self):
        raise ValueError(f"no {self.n}")

    @endpoint
    async def hang(self, mark=None):
        """Never returns; leaves a file as soon as it runs."""
        if mark:
            Path(f"{mark}-{self.rank}").touch()
        await asyncio.Event().wait()

    @endpoint
    def block(self, mark):
        """Never returns, and holds its thread."""
        Path(f"{mark}-{self.rank}").touch()
        while True:
            time.sleep(1)

    @endpoint
    async def die(self, how, rank=0):
        """End the process in some way, on one rank; the others hang."""
        if self.rank != rank:
            await asyncio.Event().wait()
        print(f"last words of {self.rank}", flush=True)
        leave(how)

    @endpoint
    def die_plain(self, how):
        leave(how)

    @endpoint
    async def ask(self, other, name, *args):
        """Call another mesh."""
        return list((await getattr(other, name).call(*args)).values())

    @endpoint
    async def keep(self, other):
        self.other = other

    @endpoint
    async def ask_kept(self, name, *args):
        return list((await getattr(self.other, name).call(*args)).values())

    @endpoint
    async def died(self, name, *args):
        """What a call of the kept handle is told."""
        from forgectl import ActorDied

        try:
            await getattr(self.other, name).call(*args)
        except ActorDied as e:
            return e.mesh, e.rank, e.signal, str(e)

    @endpoint
    async def give(self):
        """The handle that it was given, and its own mesh's."""
        return self.other, self.mesh

    @endpoint
    async def ask_self(self, depth):
        """Call one's own rank while one's own call runs."""
        if depth == 0:
            return 0
        return 1 + await self.mesh.slice(procs=self.rank).ask_self.call_one(depth - 1)

    @endpoint
    async def state(self):
        return self.n

    def helper(self):
        """Not an endpoint."""


def leave(how):
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

    def __init__(self, path, fail_after=None):
        super().__init__()
        self.path = Path(path)
        self.fail_after = fail_after

    @endpoint
    async def setup(self):
        generation = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
        with self.path.open("a") as file:
            file.write(f"setup {generation} {self.rank}\n")
        if self.fail_after is not None and generation > self.fail_after:
            raise RuntimeError(f"generation {generation} will not do")

    @endpoint
    async def note(self, text):
        with self.path.open("a") as file:
            file.write(f"{text} {self.rank}\n")


class BadStart(Counter):
    """Its constructor raises, on one rank or all."""

    def __init__(self, how="value", rank=None):
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
    def setup(self):
        raise LookupError(f"rank {self.rank} finds no data")


class DeadSetup(Counter):
    @endpoint
    async def setup(self):
        if self.rank == self.size - 1:
            os._exit(3)
        await asyncio.Event().wait()


class SlowSetup(Counter):
    """Waits in `setup` until a file is there; says that it waits by another."""

    def __init__(self, folder):
        super().__init__()
        self.folder = Path(folder)

    @endpoint
    async def setup(self):
        (self.folder / f"waiting-{self.rank}").touch()
        while not (self.folder / "go").exists():
            await asyncio.sleep(0.01)


class Reducer(ForgeActor):
    """Meets the other ranks of its mesh in an all_reduce."""

    @endpoint
    def setup(self):
        import torch.distributed as dist

        dist.init_process_group("gloo")

    @endpoint
    def reduce(self, x):
        import torch
        import torch.distributed as dist

        value = torch.tensor([float(x) * (self.rank + 1)])
        dist.all_reduce(value)
        return value.item()

    @endpoint
    def names(self):
        names = """
            RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE GROUP_RANK GROUP_WORLD_SIZE ROLE_RANK ROLE_WORLD_SIZE ROLE_NAME
            MASTER_ADDR MASTER_PORT TORCHELASTIC_RESTART_COUNT TORCHELASTIC_MAX_RESTARTS TORCHELASTIC_RUN_ID
            TORCHELASTIC_USE_AGENT_STORE TORCHELASTIC_ERROR_FILE OMP_NUM_THREADS FORGE_RUN_ID FORGE_MESH FORGE_HOST
        """
        return {name: os.environ.get(name) for name in names.split()}


class NotAnActor:
    pass

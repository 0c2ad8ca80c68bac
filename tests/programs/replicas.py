"""Replicas of services for tests. Tests copy this file into their working folder: scripts and specs import it there."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NoReturn

from forgectl import ForgeActor, endpoint, service_endpoint


class Worker(ForgeActor):
    """One replica: tells of itself, notes what it runs in `folder`, and waits where it is told to."""

    def __init__(self, folder: str = ".", start: int = 0) -> None:
        super().__init__()
        self.folder = Path(folder)
        self.n = self.start = start
        self.name = os.environ["FORGE_MESH"]
        self.generation = int(os.environ["TORCHELASTIC_RESTART_COUNT"])

    def note(self, text: object, file: str = "notes") -> None:
        with (self.folder / file).open("a") as notes:
            notes.write(f"{text}\n")

    async def until(self, name: str) -> None:
        while not (self.folder / name).exists():
            await asyncio.sleep(0.005)

    @endpoint
    async def who(self) -> dict[str, Any]:
        mine = {"mesh": self.name, "pid": os.getpid(), "rank": self.rank, "size": self.size}
        return {**mine, "generation": self.generation, "start": self.start}

    @endpoint
    async def pid(self) -> int:
        return os.getpid()

    @endpoint
    async def add(self, k: int = 1) -> int:
        self.n += k
        return self.n

    @endpoint
    def add_plain(self, k: int = 1) -> int:
        self.n += k
        return self.n

    @endpoint
    async def each(self, text: object) -> int:
        """Note it, on each rank."""
        self.note(f"{text} {self.name} {self.rank}")
        return self.rank

    @endpoint
    async def fail(self, text: str = "no") -> NoReturn:
        raise ValueError(text)

    @endpoint
    async def hold(self, key: str, value: Any = None) -> Any:
        """Say where it runs in `at-KEY`, and return once `go-KEY` is there."""
        self.note(self.name, f"at-{key}")
        await self.until(f"go-{key}")
        return value

    @endpoint(idempotent=True)
    async def hold_safely(self, key: str, value: Any = None) -> Any:
        self.note(self.name, f"at-{key}")
        await self.until(f"go-{key}")
        return value

    @endpoint(idempotent=True)
    async def echo(self, k: int) -> tuple[int, int]:
        self.note(k)
        await asyncio.sleep(0.001)
        return k, os.getpid()

    @service_endpoint(router="least_loaded")
    async def where(self) -> str:
        return self.name

    @service_endpoint(batch_size=4, batch_timeout=30)
    async def double(self, xs: list[Any]) -> list[Any]:
        """Full batches alone: 30 s are beyond any test."""
        self.note(f"{self.name} {len(xs)}")
        if "bad" in xs:
            raise ValueError(f"bad among {xs}")
        return [2 * x for x in xs]

    @service_endpoint(batch_size=100, batch_timeout=0.02)
    def gather(self, xs: list[int], plus: list[int]) -> list[tuple[int, str]]:
        self.note(f"{self.name} {xs} {plus}")
        return [(x + p, self.name) for x, p in zip(xs, plus, strict=True)]

    @service_endpoint(batch_size=2, batch_timeout=30)
    async def too_few(self, xs: list[int]) -> list[int]:
        return xs[1:]

    @service_endpoint(batch_size=10, batch_timeout=0.01, idempotent=True)
    async def gather_safely(self, ks: list[int]) -> list[int]:
        for k in ks:
            self.note(k)
        await asyncio.sleep(0.001)
        return ks

    @service_endpoint(batch_size=4, batch_timeout=30)
    async def hold_batch(self, ks: list[int]) -> list[int]:
        self.note(self.name, "at-batch")
        await self.until("go-batch")
        return ks

    @endpoint(concurrent=True)
    async def tell(self, key: str) -> AsyncIterator[str]:
        """Yield where it runs, then wait until `go-KEY` is there; note the end in `end-KEY`."""
        try:
            yield f"{self.name} {self.rank}"
            await self.until(f"go-{key}")
            yield "last"
        finally:
            self.note(f"{self.name} {self.rank}", f"end-{key}")

    @endpoint
    async def ask(self, actor: ForgeActor, name: str, *args: Any) -> Any:
        return await getattr(actor, name).call_one(*args)

    @endpoint
    async def leave(self, code: int) -> NoReturn:
        raise SystemExit(code)


class SlowToComeBack(Worker):
    """From its second generation on it waits in `setup` until there is a file `come`."""

    @endpoint
    async def setup(self) -> None:
        if self.generation:
            self.note(self.name, "coming")
            await self.until("come")


class SecondFails(Worker):
    """The second replica does not start: its constructor raises, or its process ends in `setup`."""

    def __init__(self, folder: str, how: str) -> None:
        super().__init__(folder)
        self.how = how
        self.note(f"{os.getpid()}", "pids")
        if self.name.endswith(".1") and how == "raises":
            raise ValueError("the second has no data")

    @endpoint
    async def setup(self) -> None:
        if self.name.endswith(".1") and self.how == "dies":
            os._exit(5)
        if not self.name.endswith(".1") and self.how == "first waits":
            await self.until("never")
        if self.name.endswith(".1") and self.how == "first waits":
            raise LookupError("while the first is being set up")


class _Private(Worker):
    """A class whose name cannot be a mesh's as it is."""

"""A driver without its run: meshes over workers that the test started. Told what to do by lines of JSON."""

import asyncio
import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

import cloudpickle

from forgectl import ForgeActor, endpoint
from forgectl.actor.client import Client
from forgectl.actor.endpoint import interface_of
from forgectl.actor.engine import HostWorker, Tls
from forgectl.actor.foreign_mesh import ForeignMesh
from forgectl.actor.handle import ActorHandle
from forgectl.actor.shells import Shells
from forgectl.errors import ForgeError
from forgectl.protocol import Membership

RANK = "import os; os.environ.update(RANK='{}', WORLD_SIZE='{}'); from forgectl.actor.shell import serve; serve()"


class Spot(ForgeActor):
    """Says where it is."""

    @endpoint
    async def where(self) -> tuple[int, str, int]:
        return int(os.environ["RANK"]), socket.gethostname(), os.getpid()

    @endpoint
    async def ask(self, others: ActorHandle, name: str = "where") -> Any:
        """What the ranks of another mesh answer to this one."""
        return list((await getattr(others, name).call()).values())

    @endpoint
    async def secrets(self) -> list[str]:
        """Variables that would tell a rank who its host is to others."""
        return [name for name in os.environ if "TLS" in name]

    @endpoint
    async def wait(self) -> None:
        """For what never comes."""
        await asyncio.Event().wait()

    @endpoint
    async def first_raises(self) -> None:
        """All but rank 0, which raises, wait for what never comes."""
        if os.environ["RANK"] == "0":
            raise LookupError("nothing here")
        await asyncio.Event().wait()


class Driver:
    """The client, and what the test asks it to do."""

    def __init__(self, config: dict[str, Any]) -> None:
        tls = Tls(
            Membership(**config["identity"]), address=config.get("address", ""), gateway=config.get("gateway", "")
        )
        self.client = Client(Path(config["folder"]), tls)
        self.machine = config["machine"]  # the boot id of the driver's
        self.meshes: dict[str, Shells] = {}
        self.handles: dict[str, ActorHandle] = {}

    async def spawn(self, mesh: str, places: list[str | None], seconds: float = 60.0) -> list[tuple[int, str, int]]:
        """Launch a mesh, rank after rank at these workers (None: here); where its ranks are."""
        hosts = [HostWorker(place, sys.executable) if place else None for place in places]
        size = len(places)
        _, shells = self.client.spawn(
            mesh, 0, size, lambda rank: ["-c", RANK.format(rank, size)], lambda word: None, hosts
        )
        payload, errors = cloudpickle.dumps((Spot, (), {})), self.client.errors
        await shells.call(lambda s, n: s.construct.call(sys.path, mesh, None, payload, errors, n), seconds)
        self.meshes[mesh] = shells
        home = (self.machine, "/nowhere")
        self.handles[mesh] = ActorHandle(ForeignMesh(mesh, interface_of(Spot), size, home, 0, shells.monarchs))
        return await self.call(mesh, "where")

    async def call(self, mesh: str, name: str, other: str = "", *more: Any) -> Any:
        """Call an endpoint of all ranks, with the handle of another mesh as its argument where one is named."""
        args = (self.handles[other], *more) if other else ()
        shells = self.meshes[mesh]
        return list((await shells.call(lambda s, n: s.invoke.call(name, args, {}, (), n), 60.0)).values())

    async def end(self, mesh: str, reason: str) -> None:
        """The controller has said that a mesh has ended."""
        document = {"mesh": mesh, "state": "lost", "reason": reason, "generation": 0, "ranks": []}
        self.client.tell_of_end(0, document)

    async def slice(self, mesh: str, rank: int) -> Any:
        """Where one rank of a mesh is."""
        one = Shells(mesh, 0, self.meshes[mesh].monarchs.slice(procs=rank))
        return list((await one.call(lambda s, n: s.invoke.call("where", (), {}, (), n))).values())


async def main() -> None:
    """Do what each line asks, `[number, what, argument …]`, all at once; answer with its value or error's name."""
    lines = await _lines()
    try:
        driver = Driver(json.loads(await lines.readline()))
    except ForgeError as e:
        _say({"number": 0, "error": type(e).__name__, "text": str(e)})
        return
    tasks = [asyncio.create_task(driver.client.hear_errors())]
    _say({"number": 0, "value": "ready"})
    while line := await lines.readline():
        tasks.append(asyncio.create_task(_do(driver, *json.loads(line))))
    for task in tasks:
        task.cancel()


async def _do(driver: Driver, number: int, what: str, *arguments: Any) -> None:
    try:
        _say({"number": number, "value": await getattr(driver, what)(*arguments)})
    except Exception as e:
        _say({"number": number, "error": type(e).__name__, "text": str(e)})


async def _lines() -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    return reader


def _say(answer: Any) -> None:
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    asyncio.run(main())

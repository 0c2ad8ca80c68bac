"""Code that was written with Monarch's names, and Monarch's own meshes beside ours.

Monarch listens on abstract Unix sockets, to which every user of a machine may connect; they end at the border of a
network namespace. So whatever starts it here runs in one of its own.
"""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from tests.conftest import Forge, processes_with
from tests.process.actor_scripts import write

pytest.importorskip("monarch")

ALONE = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]


def play_alone(forge: Forge, body: str) -> None:
    """Run a script in a network namespace of its own, whose assertions must hold."""
    if os.getuid() != 0 or not shutil.which("ip"):
        pytest.fail("a network namespace takes root, and the package iproute2")
    script = write(forge, body)
    argv = [*ALONE, *forge.argv()[:1], str(script)]
    done = subprocess.run(argv, cwd=forge.folder, env=forge.env, capture_output=True, text=True, timeout=90)
    assert done.returncode == 0, done.stdout + done.stderr
    assert processes_with(f"FORGECTL_HOME={forge.home}") == {}


CLASS = """
import asyncio
from forgectl import ForgeActor
from monarch.actor import concurrent_endpoint, current_rank, current_size, endpoint


class Theirs(ForgeActor):
    def __init__(self):
        super().__init__()
        self.seen = asyncio.Event()

    @endpoint
    async def where(self, offset):
        return offset + current_rank()["procs"], current_rank().rank, dict(current_size())

    @endpoint
    def plain(self, word):
        return word * current_rank().rank

    @concurrent_endpoint
    async def wait(self):
        await self.seen.wait()
        return "seen"

    @endpoint
    async def see(self):
        self.seen.set()
"""


def test_monarchs_decorators_and_ranks(forge: Forge) -> None:
    forge.write("theirs.py", CLASS)
    play_alone(
        forge,
        """
        from theirs import Theirs

        actor = await Theirs.options(procs=2, preload=[]).as_actor()
        assert list((await actor.where.call(10)).values()) == [(10 + r, r, {"procs": 2}) for r in range(2)]
        assert list((await actor.plain.call("x")).values()) == ["", "x"]
        waiting = asyncio.ensure_future(actor.wait.call())
        await actor.see.call()  # it has its turn although the one before it waits
        assert list((await waiting).values()) == ["seen", "seen"]
        """,
    )


def test_monarchs_own_meshes_beside_ours(forge: Forge) -> None:
    forge.write("theirs.py", CLASS)
    forge.write(
        "plain_monarch.py",
        """
from monarch.actor import Actor, current_rank, endpoint


class Plain(Actor):
    @endpoint
    async def where(self):
        return current_rank().rank
""",
    )
    play_alone(
        forge,
        """
        from monarch.actor import this_host
        from plain_monarch import Plain
        from theirs import Theirs

        ours = await Theirs.options(procs=2, preload=[]).as_actor()
        procs = this_host().spawn_procs(per_host={"gpus": 3})
        plain = procs.spawn("plain", Plain)
        for _ in range(2):
            assert list((await plain.where.call()).values()) == [0, 1, 2]
            assert [v[1] for v in (await ours.where.call(0)).values()] == [0, 1]
        await ours.shutdown()
        assert list((await plain.where.call()).values()) == [0, 1, 2]
        await procs.stop()
        """,
    )


def test_nothing_of_ours_imports_it(forge: Forge) -> None:
    script = write(
        forge,
        """
        class Look(ForgeActor):
            @endpoint
            async def look(self):
                return sorted(m for m in sys.modules if m.partition(".")[0] == "monarch")

        look = await Look.options(preload=[]).as_actor()
        assert await look.look.call_one() == []
        assert not any(m.partition(".")[0] == "monarch" for m in sys.modules)
        """,
    )
    process = forge.python(script)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err

"""Python scripts with actors, outside any launch: each has a run of its own."""

from __future__ import annotations

import shutil
import subprocess
import textwrap
from pathlib import Path
from typing import Any

from tests.conftest import PROGRAMS, Forge, processes_with, until

HEAD = """
import asyncio
import os
import signal
import sys
from pathlib import Path

import forgectl
from forgectl import ActorDied, ForgeActor, endpoint
from forgectl.errors import BusyError, ForgeError
from players import *

Fast = Counter.options(preload=[])
HERE = Path(__file__).parent


async def exists(*names):
    while not all((HERE / name).exists() for name in names):
        await asyncio.sleep(0.005)


async def raised(kind, awaitable):
    try:
        got = await awaitable
    except kind as e:
        return e
    raise AssertionError(f"no {kind}, but {got!r}")


"""
MAIN = "async def main():\n{body}\n\n\nasyncio.run(asyncio.wait_for(main(), 60))\n"


def bring(forge: Forge) -> None:
    """Copy the module of actors to where scripts and specs find it."""
    shutil.copy(PROGRAMS / "players.py", forge.folder)


def write(forge: Forge, body: str, *, main: bool = True, name: str = "script.py") -> Path:
    """A script of the code that all begin with, and `body`, which with `main` is that of a coroutine."""
    bring(forge)
    text = textwrap.dedent(body)
    return forge.write(name, HEAD + (MAIN.format(body=textwrap.indent(text, "    ")) if main else text))


def play(forge: Forge, body: str, *, main: bool = True, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a script, whose assertions must hold, to its end; by then nothing of its run may be left."""
    process = forge.python(write(forge, body, main=main))
    out, err = process.communicate(timeout=90)
    assert process.returncode == code, f"{process.returncode}\n{out}\n{err}"
    assert processes_with(f"FORGECTL_HOME={forge.home}") == {}
    for run in forge.runs():
        assert forge.document(run)["ended_at"]
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def background(forge: Forge, body: str, *, main: bool = True, name: str = "script.py") -> subprocess.Popen[str]:
    """The same in the background; returns once it has said `up`."""
    process = forge.python(write(forge, body, main=main, name=name))
    assert process.stdout
    line = process.stdout.readline()
    if line != "up\n":
        process.kill()
        raise AssertionError(f"{line}{process.communicate()}")
    return process


def the_run(forge: Forge) -> str:
    """The only run there is."""
    [run] = forge.runs()
    return run


def ended(forge: Forge, run: str) -> dict[str, Any]:
    """The final document of a run that ends without being told to by a command, once all processes are gone."""
    until(lambda: not processes_with(f"FORGECTL_HOME={forge.home}"), f"the end of {run}")
    document = forge.document(run)
    assert document["ended_at"]
    return document

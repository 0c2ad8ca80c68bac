"""Python scripts with a service, outside any launch: what all of them begin with, and how they are run."""

from __future__ import annotations

import shutil
import subprocess
import textwrap
from typing import Any

from tests.conftest import PROGRAMS, Forge
from tests.process import actor_scripts
from tests.process.actor_scripts import MAIN, the_run

HEAD = """
import asyncio
import contextlib
import itertools
import os
import signal
import time
from collections import Counter as Counted

from forgectl.errors import NotFoundError, ServiceOverloaded, ServiceStopped, ServiceUnavailable
from replicas import *

W = Worker.options(preload=[], mesh_name="svc")
WHERE = str(HERE)


def soon(awaitable):
    return asyncio.ensure_future(awaitable)


async def until(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "it took too long"
        await asyncio.sleep(0.005)
    return value


def lines(name="notes"):
    return (HERE / name).read_text().splitlines() if (HERE / name).exists() else []


def go(*keys):
    for key in keys:
        (HERE / f"go-{key}").touch()


def seen(service, **wanted):
    '''Of each replica, in order, one of its numbers.'''
    [(name, values)] = wanted.items()
    return [r[name] for r in service.metrics()["replicas"]] == values


async def pids_of(service):
    return {w["mesh"]: w["pid"] for w in await service.who.fanout()}


async def kill(service, mesh, pid):
    '''Kill a replica, and wait until the service knows.'''
    os.kill(pid, signal.SIGKILL)
    await until(lambda: not next(r for r in service.metrics()["replicas"] if r["mesh"] == mesh)["healthy"])


async def healthy(service, *values):
    await until(lambda: seen(service, healthy=list(values)))


"""


def play(forge: Forge, body: str, *, main: bool = True) -> None:
    """Run a script with a service, whose assertions must hold, to its end; nothing may be left of it, nor be said."""
    result = actor_scripts.play(forge, _whole(forge, body, main=main), main=False)
    assert (result.stdout, result.stderr) == ("", ""), result.stdout + result.stderr


def background(forge: Forge, body: str) -> subprocess.Popen[str]:
    """The same in the background; returns once it has said `up`."""
    return actor_scripts.background(forge, _whole(forge, body, main=True), main=False)


def bring(forge: Forge) -> None:
    """Copy the module of replicas to where scripts and specs find it."""
    shutil.copy(PROGRAMS / "replicas.py", forge.folder)


def _whole(forge: Forge, body: str, *, main: bool) -> str:
    bring(forge)
    text = textwrap.dedent(body)
    return HEAD + (MAIN.format(body=textwrap.indent(text, "    ")) if main else text)


def meshes(forge: Forge) -> dict[str, dict[str, Any]]:
    """The meshes of the only run, by name."""
    return {m["mesh"]: m for m in forge.document(the_run(forge))["meshes"]}

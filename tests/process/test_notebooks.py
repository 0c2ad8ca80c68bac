"""Actors in Jupyter, IPython and a plain prompt: classes of a cell, `get()` and `await`, and Ctrl-C."""

from __future__ import annotations

import os
import pty
from collections.abc import Iterator
from typing import Any

import pytest
from jupyter_client.manager import KernelManager

from tests.conftest import Forge, processes_with, until
from tests.process.actor_scripts import meshes, the_run

CELL = """
import asyncio, os, pathlib, time
import forgectl
from forgectl import ForgeActor, endpoint

class Counter(ForgeActor):
    def __init__(self, start=0):
        self.n = start

    @endpoint
    def add(self, k=1):
        self.n += k
        return self.n

    @endpoint
    async def until(self, began, name):
        pathlib.Path(began).touch()
        while not os.path.exists(name):
            await asyncio.sleep(0.01)
        return name

    def __cleanup__(self, exc):
        pathlib.Path(f"cleaned-{self.rank}").touch()
"""


class Notebook:
    """A real kernel, with which a test talks as Jupyter does."""

    def __init__(self, forge: Forge) -> None:
        self.manager = KernelManager()
        self.manager.start_kernel(cwd=str(forge.folder), env=forge.env)
        self.client = self.manager.blocking_client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=60)

    def cell(self, code: str) -> str:
        """What a cell shows. Raises AssertionError with its traceback, if it raises."""
        shown: list[str] = []

        def hear(message: dict[str, Any]) -> None:
            content = message["content"]
            shown.append(content.get("text") or content.get("data", {}).get("text/plain") or "")

        reply = self.client.execute_interactive(code, timeout=60, output_hook=hear)["content"]
        assert reply["status"] == "ok", "\n".join(reply["traceback"])
        return "".join(shown).strip()

    def interrupted(self, forge: Forge, code: str) -> str:
        """The name of the error of a cell that is interrupted while it runs."""
        self.client.execute(f"pathlib.Path('waiting').touch()\n{code}")
        until((forge.folder / "waiting").exists, "the cell")
        self.manager.interrupt_kernel()
        self.client.kernel_info()  # ipykernel 7.4 notices an interrupt of a cell that awaits with the next message
        return str(self.client.get_shell_msg(timeout=60)["content"]["ename"])

    def close(self) -> None:
        self.client.stop_channels()
        if self.manager.has_kernel:
            self.manager.shutdown_kernel()


@pytest.fixture
def notebook(forge: Forge, monkeypatch: pytest.MonkeyPatch) -> Iterator[Notebook]:
    for name in ("JUPYTER_RUNTIME_DIR", "IPYTHONDIR", "JUPYTER_CONFIG_DIR"):
        monkeypatch.setenv(name, str(forge.folder / "jupyter"))
        forge.env[name] = str(forge.folder / "jupyter")
    made = Notebook(forge)
    try:
        made.cell(CELL)
        yield made
    finally:
        made.close()
        until(lambda: not processes_with(f"FORGECTL_HOME={forge.home}"), "the end of the kernel and its run")


def test_plain_cells_use_get(forge: Forge, notebook: Notebook) -> None:
    notebook.cell("counter = Counter.options(procs=2, preload=[]).as_actor(start=1).get()")
    assert notebook.cell("list(counter.add.call(2).get().values())") == "[3, 3]"
    assert notebook.cell("counter") == "<Counter mesh counter, 2 ranks>"
    notebook.cell("service = Counter.options(preload=[]).as_service().get()")
    assert notebook.cell("service.add.route().get()") == "1"
    assert (
        notebook.cell("with Counter.options(preload=[]).as_actor().get() as third: print(third.add.call_one().get())")
        == "1"
    )
    notebook.cell("forgectl.shutdown().get()")
    assert forge.document(the_run(forge))["ended_at"]
    assert (forge.folder / "cleaned-1").exists()


def test_cells_may_await_and_mix(forge: Forge, notebook: Notebook) -> None:
    notebook.cell("counter = await Counter.options(procs=2, preload=[]).as_actor()")
    assert notebook.cell("list((await counter.add.call(2)).values())") == "[2, 2]"
    assert notebook.cell("counter.add.call(1).get().get(1)") == "3"
    assert notebook.cell("call = counter.add.call(1)\nlist((await call).values()), call.get().get(0)") == "([4, 4], 4)"
    assert (
        notebook.cell("[v.get(0) for v in await asyncio.gather(*(counter.add.call() for _ in range(3)))]")
        == "[5, 6, 7]"
    )
    notebook.cell("late = asyncio.create_task(counter.add.call(1))")
    assert notebook.cell("(await late).get(0)") == "8"
    assert notebook.cell("async with counter: print(len(await counter.add.call()))") == "2"


@pytest.mark.parametrize("wait", ["call.get()", "await call", "await asyncio.shield(call)"])
def test_ctrl_c_ends_the_wait_and_not_the_mesh(forge: Forge, notebook: Notebook, wait: str) -> None:
    notebook.cell("counter = Counter.options(preload=[]).as_actor().get()")
    notebook.cell("call = counter.until.call_one('began', 'go')")
    until((forge.folder / "began").exists, "the endpoint")
    assert notebook.interrupted(forge, wait) in ("KeyboardInterrupt", "CancelledError")
    assert meshes(forge)["counter"]["state"] == "ready"
    (forge.folder / "go").touch()
    assert notebook.cell("counter.add.call_one().get()") == "1"
    if wait != "await call":
        assert notebook.cell("call.get()") == "'go'"


def test_ctrl_c_ends_a_launch(forge: Forge, notebook: Notebook) -> None:
    slow = "import pathlib\nclass Slow(Counter):\n  def setup(self): pathlib.Path('in setup').touch(); time.sleep(1000)"
    notebook.cell(slow)
    notebook.cell("launch = Slow.options(preload=[]).as_actor()")
    until((forge.folder / "in setup").exists, "setup")
    assert notebook.interrupted(forge, "await launch") in ("KeyboardInterrupt", "CancelledError")
    until(lambda: meshes(forge)["slow"]["state"] == "stopped", "the end of the mesh")
    assert notebook.cell("(await Counter.options(preload=[]).as_actor()).add.call_one().get()") == "1"


def test_a_cell_may_define_its_class_again(forge: Forge, notebook: Notebook) -> None:
    notebook.cell("first = Counter.options(preload=[]).as_actor().get()")
    notebook.cell(CELL.replace("self.n += k", "self.n += 10 * k"))
    notebook.cell("second = Counter.options(preload=[]).as_actor().get()")
    assert notebook.cell("first.add.call_one().get(), second.add.call_one().get()") == "(1, 10)"


def test_a_kernel_that_is_killed_leaves_nothing(forge: Forge, notebook: Notebook) -> None:
    notebook.cell("counter = Counter.options(preload=[]).as_actor().get()")
    notebook.manager.shutdown_kernel(now=True)
    until(lambda: not processes_with(f"FORGECTL_HOME={forge.home}"), "the end of the run")


def test_no_rank_is_a_child_of_the_kernel(forge: Forge, notebook: Notebook) -> None:
    """After CUDA was used, a fork of this process would be broken: ranks come from fork servers."""
    notebook.cell("forks = []\nos.register_at_fork(before=lambda: forks.append(1))")
    notebook.cell("counter = Counter.options(procs=2, preload=[]).as_actor().get()")
    assert notebook.cell("forks, counter.add.call().get().get(0)") == "([], 1)"


def _prompt(forge: Forge, argv: list[str], lines: list[str], expected: str) -> str:
    """Type lines into a program on a terminal of its own, until it has shown what is expected and ended."""
    ours, theirs = pty.openpty()
    process = forge.python(*argv, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    os.write(ours, "".join(f"{line}\n" for line in lines).encode())
    shown = b""
    while True:
        try:
            shown += os.read(ours, 4096)
        except OSError:  # the other end is closed
            break
    os.close(ours)
    assert process.wait(60) == 0, shown.decode()
    assert expected in shown.decode()
    return shown.decode()


def test_the_plain_prompt(forge: Forge) -> None:
    (forge.folder / "cell.py").write_text(CELL)
    lines = [
        "exec(open('cell.py').read())",
        "counter = Counter.options(procs=2, preload=[]).as_actor().get()",
        "print('sum', sum(counter.add.call(20).get().values()) + 2)",
        "exit()",
    ]
    _prompt(forge, ["-i", "-q"], lines, "sum 42")
    assert not processes_with(f"FORGECTL_HOME={forge.home}")
    assert (forge.folder / "cleaned-1").exists()


@pytest.mark.parametrize(
    "code",
    [
        "counter = {launch}.get(); print(counter.add.call_one(41).get() + 1)",
        "counter = await {launch}; print((await counter.add.call_one(41)) + 1)",
    ],
)
def test_ipython_without_a_kernel(forge: Forge, code: str) -> None:
    (forge.folder / "cell.py").write_text(CELL)
    forge.env["IPYTHONDIR"] = str(forge.folder / "ipython")
    text = code.format(launch="Counter.options(preload=[]).as_actor()")
    result = forge.python("-m", "IPython", "-c", f"exec(open('cell.py').read())\n{text}")
    out, err = result.communicate(timeout=60)
    assert result.returncode == 0 and out.splitlines()[-1] == "42", f"{out}\n{err}"
    assert not processes_with(f"FORGECTL_HOME={forge.home}")

"""Ctrl-C and its like at any moment of a launch: what was begun is ended, and the exit code says so."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import SOAK, Forge, processes_of, until

SHORT = "scripts: {short: {run: short.py, procs: 2, preload: []}}"
AT_ONCE = 2
MOMENTS = 12
SERIES = [(number, seed) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) for seed in range(SOAK)]
"""Of MOMENTS each, spread evenly over a launch."""


class _Life:
    """How long a launch of SHORT takes here and now, several at once: the machine may have been busier a moment ago."""

    def __init__(self, forge: Forge) -> None:
        self._forge = forge
        began = time.monotonic()
        launches = [forge.start("launch", "short.yaml", "--name", f"whole-{i}") for i in range(AT_ONCE)]
        for launch in launches:
            launch.communicate(timeout=60)
            assert launch.returncode == 0
        self.seconds = time.monotonic() - began

    def interrupted(self, number: signal.Signals, name: str, part: float) -> tuple[int, str]:
        """Exit code and stderr of a launch that gets a signal when this part of its life is over."""
        began = time.monotonic()
        launch = self._forge.start("launch", "short.yaml", "--name", name)
        try:
            launch.wait(part * self.seconds)
            self.seconds = min(self.seconds, time.monotonic() - began)
        except subprocess.TimeoutExpired:
            launch.send_signal(number)
        _, err = launch.communicate(timeout=60)
        return launch.returncode, err


def _is_of_the_interpreter(code: int, err: str, number: int) -> bool:
    """Whether the signal came before anything of ours ran but the imports of its first module."""
    own = [line for line in err.splitlines() if "forgectl" in line and "File " in line]
    return code in (-number, 1) and all(_is_of_the_first_imports(line) for line in own)


def _is_of_the_first_imports(line: str) -> bool:
    if "_forgectl_" in line:  # of the finder of editable installs, which is no code of ours
        return True
    first = ("forgectl/__init__.py", "forgectl/__main__.py", "forgectl/cli/__init__.py")
    return "in <module>" in line and any(file in line for file in first)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("number", "seed"), SERIES)
def test_a_signal_at_any_moment_of_a_launch_leaves_nothing(forge: Forge, number: signal.Signals, seed: int) -> None:
    forge.write("short.py", "import time; time.sleep(0.2)")
    forge.spec(SHORT, "short.yaml")
    life = _Life(forge)
    chance = random.Random(100 * number + seed)
    moments = {f"r{i}": 1.1 * (i + chance.random()) / MOMENTS for i in range(MOMENTS)}

    with ThreadPoolExecutor(AT_ONCE) as pool:
        results = dict(zip(moments, pool.map(lambda m: life.interrupted(number, *m), moments.items()), strict=True))

    begun = {run.rpartition("-")[0]: run for run in forge.runs()}
    stopped = 0
    for name, (code, err) in results.items():
        where = f"{name}, {moments[name]:.3f} of {life.seconds:.3f} s: {code}\n{err}"
        if name not in begun:
            if number == signal.SIGINT and not _is_of_the_interpreter(code, err, number):
                assert (code, err) == (130, ""), where
            elif number != signal.SIGINT:
                assert code == -number, where
            continue
        assert "Traceback" not in err, where
        assert code in (0, 128 + number, -number), where  # the last one: after the run had ended
        assert not processes_of(begun[name]), where
        document = forge.document(begun[name])
        if code == 128 + number:
            stopped += document["stopped_by"] in ("Ctrl-C", number.name)
        else:
            assert document["state"] == "succeeded", where
    assert stopped, "no moment was within the launch"
    assert forge.status() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_detached_launch_is_rolled_back_before_it_is_up(forge: Forge, number: signal.Signals) -> None:
    forge.write("slow.py", "import pathlib, time\npathlib.Path('importing').touch()\ntime.sleep(1000)")
    forge.write("work.py", "")
    launch = forge.start("launch", "-d", forge.spec("scripts: {work: {run: work.py, preload: [slow]}}"))
    until((forge.folder / "importing").exists, "the fork server")
    [run] = forge.runs()
    launch.send_signal(number)
    out, err = launch.communicate(timeout=30)
    assert (launch.returncode, out) == (128 + number, ""), err
    assert not processes_of(run)
    assert forge.document(run)["state"] == "stopped"


def test_a_detached_launch_that_is_up_is_left_alone(forge: Forge) -> None:
    run = forge.launch("scripts: {stay: {run: PROGRAMS/stay.py, preload: []}}")
    assert forge.document(run)["state"] == "running"


def test_the_second_ctrl_c_ends_deaf_ranks_at_once(forge: Forge) -> None:
    """The grace is 10 s for the first one; after the second all is gone long before."""
    deaf = "scripts: {stay: {run: PROGRAMS/stay.py deaf, procs: 4, preload: []}}"
    launch = forge.start("launch", forge.spec(deaf))
    assert launch.stdout is not None
    for _ in range(4):
        launch.stdout.readline()  # deaf from here on
    launch.send_signal(signal.SIGINT)
    [run] = forge.runs()
    forge.until_state(run, "stay", "stopping")
    began = time.monotonic()
    launch.send_signal(signal.SIGINT)
    _, err = launch.communicate(timeout=30)
    assert launch.returncode == 130, err
    assert time.monotonic() - began < 8
    assert "Traceback" not in err
    assert not processes_of(run)
    assert {r["signal"] for r in forge.mesh(run, "stay")["ranks"]} == {signal.SIGKILL}


def test_many_ctrl_cs_are_no_more_than_two(forge: Forge) -> None:
    launch = forge.start("launch", forge.spec("scripts: {stay: {run: PROGRAMS/stay.py, procs: 2, preload: []}}"))
    assert launch.stdout is not None
    launch.stdout.readline()
    for _ in range(200):
        if launch.poll() is None:
            launch.send_signal(signal.SIGINT)
    _, err = launch.communicate(timeout=30)
    assert launch.returncode == 130, err
    assert "Traceback" not in err
    [run] = forge.runs()
    assert not processes_of(run)


def test_ctrl_c_of_the_terminal_reaches_the_launcher_alone(forge: Forge) -> None:
    """A terminal signals its whole foreground group: ranks, agent and controller are not in it."""
    forge.write(
        "work.py",
        "import signal\n"
        "signal.signal(signal.SIGINT, lambda *_: print('interrupted', flush=True))\n"
        "print('here', flush=True)\n"
        "while True: signal.pause()",
    )
    launch = forge.start("launch", forge.spec("scripts: {work: {run: work.py, procs: 2, preload: []}}"))
    assert launch.stdout is not None
    launch.stdout.readline()
    os.killpg(launch.pid, signal.SIGINT)
    out, _ = launch.communicate(timeout=30)
    assert launch.returncode == 130
    assert "interrupted" not in out


def test_where_sigint_is_ignored_it_stays_so(forge: Forge) -> None:
    """As `nohup` and shells without job control start programs in the background."""
    forge.write(
        "work.py", "import pathlib, time\nwhile not pathlib.Path('go').exists(): time.sleep(0.01)\nprint('done')"
    )
    spec = forge.spec("scripts: {work: {run: work.py, preload: []}}")
    ignore = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
    launch = subprocess.Popen(
        [sys.executable, "-c", ignore, *forge.argv("launch", str(spec))],
        cwd=forge.folder, env=forge.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    until(lambda: any(r["state"] == "running" for r in forge.status()), "the launch")
    launch.send_signal(signal.SIGINT)
    assert forge.status()[0]["state"] == "running"
    Path(forge.folder / "go").touch()
    out, err = launch.communicate(timeout=30)
    assert (launch.returncode, out) == (0, "work/0@local │ done\n"), err

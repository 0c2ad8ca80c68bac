"""An enclosure against real families of processes: all of them end, and nobody else does."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from forgectl.agent.enclosure.enclosure import Enclosure, EndReport, sweep_run
from forgectl.system import cgroups
from forgectl.system.processes import Identity, alive
from tests.process.families import HOST, PROGRAMS, Family, identified

StartFamily = Callable[..., Family]
"""Takes what `Family` takes but the run, which is the test's own unless it is given by name."""


@pytest.fixture
def run() -> str:
    return f"test-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def family(run: str) -> Iterator[StartFamily]:
    """Start families of this run; at the end prove that nothing of the run is left."""
    started: list[Family] = []

    def start(kind: str, *args: Any, **kwargs: Any) -> Family:
        it = Family(kwargs.pop("run", run), kind, *args, **kwargs)
        it.known = it.members
        started.append(it)
        return it

    yield start
    for it in started:
        it.close()
    asyncio.run(sweep_run(run, HOST))
    assert not carriers(run)
    assert not cgroups.find(f"forgectl-{run}")


def carriers(run: str) -> list[int]:
    """Every process with the run's id in its environment, by a search of the test's own."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if (
                    run.encode() in (entry / "environ").read_bytes()
                    and "State:\tZ" not in (entry / "status").read_text()
                ):
                    found.append(int(entry.name))
    return found


def cgroup_possible() -> bool:
    probe = Enclosure.create(f"probe-{os.getpid()}", HOST, "m", 0)
    probe.close()
    return probe.cgroup is not None


CGROUP = pytest.param(
    True, id="cgroup", marks=pytest.mark.skipif(not cgroup_possible(), reason="NO CGROUP v2 CAN BE MADE HERE")
)
SEARCH = pytest.param(False, id="search")
both_ways = pytest.mark.parametrize("use_cgroup", [CGROUP, SEARCH])


@pytest.fixture
def enclosure(run: str, use_cgroup: bool) -> Iterator[Enclosure]:
    it = Enclosure.create(run, HOST, "m", 0, use_cgroup=use_cgroup)
    assert (it.cgroup is not None) == use_cgroup
    yield it
    it.kill()
    it.close()


OBEDIENT = [("tree", 7), ("daemon-executed", 2), ("leave", 3), ("stopped", 2), ("own-cgroup", 2)]
HIDDEN = [
    ("daemon", 2),
    ("daemon-cleared", 2),
    ("leave-hidden", 3),
]  # without a cgroup, found only as orphans of their fork server


@both_ways
@pytest.mark.parametrize(("kind", "size"), OBEDIENT + HIDDEN)
def test_ends_obedient_families_without_a_kill(family: StartFamily, enclosure: Enclosure, kind: str, size: int) -> None:
    it = family(kind, enclosure, size=size)
    if (kind, size) in HIDDEN:
        enclosure.add_server(identified(it.server.pid))
    assert set(it.pids) <= {m.pid for m in enclosure.members()}

    report = asyncio.run(enclosure.end(30))

    assert it.gone
    assert not enclosure.members()
    assert {s.identity.pid for s in report.found} >= set(it.pids)
    assert (report.killed, report.unkillable) == (0, ())
    assert it.server.poll() is None, "the fork server was ended with its rank"
    assert enclosure.close()


@both_ways
@pytest.mark.parametrize(
    ("kind", "size"), [("stubborn", 3), ("headless", 1), ("bomb", 1), ("bomb", 40), ("bomb-executed", 40)]
)
def test_kills_what_does_not_obey(family: StartFamily, enclosure: Enclosure, kind: str, size: int) -> None:
    it = family(kind, enclosure, size=size)
    if kind == "bomb":
        enclosure.add_server(identified(it.server.pid))
    report = asyncio.run(enclosure.end(0.05))
    assert it.gone
    assert report.unkillable == ()
    assert report.killed > 0 or kind == "headless"
    assert enclosure.close()


@both_ways
@pytest.mark.parametrize(("kind", "size"), [*OBEDIENT, ("stubborn", 3), ("headless", 1)])
def test_grace_of_zero_kills_at_once(family: StartFamily, enclosure: Enclosure, kind: str, size: int) -> None:
    it = family(kind, enclosure, size=size)
    report = asyncio.run(enclosure.end(0))
    assert it.gone
    assert report.killed >= size
    assert enclosure.close()


@both_ways
def test_a_headless_process_is_a_member(family: StartFamily, enclosure: Enclosure) -> None:
    it = family("headless", enclosure)
    while (Path("/proc") / str(it.rank.pid) / "stat").read_text().split(")")[1].split()[0] != "Z":
        os.sched_yield()
    assert [m.pid for m in enclosure.members()] == it.pids


@both_ways
def test_a_stranger_lives_on(run: str, family: StartFamily, enclosure: Enclosure) -> None:
    strangers = [
        family("tree", size=7, run=f"other-{run}"),
        family("daemon-executed", size=2, run=f"other-{run}"),
        family("tree", size=7, mesh="m2"),
        family("daemon-executed", size=2, host="host2"),
    ]
    it = family("tree", enclosure, size=7)
    asyncio.run(enclosure.end(0))
    assert it.gone
    assert all(m and alive(m) for s in strangers for m in s.known)
    assert not any(s.gone for s in strangers)
    asyncio.run(sweep_run(run, "host2"))
    asyncio.run(sweep_run(f"other-{run}", HOST))
    assert strangers[0].gone
    assert strangers[1].gone
    assert strangers[3].gone
    assert all(m and alive(m) for m in strangers[2].known)


@pytest.mark.parametrize("use_cgroup", [CGROUP])
def test_one_who_left_the_cgroup_is_found_all_the_same(family: StartFamily, enclosure: Enclosure) -> None:
    if os.geteuid() != 0:
        pytest.skip("ONLY ROOT CAN LEAVE ITS CGROUP")
    it = family("escapes-cgroup", enclosure)
    assert enclosure.cgroup
    assert it.rank.pid not in enclosure.cgroup.pids()
    assert [m.pid for m in enclosure.members()] == it.pids
    asyncio.run(enclosure.end(30))
    assert it.gone


@pytest.mark.parametrize("use_cgroup", [CGROUP])
def test_a_frozen_cgroup_can_be_ended(family: StartFamily, enclosure: Enclosure) -> None:
    it = family("tree", enclosure, size=7)
    assert enclosure.cgroup
    (enclosure.cgroup.path / "cgroup.freeze").write_text("1")
    report = asyncio.run(enclosure.end(30))
    assert it.gone
    assert report.killed == 0


@both_ways
def test_a_second_end_hurries_the_first(family: StartFamily, enclosure: Enclosure) -> None:
    it = family("stubborn", enclosure, size=3)

    async def two() -> tuple[EndReport, EndReport]:
        first = asyncio.create_task(enclosure.end(600))
        await asyncio.sleep(0)
        second = asyncio.create_task(enclosure.end(0))
        return await asyncio.gather(first, second)

    first, second = asyncio.run(two())
    assert it.gone
    assert first is second
    assert first.killed == 3


@both_ways
def test_hurry_shortens_the_grace(family: StartFamily, enclosure: Enclosure) -> None:
    it = family("stubborn", enclosure, size=3)

    async def hurried() -> EndReport:
        ending = asyncio.create_task(enclosure.end(600))
        await asyncio.sleep(0)
        enclosure.hurry(900)  # never lengthens
        enclosure.hurry(0.01)
        return await ending

    assert asyncio.run(hurried()).killed == 3
    assert it.gone


@both_ways
def test_an_end_survives_the_cancelling_of_its_caller(family: StartFamily, enclosure: Enclosure) -> None:
    it = family("stubborn", enclosure, size=3)

    async def cancelled() -> EndReport:
        caller = asyncio.create_task(enclosure.end(600))
        await asyncio.sleep(0)
        caller.cancel()
        await asyncio.gather(caller, return_exceptions=True)
        return await enclosure.end(0)

    assert asyncio.run(cancelled()).killed == 3
    assert it.gone


@both_ways
def test_an_empty_enclosure_ends_and_ends_again(family: StartFamily, enclosure: Enclosure) -> None:
    assert asyncio.run(enclosure.end(600)).found == ()
    it = family("tree", enclosure, size=7)
    assert len(asyncio.run(enclosure.end(30)).found) == 7
    assert it.gone
    assert asyncio.run(enclosure.end(600)).found == ()


@both_ways
def test_signal_reaches_every_member(family: StartFamily, enclosure: Enclosure) -> None:
    it = family("tree", enclosure, size=7)
    assert enclosure.signal(0) == 7
    assert enclosure.signal(signal.SIGKILL) == 7
    asyncio.run(enclosure.end(600))
    assert it.gone


@both_ways
def test_close_leaves_what_is_inhabited(family: StartFamily, enclosure: Enclosure, use_cgroup: bool) -> None:
    it = family("tree", enclosure, size=7)
    assert enclosure.close() is not use_cgroup
    asyncio.run(enclosure.end(0))
    assert it.gone
    assert enclosure.close()


@pytest.mark.parametrize("use_cgroup", [SEARCH])
def test_a_spared_child_of_the_server_outlives_the_ranks(run: str, family: StartFamily, enclosure: Enclosure) -> None:
    it = family("tree", size=7)  # not registered: reached only as the server's child
    enclosure.add_server(identified(it.server.pid), spare=[it.rank])
    others = {m.pid for m in enclosure.members()}
    assert not others
    enclosure = Enclosure.create(run, HOST, "m", 0, use_cgroup=False)
    enclosure.add_server(identified(it.server.pid))
    assert {m.pid for m in enclosure.members()} == set(it.pids)


@both_ways
def test_sweeping_a_run_takes_its_fork_servers_too(run: str, family: StartFamily, enclosure: Enclosure) -> None:
    it = family("tree", enclosure, size=7)
    hidden = family("daemon-cleared", enclosure, size=2)
    report = asyncio.run(sweep_run(run, HOST))
    assert it.gone
    assert it.server.wait() == hidden.server.wait() == -signal.SIGKILL
    assert hidden.gone
    assert {s.identity.pid for s in report.found} >= {*it.pids, it.server.pid}
    assert f"pid {it.server.pid} (" in " ".join(map(str, report.found))
    assert report.unkillable == ()


@pytest.mark.usefixtures("family")
def test_sweeping_spares_controllers_and_agents(run: str) -> None:
    other = {**os.environ, "FORGE_RUN_ID": run, "FORGE_HOST": HOST}
    spared = [subprocess.Popen(["sleep", "600"], env={**other, "FORGE_ROLE": role}) for role in ("controller", "agent")]
    store = subprocess.Popen(["sleep", "600"], env={**other, "FORGE_ROLE": "store"})
    try:
        asyncio.run(sweep_run(run, HOST))
        assert store.wait() == -signal.SIGKILL
        assert [p.poll() for p in spared] == [None, None]
    finally:
        for process in (*spared, store):
            process.kill()
            process.wait()


PYTHONPATH = f"{PROGRAMS.parent.parent}:{PROGRAMS.parent / 'process'}"


def python_for(user: int) -> str | None:
    """An interpreter that this user can run our source tree with, or None."""
    for python in filter(None, (sys.executable, shutil.which("python3", path="/usr/local/bin:/usr/bin"))):
        with contextlib.suppress(OSError):
            command = [python, "-c", "import sys, families; sys.exit(sys.version_info < (3, 10))"]
            env = {"PYTHONPATH": PYTHONPATH, "PYTHONDONTWRITEBYTECODE": "1"}
            if subprocess.run(command, user=user, cwd="/", env=env, stderr=subprocess.DEVNULL).returncode == 0:
                return python
    return None


def test_another_user_without_a_cgroup(run: str, family: StartFamily) -> None:
    """Unprivileged, the same guarantees hold for one's own processes."""
    if os.geteuid() != 0:
        pytest.skip("ONLY ROOT CAN BECOME ANOTHER USER")
    if not (python := python_for(65534)):
        pytest.skip("USER nobody CAN RUN NO PYTHON >= 3.10 WITH THIS SOURCE TREE")
    stranger = family("tree", size=7, run=f"other-{run}")
    answer = subprocess.run(
        [python, PROGRAMS / "end_a_family.py", run],
        user=65534,
        group=65534,
        extra_groups=[],
        cwd="/",
        env={"PYTHONPATH": PYTHONPATH, "PYTHONDONTWRITEBYTECODE": "1", "PATH": os.environ["PATH"]},
        capture_output=True,
        timeout=60,
    )
    said = json.loads(answer.stdout or "{}")
    assert said == {"cgroup": False, "found": 7, "killed": 0, "left": 0, "gone": True}, answer.stderr.decode()
    assert all(m and alive(m) for m in stranger.known)
    asyncio.run(sweep_run(f"other-{run}", HOST))


def test_a_recorded_identity_of_another_boot_is_never_signalled(
    family: StartFamily, enclosure_of_search: Enclosure
) -> None:
    it = family("tree", size=1)
    old = Identity(it.rank.pid, it.rank.start_time, "another boot")
    enclosure_of_search.add(old)
    assert not enclosure_of_search.members()


@pytest.fixture
def enclosure_of_search(run: str) -> Enclosure:
    return Enclosure.create(run, HOST, "another", 0, use_cgroup=False)

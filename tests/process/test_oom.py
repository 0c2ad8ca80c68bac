"""Evidence of OOM kills, from memory cgroups with a real limit."""

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from forgectl.agent.enclosure import oom
from forgectl.agent.enclosure.oom import OomWitness
from forgectl.system import cgroups

PROGRAM = Path(__file__).parent.parent / "programs" / "eat_memory.py"
LIMIT = 32 << 20


def own_memory_cgroup() -> tuple[Path, str, bool] | None:
    """(our memory cgroup, the name of its limit file, whether it is v1) or None."""
    mountinfo, own = Path("/proc/self/mountinfo").read_text(), Path("/proc/self/cgroup").read_text()
    if v1 := cgroups.locate_v1(mountinfo, own, "memory"):
        return v1, "memory.limit_in_bytes", True
    v2 = cgroups.locate(mountinfo, own)
    if v2 and "memory" in (v2 / "cgroup.subtree_control").read_text().split():
        return v2, "memory.max", False
    return None


@pytest.fixture
def limited() -> Iterator[Path]:
    """A memory cgroup of our own with little room."""
    place = own_memory_cgroup()
    if place is None or not os.access(place[0], os.W_OK):
        pytest.skip("NO MEMORY CGROUP CAN BE MADE HERE")
    folder = place[0] / f"forgectl-test-{uuid.uuid4().hex[:8]}"
    folder.mkdir()
    (folder / place[1]).write_text(str(LIMIT))
    yield folder
    folder.rmdir()


@pytest.fixture
def eater(limited: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-S", PROGRAM, limited / "cgroup.procs"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout
    process.stdout.readline()
    yield process
    process.kill()
    process.communicate()


@pytest.fixture
def witness() -> Iterator[OomWitness]:
    it = OomWitness()
    yield it
    it.close()


def test_the_kernel_log_names_its_victim(eater: subprocess.Popen[bytes], witness: OomWitness) -> None:
    if witness._kmsg is None:
        pytest.skip("THE KERNEL LOG CANNOT BE READ HERE")
    assert witness.killed(eater.pid) is None
    eater.communicate(b"x")
    assert eater.returncode == -signal.SIGKILL
    assert f"Killed process {eater.pid} (" in (witness.killed(eater.pid) or "")
    assert witness.killed(os.getpid()) is None
    assert OomWitness().killed(eater.pid) is None, "a later witness has not seen it"


def test_a_counter_tells_without_the_log(eater: subprocess.Popen[bytes], witness: OomWitness) -> None:
    witness.close()
    witness.note(eater.pid)
    assert witness.killed(eater.pid) is None
    eater.communicate(b"x")
    assert eater.returncode == -signal.SIGKILL
    assert "counts 1 OOM kill since the start" in (witness.killed(eater.pid) or "")


def test_a_plain_kill_is_no_oom_kill(eater: subprocess.Popen[bytes], witness: OomWitness) -> None:
    witness.note(eater.pid)
    eater.kill()
    eater.wait()
    assert witness.killed(eater.pid) is None


def test_counters_of_a_mesh_are_found_above_its_cgroup(tmp_path: Path) -> None:
    """A folder in the shape of cgroup v2, since this controller may be bound to v1."""
    (tmp_path / "memory.events").write_text("low 0\noom 1\noom_kill 3\noom_group_kill 0\n")
    witness = OomWitness(tmp_path / "forgectl-r" / "h" / "m-0")
    witness.close()
    assert witness.killed(4711) is None
    (tmp_path / "memory.events").write_text("low 0\noom 3\noom_kill 5\noom_group_kill 0\n")
    assert witness.killed(4711) == f"{tmp_path}/memory.events counts 2 OOM kills since the start"


@pytest.mark.parametrize(
    ("line", "pid"),
    [
        ("Memory cgroup out of memory: Killed process 812 (python) total-vm:1kB, anon-rss:1kB", 812),
        ("Out of memory: Killed process 813 (a) b) total-vm:1kB", 813),
        (
            "oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,task_memcg=/x,task=python,pid=814,uid=0",
            814,
        ),
        ("oom_reaper: reaped process 815 (python), now anon-rss:0kB", None),
        ("python: Killed by signal", None),
    ],
)
def test_lines_of_the_kernel(line: str, pid: int | None) -> None:
    match = oom._VICTIM.search(line)
    assert (int(match[1] or match[2]) if match else None) == pid

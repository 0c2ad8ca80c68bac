"""What is said of a workload that fails: which rank was first, how it ended, and why."""

from __future__ import annotations

import json
import os
import signal
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from forgectl.system import cgroups
from tests.conftest import Forge, processes_of
from tests.process.outputs import document_of, failures, log_of, over

# ---------------------------------------------------------------- one rank


def test_an_exception_is_shown_with_its_own_traceback_only(forge: Forge) -> None:
    forge.write("helper.py", "def work():\n    raise ValueError('no value')\n")
    forge.write("train.py", "import os, helper\nif os.environ['RANK'] == '1':\n    helper.work()\n")
    result = forge.run("launch", forge.spec("scripts: {train: {run: train.py, procs: 2, preload: []}}"))
    assert result.returncode == 1
    text = result.stderr[result.stderr.rindex("train failed: ") :]
    report = [line for line in text.splitlines() if line.strip(" ~^")]  # Python 3.13 marks calls by such lines
    assert report[:7] == [
        "train failed: rank 1 on local exited with code 1: ValueError: no value",
        "  Traceback (most recent call last):",
        f'    File "{forge.folder}/train.py", line 3, in <module>',
        "      helper.work()",
        f'    File "{forge.folder}/helper.py", line 2, in work',
        "      raise ValueError('no value')",
        "  ValueError: no value",
    ]
    assert "/forgectl/" not in "\n".join(report[:7])
    assert "Traceback" in result.stdout, "the log has it too, as under python"


def test_how_a_rank_ended_is_told(forge: Forge) -> None:
    forge.write("lines.py", "import os\nfor i in range(30): print('line', i)\nos._exit(9)")
    forge.write("bad.py", "print('never')\nif True print(1)\n")
    forge.write("chain.py", "try:\n    1 / 0\nexcept ZeroDivisionError as e:\n    raise KeyError('k') from e\n")
    forge.write("nothing.py", "raise SystemExit('asked to go')")
    document = over(
        forge,
        """
scripts:
  three: {run: PROGRAMS/ways_to_end.py number, preload: []}
  killed: {run: PROGRAMS/ways_to_end.py killed, preload: []}
  segv: {run: PROGRAMS/ways_to_end.py segfault, preload: []}
  lines: {run: lines.py, preload: []}
  syntax: {run: bad.py, preload: []}
  chain: {run: chain.py, preload: []}
  text: {run: nothing.py, preload: []}
""",
    )
    found = failures(document)
    assert {name: f["message"] for name, f in found.items()} == {
        "three": "rank 0 on local exited with code 3",
        "killed": "rank 0 on local was killed by SIGKILL",
        "segv": "rank 0 on local was killed by SIGSEGV",
        "lines": "rank 0 on local exited with code 9",
        "syntax": "rank 0 on local exited with code 1: SyntaxError: invalid syntax",
        "chain": "rank 0 on local exited with code 1: KeyError: 'k'",
        "text": "rank 0 on local exited with code 1",
    }
    assert found["lines"]["log_tail"] == [f"line {i}" for i in range(10, 30)]
    assert any("Segmentation fault" in line for line in found["segv"]["log_tail"])
    assert f'File "{forge.folder}/bad.py", line 2' in found["syntax"]["traceback"]
    assert "/forgectl/" not in found["syntax"]["traceback"]
    assert "ZeroDivisionError" in found["chain"]["traceback"]
    assert "direct cause" in found["chain"]["traceback"]
    assert found["text"]["log_tail"] == ["asked to go"]
    assert document["exit_code"] in (1, 3, 9, 128 + signal.SIGKILL, 128 + signal.SIGSEGV)


@pytest.mark.parametrize(("way", "code"), [("number", 3), ("killed", 137), ("segfault", 139), ("exception", 1)])
def test_a_launch_in_the_foreground_ends_with_the_ranks_code(forge: Forge, way: str, code: int) -> None:
    spec = forge.spec(f"scripts: {{work: {{run: PROGRAMS/ways_to_end.py {way}, preload: []}}}}")
    assert forge.run("launch", spec).returncode == code


def test_a_childs_exception_is_not_its_ranks(forge: Forge) -> None:
    program = "PROGRAMS/failing_children.py"
    document = over(
        forge, f"scripts: {{good: {{run: {program} 0, preload: []}}, bad: {{run: {program} 5, preload: []}}}}"
    )
    assert [m["state"] for m in document["meshes"]] == ["succeeded", "failed"]
    assert failures(document)["bad"]["message"] == "rank 0 on local exited with code 5"
    assert log_of(forge, document["run"], "good").count("ValueError: of the child") == 3


# ---------------------------------------------------------------- error files that are not what they should be

HOSTILE = ("huge", "text", "deep", "shapes", "number", "link", "fifo", "folder", "future", "past", "escapes")


def test_a_hostile_error_file_does_no_harm(forge: Forge) -> None:
    kinds = [*HOSTILE, *(["device"] if os.geteuid() == 0 else [])]
    meshes = "".join(f"  {k}: {{run: PROGRAMS/error_files.py {k}, preload: []}}\n" for k in kinds)
    result = forge.run("launch", forge.spec("on_failure: continue\nscripts:\n" + meshes), "--json")
    document = document_of(result)
    assert {m["mesh"]: m["ranks"][0]["exit_code"] for m in document["meshes"]} == dict.fromkeys(kinds, 4)
    for mesh, failure in failures(document).items():
        assert failure["message"].startswith("rank 0 on local exited with code 4"), mesh
        assert (mesh in ("future", "past")) == ("planted" in json.dumps(failure)), mesh
        assert len(json.dumps(failure)) < 100_000
    assert "\x1b" not in result.stderr
    assert "evil" in result.stderr


# ---------------------------------------------------------------- which rank was first


def test_the_first_to_fail_is_named_though_another_exits_first(forge: Forge) -> None:
    document = over(forge, "scripts: {fail: {run: PROGRAMS/fail.py exits-late 1, procs: 3, preload: []}}")
    [mesh] = document["meshes"]
    assert mesh["reason"] == "rank 1 on local raised ValueError: the cause (2 more fell with it)"
    assert "ValueError: the cause" in mesh["failure"]["traceback"]
    assert [c["rank"] for c in mesh["failure"]["collateral"]] == [0, 2]
    assert document["exit_code"] == 1, "what it would have exited with, had we not ended it meanwhile"


def test_what_ranks_raise_when_told_to_end_is_collateral(forge: Forge) -> None:
    document = over(forge, "scripts: {fail: {run: PROGRAMS/fail.py cleans-up 1, procs: 2, preload: []}}")
    [mesh] = document["meshes"]
    assert mesh["reason"] == "rank 1 on local exited with code 4 (1 more fell with it)"
    assert document["exit_code"] == 4
    assert "cleaning up failed" in mesh["failure"]["collateral"][0]["message"]


def test_a_broken_collective_does_not_hide_who_broke_it(forge: Forge) -> None:
    document = over(
        forge,
        """
scripts:
  raises: {run: PROGRAMS/fail.py raises 1, procs: 3}
  killed: {run: PROGRAMS/fail.py killed 2, procs: 3}
  at-once: {run: PROGRAMS/fail.py at-once 0, procs: 3}
""",
    )
    # "raised" where it was ended before it had exited, which takes longer with the CUDA build of torch.
    found = {name: f["message"].replace("exited with code 1:", "raised") for name, f in failures(document).items()}
    assert found == {
        "raises": "rank 1 on local raised ValueError: the cause",
        "killed": "rank 2 on local was killed by SIGKILL",
        "at-once": "rank 0 on local exited with code 6",
    }


# ---------------------------------------------------------------- memory


def _memory_cgroup() -> tuple[Path, str] | None:
    mountinfo, own = Path("/proc/self/mountinfo").read_text(), Path("/proc/self/cgroup").read_text()
    if v1 := cgroups.locate_v1(mountinfo, own, "memory"):
        return v1, "memory.limit_in_bytes"
    v2 = cgroups.locate(mountinfo, own)
    if v2 and "memory" in (v2 / "cgroup.subtree_control").read_text().split():
        return v2, "memory.max"
    return None


@pytest.fixture
def little_memory() -> Iterator[Path]:
    """A memory cgroup with little room; it must outlive what is started in it."""
    place = _memory_cgroup()
    if place is None or not os.access(place[0], os.W_OK):
        pytest.skip("NO MEMORY CGROUP CAN BE MADE HERE")
    folder = place[0] / f"forgectl-test-{uuid.uuid4().hex[:8]}"
    folder.mkdir()
    (folder / place[1]).write_text(str(200 << 20))
    yield folder
    folder.rmdir()


def test_a_rank_that_was_oom_killed_is_said_to_be(little_memory: Path, forge: Forge) -> None:
    forge.write("eat.py", "import os\neaten = [bytearray(os.urandom(1 << 20)) for _ in range(600)]")
    forge.write("stay.py", "import signal\nsignal.pause()")
    spec = forge.spec("scripts: {eat: {run: eat.py, preload: []}}")

    def join() -> None:
        (little_memory / "cgroup.procs").write_text("0")

    document = document_of(forge.run("launch", spec, "--json", preexec_fn=join))
    [mesh] = document["meshes"]
    assert mesh["reason"].startswith("rank 0 on local ran out of memory: ")
    assert (mesh["ranks"][0]["signal"], document["exit_code"]) == (signal.SIGKILL, 137)


# ---------------------------------------------------------------- what cannot start


def _nothing_left(forge: Forge) -> None:
    [run] = forge.runs()
    assert processes_of(run) == {}
    assert list((forge.home / "sockets").iterdir()) == []


def test_a_preload_that_cannot_be_imported_rolls_everything_back(forge: Forge) -> None:
    forge.write("broken.py", "import json\nraise RuntimeError('broken at import')")
    forge.write("work.py", "")
    for preload, code, error in (
        ("nowhere_to_be_found", 69, "has no nowhere_to_be_found, which `preload` names"),
        ("broken", 1, "RuntimeError: broken at import"),
    ):
        bad = f"{{run: work.py, preload: [{preload}]}}"
        spec = forge.spec(f"scripts: {{good: {{run: PROGRAMS/stay.py, preload: []}}, bad: {bad}}}")
        result = forge.run("launch", spec, "-d", "--name", preload)
        assert result.returncode == code
        (said,) = [line for line in result.stderr.splitlines() if line.startswith("forgectl: mesh bad")]
        assert error in said
        assert "preload" in said
        assert "/forgectl/" not in result.stderr
        assert result.stdout == ""
    assert f'File "{forge.folder}/broken.py", line 2' in result.stderr
    assert forge.status() == []
    assert all(processes_of(run) == {} for run in forge.runs())


def test_a_script_that_vanishes_after_planning_fails_as_under_python(forge: Forge) -> None:
    script = forge.write("work.py", "print('never')")
    forge.write("vanish.py", f"import os; os.path.exists({str(script)!r}) and os.unlink({str(script)!r})")
    result = forge.run("launch", forge.spec("scripts: {work: {run: work.py, preload: [vanish]}}"), "--json")
    document = document_of(result)
    reason = document["meshes"][0]["reason"]
    assert reason.startswith("rank 0 on local exited with code ")
    assert "No such file or directory" in reason
    assert str(script) in reason
    _nothing_left(forge)

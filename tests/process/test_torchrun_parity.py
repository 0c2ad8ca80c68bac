"""The same script under torchrun and under forgectl: what it sees, what it may do, how it may end."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import PROGRAMS, Forge
from tests.process.outputs import log_of, over

PARITY = PROGRAMS / "parity.py"
WAYS_TO_END = PROGRAMS / "ways_to_end.py"
ARGUMENTS = ["--steps", "10", "two words", "-n", "ünï", "", "--", "$HOME", '"quoted"', "*"]

pytestmark = pytest.mark.timeout(300)  # many imports of torch

Ranks = list[dict[str, Any]]


class Both:
    """What two ranks saw under each launcher, and what they wrote."""

    def __init__(self, folder: Path, forge: Forge) -> None:
        self.forge = forge
        self.torchrun_logs = folder / "torchrun-logs"
        self._torchrun(folder / "torchrun")
        self._forgectl(folder / "forgectl")
        self.torchrun = self._read(folder / "torchrun")
        self.forgectl = self._read(folder / "forgectl")

    def _torchrun(self, folder: Path) -> None:
        folder.mkdir()
        torchrun = Path(sys.executable).with_name("torchrun")
        logs = [
            "--log-dir",
            str(self.torchrun_logs),
            "--redirects",
            "3",
        ]  # into one pipe they would cut each other's lines
        result = subprocess.run(
            [torchrun, "--standalone", "--nproc-per-node", "2", *logs, PARITY, folder, *ARGUMENTS],
            cwd=self.forge.folder,
            env=self.forge.env,
            capture_output=True,
            text=True,
            timeout=280,
        )
        assert result.returncode == 0, result.stderr

    def _forgectl(self, folder: Path) -> None:
        folder.mkdir()
        loaders = "PARITY_LOADERS=fork spawn"
        self.forge.ok("run", "-n", "2", "--env", loaders, PARITY, folder, *ARGUMENTS, timeout=280)

    @staticmethod
    def _read(folder: Path) -> Ranks:
        return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]

    def pairs(self, part: str) -> Iterator[tuple[Any, Any]]:
        """(as under torchrun, as under forgectl), rank by rank."""
        return ((t[part], f[part]) for t, f in zip(self.torchrun, self.forgectl, strict=True))


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    folder = tmp_path_factory.mktemp("parity")
    forge = Forge(folder)
    try:
        yield Both(folder, forge)
    finally:
        forge.close()


# ---------------------------------------------------------------- what a rank sees

SAME = (
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE"),
    *("ROLE_RANK", "ROLE_WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_MAX_RESTARTS"),
    *("TORCHELASTIC_USE_AGENT_STORE", "TORCH_NCCL_ASYNC_ERROR_HANDLING"),
)
OF_EACH_LAUNCH = ("ROLE_NAME", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_ERROR_FILE")
"""ROLE_NAME is the mesh's here and `default` there; the others differ from launch to launch."""
BY_DESIGN = ("OMP_NUM_THREADS",)
"""torchrun gives every rank one thread, however many cores there are; forgectl shares the cores out."""
TORCHRUNS_OWN = ("TORCHELASTIC_SIGNALS_TO_HANDLE",)
"""What torchrun tells its own agent and happens to leave in the environment of ranks."""


def test_torchruns_variables_are_there_and_mean_the_same(both: Both) -> None:
    for torchrun, forgectl in both.pairs("env"):
        added = {name for name in torchrun if name not in both.forge.env} - set(TORCHRUNS_OWN)
        assert set(SAME) <= added, "torchrun itself has changed"
        assert added - {*SAME, *OF_EACH_LAUNCH, *BY_DESIGN} == set(), "torchrun sets more than we know of"
        assert added <= forgectl.keys()
        assert {n: forgectl[n] for n in SAME} == {n: torchrun[n] for n in SAME}
        assert int(forgectl["OMP_NUM_THREADS"]) >= 1


def test_nothing_else_of_the_environment_is_changed(both: Both) -> None:
    ours = {f"FORGE_{name}" for name in ("RUN_ID", "MESH", "HOST", "SHARED_MEMORY", "SHARED_DISK")} | {"PARITY_LOADERS"}
    for torchrun, forgectl in both.pairs("env"):
        assert forgectl.keys() - torchrun.keys() == ours
        for name in torchrun.keys() - {*OF_EACH_LAUNCH, *BY_DESIGN, *TORCHRUNS_OWN}:
            assert forgectl[name] == torchrun[name]


def test_ranks_have_one_rendezvous_and_error_files_of_their_own(both: Both) -> None:
    for ranks in (both.torchrun, both.forgectl):
        envs = [r["env"] for r in ranks]
        assert len({(e["MASTER_ADDR"], e["MASTER_PORT"]) for e in envs}) == 1
        files = [Path(e["TORCHELASTIC_ERROR_FILE"]) for e in envs]
        assert len(set(files)) == 2
    assert all(path.parent.is_dir() and not path.exists() for path in files)


def test_the_interpreter_is_as_torchrun_has_it(both: Both) -> None:
    for torchrun, forgectl in both.pairs("interpreter"):
        assert forgectl == torchrun
        assert forgectl["argv"] == ARGUMENTS
        assert forgectl["path0"] == str(PROGRAMS)


def test_no_descriptor_of_ours_is_left_open_in_a_rank(both: Both) -> None:
    for rank in both.forgectl:
        others = {fd: path for fd, path in rank["descriptors"].items() if int(fd) > 2}
        # faulthandler writes stacks to a file that must be open before: `forgectl stack` has it in a folder of its own.
        assert [p for p in others.values() if not p.startswith("/proc/") and "/stacks/" not in p] == []


# ---------------------------------------------------------------- what a rank does


def test_output_keeps_its_order_through_main_threads_and_exit(both: Both) -> None:
    [run] = both.forge.runs()
    for rank in range(2):
        mark = f"rank {rank}: "
        lines = [line for line in log_of(both.forge, run, "parity", rank).splitlines() if line.startswith(mark)]
        during = [f"{what} {i}" for i in range(3) for what in ("out", "err", "raw", "child")]
        assert [line.removeprefix(mark) for line in lines] == [*during, "end of main", "thread", "atexit"]
        for name, is_err in (("stdout", False), ("stderr", True)):
            [file] = both.torchrun_logs.glob(f"*/attempt_0/{rank}/{name}.log")
            torchrun = [line for line in file.read_text().splitlines() if line.startswith(mark)]
            assert torchrun == [line for line in lines if ("err" in line) == is_err]


def test_the_scripts_own_classes_pickle_also_to_spawned_children(both: Both) -> None:
    for torchrun, forgectl in both.pairs("pickling"):
        assert forgectl == torchrun
        assert forgectl == {"own": 3, "module": "__main__", "spawned": 8, "same_class": True}


def test_a_data_loader_has_workers_by_fork_and_by_spawn(both: Both) -> None:
    expected = [[0, 1, 4, 9], [16, 25, 36, 49]]
    assert both.forgectl[0]["loading"] == {"fork": expected, "spawn": expected}


def test_the_store_the_collectives_and_ddp_give_the_same(both: Both) -> None:
    for torchrun, forgectl in both.pairs("training"):
        assert forgectl == torchrun
        assert (forgectl["heard"], forgectl["total"], forgectl["cuda"]) == ("said by rank 0", 3.0, False)


def test_ranks_do_not_share_their_random_numbers(both: Both) -> None:
    """Forked from one process, in which torch and numpy had seeded their generators already."""
    for ranks in (both.torchrun, both.forgectl):
        one, other = (rank["random"] for rank in ranks)
        assert one.keys() == {"random", "urandom", "numpy", "torch"}
        assert {name for name in one if one[name] == other[name]} == set()


# ---------------------------------------------------------------- how a rank ends

WAYS = (
    *("end", "number", "text", "none", "big", "object", "at-once", "exception", "interrupt", "sigint", "sigterm"),
    *("killed", "abort", "segfault", "in-thread", "hook", "at-exit"),
)


def test_every_way_to_end_is_as_under_plain_python(forge: Forge) -> None:
    meshes = "".join(f"  {way}: {{run: PROGRAMS/ways_to_end.py {way}, preload: []}}\n" for way in WAYS)
    document = over(forge, "scripts:\n" + meshes)
    for mesh in document["meshes"]:
        way = mesh["mesh"]
        plain = subprocess.run(
            [sys.executable, "-u", WAYS_TO_END, way], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        [rank] = mesh["ranks"]
        ended = rank["exit_code"] if rank["signal"] is None else -rank["signal"]
        log = log_of(forge, document["run"], way)
        assert (way, ended) == (way, plain.returncode)
        if way in ("abort", "segfault"):  # and, beyond plain Python, faulthandler says where
            assert f'File "{WAYS_TO_END}", line' in log
        else:
            assert (way, log) == (way, plain.stdout)
        assert (way, mesh["state"]) == (way, "succeeded" if plain.returncode == 0 else "failed")
    assert {m["mesh"]: m["ranks"][0]["signal"] for m in document["meshes"]}["killed"] == signal.SIGKILL


def test_a_script_behind_a_symbolic_link_imports_from_where_it_really_is(forge: Forge) -> None:
    (forge.folder / "real").mkdir()
    forge.write("real/beside.py", "WORD = 'beside'")
    forge.write("real/work.py", "import sys, beside; print(beside.WORD, sys.path[0], __file__)")
    (forge.folder / "link.py").symlink_to("real/work.py")
    plain = subprocess.run([sys.executable, forge.folder / "link.py"], capture_output=True, text=True, check=True)
    forge.spec("scripts: {link: {run: link.py, preload: []}}")
    assert forge.ok("launch", "spec.yaml") == f"link/0@local │ {plain.stdout}"


def test_a_torch_elastic_error_file_is_honored(forge: Forge) -> None:
    forge.write(
        "work.py",
        "from torch.distributed.elastic.multiprocessing.errors import record\n"
        "@record\n"
        "def main():\n"
        "    raise LookupError('found by torch')\n"
        "main()\n",
    )
    document = over(forge, "scripts: {work: {run: work.py}}")
    [mesh] = document["meshes"]
    assert mesh["reason"].startswith("rank 0 on local exited with code 1: ")
    assert "LookupError: found by torch" in mesh["reason"]
    trace = mesh["failure"]["traceback"]
    assert f'File "{forge.folder}/work.py", line 4, in main' in trace
    written = (forge.run_dir(document["run"]) / "logs/work/0/rank-0.error.json").read_text()
    assert "elastic" in json.loads(written)["message"]["extraInfo"]["py_callstack"], "it was torch that wrote first"

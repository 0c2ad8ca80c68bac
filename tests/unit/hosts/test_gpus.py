"""What a host's GPUs are, for every kind of machine. NVML is a fake here: the tests run where no GPU is."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pynvml
import pytest

import forgectl
from forgectl.hosts.gpu_leases import acquire
from forgectl.hosts.gpus import FoundGpus, NoSuchGpu, discover, load_nvml
from forgectl.model.plan import Gpu

GIB = 2**30


class FakeNvml:
    """Stands in for the module `pynvml`, as there is no GPU where these tests run.

    A card is a dict: uuid, and perhaps name, cores, clock, compute, graphics, display, mig (its devices, None
    for a gap). `broken` maps functions to what they raise.
    """

    def __init__(self, *cards: dict[str, Any], broken: dict[str, Exception] | None = None) -> None:
        self.cards = cards
        self.broken = broken or {}
        self.open = 0
        self.asked: list[str] = []

    def __getattribute__(self, name: str) -> Any:
        found = object.__getattribute__(self, name)
        if not name.startswith("nvml"):
            return found
        self.asked.append(name)
        if name in self.broken:
            raise self.broken[name]
        assert self.open or name == "nvmlInit"
        return found

    def nvmlInit(self) -> None:
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> dict[str, Any]:
        if self.cards[index].get("lost"):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        return self.cards[index]

    def nvmlDeviceGetUUID(self, handle: dict[str, Any]) -> Any:
        return handle["uuid"]

    def nvmlDeviceGetName(self, handle: dict[str, Any]) -> Any:
        return handle.get("name", b"NVIDIA H100")

    def nvmlDeviceGetNumGpuCores(self, handle: dict[str, Any]) -> Any:
        return handle.get("cores", 100)

    def nvmlDeviceGetMaxClockInfo(self, handle: dict[str, Any], kind: int) -> Any:
        assert kind == pynvml.NVML_CLOCK_SM
        return handle.get("clock", 10)

    def nvmlDeviceGetMigMode(self, handle: dict[str, Any]) -> list[int]:
        return [int("mig" in handle), 0]

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: dict[str, Any]) -> int:
        return len(handle["mig"])

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: dict[str, Any], index: int) -> dict[str, Any]:
        if handle["mig"][index] is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return {"uuid": handle["mig"][index], "name": "H100 MIG 1g.10gb"}

    def nvmlDeviceGetComputeRunningProcesses(self, handle: dict[str, Any]) -> Any:
        return handle.get("compute", [])

    def nvmlDeviceGetComputeRunningProcesses_v2(self, handle: dict[str, Any]) -> Any:
        return handle.get("compute", [])

    def nvmlDeviceGetGraphicsRunningProcesses(self, handle: dict[str, Any]) -> Any:
        return handle.get("graphics", [])

    def nvmlDeviceGetDisplayActive(self, handle: dict[str, Any]) -> Any:
        return handle.get("display", 0)


QUESTIONS = sorted(name for name in vars(FakeNvml) if name.startswith("nvml"))


def process(pid: int, used: int | None = None) -> SimpleNamespace:
    return SimpleNamespace(pid=pid, usedGpuMemory=used)


def cards(count: int) -> list[dict[str, Any]]:
    return [{"uuid": f"GPU-{i}{i}{i}{i}-x"} for i in range(count)]


@pytest.fixture
def find(tmp_path: Path) -> Any:
    def run(nvml: FakeNvml | None, declared: Any = "auto", run: str | None = None, **environ: str) -> FoundGpus:
        found = discover(declared, host="here", environ=environ, run=run, directory=tmp_path, nvml=lambda: nvml)
        assert nvml is None or nvml.open == 0 or "nvmlShutdown" in nvml.broken
        return found

    return run


def visible(found: FoundGpus) -> list[str]:
    return [gpu.visible for gpu in found.gpus]


def test_the_fake_has_only_what_the_real_module_has() -> None:
    assert [name for name in QUESTIONS if not hasattr(pynvml, name)] == []


@pytest.mark.parametrize("count", [0, 1, 8])
def test_auto_is_all_that_nvml_sees_by_index(find: Any, count: int) -> None:
    found = find(FakeNvml(*cards(count)))
    assert found == FoundGpus(
        tuple(Gpu(visible=str(i), uuid=f"GPU-{i}{i}{i}{i}-x", name="NVIDIA H100") for i in range(count))
    )


@pytest.mark.parametrize("declared", ["none", 0, (), []])
def test_none_asks_nobody(find: Any, declared: Any) -> None:
    nvml = FakeNvml(*cards(8))
    assert find(nvml, declared) == FoundGpus(())
    assert nvml.asked == []


# Machines without a GPU.


def test_without_a_driver_there_are_no_gpus_and_pynvml_is_not_even_imported() -> None:
    code = (
        "import sys\n"
        "from forgectl.hosts import gpus\n"
        "found = gpus.discover('auto', host='h', environ={}, nvml=lambda: gpus.load_nvml(['/absent']))\n"
        "assert found == gpus.FoundGpus(()), found\n"
        "assert not {'pynvml', 'torch'} & set(sys.modules)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(forgectl.__file__).parents[1])}
    subprocess.run([sys.executable, "-c", code], env=env, check=True)


def test_a_driver_without_the_module_is_no_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert load_nvml(["/absent", str(tmp_path)]) is None


def test_a_module_without_the_library_is_no_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def absent(_: str) -> None:
        raise OSError("libnvidia-ml.so.1: cannot open shared object file")

    monkeypatch.setattr(pynvml, "nvmlLib", None)
    monkeypatch.setattr(pynvml, "CDLL", absent)
    assert load_nvml([str(tmp_path)]) is pynvml
    assert discover("auto", host="h", environ={}, nvml=lambda: load_nvml([str(tmp_path)])) == FoundGpus(())


# NVML that fails.

NO_GPUS = {"nvmlInit", "nvmlDeviceGetCount", "nvmlDeviceGetHandleByIndex", "nvmlDeviceGetUUID"}
ERRORS = [
    pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED),
    pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST),
    AttributeError("an old binding has no such function"),
    OSError("driver gone"),
]


@pytest.mark.parametrize("error", ERRORS, ids=str)
@pytest.mark.parametrize("question", QUESTIONS)
def test_nothing_that_nvml_refuses_stops_an_agent(find: Any, question: str, error: Exception) -> None:
    nvml = FakeNvml(*cards(2), {"uuid": "GPU-m", "mig": ["MIG-0"]}, broken={question: error})
    found = find(nvml)
    mig = [] if "Mig" in question and "Mode" not in question else ["MIG-0"]
    if question == "nvmlDeviceGetMigMode":
        assert visible(found) == ["0", "1", "2"]
    else:
        assert [g.uuid for g in found.gpus] == ([] if question in NO_GPUS else ["GPU-0000-x", "GPU-1111-x", *mig])
    assert ("nvmlShutdown" in nvml.asked) == (question != "nvmlInit")


def test_a_lost_card_makes_indices_ambiguous_so_the_others_go_by_uuid(find: Any) -> None:
    two = cards(2)
    found = find(FakeNvml({"uuid": "GPU-l", "lost": True}, *two))
    assert visible(found) == ["GPU-0000-x", "GPU-1111-x"]
    found = find(FakeNvml({"uuid": "GPU-l", "lost": True}, *two), CUDA_VISIBLE_DEVICES="1")
    assert visible(found) == ["GPU-1111-x"]


# MIG.

MIG = {"uuid": "GPU-mmmm", "mig": ["MIG-aa", None, "MIG-ab"]}


def test_each_mig_device_is_a_gpu_by_its_uuid(find: Any) -> None:
    found = find(FakeNvml(MIG))
    assert found.gpus == tuple(Gpu(visible=uuid, uuid=uuid, name="H100 MIG 1g.10gb") for uuid in ("MIG-aa", "MIG-ab"))


@pytest.mark.parametrize(
    ("wanted", "uuids"),
    [
        ("MIG-ab", ["MIG-ab"]),
        ("MIG-ab,MIG-aa", ["MIG-ab", "MIG-aa"]),
        ("MIG-a", []),
        ("0", ["MIG-aa"]),
        ("GPU-mmmm", ["MIG-aa"]),
        ("1", ["GPU-0000-x"]),
    ],
)
def test_mig_devices_are_chosen_as_cuda_chooses_them(find: Any, wanted: str, uuids: list[str]) -> None:
    found = find(FakeNvml(MIG, *cards(1)), CUDA_VISIBLE_DEVICES=wanted)
    assert visible(found) == uuids


def test_an_index_in_the_spec_means_all_mig_devices_of_that_card(find: Any) -> None:
    assert visible(find(FakeNvml(*cards(1), MIG), [1])) == ["MIG-aa", "MIG-ab"]


def test_a_card_in_mig_mode_without_devices_has_no_gpu(find: Any) -> None:
    nvml = FakeNvml({"uuid": "GPU-e", "mig": [None]})
    assert find(nvml) == FoundGpus(())
    assert find(nvml, CUDA_VISIBLE_DEVICES="0") == FoundGpus(())


# CUDA_VISIBLE_DEVICES.


@pytest.mark.parametrize(
    ("wanted", "indices"),
    [
        ("", ""),
        ("-1", ""),
        ("NoDevFiles", ""),
        ("0", "0"),
        ("3,1", "31"),
        (" 2 , 0 ", "20"),
        ("0,1,-1,2", "01"),
        ("1,9,2", "1"),
        ("2,2", ""),
        ("1gpu2,2ampere", "12"),
        ("99999999999999999999", ""),
        ("1" * 5000, ""),
        ("GPU-2222", "2"),
        ("gpu-2222", ""),
        ("GPU-222,GPU-0000-x", "20"),
        ("GPU-3333-X", "3"),
        ("GPU-", ""),
        ("GPU-abcd,0", ""),
        ("0,GPU-1111", "01"),
        ("GPU-1,GPU-1111", ""),
    ],
)
def test_cuda_visible_devices_is_read_as_cuda_reads_it(find: Any, wanted: str, indices: str) -> None:
    assert visible(find(FakeNvml(*cards(4)), CUDA_VISIBLE_DEVICES=wanted)) == list(indices)


MIXED = [
    {"uuid": "GPU-slow", "name": "T400", "cores": 384, "clock": 1400},
    {"uuid": "GPU-fast", "name": "H100", "cores": 16896, "clock": 1980},
]


def test_on_mixed_cards_indices_are_of_the_fastest_first_unless_in_bus_order(find: Any) -> None:
    assert visible(find(FakeNvml(*MIXED), CUDA_VISIBLE_DEVICES="0")) == ["GPU-fast"]
    found = find(FakeNvml(*MIXED), CUDA_VISIBLE_DEVICES="0", CUDA_DEVICE_ORDER="PCI_BUS_ID")
    assert [(g.visible, g.uuid) for g in found.gpus] == [("0", "GPU-slow")]


def test_mixed_cards_go_by_uuid_unless_all_count_in_bus_order(find: Any) -> None:
    assert visible(find(FakeNvml(*MIXED))) == ["GPU-slow", "GPU-fast"]
    assert visible(find(FakeNvml(*MIXED), CUDA_DEVICE_ORDER="PCI_BUS_ID")) == ["0", "1"]


# GPUs that the spec declares.


def test_a_declared_number_means_the_first_that_nvml_sees(find: Any) -> None:
    found = find(FakeNvml(*cards(4)), 2)
    assert [g.uuid for g in found.gpus] == ["GPU-0000-x", "GPU-1111-x"] and not found.declared
    assert visible(find(FakeNvml(*cards(4)), 2, CUDA_VISIBLE_DEVICES="3,1,0")) == ["3", "1"]


@pytest.mark.parametrize("nvml", [None, FakeNvml(), FakeNvml(*cards(2))], ids=["absent", "0", "2"])
def test_more_than_nvml_sees_are_made_up(find: Any, nvml: FakeNvml | None) -> None:
    found = find(nvml, 3)
    assert found == FoundGpus(tuple(Gpu(visible=str(i), uuid=f"declared:here:{i}") for i in range(3)), declared=True)


def test_gpus_that_are_there_but_hidden_are_not_made_up(find: Any) -> None:
    with pytest.raises(NoSuchGpu) as error:
        find(FakeNvml(*cards(4)), 3, CUDA_VISIBLE_DEVICES="2,0")
    assert str(error.value) == (
        "3 GPUs are declared for host here, but NVML shows 0, 2, as CUDA_VISIBLE_DEVICES is '2,0'"
    )


def test_declared_indices_are_those_of_nvml_or_made_up(find: Any) -> None:
    found = find(FakeNvml(*cards(4)), [3, 1, 3])
    assert visible(found) == ["3", "1"] and not found.declared
    found = find(None, (3, 1), CUDA_VISIBLE_DEVICES="0")
    assert [(g.visible, g.uuid) for g in found.gpus] == [
        ("3", "declared:here:3"),
        ("1", "declared:here:1"),
    ]
    assert found.declared


def test_an_index_that_is_not_there_is_an_error_that_says_what_is(find: Any) -> None:
    with pytest.raises(NoSuchGpu, match=r"^host here has no GPU 2, 7: NVML shows 0, 1$"):
        find(FakeNvml(*cards(2)), [0, 2, 7])
    with pytest.raises(NoSuchGpu, match=r"no GPU 1: NVML shows none, as CUDA_VISIBLE_DEVICES is ''$"):
        find(FakeNvml(*cards(2)), [1], CUDA_VISIBLE_DEVICES="")


@pytest.mark.parametrize("declared", ["all", -1, [0, -1]])
@pytest.mark.parametrize("nvml", [None, FakeNvml(*cards(2))], ids=["absent", "2"])
def test_what_cannot_be_meant_is_an_error(find: Any, nvml: FakeNvml | None, declared: Any) -> None:
    with pytest.raises(NoSuchGpu, match="for host here is not auto, none, a number or"):
        find(nvml, declared)


# Who has them.


def holder_of(find: Any, run: str | None = None, **card: Any) -> str | None:
    gpu: Gpu
    (gpu,) = find(FakeNvml({"uuid": "GPU-x", **card}), run=run).gpus
    return gpu.holder


def test_a_leased_gpu_names_run_mesh_user_and_pid(find: Any, tmp_path: Path) -> None:
    lease = acquire([Gpu("1", "GPU-1111-x")], run="grpo-7f3a", mesh="trainer", host="here", directory=tmp_path)
    found = find(FakeNvml(*cards(2)))
    user = psutil.Process().username()
    assert [g.holder for g in found.gpus] == [
        None,
        f"run grpo-7f3a, mesh trainer, of user {user}, pid {os.getpid()}",
    ]
    lease.release()
    assert [g.holder for g in find(FakeNvml(*cards(2))).gpus] == [None, None]


def test_a_declared_gpu_can_be_leased_too(find: Any, tmp_path: Path) -> None:
    lease = acquire(find(None, 2).gpus, run="a-1", mesh="m", host="here", directory=tmp_path)
    assert all(g.holder and g.holder.startswith("run a-1, mesh m") for g in find(None, 2).gpus)
    lease.release()


@pytest.mark.parametrize("kind", ["compute", "graphics"])
def test_a_foreign_process_is_named_with_its_memory_but_not_its_arguments(find: Any, kind: str, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text("import sys; print(); sys.stdin.read()")
    argv = [sys.executable, "-u", "train.py", "--key=s3cret"]
    with subprocess.Popen(argv, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as stranger:
        assert stranger.stdout is not None
        stranger.stdout.readline()  # its exec is done: before, it has no command line
        card: dict[str, Any] = {kind: [process(stranger.pid, int(30.1 * GIB))]}
        words = holder_of(find, **card)
        stranger.communicate()
    python, user = Path(sys.executable).name, psutil.Process().username()
    assert words == f"pid {stranger.pid} ({python} train.py) of user {user}, 30.1 GiB"


def test_an_unknown_pid_is_said_to_be_out_of_sight(find: Any) -> None:
    unseen = "a process that this container cannot see"
    assert holder_of(find, compute=[process(0, GIB), process(0)]) == f"{unseen}, 1 GiB"
    assert holder_of(find, compute=[process(2**22 + 1)]) == unseen


def test_of_many_processes_the_largest_are_named(find: Any) -> None:
    words = holder_of(find, compute=[process(2**22 + i, i * GIB) for i in range(1, 6)])
    assert words is not None
    assert [part.split(", ")[-1] for part in words.split(" and ")] == [
        "5 GiB",
        "4 GiB",
        "3 GiB",
        "2 more",
    ]


def test_processes_of_the_asking_run_are_not_foreign(find: Any) -> None:
    env = {**os.environ, "FORGE_RUN_ID": "mine-0001"}
    with subprocess.Popen(["cat"], env=env, stdin=subprocess.PIPE) as rank:
        while b"mine-0001" not in Path(f"/proc/{rank.pid}/environ").read_bytes():
            time.sleep(0.01)  # within its execve it has none yet
        card: dict[str, Any] = {"compute": [process(rank.pid, GIB)]}
        assert holder_of(find, run="mine-0001", **card) is None
        assert f"pid {rank.pid} (cat)" in str(holder_of(find, run="other-0001", **card))
        assert f"pid {rank.pid} (cat)" in str(holder_of(find, **card))
        rank.communicate()


def test_the_desktop_of_a_gpu_with_a_screen_does_not_make_it_taken(find: Any) -> None:
    assert holder_of(find, display=1, graphics=[process(0, GIB)]) is None
    assert holder_of(find, display=1, compute=[process(0, GIB)]) is not None


def test_an_older_driver_is_asked_in_its_own_words(find: Any) -> None:
    missing = pynvml.NVMLError(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
    nvml = FakeNvml(
        {"uuid": "GPU-x", "compute": [process(0)]}, broken={"nvmlDeviceGetComputeRunningProcesses": missing}
    )
    assert find(nvml).gpus[0].holder is not None

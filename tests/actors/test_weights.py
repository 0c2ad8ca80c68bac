"""Weights in shared memory: whole or not there, never reused, read in place, one transfer a host."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import pickle
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from actors import WeightStore
from actors.weights import CHUNK
from forgectl import ActorDied, BusyError, NotFoundError, TimedOutError, UnreachableError

SECONDS = 60


def some_weights(value: float = 1.0) -> dict[str, torch.Tensor]:
    return {
        "layer.weight": torch.full((3, 5), value),
        "layer.bias": torch.arange(6, dtype=torch.bfloat16),
        "wide": torch.arange(12.0).reshape(3, 4).T,  # has holes
        "scale": torch.tensor(value, dtype=torch.float64),
        "odd": torch.tensor([True, False, True]),
        "steps": torch.tensor([2**40, -1]),
        "none": torch.zeros(0, 4),
        "small": torch.ones(3).to(torch.float8_e4m3fn),
    }


def equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and bool(torch.equal(a.double(), b.double()))


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder in shared memory."""
    folder = Path(f"/dev/shm/forgectl-test-{os.getpid()}")
    folder.mkdir(mode=0o700)
    yield folder
    subprocess.run(["rm", "-rf", folder], check=True)


@pytest.fixture
def store(memory: Path) -> WeightStore:
    return WeightStore("policy", memory / "policy")


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    """A process that runs `code`; what it prints is read from its stdout."""
    argv = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_what_is_published_is_fetched_and_the_files_are_safetensors(store: WeightStore) -> None:
    weights = some_weights()
    assert store.latest() is None
    assert store.publish(3, weights) == 3
    fetched = store.fetch()
    assert fetched.version == 3
    read_by_others = load_file(store.path(3))
    for found in (fetched.tensors, read_by_others):
        assert found.keys() == weights.keys()
        assert all(equal(found[name], weights[name]) for name in weights)
    assert store.path(3).stat().st_mode & 0o777 == 0o600


def test_every_tensor_begins_at_a_multiple_of_its_elements(store: WeightStore) -> None:
    store.publish(1, some_weights())
    fetched = store.fetch()
    assert all(e.begin % fetched.tensors[name].element_size() == 0 for name, e in fetched.entries.items())


def test_without_a_version_the_next_is_published(store: WeightStore) -> None:
    assert [store.publish(version, some_weights()) for version in (None, None, 7, None)] == [1, 2, 7, 8]


@pytest.mark.parametrize("version", [4, 5])
def test_a_version_is_never_used_again(store: WeightStore, version: int) -> None:
    store.publish(5, some_weights(1.0))
    store.drop(before=100)
    with pytest.raises(ValueError, match=f"version {version} does not follow the latest, 5"):
        store.publish(version, some_weights(2.0))
    assert store.fetch(5).tensors["scale"] == 1.0


def test_a_type_that_the_format_has_not_is_named(store: WeightStore) -> None:
    with pytest.raises(ValueError, match=r"phase is of torch\.complex64"):
        store.publish(1, {"phase": torch.zeros(2, dtype=torch.complex64)})
    assert store.latest() is None


def test_the_newest_two_are_kept_and_a_dropped_one_says_so(store: WeightStore) -> None:
    for version in range(1, 5):
        store.publish(version, some_weights())
    assert store.versions() == [3, 4]
    with pytest.raises(NotFoundError, match="version 2 was dropped; the latest is 4"):
        store.fetch(2)
    store.drop(before=4)
    assert store.versions() == [4]


def test_what_is_mapped_stays_as_it_is(store: WeightStore) -> None:
    store.publish(1, some_weights(1.0))
    ours = store.fetch(1).tensors  # only its tensors are alive
    theirs = load_file(store.path(1))  # mapped by a reader that knows nothing of us
    for version in range(2, 8):
        store.publish(version, some_weights(float(version)))
    assert equal(ours["layer.weight"], torch.ones(3, 5))
    assert equal(theirs["layer.weight"], torch.ones(3, 5))


def test_the_pages_of_an_old_version_are_used_again_when_nobody_has_it_open(store: WeightStore) -> None:
    inodes = []
    for version in range(1, 5):
        store.publish(version, some_weights())
        inodes.append(store.path(version).stat().st_ino)
    assert inodes[2:] == inodes[:2]
    held = store.fetch(3)
    store.publish(5, some_weights())
    assert store.path(5).stat().st_ino != inodes[2]
    assert held.version == 3


def test_a_file_that_is_used_again_may_shrink_and_grow(store: WeightStore) -> None:
    for version, count in enumerate((1000, 1000, 10, 5000, 0, 3), start=1):
        store.publish(version, {"x": torch.arange(count)})
        assert torch.equal(load_file(store.path(version))["x"], torch.arange(count))


def test_writing_into_a_fetched_tensor_changes_nothing_for_others(store: WeightStore) -> None:
    store.publish(1, some_weights())
    store.fetch().tensors["layer.weight"].zero_()
    assert equal(store.fetch().tensors["layer.weight"], torch.ones(3, 5))


def test_tensors_are_copied_into_a_model_of_other_types_and_layouts(store: WeightStore) -> None:
    weights = some_weights()
    store.publish(1, weights)
    targets = {name: torch.full_like(tensor, 0) for name, tensor in weights.items()}
    targets["layer.weight"] = torch.nn.Parameter(torch.zeros(5, 3, dtype=torch.float16).T)
    targets["scale"] = torch.zeros((), dtype=torch.float32)
    store.fetch().copy_to(targets)
    assert all(torch.equal(targets[name].double(), weights[name].double()) for name in weights)


def test_a_model_of_another_shape_is_refused_and_left_alone(store: WeightStore) -> None:
    store.publish(1, {"a": torch.ones(2), "b": torch.ones(3)})
    target = torch.zeros(2)
    with pytest.raises(ValueError, match=r"b has shape \(3,\) in the file and \(4,\) in the model"):
        store.fetch().copy_to({"a": target, "b": torch.zeros(4)})
    with pytest.raises(ValueError, match=r"b has shape \(3,\) in the file and \(missing\) in the model"):
        store.fetch().copy_to({"a": target})
    assert not target.any()


def test_large_tensors_arrive_in_pieces(store: WeightStore) -> None:
    weights = {"large": torch.arange(10 << 20), "small": torch.arange(5)}  # 80 MiB
    store.publish(1, weights)
    target = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    store.fetch().copy_to(target)
    assert all(torch.equal(target[name], weights[name]) for name in weights)


def test_a_file_that_is_cut_short_is_named(store: WeightStore) -> None:
    store.publish(1, some_weights())
    os.truncate(store.path(1), store.path(1).stat().st_size - 1)
    with pytest.raises(ValueError, match=r"policy/1\.safetensors is no whole safetensors file"):
        store.fetch(1)


def test_a_store_travels_in_a_pickle_and_has_one_word_as_its_name(store: WeightStore) -> None:
    store.publish(2, some_weights())
    assert pickle.loads(pickle.dumps(store)).latest() == 2  # noqa: S301
    for name in ("", "..", "a/b", "a b"):
        with pytest.raises(ValueError, match="must be one word"):
            WeightStore(name)


def test_a_version_that_is_not_there_in_time(store: WeightStore) -> None:
    with pytest.raises(TimedOutError, match=r"'policy': a version was not published within 0 s"):
        store.fetch()
    store.publish(1, some_weights())
    with pytest.raises(TimedOutError, match=r"version 2 was not published within 0\.01 s"):
        store.fetch(2, timeout=0.01)


def test_a_reader_waits_in_another_process(store: WeightStore) -> None:
    code = f"""import sys; from actors import WeightStore
store = WeightStore("policy", sys.argv[1]); print("up", flush=True)
print(store.fetch(1, timeout={SECONDS}).tensors["x"].tolist())"""
    with python(code, store.folder) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "up\n"
        store.publish(1, {"x": torch.arange(3)})
        assert reader.stdout.readline() == "[0, 1, 2]\n"


def write_forever(store: WeightStore) -> None:
    torch.set_num_threads(1)  # the threads of the parent are not in its fork
    weights = {f"layer.{i}": torch.empty(1 << 16) for i in range(32)}
    while True:
        version = (store.latest() or 0) + 1
        for tensor in weights.values():
            tensor.fill_(version)
        store.publish(version, weights)


def read_until(store: WeightStore, end: Any) -> None:
    torch.set_num_threads(1)
    last = 0
    while not end.is_set():
        fetched = store.fetch(timeout=SECONDS)
        assert fetched.version >= last, (fetched.version, last)
        last = fetched.version
        for name, tensor in fetched.tensors.items():
            assert (tensor == last).all(), (last, name, tensor)


def test_no_reader_sees_half_a_version_of_a_writer_that_is_killed_again_and_again(
    store: WeightStore, request: pytest.FixtureRequest
) -> None:
    kills = 10
    fork = multiprocessing.get_context("fork")  # torch is imported already
    end = fork.Event()
    readers = [fork.Process(target=read_until, args=(store, end), daemon=True) for _ in range(4)]
    for reader in readers:
        reader.start()
        request.addfinalizer(reader.kill)
    last = 0
    for kill in range(kills):
        writer = fork.Process(target=write_forever, args=(store,), daemon=True)
        writer.start()
        while (store.latest() or 0) < last + 2:
            assert writer.is_alive()
            assert all(reader.is_alive() for reader in readers)
        until_it_writes(store, kill)
        writer.kill()
        writer.join()
        last = store.latest() or 0
    end.set()
    for reader in readers:
        reader.join(SECONDS)
        assert reader.exitcode == 0
    store.publish(None, some_weights())
    assert {p.name for p in store.folder.iterdir()} == {
        f"{last}.safetensors",
        f"{last + 1}.safetensors",
        "publish.lock",
    }


def until_it_writes(store: WeightStore, kill: int) -> None:
    """Return while the writer is in the middle of a version; each time a little deeper."""
    draft = store.folder / "publishing"
    seen = 0
    while seen < 1 + 5 * kill:
        seen += draft.exists()


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Path]:
    """A file system in memory with room for 1 MiB."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"SKIPPED: a small tmpfs cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


LARGE = {"x": torch.arange(100_000)}  # 0.8 MB


def test_a_full_memory_is_an_error_with_numbers_and_leaves_nothing(tiny: Path) -> None:
    store = WeightStore("policy", tiny)
    store.publish(1, LARGE)
    with pytest.raises(BusyError, match=r"'policy': .*tiny has [\d,]+ bytes free, and a version takes 800,[\d,]+"):
        store.publish(2, LARGE)
    assert store.versions() == [1]
    assert not (tiny / "publishing").exists()
    store.publish(2, {"x": torch.arange(10)})
    assert store.versions() == [1, 2]


def test_without_room_in_memory_versions_go_to_the_disk(
    tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = WeightStore("spilling", tiny, disk=tmp_path / "disk")
    for version in range(1, 6):
        store.publish(version, {"x": torch.arange(100_000) * version})
        assert torch.equal(store.fetch().tensors["x"], torch.arange(100_000) * version)
    on_disk = list((tmp_path / "disk").iterdir())
    assert 1 <= len(on_disk) <= 2, "what is dropped is removed from the disk, too"
    assert [record.message for record in caplog.records] == [
        f"weights 'spilling': {tiny} has no room for {store.fetch().size} bytes; they go to {tmp_path / 'disk'}"
    ]


class Source:
    """Stands in for the handle of a rank on another host."""

    def __init__(self, store: WeightStore, *, dies_after: int | None = None) -> None:
        self.store, self.dies_after = store, dies_after
        self.streams: list[int] = []
        self.read_weights = self

    async def stream(self, name: str, version: int | None) -> AsyncIterator[Any]:
        assert name == self.store.name
        number = len(self.streams)
        self.streams.append(0)
        async for part in self.store.stream_file(version):
            if self.streams[number] == self.dies_after:
                raise ActorDied("trainer rank 0 was killed by SIGKILL")
            await asyncio.sleep(0)
            yield part
            self.streams[number] += 1


def two_hosts(memory: Path) -> tuple[WeightStore, WeightStore]:
    return WeightStore("policy", memory / "host1"), WeightStore("policy", memory / "host2")


BYTES = {"x": torch.arange(CHUNK // 2)}  # 4 chunks and the header


def test_between_hosts_each_version_comes_once(memory: Path) -> None:
    async def all_readers() -> None:
        there, here = two_hosts(memory)
        there.publish(4, BYTES)
        source = Source(there)
        found = await asyncio.gather(*(here.receive(source, version) for version in (4, None, 4, None)))
        assert [fetched.version for fetched in found] == [4] * 4
        assert all(torch.equal(fetched.tensors["x"], BYTES["x"]) for fetched in found)
        assert sum(count > 1 for count in source.streams) == 1, "the others asked at most for the version"
        there.publish(5, BYTES)
        assert (await here.receive(source)).version == 5
        assert here.versions() == [4, 5]

    asyncio.run(all_readers())


def test_a_source_that_dies_is_the_cause_and_the_next_reader_tries_anew(memory: Path) -> None:
    async def two_readers() -> None:
        there, here = two_hosts(memory)
        there.publish(1, BYTES)
        with pytest.raises(ActorDied, match="SIGKILL"):
            await here.receive(Source(there, dies_after=3), 1)
        assert here.versions() == []
        assert not (here.folder / "receiving").exists()
        assert (await here.receive(Source(there), 1)).version == 1

    asyncio.run(two_readers())


def test_a_silent_source_and_one_that_ends_early(memory: Path) -> None:
    class Silent(Source):
        async def stream(self, name: str, version: int | None) -> AsyncIterator[Any]:
            yield 1, 100
            await asyncio.Event().wait()

    class Short(Source):
        async def stream(self, name: str, version: int | None) -> AsyncIterator[Any]:
            yield 1, 100
            yield b"only this"

    async def readers() -> None:
        there, here = two_hosts(memory)
        with pytest.raises(TimedOutError, match=r"sent nothing for 0\.01 s"):
            await here.receive(Silent(there), 1, timeout=0.01)
        with pytest.raises(UnreachableError, match="ended after 9 of 100 bytes of version 1"):
            await here.receive(Short(there), 1)
        assert here.versions() == []

    asyncio.run(readers())


def test_a_receiver_that_is_killed_frees_the_lock(memory: Path) -> None:
    code = """
import asyncio, sys
from actors import WeightStore

class Silent:
    async def stream(self, name, version):
        yield 1, 1000
        yield b"x" * 10
        print("receiving", flush=True)
        await asyncio.Event().wait()

Silent.read_weights = Silent()
asyncio.run(WeightStore("policy", sys.argv[1]).receive(Silent(), 1))
"""
    there, here = two_hosts(memory)
    there.publish(1, BYTES)
    with python(code, here.folder) as receiver:
        assert receiver.stdout is not None
        assert receiver.stdout.readline() == "receiving\n"
        assert (here.folder / "receiving").exists()
        receiver.kill()
    assert asyncio.run(here.receive(Source(there), 1)).version == 1
    assert not (here.folder / "receiving").exists()

"""Syncs to real relays: killed at any moment, on a full disk, with files larger than memory should be; and by ssh."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from forgectl.errors import BusyError, UnreachableError
from forgectl.protocol.host_survey import RelayReady
from forgectl.sync.listing import PIECE
from forgectl.sync.scan import Tree, scan
from forgectl.sync.sender import Pushed, push
from forgectl.transport.destination import Destination
from forgectl.transport.ssh import ANSWERS, RelayConnection, dial
from forgectl.wire.unix_sockets import Connection
from tests.conftest import PROGRAMS
from tests.lab.lab import Lab
from tests.unit.sync.sync_cases import LIMIT, Snapshot, snapshot

RELAY = "import sys; from forgectl.relay.relay import main; main(sys.argv[1])"
needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can mount")


@dataclass
class Relay:
    """A relay on this machine, as ssh would run it."""

    process: subprocess.Popen[bytes]
    line: Connection

    def push(self, tree: Tree) -> Pushed:
        return push(self.line, tree, "key", "there")


@contextlib.contextmanager
def relay(root: Path) -> Iterator[Relay]:
    """A relay whose root is `root`; it ends when it is hung up on."""
    root.mkdir(mode=0o700, exist_ok=True)
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-c", RELAY, str(root)], stdin=theirs.fileno(), stdout=theirs.fileno()
        )
    with ours:
        line = Connection(ours, ANSWERS)
        assert isinstance(line.receive(), RelayReady)
        yield Relay(process, line)
    process.wait(30)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "workdir").mkdir()
    return tmp_path / "workdir"


def fill(work: Path, seed: int) -> Snapshot:
    """Many files and folders, other ones for each seed; what there is then."""
    chance = random.Random(seed)
    for path in sorted(work.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    for n in range(200):
        folder = work / f"d{n % 7 if n % 3 else seed}"
        folder.mkdir(exist_ok=True)
        (folder / f"f{n + chance.randrange(3)}").write_bytes(chance.randbytes(chance.randrange(3000)))
    (work / "big").write_bytes(chance.randbytes(2 * PIECE))
    (work / "link").symlink_to(f"d{seed}")
    return snapshot(work)


def test_several_syncs_go_over_one_connection(work: Path, tmp_path: Path) -> None:
    with relay(tmp_path / "root") as there:
        for seed in (1, 2, 1):
            expected = fill(work, seed)
            there.push(scan(work, LIMIT))
            assert snapshot(tmp_path / "root/work/key") == expected
    assert there.process.returncode == 0


def test_killed_at_any_moment_each_file_is_old_or_new_and_the_next_sync_ends_it(work: Path, tmp_path: Path) -> None:
    """SIGKILL to the relay when so much has happened to its tree's folder, before, in and after its change."""
    root = tmp_path / "root"
    tree = root / "work/key"
    new: Snapshot = {}
    cut = 0
    for seed in range(12):
        old, new = new, fill(work, seed)
        scanned = scan(work, LIMIT)
        with relay(root) as there:
            killer = threading.Timer(0.004 * seed, there.process.kill)
            killer.start()
            try:
                there.push(scanned)
            except UnreachableError:
                cut += 1
            killer.cancel()
            there.process.kill()
        for path, found in snapshot(tree).items():
            assert found in (old.get(path), new.get(path)), path
        with relay(root) as there:
            there.push(scanned)
        assert snapshot(tree) == new
        assert sorted(p.name for p in (root / "work").iterdir() if p.name != ".draft.key") == [
            ".index.key",
            ".lock.key",
            ".staged.key",
            "key",
        ]
        assert not list((root / "work/.staged.key").iterdir())
    assert cut


@needs_root
def test_a_full_disk_is_said_at_once_and_leaves_the_old_files(work: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m,mode=0700", "tmpfs", root], capture_output=True)
    if done.returncode:
        pytest.skip(f"NOT TESTED: no tmpfs can be mounted here: {done.stderr!r}")
    try:
        small = fill(work, 1)
        with relay(root) as there:
            there.push(scan(work, LIMIT))
            for n in range(20):
                (work / f"more{n}").write_bytes(os.urandom(2 * PIECE))
            sent = []
            with pytest.raises(BusyError, match=r"host there: .*No space left on device") as caught:
                push(there.line, scan(work, LIMIT), "key", "there", lambda done, total: sent.append(done / total))
            assert caught.value.exit_code == 75 and ".forgeignore" in str(caught.value.hint)
            assert max(sent) < 0.7  # the rest was not worth sending
            assert snapshot(root / "work/key") == small
            for path in work.glob("more*"):
                path.unlink()
            there.push(scan(work, LIMIT))  # over the same connection
            assert snapshot(root / "work/key") == small
    finally:
        subprocess.run(["umount", "-l", root], check=True)


def test_memory_does_not_grow_with_a_file(work: Path, tmp_path: Path) -> None:
    def peaks(size: int) -> tuple[int, int]:
        """KiB that both ends held while a file of this size went from one to the other."""
        (tmp_path / f"root{size}").mkdir(mode=0o700)
        with (work / "big").open("wb") as file:
            file.truncate(size)
        ours, theirs = socket.socketpair()
        said = tmp_path / "said"
        reports = [
            sys.executable,
            "-c",
            f"{RELAY.replace('main(sys', 'os = 0; main(sys')}",
            str(tmp_path / f"root{size}"),
        ]
        with ours, theirs, said.open("wb") as out:
            host = subprocess.Popen(reports, stdin=theirs.fileno(), stdout=theirs.fileno())
            here = subprocess.Popen(
                [sys.executable, str(PROGRAMS / "push_workdir.py"), str(work)], stdin=ours.fileno(), stdout=out
            )
        assert here.wait(60) == 0
        _, status, usage = os.wait4(host.pid, 0)
        host.returncode = os.waitstatus_to_exitcode(status)
        assert host.returncode == 0
        assert (tmp_path / f"root{size}/work/key/big").stat().st_size == size
        return int(said.read_text()), usage.ru_maxrss

    small, large = peaks(PIECE), peaks(200 * PIECE)
    assert all(b < a + 20 * 1024 for a, b in zip(small, large, strict=True))


# ---------------------------------------------------------------- by ssh


@contextlib.contextmanager
def dialled(name: str) -> Iterator[RelayConnection]:
    there = dial(Destination(name, name, sys.executable))
    try:
        yield there
    finally:
        there.close()


@pytest.fixture
def hosts(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Lab:
    monkeypatch.setenv("FORGECTL_SSH", lab.ssh)
    for name in lab.names:
        lab.wipe(name)
    return lab


def test_a_workdir_goes_to_all_hosts_by_ssh(hosts: Lab, work: Path) -> None:
    """To a host of two names only once: the second waits for the first, and finds all there."""
    fill(work, 3)
    (work / "-rf\n'\udcff").mkdir()
    (work / "-rf\n'\udcff" / "$(id)").write_text("x")
    tree, results = scan(work, LIMIT), {}

    def go(name: str) -> None:
        with dialled(name) as there:
            results[name] = push(there.line, tree, "key", name)

    threads = [threading.Thread(target=go, args=[name]) for name in ("host1", "host2", "host3", "twin")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    everything = sum(e.is_file for e in tree.entries)
    sent = {name: pushed.sent_files for name, pushed in results.items()}
    assert sent["host2"] == sent["host3"] == everything
    assert sorted((sent["host1"], sent["twin"])) == [0, everything]
    for name in hosts.names:
        assert snapshot(hosts.path(name, results[name].path)) == snapshot(work)


def test_a_sync_goes_on_after_its_connection_died(hosts: Lab, work: Path) -> None:
    for n in range(12):
        (work / str(n)).write_bytes(os.urandom(PIECE))
    tree = scan(work, LIMIT)

    def kill_half_way(done: int, total: int) -> None:
        if done >= total // 2:
            hosts.kill_sessions("host1")

    with dialled("host1") as there, pytest.raises(UnreachableError, match="host host1: the connection was lost"):
        push(there.line, tree, "key", "host1", kill_half_way)
    with dialled("host1") as there:
        pushed = push(there.line, tree, "key", "host1")
    assert 0 < pushed.sent_files < 12
    assert snapshot(hosts.path("host1", pushed.path)) == snapshot(work)

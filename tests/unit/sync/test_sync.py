"""What a sync sends, deletes and keeps, and how several take turns at one tree."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from forgectl.errors import BusyError
from forgectl.sync.listing import PIECE, Entry, new_hash
from forgectl.sync.scan import scan
from forgectl.sync.sender import push
from forgectl.sync.target import hold
from tests.conftest import until
from tests.unit.sync.sync_cases import LIMIT, Host, snapshot

ODD = ["-rf", "a b", "new\nline", "quo'te\"", "$(touch x)", ";x", "\udcff\udc80", "é", "*", "~", "#x", " x "]


def test_any_name_and_kind_arrives(work: Path, host: Host) -> None:
    for name in ODD:
        (work / name).mkdir()
        (work / name / name).write_bytes(os.fsencode(name))
        (work / name / "link").symlink_to(name)
    (work / "empty").mkdir()
    (work / "nothing").touch()
    (work / "program").write_text("#!")
    (work / "program").chmod(0o700)
    (work / "big").write_bytes(os.urandom(3 * PIECE + 1))
    (work / "just").write_bytes(os.urandom(2 * PIECE))
    pushed = host.sync(work)
    assert snapshot(host.tree()) == snapshot(work)
    assert (pushed.path, pushed.sent_files, pushed.deleted) == (str(host.tree()), len(ODD) + 4, 0)
    assert pushed.sent_bytes == scan(work, LIMIT).size
    assert (host.tree() / "program").stat().st_mode & 0o777 == 0o755


def test_only_what_changed_travels(work: Path, host: Host) -> None:
    for name in "abc":
        (work / name).write_text(name * 1000)
    host.sync(work)
    (work / "b").write_text("changed")
    (work / "new").write_text("new")
    (work / "c").unlink()
    pushed = host.sync(work)
    assert (pushed.sent_files, pushed.sent_bytes, pushed.deleted) == (2, 10, 1)


def test_what_has_another_name_or_mode_does_not_travel(work: Path, host: Host) -> None:
    (work / "old").mkdir()
    for name in "ab":
        (work / "old" / name).write_text(name * 1000)
    host.sync(work)
    (work / "old").rename(work / "new")
    (work / "copy").write_text("a" * 1000)
    (work / "new" / "b").chmod(0o755)
    pushed = host.sync(work)
    assert pushed.sent_bytes == 0 and snapshot(host.tree()) == snapshot(work)
    (work / "new" / "b").chmod(0o644)
    assert host.sync(work).sent_bytes == 0 and snapshot(host.tree()) == snapshot(work)


def test_a_file_that_a_rank_changed_is_sent_again(work: Path, host: Host) -> None:
    """Even where its size and time are as they were."""
    for name in "abc":
        (work / name).write_text(name)
    host.sync(work)
    for name, (content, mode) in {"a": ("X", 0o644), "b": ("b", 0o755)}.items():
        file = host.tree() / name
        before = file.stat()
        file.write_text(content)
        file.chmod(mode)
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert host.sync(work).sent_files == 1
    assert snapshot(host.tree()) == snapshot(work)


def test_what_ranks_wrote_stays_until_its_place_is_needed(work: Path, host: Host) -> None:
    (work / "src").mkdir()
    (work / "src/m.py").write_text("code")
    host.sync(work)
    (host.tree() / "src/__pycache__").mkdir()
    (host.tree() / "src/__pycache__/m.pyc").touch()
    (host.tree() / "checkpoints").mkdir()
    (host.tree() / "checkpoints/1.pt").write_text("weights")
    (work / "src/m.py").unlink()
    (work / "src").rmdir()
    host.sync(work)
    assert set(snapshot(host.tree())) == {
        "src",
        "src/__pycache__",
        "src/__pycache__/m.pyc",
        "checkpoints",
        "checkpoints/1.pt",
    }
    (work / "checkpoints").write_text("a file now")
    host.sync(work)
    assert snapshot(host.tree())["checkpoints"] == ("f", b"a file now", False)


def test_what_is_ignored_from_now_on_is_deleted_there(work: Path, host: Host) -> None:
    (work / "data").mkdir()
    (work / "data/x").write_text("x")
    host.sync(work)
    (work / ".forgeignore").write_text("data\n")
    assert host.sync(work).deleted == 2
    assert set(snapshot(host.tree())) == {".forgeignore"}


def test_an_index_that_was_lost_costs_hashing_alone(work: Path, host: Host) -> None:
    (work / "x").write_text("content")
    host.sync(work)
    (host.root / "work/.index.key").write_text("{")
    (work / "y").write_text("more")
    assert host.sync(work).sent_files == 1
    assert snapshot(host.tree()) == snapshot(work)


def test_progress_goes_from_nothing_to_all(work: Path, host: Host) -> None:
    for n in range(20):
        (work / str(n)).write_bytes(bytes(PIECE // 4))
    seen: list[tuple[int, int]] = []
    host.push(scan(work, LIMIT), progress=lambda done, total: seen.append((done, total)))
    assert seen[0] == (0, 5 * PIECE) and seen[-1] == (5 * PIECE, 5 * PIECE)
    assert seen == sorted(seen) and len(seen) > 4
    seen.clear()
    host.push(scan(work, LIMIT), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(0, 0), (0, 0)]


def test_one_tree_is_pushed_to_many_hosts_at_once(work: Path, tmp_path: Path) -> None:
    for n in range(300):
        (work / str(n)).write_bytes(os.urandom(3000))
    (work / "big").write_bytes(os.urandom(2 * PIECE))
    tree = scan(work, LIMIT)
    hosts = [Host(tmp_path / f"root{n}") for n in range(8)]
    threads = [threading.Thread(target=host.push, args=[tree]) for host in hosts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(snapshot(host.tree()) == snapshot(work) for host in hosts)


# ---------------------------------------------------------------- turns


def waiting_for(file: Path) -> bool:
    """Whether somebody waits for a lock on a file."""
    inode = f":{file.stat().st_ino} "
    return any("->" in line and inode in line for line in Path("/proc/locks").read_text().splitlines())


def test_two_syncs_to_one_tree_take_turns(work: Path, host: Host) -> None:
    (work / "x").write_text("x")
    tree = scan(work, LIMIT)
    results = []
    second = threading.Thread(target=lambda: results.append(host.push(tree)))
    with hold(host.root, "key") as site:
        second.start()
        until(lambda: waiting_for(host.root / "work/.lock.key"), "the second to wait")
        host.push(tree, "another")  # waits for nobody
        site.staging.write(b"x")
        site.staging.finish()
        site.settle(tree.entries, tree.digest)
        assert not results
    second.join()
    assert [p.sent_files for p in results] == [0]


def test_content_that_is_wanted_no_more_makes_room_before_any_comes(host: Host) -> None:
    wanted = Entry("x", "f", 1, new_hash_of(b"x"))
    with hold(host.root, "key") as site:
        for content in (b"x", b"y"):
            site.staging.write(content)
            site.staging.finish()
        assert site.examine([wanted]) == []
        assert [p.name for p in (host.root / "work/.staged.key").iterdir()] == [wanted.mark]


def new_hash_of(content: bytes) -> str:
    total = new_hash()
    total.update(content)
    return total.hexdigest()


def test_a_lock_ends_with_a_sync_that_failed(work: Path, host: Host) -> None:
    (host.root / "work").mkdir(mode=0o700)
    (host.root / "work/key").write_text("in the way")
    with (
        host.connected() as line,
        pytest.raises(BusyError, match=r"host there: the workdir could not be written: .*'key'"),
    ):
        push(line, scan(work, LIMIT), "key", "there")
    (host.root / "work/key").unlink()
    assert host.sync(work).path == str(host.tree())

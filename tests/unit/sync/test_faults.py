"""Syncs that go wrong: files that change meanwhile, connections and processes that end, hosts that refuse."""

from __future__ import annotations

import functools
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from forgectl.errors import BusyError, UnreachableError
from forgectl.protocol.tree_sync import RELAY_TO_SYNC, Sync, TreeSynced, Wanted
from forgectl.sync import sender
from forgectl.sync.listing import PIECE
from forgectl.sync.scan import Tree, scan
from forgectl.sync.sender import push, read_pieces
from forgectl.wire.envelope import Refusal
from forgectl.wire.unix_sockets import Connection
from tests.unit.sync.sync_cases import LIMIT, Host, snapshot

# ---------------------------------------------------------------- files that change


def grown(path: Path) -> None:
    path.write_text("longer than it was")


def shrunk(path: Path) -> None:
    path.write_text("")


def gone(path: Path) -> None:
    path.unlink()


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def a_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/passwd")


@pytest.mark.parametrize("change", [grown, shrunk, gone, a_pipe, a_link])
def test_a_file_that_changed_since_the_scan(work: Path, host: Host, change: Callable[[Path], None]) -> None:
    for name in "abc":
        (work / name).write_text(name * 5)
    tree = scan(work, LIMIT)
    change(work / "b")
    assert host.push(tree).changed == ("b",)
    here, there = snapshot(work), snapshot(host.tree())
    assert here["a"] == there["a"] and here["c"] == there["c"]
    assert there.get("b") == (here["b"] if change in (grown, shrunk) else None)
    if change is not a_link:
        assert host.sync(work).changed == ()


def pieces(path: Path, at: int, change: Callable[[Path], None]) -> list[tuple[bytes | None, bool]]:
    """What is read of a file that changes after so many pieces."""
    found = []
    for piece in read_pieces(path):
        found.append(piece)
        if len(found) == at:
            change(path)
    return found


def overwritten(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def replaced(path: Path, content: bytes) -> None:
    path.with_name("draft").write_bytes(content)
    path.with_name("draft").rename(path)


@pytest.mark.parametrize("change", [overwritten, replaced])
@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_file_that_changes_while_it_is_read_is_read_again(
    work: Path, change: Callable[[Path, bytes], None], at: int
) -> None:
    new = os.urandom(PIECE + 7)
    (work / "x").write_bytes(os.urandom(2 * PIECE + 5))
    found = pieces(work / "x", at, lambda path: change(path, new))
    ends = [n for n, (_, more) in enumerate(found) if not more]
    assert b"".join(data or b"" for data, _ in found[ends[-2] + 1 :]) == new


def test_a_file_that_goes_on_growing_is_read_to_an_end(work: Path) -> None:
    (work / "log").write_bytes(b"x" * PIECE)
    read = 0
    for data, _ in read_pieces(work / "log"):
        read += len(data or b"")
        with (work / "log").open("ab") as log:
            log.write(b"y" * PIECE)
    assert read <= sender.TRIES * 10 * PIECE


def test_a_file_that_changed_while_it_was_sent_is_whole_on_the_host(
    work: Path, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    (work / "before").write_text("x")
    (work / "big").write_bytes(os.urandom(3 * PIECE))
    (work / "then").write_text("y")
    changes = [lambda: (work / "big").write_bytes(b"new" * PIECE)]

    def changing(path: Path) -> Iterator[tuple[bytes | None, bool]]:
        for piece in read_pieces(path):
            yield piece
            if path.name == "big" and changes:
                changes.pop()()

    monkeypatch.setattr(sender, "read_pieces", changing)
    assert host.sync(work).changed == ("big",)
    assert snapshot(host.tree()) == snapshot(work)
    assert not list((host.root / "work/.staged.key").iterdir())


# ---------------------------------------------------------------- connections that end


class Cut(socket.socket):
    """A socket whose connection ends after so many bytes were sent."""

    left = 0

    @classmethod
    def after(cls, sock: socket.socket, count: int) -> Cut:
        cut = cls(fileno=sock.detach())
        cut.left = count
        return cut

    def sendall(self, data: bytes | memoryview, flags: int = 0) -> None:  # type: ignore[override]
        part = memoryview(data)[: self.left]
        self.left -= len(part)
        super().sendall(part)
        if len(part) < len(data):
            self.shutdown(socket.SHUT_RDWR)
            raise BrokenPipeError


def cut_push(host: Host, tree: Tree, count: int) -> None:
    with host.connected() as line:
        line.socket = Cut.after(line.socket, count)
        with line.socket, pytest.raises(UnreachableError, match="host there: the connection was lost") as caught:
            push(line, tree, "key", "there")
    assert caught.value.exit_code == 69
    assert all(isinstance(e, ConnectionError) for e in host.errors)
    host.errors.clear()


@pytest.mark.parametrize("part", [0.001, 0.02, 0.3, 0.6, 0.99])
def test_a_sync_that_is_cut_changes_nothing_and_the_next_goes_on(work: Path, host: Host, part: float) -> None:
    for n in range(8):
        (work / str(n)).write_bytes(os.urandom(PIECE // 2 + 1))
    host.sync(work)
    before = snapshot(host.tree())
    for n in range(1, 8):
        (work / str(n)).write_bytes(os.urandom(PIECE // 2 + 1))
    (work / "0").unlink()
    tree = scan(work, LIMIT)
    cut_push(host, tree, int(tree.size * part))
    assert snapshot(host.tree()) == before
    pushed = host.push(tree)
    assert snapshot(host.tree()) == snapshot(work)
    arrived = round(7 * part - 1.5)
    assert pushed.sent_files <= 7 - max(0, arrived)


class Killed(BaseException):
    """Stands for SIGKILL: nothing that handles errors handles it."""


CHANGES = ("rename", "unlink", "rmdir", "mkdir", "symlink", "chmod", "fchmod")


def killed_at(step: int, patch: pytest.MonkeyPatch) -> None:
    """Have the host's process end before its n-th change of the disk from now on."""
    left = [step]

    def change(do: Callable[..., object], *arguments: object, **options: object) -> object:
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        return do(*arguments, **options)

    for name in CHANGES:
        patch.setattr(os, name, functools.partial(change, getattr(os, name)))


def edit(work: Path) -> None:
    """Add, change, move, delete, and let a file, a folder and a link take each other's place."""
    shutil.rmtree(work / "gone")
    (work / "folder/x").rename(work / "moved")
    (work / "folder").rmdir()
    (work / "folder").write_text("a file now")
    (work / "file").unlink()
    (work / "file").mkdir()
    (work / "file/x").write_text("new")
    (work / "link").unlink()
    (work / "link").symlink_to("moved")
    (work / "same").chmod(0o755)
    (work / "changed").write_text("changed")


@pytest.mark.parametrize("then", ["new", "old"])
def test_killed_before_any_change_of_the_disk_the_next_sync_ends_it(work: Path, tmp_path: Path, then: str) -> None:
    """Also one that goes back to what was there before: nothing is left of the one that was cut."""
    for name in ("gone/deep/x", "folder/x", "file", "same", "changed"):
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_text(name * 100)
    (work / "link").symlink_to("same")
    shutil.copytree(work, tmp_path / "was", symlinks=True)
    old, before = snapshot(work), scan(tmp_path / "was", LIMIT)
    edit(work)
    new, after = snapshot(work), scan(work, LIMIT)
    step, killed = 0, True
    while killed:
        host = Host(tmp_path / f"root{step}")
        host.push(before)
        with pytest.MonkeyPatch.context() as patch, host.connected() as line:
            killed_at(step, patch)
            try:
                push(line, after, "key", "there")
                killed = False
            except UnreachableError:
                pass
        assert [type(e) for e in host.errors] == [Killed] * killed
        host.errors.clear()
        (host.tree() / "of a rank").touch()
        for path, found in snapshot(host.tree()).items():
            assert path == "of a rank" or found in (old.get(path), new.get(path)), (step, path)
        host.push(after if then == "new" else before)
        assert snapshot(host.tree()) == {**(new if then == "new" else old), "of a rank": ("f", b"", False)}, step
        step += 1
    assert step > 20


def test_what_was_staged_and_then_spoilt_is_not_believed(work: Path, host: Host) -> None:
    for n in range(4):
        (work / str(n)).write_bytes(os.urandom(PIECE))
    tree = scan(work, LIMIT)
    cut_push(host, tree, 3 * PIECE + 1000)
    staged = [p for p in (host.root / "work/.staged.key").iterdir() if p.name != "draft"]
    assert staged
    for file in staged:
        file.write_bytes(file.read_bytes()[:-1] + b"?")
    host.push(tree)
    assert snapshot(host.tree()) == snapshot(work)


def answering(*messages: object) -> Connection:
    """A line to a host that says only this, whatever it is told."""
    ours, theirs = socket.socketpair()
    line = Connection(theirs, (Sync,))
    for message in messages:
        line.send(message)
    theirs.shutdown(socket.SHUT_WR)
    keep.append(theirs)
    return Connection(ours, RELAY_TO_SYNC)


keep: list[socket.socket] = []


def test_what_a_host_refuses_is_an_error_that_names_it(work: Path) -> None:
    with pytest.raises(BusyError, match="host gpu01: no room") as caught:
        push(answering(Refusal(75, "no room", "make some")), scan(work, LIMIT), "key", "gpu01")
    assert caught.value.hint == "make some"


@pytest.mark.parametrize(
    "messages",
    [[TreeSynced("/", 0, ())], [Wanted((1,), True)], [Wanted((), True), TreeSynced("/", 0, (7,))]],
)
def test_a_host_that_talks_nonsense(work: Path, messages: list[object]) -> None:
    (work / "x").write_text("x")
    with pytest.raises(UnreachableError, match=r"host gpu01: .* out of step"):
        push(answering(*messages), scan(work, LIMIT), "key", "gpu01")

"""A launcher that lies: nothing is written outside of the tree, the tree stays as it was, and an error says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from forgectl.protocol.tree_sync import GONE, Contents, Listing, SendListing, Sent, Sync, TreeSynced, Wanted
from forgectl.sync.listing import Entry, digest_of, listings, new_hash
from forgectl.wire.envelope import ProtocolError, Refusal
from forgectl.wire.unix_sockets import Connection
from tests.unit.sync.sync_cases import Host, snapshot

HASH = new_hash().hexdigest()
FILE = Entry("file", "f", 3, "a" * 32)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """A host with a synced tree, beside which something precious lies."""
    (tmp_path / "workdir").mkdir()
    (tmp_path / "workdir" / "old").write_text("as it was")
    host = Host(tmp_path / "root")
    host.sync(tmp_path / "workdir")
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "x").write_text("as it was")
    return host


def tell(line: Connection, *messages: Any) -> None:
    """Send messages, as far as the host still listens."""
    for message in messages:
        try:
            line.send_bytes(message) if isinstance(message, bytes) else line.send(message)
        except ConnectionError:
            return


def answers(line: Connection) -> list[Any]:
    """All that the host says until it hangs up."""
    found = []
    while (message := line.receive(30)) is not None:
        found.append(message)
    return found


def refused(host: Host, *messages: Any) -> str:
    """What the host says to these messages, which must be a refusal that leaves everything as it was."""
    before = snapshot(host.root.parent)
    with host.connected() as line:
        tell(line, *messages)
        *_, last = answers(line)
    assert isinstance(last, Refusal) and last.code == 70
    assert isinstance(host.errors.pop(), ProtocolError) and not host.errors
    after = {p: n for p, n in snapshot(host.root.parent).items() if not p.startswith("root/work/.")}
    assert after == {p: n for p, n in before.items() if not p.startswith("root/work/.")}
    assert all(n[0] != "f" or not n[1] for p, n in snapshot(host.root / "work/.staged.key").items() if len(p) == 32)
    return last.message


def listing(*entries: Entry) -> list[Any]:
    return [Sync("key", digest_of(entries)), *listings(entries)]


@pytest.mark.parametrize("key", ["", "..", ".", ".index.key", "../key", "a/b", "/tmp/x", "a\0b", "a\n", "x" * 64, "é"])
def test_a_key_that_is_no_name(host: Host, key: str) -> None:
    assert "not a name of a tree" in refused(host, Sync(key, HASH), Sent())


PATHS = ["../x", "/x", "a/../../x", "a/..", "..", ".", "", "a//b", "a/", "a\0b", "\ud800", "a/./b", "/".join("a" * 201)]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", "dfxl")
def test_a_path_that_leads_out_or_nowhere(host: Host, path: str, kind: str) -> None:
    folders = [Entry(f, "d") for f in ("a", "..", "a/..", "") if path.startswith(f)]
    mark = {"l": "old", "d": ""}.get(kind, HASH)
    assert "not a path in a workdir" in refused(host, *listing(*folders, Entry(path, kind, 0, mark)))


@pytest.mark.parametrize(
    ("entries", "why"),
    [
        ([Entry("a", "l", mark="/tmp")], "out of the workdir"),
        ([Entry("a", "l", mark="../x")], "out of the workdir"),
        ([Entry("a", "l", mark="b/.."), Entry("b", "l", mark=".."), FILE], "out of the workdir"),
        ([Entry("a", "l", mark="")], "leads to no path"),
        ([Entry("a", "l", mark="x\0y")], "leads to no path"),
        ([Entry("a", "l", mark="\ud800")], "leads to no path"),
        ([Entry("a", "l", mark="."), Entry("a/x", "f", 0, HASH)], "before its folder"),
        ([FILE, Entry("file/x", "f", 0, HASH)], "before its folder"),
        ([Entry("a/x", "f", 0, HASH), Entry("a", "d")], "before its folder"),
        ([FILE, FILE], "listed twice"),
        ([Entry("a", "?", 0, HASH)], "not a file, folder or link"),
        ([Entry("a", "f", -1, HASH)], "not a file, folder or link"),
        ([Entry("a", "f", 1, "../../precious/x")], "not a file, folder or link"),
        ([Entry("a", "f", 1, HASH.upper() + "A")], "not a file, folder or link"),
        ([Entry("a", "f", 1, "")], "not a file, folder or link"),
    ],
)
def test_a_listing_that_is_no_tree(host: Host, entries: list[Entry], why: str) -> None:
    assert why in refused(host, *listing(*entries))


@pytest.mark.parametrize(
    "messages",
    [
        [Sync("key", "0" * 32), *listings([FILE])],  # another listing than was announced
        [Sync("key", ""), *listings([FILE])],
        [Sync("key", HASH), Listing(("a", "b"), "f", (0,), ("",), True)],
        [Sync("key", HASH), Sent()],
        [Sync("key", HASH), Sync("key", HASH)],
    ],
)
def test_a_conversation_out_of_step(host: Host, messages: list[Any]) -> None:
    refused(host, *messages)


@pytest.mark.parametrize(
    ("messages", "why"),
    [
        ([Sent()], "not all wanted content"),
        ([Contents((1,), (3,), False), b"new"], "nobody asked for"),
        ([Contents((-1,), (3,), False), b"new"], "nobody asked for"),
        ([Contents((0, 0), (3,), False), b"new"], "nobody asked for"),
        ([Contents((), (), False)], "nobody asked for"),
        ([Contents((0,), (-2,), False)], "impossible size"),
        ([Contents((0,), (GONE,), True)], "impossible size"),
        ([Contents((0,), (1 << 40,), False)], "at once"),
        ([Contents((0,), (3,), True), b"new", Sent()], "not all wanted content"),
        ([Contents((0,), (3,), True), b"new", Contents((2,), (3,), False), b"new"], "before the end of the last one"),
        ([Sync("key", HASH)], "unexpected Sync"),
    ],
)
def test_content_out_of_step(host: Host, messages: list[Any], why: str) -> None:
    entries = [FILE, Entry("folder", "d"), Entry("other", "f", 3, "b" * 32)]
    assert why in refused(host, *listing(*entries), *messages)


def test_content_that_is_not_what_was_listed_is_taken_for_what_it_is(host: Host) -> None:
    """The launcher's file has changed meanwhile: that is told, and the next sync knows."""
    with host.connected() as line:
        tell(line, *listing(FILE), Contents((0,), (5,), False), b"other", Sent())
        line.socket.shutdown(1)
        said = answers(line)
    assert said == [SendListing(), Wanted((0,), True), TreeSynced(str(host.tree()), 1, (0,))]
    assert snapshot(host.tree()) == {"file": ("f", b"other", False)}
    with host.connected() as line:
        tell(line, *listing(FILE), Contents((0,), (3,), False), b"new", Sent())
        line.socket.shutdown(1)
        assert answers(line)[:2] == [SendListing(), Wanted((0,), True)]


@pytest.mark.parametrize("what", ["key", ".staged.key", ".index.key", ".lock.key"])
def test_links_in_the_places_of_what_is_ours_are_not_followed(host: Host, what: str) -> None:
    """The tree and what lies beside it are reached by no link, wherever it leads."""
    work, precious = host.root / "work", host.root.parent / "precious"
    aside = work.parent / "aside"
    (work / what).rename(aside)
    (work / what).symlink_to(precious if aside.is_dir() else precious / "x")
    before = snapshot(precious)
    with host.connected() as line:
        tell(line, *listing(FILE), Contents((0,), (3,), False), b"new", Sent())
        line.socket.shutdown(1)
        last = answers(line)[-1]
    assert snapshot(precious) == before
    if what == ".index.key":  # the one that is replaced as a whole
        assert isinstance(last, TreeSynced) and not (work / what).is_symlink()
    else:
        assert isinstance(last, Refusal) and last.code == 75

"""Listings as messages, and the index that spares hashing: believed where right, never where it may be wrong."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forgectl.protocol.tree_sync import Listing
from forgectl.sync import hash_index as indexes
from forgectl.sync.hash_index import TICK_NS, Index
from forgectl.sync.listing import Entry, digest_of, listed, listings
from forgectl.sync.scan import Tree, scan
from forgectl.wire.envelope import MAX_LINE, decode, encode

LIMIT = 1 << 30
ODD = "\udcff" * 255  # the name whose JSON is longest


def settle(folder: Path) -> None:
    """Wait until what was just written in a folder is older than a tick of the clock: then stamps are kept."""
    newest = max(p.lstat().st_ctime_ns for p in folder.rglob("*"))
    while time.time_ns() <= newest + TICK_NS:
        time.sleep(0.001)


def marks(tree: Tree) -> dict[str, str]:
    return {e.path: e.mark for e in tree.entries}


def test_no_listing_is_too_long_for_a_line() -> None:
    entries = [Entry(f"{ODD}/{ODD}/{n}", "l", mark=ODD) for n in range(2000)]
    lines = [encode(m) for m in listings(entries)]
    assert len(lines) > 1 and max(map(len, lines)) < MAX_LINE
    messages = [decode(line, (Listing,)) for line in lines]
    assert [e for m in messages for e in listed(m)] == entries
    assert [m.last for m in messages] == [False] * (len(lines) - 1) + [True]
    assert len(list(listings([]))) == 1


@given(st.lists(st.builds(Entry, st.text(), st.sampled_from("dfxl"), st.integers(0, 1 << 50), st.text()), max_size=3))
def test_another_listing_has_another_digest(entries: list[Entry]) -> None:
    assert digest_of(entries) != digest_of([*entries, Entry("", "d")])
    if entries:
        assert digest_of(entries[1:]) != digest_of(entries)


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    (tmp_path / "work/a").write_text("one")
    (tmp_path / "work/\udcff").write_text("other")
    settle(tmp_path / "work")
    return tmp_path / "work"


def cache_file(cache: Path) -> Path:
    (found,) = cache.iterdir()
    return found


def test_what_is_known_is_not_hashed_again(workdir: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    fresh = scan(workdir, LIMIT, cache)
    document = json.loads(cache_file(cache).read_text())
    for row in document["entries"]:
        row[3] = "e" * 32
    cache_file(cache).write_text(json.dumps(document))
    assert set(marks(scan(workdir, LIMIT, cache)).values()) == {"e" * 32}  # it was believed
    assert scan(workdir, LIMIT).digest == fresh.digest


def same_size(path: Path) -> None:
    path.write_text("two")


def same_size_and_time(path: Path) -> None:
    before = path.stat()
    path.write_text("two")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replaced(path: Path) -> None:
    before = path.stat()
    path.with_name("draft").write_text("two")
    os.utime(path.with_name("draft"), ns=(before.st_atime_ns, before.st_mtime_ns))
    path.with_name("draft").rename(path)


@pytest.mark.parametrize("change", [same_size, same_size_and_time, replaced])
def test_a_touched_file_is_hashed_again(workdir: Path, tmp_path: Path, change: Callable[[Path], None]) -> None:
    before = marks(scan(workdir, LIMIT, tmp_path / "cache"))
    change(workdir / "a")
    after = scan(workdir, LIMIT, tmp_path / "cache")
    assert marks(after)["a"] != before["a"] and marks(after)["\udcff"] == before["\udcff"]
    assert after.digest == scan(workdir, LIMIT).digest


def test_a_file_just_written_is_not_believed(tmp_path: Path) -> None:
    """It could be written again within the same tick of the clock, of the same size, and look the same."""
    (tmp_path / "new").write_text("one")
    index = Index()
    index.note(Entry("new", "f", 3, "0" * 32), (tmp_path / "new").stat())
    future = time.time_ns() + 10**9
    os.utime(tmp_path / "new", ns=(future, future))
    index.note(Entry("later", "f", 3, "0" * 32), (tmp_path / "new").stat())
    indexes.save(index, str(tmp_path / "index"), str(tmp_path / "draft"))
    assert indexes.load(str(tmp_path / "index")).stamps == {}
    settle(tmp_path)
    index.note(Entry("new", "f", 3, "0" * 32), (tmp_path / "index").stat())
    indexes.save(index, str(tmp_path / "index"), str(tmp_path / "draft"))
    assert set(indexes.load(str(tmp_path / "index")).stamps) == {"new"}


def test_while_a_tree_is_changed_no_stamp_speaks_for_content_that_comes() -> None:
    """A sync that is cut leaves old files under the names of new ones: they must be hashed."""
    stamp = (1, 2, 3, 4)
    old = {name: Entry(name, "f", 1, name * 32) for name in "abc"}
    known = Index("digest", old, dict.fromkeys("abc", stamp))
    coming = [Entry("a", "f", 1, "d" * 32), old["b"], Entry("e", "d")]
    change = indexes.during_change(known, coming)
    assert change == Index("", {**old, "a": coming[0], "e": coming[2]}, {"b": stamp, "c": stamp})


DAMAGE: dict[str, Callable[[str], str]] = {
    "cut": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
    "binary": lambda text: "\0\1\2",
    "nested": lambda text: "[" * 100_000,
    "another shape": lambda text: "[]",
    "another version": lambda text: text.replace('"version": 1', '"version": 2'),
    "stamp": lambda text: text.replace('"entries": [[', '"entries": [["a", "f", 1, "00", [1, 2]], ['),
    "path": lambda text: text.replace('"a"', '"../a"'),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_index_is_none(workdir: Path, tmp_path: Path, damage: str) -> None:
    fresh = scan(workdir, LIMIT, tmp_path / "cache")
    file = cache_file(tmp_path / "cache")
    assert indexes.load(str(file)).entries
    text = file.read_text()
    file.write_text(DAMAGE[damage](text))
    assert file.read_text() != text
    assert indexes.load(str(file)) == Index()
    assert scan(workdir, LIMIT, tmp_path / "cache").digest == fresh.digest
    assert indexes.load(str(file)).entries


def test_an_index_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    good = Index("digest", {"a": Entry("a", "f", 1, "00")})
    indexes.save(good, str(tmp_path / "index"), str(tmp_path / "draft"))
    bad = Index("digest", {"a": Entry("a", "f", 1, b"not JSON")})  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        indexes.save(bad, str(tmp_path / "index"), str(tmp_path / "draft"))
    assert indexes.load(str(tmp_path / "index")) == good
    assert [p.name for p in tmp_path.iterdir()] == ["index"]


def test_a_cache_that_cannot_be_written_spoils_nothing(workdir: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    fresh = scan(workdir, LIMIT, cache)
    file = cache_file(cache)
    file.unlink()
    file.mkdir()
    assert scan(workdir, LIMIT, cache).digest == fresh.digest

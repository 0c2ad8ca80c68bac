"""Random edits on both sides: after a sync the host's tree is the workdir, and what ranks made there themselves."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.sync.sync_cases import Host, Snapshot, delete, snapshot

NAMES = st.sampled_from(["a", "b", "c", "\udcff -\n'"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
CONTENTS = st.sampled_from([b"", b"one", b"two", b"three" * 1000])
Edit = Callable[[Path], None]


def write(path: str, content: bytes, executable: bool) -> Edit:
    def edit(top: Path) -> None:
        make_room(top, path)
        delete(top / path)
        (top / path).write_bytes(content)
        (top / path).chmod(0o755 if executable else 0o644)

    return edit


def overwrite(path: str, content: bytes) -> Edit:
    def edit(top: Path) -> None:
        with contextlib.suppress(OSError), (top / path).open("r+b") as file:
            file.write(content)

    return edit


def folder(path: str) -> Edit:
    def edit(top: Path) -> None:
        make_room(top, path + "/x")

    return edit


def link(path: str, target: str) -> Edit:
    def edit(top: Path) -> None:
        make_room(top, path)
        delete(top / path)
        (top / path).symlink_to(target)

    return edit


def link_outside(path: str) -> Edit:
    return lambda top: link(path, str(top.parents[2] / "outside"))(top)


def rename(path: str, to: str) -> Edit:
    def edit(top: Path) -> None:
        with contextlib.suppress(OSError):
            (top / path).rename(top / to)

    return edit


def make_room(top: Path, path: str) -> None:
    """Make the folders of a path, in the place of whatever else is there."""
    for parent in list(Path(path).parents)[-2::-1]:
        if not (top / parent).is_dir() or (top / parent).is_symlink():
            delete(top / parent)
            (top / parent).mkdir()


def ignore(name: str) -> Edit:
    return write(".gitignore", name.encode(errors="surrogateescape"), False)


WRITES = st.builds(write, PATHS, CONTENTS, st.booleans())
EDITS = st.lists(
    st.one_of(
        WRITES,
        WRITES,
        st.builds(folder, PATHS),
        st.builds(link, PATHS, NAMES),
        st.builds(rename, PATHS, PATHS),
        st.builds(lambda path: lambda top: delete(top / path), PATHS),
        st.builds(ignore, st.sampled_from(["a", "b/", "/c", ""])),
    ),
    max_size=6,
)
DEEDS = st.lists(
    st.one_of(
        WRITES,
        st.builds(overwrite, PATHS, CONTENTS),
        st.builds(folder, PATHS),
        st.builds(link_outside, PATHS),
        st.builds(rename, PATHS, PATHS),
        st.builds(lambda path: lambda top: delete(top / path), PATHS),
    ),
    max_size=4,
)
"""What ranks do to the tree on the host."""


def listed(workdir: Path) -> Snapshot:
    """What is to be synced of a workdir, with the few ignore rules that edits make."""
    found = snapshot(workdir)
    rule = found[".gitignore"][1].decode() if ".gitignore" in found else ""
    left_out = {
        path
        for path, (kind, _, _) in found.items()
        if (rule == "a" and path.split("/")[-1] == "a")
        or (rule == "b/" and path.split("/")[-1] == "b" and kind == "d")
        or (rule == "/c" and path == "c")
    }
    return {p: n for p, n in found.items() if not any(p == out or p.startswith(out + "/") for out in left_out)}


def expected(now: Snapshot, last: Snapshot, host: Snapshot) -> Snapshot:
    """The host's tree after a sync of `now`, where `last` was synced before and `host` is what it held."""
    kept = dict(now)
    for path in sorted(host, reverse=True):  # children first
        above = [path.rsplit("/", n)[0] for n in range(1, path.count("/") + 1)]
        if path in now or any(now.get(folder, ("d",))[0] != "d" for folder in above):
            continue
        is_folder = host[path][0] == "d"
        if path not in last or (is_folder and any(p.startswith(path + "/") for p in kept)):
            kept[path] = host[path]
    return kept


@pytest.mark.thorough
@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(EDITS, DEEDS), min_size=1, max_size=4))
def test_after_each_sync_the_host_has_the_workdir(rounds: list[tuple[list[Edit], list[Edit]]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        workdir, host = Path(name) / "workdir", Host(Path(name) / "root")
        workdir.mkdir()
        outside = Path(name) / "outside"
        outside.mkdir()
        write("a/precious", b"as it was", False)(outside)
        last: Snapshot = {}
        for edits, deeds in rounds:
            for edit in edits:
                edit(workdir)
            before = snapshot(host.tree())
            now, untouched = listed(workdir), snapshot(outside)
            host.sync(workdir)
            assert snapshot(host.tree()) == expected(now, last, before)
            again = host.sync(workdir)
            assert (again.sent_files, again.deleted, again.changed) == (0, 0, ())
            assert snapshot(outside) == untouched
            last = now
            for deed in deeds:
                deed(host.tree())
        assert os.listdir(host.root / "work" / ".staged.key") == []

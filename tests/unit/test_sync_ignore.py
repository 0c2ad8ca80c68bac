"""Ignore rules, held against git itself: `git check-ignore` says what is right."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forgectl.transport.workdir import scan

GIT_ENV = {
    "PATH": os.environ["PATH"],
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "HOME": "/nonexistent",
}
NAMES = [
    *(b"a", b"b", b"ab", b"a.b", b"foo", b"foobar", b"bar", b"-a", b"a b", b"a ", b"[a]", b"#a", b"!a", b"\\a"),
    *(b"a\\", b"\xc3\xa9", b"\xff", b"A", b"0", b"a\nb", b"^", b"]", b":", b"a*"),
]
NAME = st.sampled_from(NAMES)
PATH = st.lists(NAME, min_size=1, max_size=3).map(b"/".join)
BRACKETS = [
    *(b"[!a]", b"[^a]", b"[a-c]", b"[]a]", b"[a-]", b"[\\]]", b"[[:alpha:]]", b"[[:punct:][:space:]]"),
    *(b"[[:bogus:]]", b"[[:", b"[[:]", b"[a-\\b]"),
]
ATOM = st.one_of(
    st.sampled_from([bytes([c]) for c in b"*?/\\! #[]-^:.\r"]),
    st.sampled_from([b"**", b"***", b"/**/", b"**/", b"/**", b"*/", b"\\/", b"\\*"]),
    st.sampled_from(BRACKETS),
    NAME,
)
PATTERN = st.one_of(
    st.lists(ATOM, min_size=1, max_size=5).map(b"".join),
    st.tuples(
        st.sampled_from([b"", b"!", b"/", b"!/", b"**/"]), PATH, st.sampled_from([b"", b"/", b"/*", b"/**", b" "])
    ).map(b"".join),
)
FILE = st.lists(PATTERN, max_size=5).map(b"\n".join)
FOLDERS = st.lists(st.sampled_from(NAMES[:8]), max_size=2).map(b"/".join)


@pytest.fixture(scope="module")
def repository() -> Iterator[Path]:
    """An empty repository, made once."""
    with tempfile.TemporaryDirectory() as name:
        subprocess.run(["git", "init", "-q", name], check=True, env=GIT_ENV)
        yield Path(name)


def fill(repository: Path, paths: list[bytes], ignore_files: dict[bytes, bytes]) -> None:
    """Empty the repository, then make these files in it, as far as one is not in the other's way."""
    for child in repository.iterdir():
        if child.name != ".git":
            shutil.rmtree(child) if child.is_dir() else child.unlink()
    top = os.fsencode(repository)
    for path in paths:
        whole = os.path.join(top, path)
        try:
            os.makedirs(os.path.dirname(whole), exist_ok=True)
            Path(os.fsdecode(whole)).touch()
        except OSError:
            continue
    for folder, text in ignore_files.items():
        if os.path.isdir(os.path.join(top, folder)):
            Path(os.fsdecode(os.path.join(top, folder, b".gitignore"))).write_bytes(text)


def kept_by_git(repository: Path) -> set[bytes]:
    """The paths below a repository that git does not ignore."""
    top = os.fsencode(repository)
    paths = [
        os.path.relpath(os.path.join(folder, name), top)
        for folder, folders, files in os.walk(top)
        for name in folders + files
    ]
    paths = [p for p in paths if p.split(b"/")[0] != b".git"]
    done = subprocess.run(
        ["git", "check-ignore", "--no-index", "-z", "--stdin"],
        cwd=repository,
        env=GIT_ENV,
        input=b"\0".join(b"./" + p for p in paths),  # a name such as ":/" is magic without
        capture_output=True,
    )
    assert done.returncode in (0, 1), done.stderr
    return set(paths) - {p.removeprefix(b"./") for p in done.stdout.split(b"\0")}


def kept_by_us(folder: Path) -> set[bytes]:
    return {os.fsencode(e.path) for e in scan(folder, 1 << 30).entries}


@settings(max_examples=150, deadline=None)
@given(st.lists(PATH, min_size=1, max_size=12), FILE, st.dictionaries(FOLDERS, FILE, max_size=2))
def test_what_is_left_out_is_what_git_ignores(
    repository: Path, paths: list[bytes], top: bytes, nested: dict[bytes, bytes]
) -> None:
    fill(repository, paths, {**nested, b"": top})
    assert kept_by_us(repository) == kept_by_git(repository)

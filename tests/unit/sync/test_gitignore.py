"""Ignore rules, held against git itself: `git check-ignore` says what is right."""

from __future__ import annotations

import os
import random
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forgectl.sync.gitignore import Rules
from forgectl.sync.scan import scan

GIT_ENV = {
    "PATH": os.environ["PATH"],
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "HOME": "/nonexistent",
}
POOL = [
    *(
        b"a",
        b"b",
        b"ab",
        b"a.b",
        b"-",
        b"-a",
        b"a b",
        b"c ",
        b"[a]",
        b"#a",
        b"!a",
        b"\\a",
        b"c\\",
        b"\xc3\xa9",
        b"\xff",
    ),
    *(b"A", b"0", b"a\nb", b"^", b"]", b":", b"a*", b"c\r", b"foo", b"foobar", b"bar/bar", b"d/a", b"d/a.b", b"d/foo"),
    *(
        b"d/d/a",
        b"d/foobar/bar",
        b"d/e/c",
        b"d/ec",
        b"e/a/d/a",
        b"e/foo/x/bar",
        b"e/#a/b",
        b"e/bar/a",
        b"e/ab",
        b"e/a b/-",
    ),
]
"""Files that patterns are tried on."""
NAME = st.sampled_from(sorted({part for path in POOL for part in path.split(b"/")}))
PATH = st.sampled_from(POOL)
BRACKETS = st.sampled_from(
    [
        *(b"[!a]", b"[^a]", b"[a-c]", b"[]a]", b"[a-]", b"[--0]", b"[\\]]", b"[[:alpha:]]", b"[[:punct:][:space:]]"),
        *(b"[[:bogus:]]", b"[[:", b"[[:]", b"[a-\\b]", b"[!/]", b"[^]]", b"[/a]", b"[[:cntrl:]]", b"[[:^:]]", b"[a"),
        *(
            b"[[:%b:]]" % name
            for name in (b"alnum", b"blank", b"digit", b"graph", b"lower", b"print", b"upper", b"xdigit")
        ),
    ]
)
WILD = st.one_of(st.sampled_from([b"*", b"?", b"**", b"***", b"", b"/", b"\\", b"**/", b"/**/", b" ", b"\r"]), BRACKETS)


@st.composite
def near(draw: st.DrawFn) -> bytes:
    """A pattern that matches a path of the pool, or nearly so."""
    path = draw(PATH)
    for _ in range(draw(st.sampled_from([1, 1, 2, 2, 3]))):
        start, end = sorted(draw(st.tuples(*[st.integers(0, len(path))] * 2)))
        path = path[:start] + draw(st.one_of(WILD, st.just(b"\\" + path[start:end]))) + path[end:]
    before = draw(st.sampled_from([b"", b"", b"", b"!", b"/", b"!/", b"**/", b"#", b"\\"]))
    return before + path + draw(st.sampled_from([b"", b"", b"/", b"/*", b"/**", b" ", b"\\ ", b"\r"]))


PATTERN = st.one_of(near(), near(), near(), PATH, st.lists(st.one_of(WILD, NAME), min_size=1, max_size=5).map(b"".join))
FILE = st.lists(PATTERN, max_size=4).map(b"\n".join)
FOLDERS = 40


@pytest.fixture(scope="module")
def new_repository() -> Iterator[Callable[[], Path]]:
    """Makes empty repositories."""
    with tempfile.TemporaryDirectory() as name:

        def make_one() -> Path:
            folder = Path(tempfile.mkdtemp(dir=name))
            subprocess.run(["git", "init", "-q", folder], check=True, env=GIT_ENV)
            return folder

        yield make_one


def make(folder: bytes) -> None:
    """The pool's files in a folder."""
    for path in POOL:
        whole = os.path.join(folder, path)
        os.makedirs(os.path.dirname(whole), exist_ok=True)
        with open(whole, "wb"):
            pass


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
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr
    return set(paths) - {p.removeprefix(b"./") for p in done.stdout.split(b"\0")}


def kept_by_us(folder: Path) -> set[bytes]:
    return {os.fsencode(e.path) for e in scan(folder, 1 << 30).entries}


@pytest.fixture(scope="module")
def folders(new_repository: Callable[[], Path]) -> list[Path]:
    """Folders of a repository with the pool's files in each, for as many ignore files to be tried by one git."""
    repository = new_repository()
    found = [repository / f"folder{n}" for n in range(FOLDERS)]
    for folder in found:
        make(os.fsencode(folder))
    return found


@pytest.mark.thorough
@settings(max_examples=60, deadline=None)
@given(st.lists(FILE, min_size=FOLDERS, max_size=FOLDERS))
def test_what_a_file_leaves_out_is_what_git_ignores(folders: list[Path], files: list[bytes]) -> None:
    for folder, text in zip(folders, files, strict=True):
        (folder / ".gitignore").write_bytes(text)
    ours, gits = kept_by_us(folders[0].parent), kept_by_git(folders[0].parent)
    for folder, text in zip(folders, files, strict=True):
        inner = os.fsencode(folder.name) + b"/"
        assert {p for p in ours if p.startswith(inner)} == {p for p in gits if p.startswith(inner)}, text


@pytest.fixture(scope="module")
def repository(new_repository: Callable[[], Path]) -> Path:
    """A repository with the pool's files."""
    repository = new_repository()
    make(os.fsencode(repository))
    return repository


@pytest.mark.thorough
@settings(max_examples=150, deadline=None)
@given(FILE, st.dictionaries(st.sampled_from([b"d", b"e", b"d/d", b"e/a", b"e/foo/x"]), FILE))
def test_what_nested_files_leave_out_is_what_git_ignores(
    repository: Path, top: bytes, nested: dict[bytes, bytes]
) -> None:
    for old in repository.rglob(".gitignore"):
        old.unlink()
    for folder, text in {b"": top, **nested}.items():
        (repository / os.fsdecode(folder) / ".gitignore").write_bytes(text)
    assert kept_by_us(repository) == kept_by_git(repository)


def effort(cases: list[tuple[bytes, bytes]]) -> float:
    """Processor time that it takes to match each path against its pattern, the least of a few rounds."""
    rules = [(Rules(pattern), path) for pattern, path in cases]
    for rule, _ in rules:
        rule.ignores(b"", b"", False)  # compiled once
    rounds = []
    for _ in range(5):
        began = time.process_time()
        for rule, path in rules:
            rule.ignores(path, path.rpartition(b"/")[2], False)
        rounds.append(time.process_time() - began)
    return min(rounds)


@pytest.mark.parametrize("seed", range(5))
def test_patterns_that_nearly_match_take_little_more_than_others(seed: int) -> None:
    """As a hostile repository writes them: many wildcards, each with many places, and an end that is nowhere.

    The same with question marks has one place for each. A matcher that tries each place of a star for each place of the
    one before takes thousands of times as long; ours, two to four times.
    """
    chance = random.Random(seed)
    hostile, harmless = [], []
    for _ in range(100):
        wildcards, separator = chance.choice(
            (((b"*a", b"*?", b"*[ab]", b"*aa"), b""), ((b"**/a/", b"**/", b"**/*/", b"**\\/a/"), b"/"))
        )
        path = separator.join([b"a"] * chance.randint(20, 24) + [b"c"])
        pattern = b"".join(chance.choices(wildcards, k=chance.randint(5, 7))) + b"b"
        hostile.append((pattern, path))
        harmless.append((pattern.replace(b"*", b"?"), path))
    assert effort(hostile) < 30 * effort(harmless)


def test_work_grows_with_the_length_of_a_name_and_no_faster() -> None:
    pattern = b"*a*a*a*a*a*ab"
    short, long = effort([(pattern, b"a" * 60)] * 300), effort([(pattern, b"a" * 240)] * 300)
    assert long < 40 * short  # a square is 16 times, and one place for each star is more than a million times
    [kept] = [Rules(b"*a" * 500 + b"b\n**/a*/" * 300 + b"b*").ignores(b"a/" * 2000 + b"a", b"a" * 240, False)]
    assert kept is None


def reading(text: bytes) -> float:
    """Processor time to read an ignore file and try a path."""
    began = time.process_time()
    Rules(text).ignores(b"a/" * 100 + b"a" * 240, b"a" * 240, False)
    return time.process_time() - began


@pytest.mark.thorough
@pytest.mark.parametrize("line", [b"*a" * 120, b"x/" + b"*a" * 500, b"[[:x" * 200 + b"]", b"**/" * 300 + b"b"])
def test_work_grows_with_the_length_of_a_file_and_no_faster(line: bytes) -> None:
    """Whether it has many lines, or a long one, whose regular expression took the square of its length to compile."""
    short, long = reading((line + b"\n") * 10), reading((line + b"\n") * 100)
    assert long < 40 * short
    assert reading(line * 1000) < 40 * short

"""What of a workdir is synced, and what stands in the way of it."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from forgectl.errors import ForgeError, NotFoundError
from forgectl.sync.heaviest import heaviest
from forgectl.sync.listing import DEEPEST, leads_outside
from forgectl.sync.scan import Tree, WorkdirError, scan
from forgectl.system.sizes import show_bytes

LIMIT = 1 << 30
NOBODY = 65534


def write(top: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(text)
    return top


def paths(tree: Tree) -> list[str]:
    return [e.path for e in tree.entries]


def kept(top: Path, files: dict[str, str]) -> set[str]:
    """The files of a workdir that are synced, but for the ignore files."""
    tree = scan(write(top, files), LIMIT)
    return {e.path for e in tree.entries if e.is_file and not e.path.endswith("ignore")}


# ---------------------------------------------------------------- ignore files


def test_forgeignore_beats_every_gitignore(tmp_path: Path) -> None:
    files = dict.fromkeys(["data/x", "data/deep/y", "a.log", "keep.log", "big", "sub/b.log"], "")
    ignore = {
        ".gitignore": "data/\n*.log\n",
        ".forgeignore": "!data/\n!keep.log\nbig\n",
        "data/deep/.gitignore": "!y\n",
        "sub/.gitignore": "!*.log\n",
        "sub/.forgeignore": "b.log\n",
    }
    assert kept(tmp_path, {**files, **ignore}) == {"data/x", "data/deep/y", "keep.log"}


def test_a_nested_file_counts_below_its_folder_alone(tmp_path: Path) -> None:
    files = dict.fromkeys(["x", "sub/x", "sub/deep/x", "y", "sub/y", "other/sub/y"], "")
    assert kept(tmp_path, {**files, "sub/.gitignore": "x\n/y\n"}) == {"x", "y", "other/sub/y"}


def test_what_is_never_sent(tmp_path: Path) -> None:
    files = dict.fromkeys([".git/config", "__pycache__/m.pyc", "sub/.git", "sub/__pycache__/n.pyc", "sub/m.py"], "")
    assert kept(tmp_path, {**files, ".forgeignore": "!.git\n!__pycache__\n!*.pyc\n"}) == {"sub/m.py"}


def test_the_repository_around_the_workdir_has_its_say(tmp_path: Path) -> None:
    files = dict.fromkeys(["lib/m.py", "lib/out/m.bin", "lib/lib/x", "lib/w.pt"], "")
    write(tmp_path, {".git/HEAD": "", ".gitignore": "*.pt\n/lib/out\n/x\n", "lib/.gitignore": "*.bin\n", **files})
    assert kept(tmp_path / "lib", {}) == {"m.py", "lib/x"}
    write(tmp_path, {".forgeignore": "!*.pt\n"})
    assert kept(tmp_path / "lib", {}) == {"m.py", "lib/x", "w.pt"}


def test_a_repository_that_ignores_the_workdir_itself_does_not(tmp_path: Path) -> None:
    write(
        tmp_path, {".git/HEAD": "", ".gitignore": "outputs\n*.pt\n", "outputs/run1/m.py": "", "outputs/run1/w.pt": ""}
    )
    assert kept(tmp_path / "outputs" / "run1", {}) == {"m.py", "w.pt"}


def test_an_ignore_file_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    write(tmp_path, {"rules": "x\n", "x": ""})
    (tmp_path / ".gitignore").symlink_to("rules")
    assert "x" in paths(scan(tmp_path, LIMIT))


# ---------------------------------------------------------------- kinds of entries


def test_kinds_and_order_of_entries(tmp_path: Path) -> None:
    write(tmp_path, {"b/run.sh": "#!", "b/empty/x": "", "a.py": "hello"})
    (tmp_path / "b/run.sh").chmod(0o744)
    (tmp_path / "b/empty/x").unlink()
    (tmp_path / "b/up").symlink_to("../a.py")
    (tmp_path / "dangling").symlink_to("b/nothing")
    tree = scan(tmp_path, LIMIT)
    assert [(e.path, e.kind, e.size) for e in tree.entries] == [
        ("a.py", "f", 5),
        ("b", "d", 0),
        ("b/empty", "d", 0),
        ("b/run.sh", "x", 2),
        ("b/up", "l", 0),
        ("dangling", "l", 0),
    ]
    assert tree.size == 7


def test_what_is_no_file_is_skipped_with_a_notice(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "so\ncket"))
        tree = scan(write(tmp_path, {"x": ""}), LIMIT)
    assert paths(tree) == ["x"]
    assert tree.notices == ("pipe is not synced: it is a pipe", r"'so\ncket' is not synced: it is a socket")


def test_a_workdir_named_by_a_link_is_where_that_leads(tmp_path: Path) -> None:
    write(tmp_path, {"real/x": ""})
    (tmp_path / "link").symlink_to("real")
    assert paths(scan(tmp_path / "link", LIMIT)) == ["x"]


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize("name", ["nothing", "file"])
def test_a_workdir_that_is_no_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(NotFoundError, match="is not a folder") as caught:
        scan(write(tmp_path, {"file": ""}) / name, LIMIT)
    assert caught.value.exit_code == 66


def test_links_that_lead_out_are_refused_all_at_once(tmp_path: Path) -> None:
    write(tmp_path, {"work/sub/x": "", "work/.gitignore": "ignored"})
    links = {"abs": "/etc/passwd", "up": "../outside", "sub/far": "../../x", "ok": "sub/../sub/x", "ignored": "/etc"}
    links |= {"here": ".", "sub/round": "../here/../x", "inside": str(tmp_path / "work/sub/x")}
    for name, target in links.items():
        (tmp_path / "work" / name).symlink_to(target)
    with pytest.raises(WorkdirError) as caught:
        scan(tmp_path / "work", LIMIT)
    named = {line.split(" -> ")[0].strip() for line in caught.value.message.splitlines()[1:]}
    assert named == {"abs", "up", "sub/far", "inside", "sub/round"}
    assert "up -> ../outside" in caught.value.message
    assert caught.value.exit_code == 65 and ".forgeignore" in str(caught.value.hint)


LINKS = {
    "d": "sub/deep",
    "up": "..",
    "loop": "loop2",
    "loop2": "loop",
    "sub/self": ".",
    "chain": "d/../../x",
    "abs": "/x",
}


@pytest.mark.parametrize(
    ("path", "target", "outside"),
    [
        ("l", "x", False),
        ("l", "../x", True),
        ("sub/l", "../x", False),
        ("sub/l", "../../x", True),
        ("l", "sub/../../x", True),
        ("l", "d/../../x", False),  # sub/deep/../../x
        ("sub/deep/l", "self/../../x", False),
        ("sub/l", "self/../../x", True),
        ("l", "up/x", True),
        ("l", "loop/x", False),
        ("l", "chain", False),
        ("l", "abs/y", True),
        ("l", "/", True),
        ("sub/l", "..", False),
        ("l", ".//./x", False),
    ],
)
def test_where_links_lead(path: str, target: str, outside: bool) -> None:
    assert leads_outside(path, {**LINKS, path: target}) is outside


def test_a_size_above_the_limit_names_the_largest(tmp_path: Path) -> None:
    write(
        tmp_path, {"data/deep/model.bin": "x" * 5000, "logs/a": "x" * 1500, "logs/b": "x" * 1500, "code.py": "x" * 10}
    )
    assert scan(tmp_path, 8010).size == 8010
    with pytest.raises(WorkdirError) as caught:
        scan(tmp_path, 8009)
    lines = [line.split() for line in caught.value.message.splitlines()[1:]]
    assert [line[-1] for line in lines] == ["data/deep/model.bin", "logs/", "code.py"]
    assert "7.82 KiB" in caught.value.message and "sync_limit" in caught.value.message
    assert caught.value.exit_code == 65 and ".forgeignore" in str(caught.value.hint)


def test_of_a_workdir_that_is_too_large_the_links_do_not_matter_yet(tmp_path: Path) -> None:
    write(tmp_path, {"big": "x" * 2000})
    (tmp_path / "out").symlink_to("/etc")
    with pytest.raises(WorkdirError, match="more than sync_limit allows"):
        scan(tmp_path, 1000)


def test_the_heaviest_entries() -> None:
    sizes = {f"many/{i}": 10 for i in range(20)} | {f"top{i}": i for i in range(1, 6)} | {"a/b/c/d": 95, "a/x": 5}
    assert heaviest(sizes) == [("many/", 200), ("a/b/c/d", 95), ("top5", 5), ("top4", 4), ("top3", 3)]
    assert [show_bytes(n) for n in (5, 1536, 1 << 30, 1 << 50)] == ["5 B", "1.5 KiB", "1 GiB", "1024 TiB"]


def test_folders_without_end(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["d"] * DEEPEST)
    deep.mkdir(parents=True)
    with pytest.raises(WorkdirError, match="levels of folders"):
        scan(tmp_path, LIMIT)
    deep.rmdir()
    assert len(scan(tmp_path, LIMIT).entries) == DEEPEST - 1


def as_nobody(work: Callable[[], str]) -> str:
    """What `work` returns in a process of a user who owns nothing."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            os.write(writer, work().encode())
        except BaseException as e:
            os.write(writer, f"{type(e).__name__}: {e}".encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader) as file:
        said = file.read()
    os.waitpid(pid, 0)
    return said


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that other users may enter, which pytest's are not."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become nobody")
def test_all_that_cannot_be_read_is_named_at_once(open_folder: Path) -> None:
    write(open_folder, {"fine": "", "one": "", "sub/two": "", "closed/x": "", "odd/.gitignore": "", "ignored": ""})
    write(open_folder, {".gitignore": "ignored"})
    for name in ("one", "sub/two", "closed", "odd/.gitignore", "ignored"):
        (open_folder / name).chmod(0)

    def work() -> str:
        try:
            scan(open_folder, LIMIT)
        except ForgeError as e:
            return f"{e.exit_code}\n{e.message}\n{e.hint}"
        return "read"

    code, first, *lines, hint = as_nobody(work).splitlines()
    assert code == "66" and str(open_folder) in first and ".forgeignore" in hint
    assert [line.strip().partition(": ")[0] for line in lines] == ["closed", "odd/.gitignore", "one", "sub/two"]
    assert all(line.endswith(": Permission denied") for line in lines)

"""Hosts that a hostfile or Slurm names, and what is said where they cannot be read."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forgectl.errors import SpecError
from forgectl.names import NAME
from forgectl.spec.hostfile import Complaint, HostLine, read_hostfile
from forgectl.spec.model import Host
from forgectl.spec.nodelist import NodelistError, compress, counts, expand
from tests.unit.spec.spec_cases import ENVIRON, problems, read

MESH = "scripts: {a: {run: train.py}}\n"
numbered = st.builds(
    lambda prefix, number, width, suffix: f"{prefix}{number:0{width}d}{suffix}",
    st.sampled_from(["gpu", "a-1-", "", "x."]),
    st.integers(0, 12) | st.integers(95, 1005),
    st.integers(1, 4),
    st.sampled_from(["", "-ib", ".cluster", "b"]),
)
names = st.lists(numbered | st.from_regex(NAME, fullmatch=True), min_size=1, max_size=40)


@given(names)
def test_the_short_form_of_names_means_those_names(found: list[str]) -> None:
    assert expand(compress(found), len(found)) == found


def test_neighbours_share_brackets() -> None:
    hosts = [f"gpu{i:02d}" for i in (1, 2, 3, 7, 8, 10)]
    assert compress(hosts) == "gpu[01-03,07-08,10]"
    assert compress(["login1", *hosts[:2], "gpu9", "gpu10", "a"]) == "login1,gpu[01-02,9-10],a"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("gpu01", ["gpu01"]),
        (
            "gpu[01-03,07],login1,a[1-2]b[3-4]",
            ["gpu01", "gpu02", "gpu03", "gpu07", "login1", "a1b3", "a1b4", "a2b3", "a2b4"],
        ),
        ("n[8-11]", ["n8", "n9", "n10", "n11"]),
        ("n[098-101]-ib", ["n098-ib", "n099-ib", "n100-ib", "n101-ib"]),
        ("[1,3]", ["1", "3"]),
        (" a,b\n", ["a", "b"]),
    ],
)
def test_slurms_lists_of_nodes(text: str, found: list[str]) -> None:
    assert expand(text, 1000) == found


BAD_LISTS = [
    *("", ",", "a,,b", "a,", "a[", "a]", "a[1]]", "a[[1]]", "a[]", "a[1,]", "a[x]", "a[1-]", "a[-1]", "a[3-1]"),
    *("a[1-3-5]", "a[1 2]", "a[0-9999999999999999999999]", "a[1-1001]", "a[1-100][1-100][1-100][1-100]"),
    "a[" + "0-999999999," * 50 + "1]",
]


@pytest.mark.parametrize("text", BAD_LISTS)
def test_what_is_no_list_of_nodes_or_too_long_a_one_is_refused_at_once(text: str) -> None:
    with pytest.raises(NodelistError):
        expand(text, 1000)


@given(st.text(alphabet="ab019[]-,( )x", max_size=30))
def test_a_list_of_nodes_is_read_or_refused(text: str) -> None:
    def found(read_it: Callable[[], object]) -> object:
        try:
            return read_it()
        except NodelistError as e:
            return str(e)

    assert found(lambda: expand(text, 50))
    assert found(lambda: counts(text, 5, 99))


def test_counts_of_tasks() -> None:
    assert counts("4(x2),2", 3, 4096) == [4, 4, 2]
    assert counts("99999", 1, 4096) == [4096]
    for bad in ("4(x2)", "4(x4)", "4(x999999999)", "4(y2),1", "", "4,,2", "-1(x3)"):
        with pytest.raises(NodelistError):
            counts(bad, 3, 4096)


HOSTFILE = b"""\xef\xbb\xbf# a comment
gpu01 slots=4\r
gpu02:8 # another
\tu@gpu03\tslots = 4  max_slots=8

gpu04 max-slots=3
gpu05
gpu06 slots=0
"""


def test_a_hostfile_of_each_kind() -> None:
    assert list(read_hostfile(HOSTFILE)) == [
        HostLine(2, "gpu01", 4),
        HostLine(3, "gpu02", 8),
        HostLine(4, "u@gpu03", 4),
        HostLine(6, "gpu04", 3),
        HostLine(7, "gpu05", None),
        HostLine(8, "gpu06", 0),
    ]


@given(st.binary(max_size=120) | st.text(alphabet="a1 =:#\n\tslotmax_", max_size=60).map(str.encode))
def test_a_line_of_a_hostfile_is_read_or_complained_of(text: bytes) -> None:
    for one in read_hostfile(text):
        assert 1 <= one.line <= text.count(b"\n") + 1
        assert one.message if isinstance(one, Complaint) else one.destination


def hosts_of(folder: Path, text: str, **environ: str) -> tuple[Host, ...]:
    return read(folder, text + MESH, environ={**ENVIRON, **environ}).hosts


def test_hosts_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "good.txt").write_text("gpu01 slots=4\nu@gpu02\nlocalhost slots=1\n")
    text = "hosts: {file: conf/good.txt, python: /opt/py, root: /r, env: {A: 1}, gpus: [0, 1], slots: 2}\n"
    every: dict[str, Any] = {"python": "/opt/py", "env": {"A": "1"}, "gpus": (0, 1)}
    assert hosts_of(tmp_path, text) == (
        Host(name="gpu01", ssh="gpu01", slots=4, root="/r", **every),
        Host(name="gpu02", ssh="u@gpu02", slots=2, root="/r", **every),
        Host(name="localhost", local=True, slots=1, **every),
    )


def test_the_name_of_this_machine_is_not_local(tmp_path: Path) -> None:
    (tmp_path / "good.txt").write_text(f"{os.uname().nodename}\n")
    (host,) = hosts_of(tmp_path, "hosts: {file: good.txt}\n")
    assert (host.local, host.ssh) == (False, os.uname().nodename)


@pytest.mark.parametrize(
    ("environ", "slots"),
    [
        ({}, [None, None, None]),
        ({"SLURM_TASKS_PER_NODE": "4(x2),2"}, [4, 4, 2]),
        ({"SLURM_GPUS_ON_NODE": "8"}, [8, 8, 8]),
        ({"SLURM_TASKS_PER_NODE": "1(x3)", "SLURM_GPUS_ON_NODE": "8"}, [8, 8, 8]),  # as for torchrun
        ({"SLURM_TASKS_PER_NODE": "16(x2),4", "SLURM_GPUS_ON_NODE": "8"}, [16, 16, 8]),
    ],
)
def test_hosts_of_a_slurm_job(tmp_path: Path, environ: dict[str, str], slots: list[int | None]) -> None:
    for variable in ("SLURM_JOB_NODELIST", "SLURM_NODELIST"):
        hosts = hosts_of(tmp_path, "hosts: {slurm: true}\n", **{variable: "gpu[01-02],login1"}, **environ)
        assert [(h.name, h.ssh, h.local) for h in hosts] == [(n, n, False) for n in ("gpu01", "gpu02", "login1")]
        assert [h.slots for h in hosts] == slots
    own = hosts_of(tmp_path, "hosts: {slurm: true, slots: 3}\n", SLURM_JOB_NODELIST="a[1-3]", **environ)
    assert [h.slots for h in own] == [3, 3, 3]


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"SLURM_JOB_NODELIST": "gpu[1-"}, "SLURM_JOB_NODELIST='gpu[1-' is not a list such as gpu[01-03,07],login1"),
        ({"SLURM_NODELIST": "g[1-2000]"}, "SLURM_NODELIST='g[1-2000]' names more than 1000 hosts"),
        ({"SLURM_NODELIST": "a,b,a"}, "SLURM_NODELIST: the name 'a' is used twice"),
        ({"SLURM_NODELIST": "-oProxy"}, "SLURM_NODELIST: '-oProxy' would be taken for an option"),
        (
            {"SLURM_NODELIST": "a[1-3]", "SLURM_TASKS_PER_NODE": "4(x2)"},
            "SLURM_TASKS_PER_NODE='4(x2)' has counts for 2 hosts, but there are 3",
        ),
        (
            {"SLURM_NODELIST": "a", "SLURM_GPUS_ON_NODE": "tesla:4"},
            "SLURM_GPUS_ON_NODE='tesla:4' is not a list of counts such as 4(x2),2",
        ),
    ],
)
def test_what_slurm_says_wrong_is_told_at_its_place(tmp_path: Path, environ: dict[str, str], said: str) -> None:
    with pytest.raises(SpecError) as caught:
        hosts_of(tmp_path, "hosts: {slurm: true}\n", **environ)
    assert str(caught.value) == f"spec.yaml:1:16: hosts.slurm: {said}"
    assert caught.value.exit_code == 65


def test_a_hostfile_has_limits(tmp_path: Path) -> None:
    (tmp_path / "many.txt").write_text("".join(f"h{i}\n" for i in range(1001)))
    (tmp_path / "large.txt").write_bytes(b"#" * (1 << 20) + b"\n")
    (tmp_path / "bad.txt").write_text("a b\n" * 5000)
    os.mkfifo(tmp_path / "fifo")
    for name, said in (
        ("many.txt", "names more than 1000 hosts"),
        ("large.txt", "'large.txt': larger than 1 MiB; a hostfile is far smaller"),
        ("fifo", "'fifo': not a regular file; looked for '/"),
        ("/dev/zero", "'/dev/zero': not a regular file; looked for '/dev/zero'"),
    ):
        (line,) = problems(tmp_path, f"hosts: {{file: {name}}}\n{MESH}")
        assert line.startswith(f"spec.yaml:1:15: hosts.file: {said}")
    assert len(problems(tmp_path, f"hosts: {{file: bad.txt}}\n{MESH}")) <= 101


def test_a_file_that_is_no_hostfile_is_not_told(tmp_path: Path) -> None:
    """A spec of somebody else's may name any file that its user can read, and its log may be read by all."""
    secrets = ("root:x:0:0:root:/root:/bin/bash", "user = hunter2-A", "hunter2-B hunter2-C=hunter2-D", "hunter2-E:x")
    rest = ("hunter2-F slots=hunter2-G", "hunter2-H slots=1 slots=2", "hunter2-I", "hunter2-I", "-hunter2-J")
    (tmp_path / "private").write_text("\n".join((*secrets, *rest)))
    lines = problems(tmp_path, f"hosts: {{file: private}}\n{MESH}")
    assert len(lines) == 8
    for line in lines:
        assert "hunter2" not in line and "root" not in line, line


def test_what_planning_says_of_such_a_host_has_the_place_of_its_source(tmp_path: Path) -> None:
    (tmp_path / "good.txt").write_text("gpu01\ngpu02\n")
    spec = read(tmp_path, f"hosts:\n  file: good.txt\n{MESH}")
    problem = spec.problem("hosts[1].gpus", "has none")
    assert (problem.line, problem.column) == (2, 9)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("hosts: [gpu01]\nactors: {x: {class: m:C}}", ["gpu01", "local"]),
        ("hosts: [gpu01]\nservices: {x: {class: m:C}}", ["gpu01", "local"]),
        ("hosts: [gpu01]\ndriver: {run: main.py}", ["gpu01", "local"]),
        ("hosts: [gpu01, {name: here, local: true}]\ndriver: {run: main.py}", ["gpu01", "here"]),
        ("hosts: [gpu01]\nscripts: {x: {run: train.py}}", ["gpu01"]),
    ],
)
def test_a_driver_always_has_this_machine(tmp_path: Path, text: str, names: list[str]) -> None:
    spec = read(tmp_path, text)
    assert [h.name for h in spec.all_hosts] == names
    if "local" in names:
        assert spec.all_hosts[-1] == Host(name="local", local=True, gpus="none", slots=0)


def test_how_workdir_gets_to_hosts(tmp_path: Path) -> None:
    spec = read(tmp_path, MESH)
    assert (spec.sync, spec.sync_limit) == ("content", 1 << 30)
    spec = read(tmp_path, "sync: none\nsync_limit: 20GiB\n" + MESH)
    assert (spec.sync, spec.sync_limit) == ("none", 20 << 30)


def test_a_file_for_ssh_hosts_lies_in_what_is_copied(tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(tmp_path)
    (tmp_path / "away").mkdir()
    (tmp_path / "away" / "x.py").touch()
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg" / "link").symlink_to(tmp_path / "away")
    far = "hosts: [gpu01]\nworkdir: pkg\n"
    (tmp_path / "pkg" / "x.py").touch()
    (tmp_path / "pkg" / "inner").symlink_to(tmp_path / "pkg")
    for inside in ("../pkg/./x.py", "inner/x.py", f"{tmp_path}/pkg/x.py", f"{tmp_path}/alias/pkg/x.py"):
        spec = read(tmp_path, f"{far}scripts: {{a: {{run: {inside}}}}}")
        assert spec.scripts["a"].program.target == str(tmp_path / "pkg" / "x.py")
    for typed in ("x.py", "./x.py"):
        assert read(tmp_path, f"{far}scripts: {{a: {{run: {typed}}}}}").scripts["a"].program.target == typed
    for outside in ("../train.py", f"{tmp_path}/train.py", "link/x.py"):
        (line,) = problems(tmp_path, f"{far}scripts: {{a: {{run: {outside}}}}}")
        assert line.startswith("spec.yaml:3:20: scripts.a.run: ") and "is outside of workdir" in line
        assert read(tmp_path, f"{far}sync: none\nscripts: {{a: {{run: {outside}}}}}")

"""Where a process's cgroup is, from what /proc says on different hosts."""

from pathlib import Path

import pytest

from forgectl.system.cgroups import Cgroup, locate, locate_v1

PURE = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
HYBRID = (
    "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"
    "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
)
CONTAINER = "99 98 0:26 /docker/abc /sys/fs/cgroup ro - cgroup2 cgroup rw\n"
BLANK = "30 23 0:26 / /mnt/my\\040cgroups rw - cgroup2 cgroup2 rw\n"


@pytest.mark.parametrize(
    ("mountinfo", "cgroup", "expected"),
    [
        (PURE, "0::/user.slice/a.scope\n", "/sys/fs/cgroup/user.slice/a.scope"),
        (PURE, "0::/\n", "/sys/fs/cgroup"),
        (PURE, "0::/gone.scope (deleted)\n", None),
        (PURE, "0::/../outside\n", None),
        (PURE, "", None),
        ("", "0::/\n", None),
        (HYBRID, "4:memory:/a\n1:cpu,cpuacct:/\n0::/b\n", "/sys/fs/cgroup/unified/b"),
        (HYBRID, "4:memory:/a\n", None),
        (CONTAINER, "0::/docker/abc/x\n", "/sys/fs/cgroup/x"),
        (CONTAINER, "0::/elsewhere\n", None),
        (BLANK, "0::/a\n", "/mnt/my cgroups/a"),
        ("malformed\n" + PURE, "malformed\n0::/a\n", "/sys/fs/cgroup/a"),
    ],
)
def test_locate(mountinfo: str, cgroup: str, expected: str | None) -> None:
    assert locate(mountinfo, cgroup) == (Path(expected) if expected else None)


@pytest.mark.parametrize(
    ("cgroup", "controller", "expected"),
    [
        ("4:memory:/a:b\n0::/b\n", "memory", "/sys/fs/cgroup/memory/a:b"),
        ("1:cpu,cpuacct:/c\n", "cpuacct", "/sys/fs/cgroup/cpu/c"),
        ("0::/b\n", "memory", None),
    ],
)
def test_locate_v1(cgroup: str, controller: str, expected: str | None) -> None:
    assert locate_v1(HYBRID, cgroup, controller) == (Path(expected) if expected else None)


def test_a_folder_that_is_no_cgroup_holds_nothing(tmp_path: Path) -> None:
    (tmp_path / "cgroup.procs").write_text("")
    assert Cgroup.create(tmp_path, "a", "b") is None
    assert [p.name for p in tmp_path.iterdir()] == ["cgroup.procs"]


def test_no_parent_no_cgroup(tmp_path: Path) -> None:
    assert Cgroup.create(None, "a") is None
    assert Cgroup.create(tmp_path / "absent", "a") is None


def test_a_cgroup_that_is_gone_is_empty(tmp_path: Path) -> None:
    gone = Cgroup(tmp_path / "gone")
    assert gone.pids() == set()
    assert not gone.populated()
    gone.kill()
    gone.thaw()
    assert gone.remove(above=0)


def test_a_name_that_is_taken_by_a_file_is_no_cgroup(tmp_path: Path) -> None:
    (tmp_path / "cgroup.procs").write_text("")
    assert Cgroup.create(tmp_path, "cgroup.procs", "m-0") is None

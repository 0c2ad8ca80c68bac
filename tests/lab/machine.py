"""A host of the lab, or its switch, as a process that holds namespaces until its input ends: `machine.py MODE JSON`."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWPID, NEWNET = 0x20000, 0x2000000, 0x4000000, 0x8000000, 0x20000000, 0x40000000
BIND, REC, PRIVATE, DETACH = 0x1000, 0x4000, 0x40000, 2
LIBC = ctypes.CDLL(None, use_errno=True)
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}


def checked(result: int, what: str) -> None:
    if result:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


def unshare(flags: int) -> None:
    checked(LIBC.unshare(flags), "unshare")


def mount(kind: str, target: str | Path, options: str = "") -> None:
    """A new file system of some kind."""
    arguments = (kind.encode(), os.fsencode(target), kind.encode(), 0, options.encode() or None)
    checked(LIBC.mount(*arguments), f"mount {kind} on {target}")


def bind(opened: int, target: str | Path) -> None:
    """What an O_PATH descriptor stands for, seen at `target` too; works where a mount has covered its path."""
    source = f"/proc/self/fd/{opened}".encode()
    checked(LIBC.mount(source, os.fsencode(target), None, BIND | REC, None), f"bind on {target}")


def say(line: object) -> None:
    os.write(1, f"{line}\n".encode())


# ---------------------------------------------------------------- a host


def host(config: dict[str, Any]) -> None:
    """Make the namespaces and say the pid, as seen here, of their first process, which says "ready" once furnished."""
    if config["cgroup"]:
        (Path(config["cgroup"]) / "cgroup.procs").write_text("0")
    unshare(NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWPID | NEWNET)
    if child := os.fork():
        say(child)
        os.waitpid(child, 0)
    else:
        furnish(config)
        serve()


def furnish(config: dict[str, Any]) -> None:
    """Give the host what a machine has for itself; all else is the launching machine's."""
    checked(LIBC.mount(b"none", b"/", None, REC | PRIVATE, None), "make mounts private")
    keep = {path: os.open(path, os.O_PATH) for path in sorted(config["keep"], key=len)}
    own = {target: os.open(source, os.O_PATH) for target, source in config["own"].items()}
    cgroups = os.open("/sys/fs/cgroup", os.O_PATH)
    mount("proc", "/proc")
    mount("sysfs", "/sys")  # of this network namespace
    bind(cgroups, "/sys/fs/cgroup")
    for target, mode in (("/tmp", "1777"), ("/run", "755"), ("/dev/shm", "1777")):
        mount("tmpfs", target, f"mode={mode}")
    for target, opened in own.items():
        bind(opened, target)
    for path, opened in keep.items():  # such as an interpreter under /root, or a checkout under /tmp
        if not os.path.exists(path) or not os.path.samestat(os.stat(path), os.fstat(opened)):
            os.makedirs(path, exist_ok=True)
            bind(opened, path)
    if config["cgroup"]:
        checked(LIBC.umount2(os.fsencode(config["cgroup_mount"]), DETACH), "unmount cgroups")  # else EBUSY
        mount("cgroup2", config["cgroup_mount"])  # whose root is now the host's own cgroup
    os.makedirs("/run/sshd", mode=0o755)
    name = config["name"].encode()
    checked(LIBC.sethostname(name, len(name)), "sethostname")


def serve() -> None:
    """Start what each line of input says, say its pid, and bury the dead, until the input ends."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    os.chdir("/")
    say("ready")
    pending = b""
    while True:
        for source in select.select([0, read], [], [])[0]:
            data = os.read(source, 65536)
            if source == read:
                bury()
            elif not data:
                return
            else:
                *lines, pending = (pending + data).split(b"\n")
                for line in lines:
                    say(start(json.loads(line)))


def bury() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def start(argv: list[str]) -> int:
    quiet = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in (0, 1)]
    return os.posix_spawn(argv[0], argv, ENVIRONMENT, file_actions=quiet, setsigdef=[signal.SIGCHLD], setsid=True)


# ---------------------------------------------------------------- the switch, which outlives a killed test


def switch(config: dict[str, Any]) -> None:
    """A network namespace for the bridge. When the input ends, also by the test's death, the lab's files go."""
    unshare(NEWNET)
    with contextlib.suppress(BrokenPipeError):  # the test has died already
        say(os.getpid())
    while os.read(0, 4096):
        pass
    folders = [Path(config["folder"]), *map(Path, config["cgroups"])]
    deadline = time.monotonic() + 10  # the hosts, which end at the same time, may still be writing
    while (left := [f for f in folders if f.exists()]) and time.monotonic() < deadline:
        for folder in left:
            remove(folder)
        time.sleep(0.01)


def remove(folder: Path) -> None:
    """A tree of files, or of cgroups, whose files cannot be removed but go with their directory."""
    if not (folder / "cgroup.procs").exists():
        shutil.rmtree(folder, ignore_errors=True)
        return
    for path, _, _ in os.walk(folder, topdown=False):
        with contextlib.suppress(OSError):
            os.rmdir(path)


# ---------------------------------------------------------------- may we?


def probe() -> None:
    """Fails where this machine does not let us build a lab."""
    unshare(NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWPID | NEWNET)
    if child := os.fork():
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    checked(LIBC.mount(b"none", b"/", None, REC | PRIVATE, None), "make mounts private")
    for kind, target in (("proc", "/proc"), ("sysfs", "/sys"), ("tmpfs", "/tmp")):
        mount(kind, target)
    for command in (
        "ip link add switch type bridge",
        "ip link add one type veth peer name two",
        "nft add table inet lab",
    ):
        subprocess.run(command.split(), check=True)


if __name__ == "__main__":
    mode = sys.argv[1]
    if mode == "probe":
        probe()
    else:
        (host if mode == "host" else switch)(json.loads(sys.argv[2]))

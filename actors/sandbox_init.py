"""The first process in a sandbox: builds it, runs one program in it, watches the program and reports its end.

`actors.sandbox` starts this file as a script; nothing imports it. It imports little, because its start is most of what
an execution costs. The request comes over a Unix socket, in `marshal`; reports are lines of text: `started`, then
`exited STATUS` (a wait status) or `memory`; or else `failed REASON`.
"""

from __future__ import annotations

import ctypes
import marshal
import os
import resource
import select
import struct
import sys

TYPE_CHECKING = False  # typing takes longer to import than all the rest
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

NOBODY = 65534
INSIDE = 1000
"""The user and group id that the program sees as its own."""
FOLDER = "/tmp"
WATCH_SECONDS = 0.02
"""Between two looks at the memory that the program uses."""
BYTES_OF_INODE = 1024
"""What an empty file takes of the kernel's memory, about."""

# from the kernel's headers
CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC = 0x20000, 0x2000000, 0x4000000, 0x8000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = (
    1,
    2,
    4,
    8,
    32,
    4096,
    16384,
    1 << 18,
)
MNT_DETACH, AT_FDCWD, AT_RECURSIVE, SYS_MOUNT_SETATTR = 2, -100, 0x8000, 442
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 36, 38
SIGINT, SIGKILL, SIGPIPE, SIGXFSZ = 2, 9, 13, 25
EPERM, ENOSYS, EAFNOSUPPORT, AF_UNIX = 1, 38, 97, 1

libc = ctypes.CDLL(None, use_errno=True)


def check(what: str, result: int) -> None:
    """Raise OSError, which names `what`, where a call into libc has failed."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


# ------------------------------------------------------------ namespaces


def enter_user_namespace() -> None:
    """Become user INSIDE of a user namespace: the program cannot act as anyone but the one user behind it."""
    uid, gid = os.geteuid(), os.getegid()
    check("new user namespace", libc.unshare(CLONE_NEWUSER))
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{INSIDE} {uid} 1"),
        ("gid_map", f"{INSIDE} {gid} 1"),
    ):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def enter_namespaces(files: int, readable: Sequence[str]) -> None:
    """Go on as process 1 of namespaces of its own, whose files are `readable` and an empty folder of `files` bytes.

    Root mounts with its own rights, since it may read folders that others may not, and then becomes nobody for good:
    no limit on processes holds for root, and root may write to /proc/sys.
    """
    root = os.geteuid() == 0
    if not root:
        enter_user_namespace()
    kinds = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP
    check("new namespaces", libc.unshare(kinds))
    if child := os.fork():
        os.waitpid(child, 0)
        os._exit(0)
    mount("", "/", "", MS_REC | MS_PRIVATE)
    mount("tmpfs", FOLDER, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,mode=755")
    old = f"{FOLDER}/.old"
    os.mkdir(old)
    check("pivot_root", libc.pivot_root(FOLDER.encode(), old.encode()))
    os.chdir("/")
    os.mkdir(FOLDER)
    owner = f",uid={NOBODY},gid={NOBODY}" if root else ""
    mount("tmpfs", FOLDER, "tmpfs", MS_NOSUID | MS_NODEV, f"size={files},mode=700{owner}")
    for path in readable:  # some may be below FOLDER
        show(path)
    for name in ("null", "zero", "full", "random", "urandom"):
        bind(f"/dev/{name}")
    os.mkdir("/proc")
    mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    check("umount", libc.umount2(b"/.old", MNT_DETACH))
    os.rmdir("/.old")
    os.symlink(FOLDER, "/dev/shm")
    mount("", "/", "", MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV)
    os.chdir(FOLDER)
    if root:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        check("prctl", libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0))  # else /proc/self/uid_map belongs to root
        enter_user_namespace()


def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    result = libc.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), data.encode())
    check(f"mount {kind or source} at {target}", result)


def show(path: str) -> None:
    """Make a file or folder of the machine readable at its own path; a link stays a link."""
    if os.path.islink(f"/.old{path}"):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.symlink(os.readlink(f"/.old{path}"), path)
    elif not os.path.exists(path):  # else a folder above it was shown before
        bind(path, MS_RDONLY)


def bind(path: str, flags: int = 0) -> None:
    source = f"/.old{path}"
    if os.path.isdir(source):
        os.makedirs(path)
    else:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
    mount(source, path, "", MS_BIND | MS_REC)
    # struct mount_attr: attr_set, attr_clr, propagation, userns_fd. A device would not open with MS_NODEV.
    attributes = struct.pack("4Q", flags | MS_NOSUID | (MS_NODEV if flags else 0), 0, 0, 0)
    result = libc.syscall(SYS_MOUNT_SETATTR, AT_FDCWD, path.encode(), AT_RECURSIVE, attributes, len(attributes))
    check(f"mount_setattr {path}", result)


# ------------------------------------------------------------ limits and system calls of the program

SYSCALLS = {
    "x86_64": (0xC000003E, 41, 53, 56),  # the architecture's number; socket, socketpair, clone
    "aarch64": (0xC00000B7, 198, 199, 220),
}
DENIED = {
    "x86_64": "29 64 68 101 103 155 165 166 240 248 249 250 272 280 298 308 310 311 319 321 323",
    "aarch64": "39 40 41 97 116 117 180 186 190 194 217 218 219 241 264 268 270 271 279 280 282",
}
"""Memory that no limit counts (shmget, semget, msgget, mq_open, memfd_create), other processes (ptrace,
process_vm_readv, process_vm_writev), namespaces and mounts (mount, umount2, pivot_root, unshare, setns), keys of the
kernel's keyrings and its log (syslog), and bpf, perf_event_open, userfaultfd."""
DENIED_EVERYWHERE = "425 426 427 428 429 430 431 432 433 442 447"
"""The same numbers on every architecture: io_uring, the newer calls for mounts, memfd_secret."""
CLONE3 = 435
"""Its flags are in memory, which a filter cannot read; libc uses `clone` instead where it is missing."""


def seccomp_program() -> bytes:
    """The filter of system calls, as the kernel's classic BPF instructions."""
    machine = os.uname().machine
    architecture, socket_call, socketpair_call, clone = SYSCALLS[machine]
    load, equal, any_bit, at_least, answer = 0x20, 0x15, 0x45, 0x35, 0x06
    allow, deny, kill = 0x7FFF0000, 0x00050000, 0x80000000
    number, arch, argument = 0, 4, 16  # offsets in struct seccomp_data

    program = [(load, 0, 0, arch), (equal, 1, 0, architecture), (answer, 0, 0, kill), (load, 0, 0, number)]
    program += [(at_least, 0, 1, 0x40000000), (answer, 0, 0, deny | ENOSYS)]  # x32
    program += [(equal, 0, 1, CLONE3), (answer, 0, 0, deny | ENOSYS)]
    for call in (DENIED[machine] + " " + DENIED_EVERYWHERE).split():
        program += [(equal, 0, 1, int(call)), (answer, 0, 0, deny | EPERM)]
    program += [(equal, 0, 4, clone), (load, 0, 0, argument), (any_bit, 0, 1, CLONE_NEWUSER)]
    program += [(answer, 0, 0, deny | EPERM), (answer, 0, 0, allow)]
    program += [(equal, 1, 0, socket_call), (equal, 0, 3, socketpair_call), (load, 0, 0, argument)]
    program += [(equal, 1, 0, AF_UNIX), (answer, 0, 0, deny | EAFNOSUPPORT), (answer, 0, 0, allow)]
    return b"".join(struct.pack("HBBI", *instruction) for instruction in program)


def restrict(limits: dict[str, int], isolated: bool) -> None:
    """Set the limits of this process, and of all that it will start."""
    for name, value in limits.items():
        _, most = resource.getrlimit(getattr(resource, name))
        limit = value if most == resource.RLIM_INFINITY else min(value, most)
        resource.setrlimit(getattr(resource, name), (limit, limit))
    check("prctl", libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    if isolated:
        code = seccomp_program()
        buffer = ctypes.create_string_buffer(code)
        program = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(buffer))
        check("seccomp", libc.prctl(PR_SET_SECCOMP, 2, program, 0, 0))


# ------------------------------------------------------------ the program, from its start to its end


def start(argv: list[str], environment: dict[str, str], limits: dict[str, int], isolated: bool) -> int:
    """Start the program in a session of its own, with nothing open but its standard streams: its pid."""
    if pid := os.fork():
        return pid
    try:
        os.setsid()
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))
        for number in (SIGPIPE, SIGXFSZ):
            libc.signal(number, None)  # Python ignores these; the program decides for itself
        restrict(limits, isolated)
        os.execve(argv[0], argv, environment)
    except BaseException as e:
        os.write(2, f"the program could not be started: {e}\n".encode())
    os._exit(127)


def watch(control: int, program: int, memory: int, isolated: bool) -> str:
    """Wait until the program ends or uses too much memory: the report."""
    poll = select.poll()
    poll.register(control, select.POLLHUP)
    poll.register(os.pidfd_open(program), select.POLLIN)
    while True:
        if any(fd == control for fd, _ in poll.poll(WATCH_SECONDS * 1000)):
            return ""  # the owner of the sandbox has gone, or wants the program ended
        pid, status = -1, 0
        while pid not in {0, program}:  # others are orphans of the program
            pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == program:
            return f"exited {status}\n"
        if isolated and used(resident) > memory and used(proportional) > memory:
            return "memory\n"


def used(of: Callable[[str], int]) -> int:
    """Bytes that the sandbox's processes use by this measure, and its files."""
    files = os.statvfs(FOLDER)
    pids = [name for name in os.listdir("/proc") if name.isdigit() and name != "1"]
    content, inodes = (files.f_blocks - files.f_bfree) * files.f_frsize, files.f_files - files.f_ffree
    return sum(map(of, pids)) + content + inodes * BYTES_OF_INODE


def resident(pid: str) -> int:
    """Bytes of a process in memory without those of files. Cheap; pages shared by n processes count n times."""
    return kilobytes(f"/proc/{pid}/status", ("RssAnon", "RssShmem")) * 1024


def proportional(pid: str) -> int:
    """The same with shared pages divided among those who share them. Slow."""
    try:
        return kilobytes(f"/proc/{pid}/smaps_rollup", ("Pss_Anon", "Pss_Shmem")) * 1024
    except PermissionError:  # a process can forbid this look at itself
        return resident(pid)


def kilobytes(path: str, names: tuple[str, ...]) -> int:
    """The sum of these lines of a file in /proc; 0 for a process that has ended."""
    try:
        with open(path) as file:
            return sum(int(line.split()[1]) for line in file if line.startswith(names))
    except (FileNotFoundError, ProcessLookupError):
        return 0


def end_descendants() -> None:
    """Without a process namespace: kill what the program started, until nothing is left."""
    while pids := children(os.getpid()):
        for pid in pids:
            os.kill(pid, SIGKILL)
        os.waitpid(-1, 0)  # the children of a dead child become this process's own


def children(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(child) for child in file.read().split()]


def receive(control: int) -> dict[str, Any]:
    """The request: its length in 8 bytes, and its bytes."""
    data = bytearray()
    while len(data) < 8 or len(data) < 8 + int.from_bytes(data[:8], "little"):
        part = os.read(control, 1 << 20)
        if not part:
            os._exit(0)  # its owner has gone
        data += part
    request: dict[str, Any] = marshal.loads(data[8:])
    return request


def main() -> None:
    """Read the request, make the sandbox, run the program, report."""
    control = int(sys.argv[1])
    os.set_inheritable(control, False)
    libc.prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)
    libc.signal(SIGINT, None)
    request = receive(control)
    isolated = request["isolation"] != "none"
    try:
        if request["isolation"] == "namespaces":
            enter_namespaces(request["files"], request["readable"])
            libc.prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)  # it does not pass to a child
        libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)  # the program, of the same user, must not trace this process
        libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        if isolated and os.getpid() != 1:
            raise RuntimeError("this is not process 1 of a namespace")
        with open("main.py", "wb") as file:
            file.write(request["code"])
        program = start([sys.executable, "main.py"], request["environment"], request["limits"], isolated)
        os.write(control, b"started\n")
        report = watch(control, program, request["memory"], isolated)
    except Exception as e:
        report = f"failed {type(e).__name__}: {e}".replace("\n", " ") + "\n"
    if not isolated:
        end_descendants()
    os.write(control, report.encode())
    os._exit(0)  # with process 1 of a namespace all others end


if __name__ == "__main__":
    main()

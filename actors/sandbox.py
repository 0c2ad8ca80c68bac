"""Runs Python programs that nobody has read, such as those of a model, apart from the machine they run on."""

from __future__ import annotations

import asyncio
import contextlib
import marshal
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from actors.waiting import TooSlow, within
from forgectl import ForgeActor, endpoint

Isolation = Literal["namespaces", "bubblewrap", "none"]
INIT = Path(__file__).with_name("sandbox_init.py")
SYSTEM = (
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/etc/alternatives",
)
ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "PYTHONDONTWRITEBYTECODE": "1",
    # Each thread of these libraries reserves memory, on machines with many cores more than a program may have.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
"""All variables that a program sees, besides HOME and TMPDIR."""
KERNEL = (5, 14)
"""The first Linux that counts processes by user namespace."""
START_SECONDS = 60.0
"""For a sandbox to be ready; on a busy machine this takes longer than usual."""


class SandboxUnavailable(RuntimeError):
    """This machine cannot isolate programs, or a sandbox broke; the text says why and what to do."""


@dataclass(frozen=True)
class Result:
    """What a program did."""

    stdout: str
    """What it wrote. Past the limit it is cut, and a last line says how much is missing."""
    stderr: str
    exit_code: int | None
    """None: it did not end by itself."""
    signal: str | None
    """The signal that ended it, such as "SIGSEGV"; "SIGKILL" where a limit ended it."""
    timed_out: bool
    out_of_memory: bool
    """Its processes and files took more than the limit, or it ended with a MemoryError."""
    seconds: float
    """From the start of its interpreter to its end."""

    @property
    def ok(self) -> bool:
        """Whether it ended by itself with exit code 0."""
        return self.exit_code == 0


@dataclass(frozen=True)
class Limits:
    """What one program may use."""

    memory: int = 512 << 20
    """Bytes of all its processes and files together."""
    processes: int = 32
    """Processes and threads at a time."""
    output: int = 64 << 10
    """Bytes kept of its stdout, and of its stderr."""
    files: int = 64 << 20
    """Bytes of all its files together."""
    cpu_seconds: int = 60
    """Processor time of each process."""

    def __post_init__(self) -> None:
        """Raise ValueError for a limit below 1."""
        if wrong := [f"{name} must be at least 1, not {value!r}" for name, value in vars(self).items() if value < 1]:
            raise ValueError("; ".join(wrong))

    def of_process(self, isolation: Isolation) -> dict[str, int]:
        """The kernel's limits of each process, by their names in `resource`."""
        limits = {
            "RLIMIT_DATA": self.memory,
            "RLIMIT_FSIZE": self.files,
            "RLIMIT_CPU": self.cpu_seconds,
            "RLIMIT_NOFILE": 256,
            "RLIMIT_CORE": 0,
            "RLIMIT_MEMLOCK": 0,
        }
        if isolation != "none":  # else those outside would count, too
            forked_inside = isolation == "namespaces" and os.geteuid() != 0
            limits["RLIMIT_NPROC"] = self.processes + 1 + forked_inside  # sandbox_init.py's own processes
        return limits


@dataclass
class Output:
    """The beginning of a stream, as many bytes as are kept of it."""

    most: int
    kept: bytearray = field(default_factory=bytearray)
    size: int = 0

    def add(self, data: bytes) -> None:
        """Keep what still fits."""
        self.kept += data[: self.most - len(self.kept)]
        self.size += len(data)

    def text(self) -> str:
        """What was kept, and a line that says what was not."""
        text = self.kept.decode(errors="replace")
        missing = self.size - len(self.kept)
        return f"{text}\n[{missing:,} more bytes were not kept]\n" if missing else text


class Sandbox:
    """Runs Python programs one by one or many at a time, each in a sandbox of its own that ends with it.

    A program sees the machine's system folders, its Python with installed packages, and the folders in `readable`, all
    of which it can only read. It may write to its own empty folder, /tmp, which is gone when it ends. It sees no other
    process, no network, not even loopback, no environment variable of its caller. Its processes end when its main
    program ends, when the time is up, and when the process that called `execute` dies, in whatever way.

    `isolation` says how: "bubblewrap" (the program `bwrap`) or "namespaces" (the same kernel facilities without it);
    both need Linux 5.14 with user namespaces. "auto" is "namespaces" for root, who becomes nobody there, and for others
    bubblewrap if it is installed and works, else "namespaces". "none" limits memory, time and output and nothing
    else: a program can read, write and send what its caller can. Use it only within a container or VM of its own.

    `concurrent` is how many programs run at a time (None: as many as there are processors); others wait for their turn.
    `python` is the interpreter that runs them. `await start()` before the first program.
    """

    def __init__(
        self,
        limits: Limits | None = None,
        *,
        isolation: Isolation | Literal["auto"] = "auto",
        concurrent: int | None = None,
        readable: Sequence[str] = (),
        python: str = sys.executable,
    ) -> None:
        """Check the arguments; nothing is started."""
        if isolation not in ("auto", "namespaces", "bubblewrap", "none"):
            raise ValueError(f'isolation must be "auto", "namespaces", "bubblewrap" or "none", not {isolation!r}')
        if missing := [path for path in readable if not Path(path).is_absolute() or not Path(path).exists()]:
            raise ValueError(f"readable: not an absolute path of this machine: {', '.join(missing)}")
        self.limits = limits or Limits()
        self.python = str(Path(shutil.which(python) or python).absolute())
        self.readable = [*readable]
        self.isolation: Isolation | None = None
        self._wanted = isolation
        self._slots = asyncio.Semaphore(concurrent or len(os.sched_getaffinity(0)))

    async def start(self) -> Isolation:
        """Choose the isolation, and prove with a first program that it works; returns which it is.

        Raises SandboxUnavailable where programs cannot be isolated.
        """
        self.readable = visible(self.readable, await self._folders_of_python())
        kernel, reasons = kernel_version(os.uname().release), []
        candidates = candidates_here(kernel) if self._wanted == "auto" else [self._wanted]
        for candidate in candidates:
            self.isolation = candidate
            try:
                result = await self.execute("print('ready')", timeout=START_SECONDS)
                if result.stdout == "ready\n":
                    return candidate
                reasons.append(f"{candidate}: a first program failed: {result}")
            except (SandboxUnavailable, OSError) as e:
                reasons.append(f"{candidate}: {e}")
        self.isolation = None
        if kernel < KERNEL:
            reasons.append(f"Linux {os.uname().release} is too old, {'.'.join(map(str, KERNEL))} is needed")
        raise SandboxUnavailable(
            f"programs cannot be isolated on {socket.gethostname()}: {'; '.join(reasons)}. Install bubblewrap, or "
            "allow user namespaces (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, "
            "kernel.apparmor_restrict_unprivileged_userns; in a container also its seccomp profile). In a container or "
            'VM that holds nothing of value, isolation="none" runs programs without.'
        )

    async def execute(self, code: str, stdin: str = "", timeout: float = 10.0) -> Result:
        """Run `code` as the main program of a fresh interpreter, with `stdin` as its standard input.

        It is killed after `timeout` seconds. Whatever the program does is a result. Raises SandboxUnavailable if the
        sandbox itself fails, and RuntimeError before `start()`.
        """
        if self.isolation is None:
            raise RuntimeError("the sandbox has not been started: await start() first")
        async with self._slots:
            with contextlib.ExitStack() as stack:
                folder = "/"
                if self.isolation == "none":
                    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="sandbox-"))
                ours, theirs = stack.enter_context(control_sockets())
                process = await asyncio.create_subprocess_exec(
                    *self._command(self.isolation, theirs.fileno()),
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.PIPE,
                    pass_fds=[theirs.fileno()],
                    env=ENVIRONMENT,
                    cwd=folder,
                    start_new_session=True,
                )
                theirs.close()
                request = marshal.dumps(self._request(self.isolation, code), 2)
                running = Execution(process, ours, self.limits)
                return await running.result(request, stdin, timeout)

    def _request(self, isolation: Isolation, code: str) -> dict[str, Any]:
        """What sandbox_init.py reads."""
        folder = {} if isolation == "none" else {"HOME": "/tmp", "TMPDIR": "/tmp"}
        return {
            "isolation": isolation,
            "code": code.encode(errors="surrogatepass"),
            "environment": ENVIRONMENT | folder,
            "limits": self.limits.of_process(isolation),
            "memory": self.limits.memory,
            "files": self.limits.files,
            "readable": self.readable,
        }

    def _command(self, isolation: Isolation, control: int) -> list[str]:
        """The command that starts sandbox_init.py, with the number of its socket."""
        if isolation == "bubblewrap":
            return bubblewrap(self.readable, self.limits.files, [self.python, "-I", "-S", "/init.py", str(control)])
        return [self.python, "-I", "-S", str(INIT), str(control)]

    async def _folders_of_python(self) -> list[str]:
        """Where the interpreter and its packages are."""
        question = "import os, sys; print(sys.prefix, sys.base_prefix, os.path.realpath(sys.executable), sep='\\n')"
        process = await asyncio.create_subprocess_exec(
            self.python, "-I", "-c", question, stdout=asyncio.subprocess.PIPE, env=ENVIRONMENT
        )
        out, _ = await process.communicate()
        if process.returncode:
            raise SandboxUnavailable(f"{self.python} does not start: exit code {process.returncode}")
        *folders, executable = out.decode().splitlines()
        return [*folders, str(Path(executable).parent.parent)]


class Execution:
    """One program in its sandbox."""

    def __init__(self, process: asyncio.subprocess.Process, control: socket.socket, limits: Limits) -> None:
        self.process = process
        self.control = control
        self.stdout, self.stderr = Output(limits.output), Output(limits.output)

    async def result(self, request: bytes, stdin: str, timeout: float) -> Result:
        """Run it to its end, or to its timeout; nothing of it is left afterwards, also when this is cancelled."""
        process = self.process
        assert process.stdin and process.stdout and process.stderr
        streams = asyncio.gather(
            feed(process.stdin, stdin.encode(errors="surrogatepass")),
            drain(process.stdout, self.stdout),
            drain(process.stderr, self.stderr),
        )
        reader, writer = await asyncio.open_connection(sock=self.control)
        try:
            writer.write(len(request).to_bytes(8, "little") + request)
            try:
                started = (await within(START_SECONDS, reader.readline())).decode()
            except TooSlow:
                started = f"it took longer than {START_SECONDS:g} s"
            began = time.monotonic()
            report, timed_out = "", False
            if started == "started\n":
                try:
                    report = (await within(timeout, reader.readline())).decode()
                except TooSlow:
                    timed_out = True
            seconds = time.monotonic() - began
        finally:
            writer.close()  # the first process of the sandbox then ends, and with it all others
            await self._end(streams)
        if started != "started\n" or report.startswith("failed"):
            reason = f"{started}{report}{self.stderr.text()}".strip() or "its first process ended without a word"
            raise SandboxUnavailable(f"the sandbox did not start: {reason}")
        return self._result(report, timed_out, seconds)

    async def _end(self, streams: asyncio.Future[Any]) -> None:
        """Wait until no process of the sandbox is left: then nobody has its end of the streams."""
        ended = asyncio.gather(streams, self.process.wait())
        done, _ = await asyncio.wait([ended], timeout=5)
        if not done:
            self.process.kill()
        await ended

    def _result(self, report: str, timed_out: bool, seconds: float) -> Result:
        word, _, status = report.strip().partition(" ")
        code = os.waitstatus_to_exitcode(int(status)) if word == "exited" else -signal.SIGKILL
        stderr = self.stderr.text()
        last = stderr.rstrip().rpartition("\n")[2]
        return Result(
            self.stdout.text(),
            stderr,
            exit_code=code if code >= 0 else None,
            signal=signal.Signals(-code).name if code < 0 else None,
            timed_out=timed_out,
            out_of_memory=word == "memory" or (code == 1 and "MemoryError" in last.partition(":")[0]),
            seconds=seconds,
        )


async def feed(stream: asyncio.StreamWriter, data: bytes) -> None:
    """Write it all, or as much as the program reads."""
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        stream.write(data)
        await stream.drain()
    stream.close()


async def drain(stream: asyncio.StreamReader, output: Output) -> None:
    """Read a stream to its end."""
    while data := await stream.read(1 << 18):
        output.add(data)


@contextlib.contextmanager
def control_sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two connected sockets, closed at the end."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def kernel_version(release: str) -> tuple[int, ...]:
    """The first two numbers of a release of Linux, such as "6.1.0-18-amd64"."""
    return tuple(int(number) for number in re.findall(r"\d+", release)[:2])


def candidates_here(kernel: tuple[int, ...]) -> list[Isolation]:
    """What could isolate programs here, the best first."""
    if kernel < KERNEL:
        return []
    if os.geteuid() == 0:
        return ["namespaces"]  # bubblewrap would leave the program root's rights over files
    return ["bubblewrap", "namespaces"] if shutil.which("bwrap") else ["namespaces"]


def visible(readable: Sequence[str], python: Sequence[str]) -> list[str]:
    """The paths that a program sees, those above before those below them; what a folder above shows is left out."""
    paths = sorted({path for path in (*SYSTEM, *readable, *python) if os.path.lexists(path)})
    return [path for path in paths if not any(path.startswith(f"{above}/") for above in paths)]


def bubblewrap(readable: Sequence[str], files: int, command: Sequence[str]) -> list[str]:
    """The command of bubblewrap that runs `command` as process 1 of a sandbox."""
    argv = ["bwrap", "--unshare-all", "--die-with-parent", "--as-pid-1", "--uid", "1000", "--gid", "1000"]
    argv += ["--hostname", "sandbox"]
    argv += ["--perms", "0700", "--size", str(files), "--tmpfs", "/tmp"]  # some of what is readable may be below it
    for path in readable:
        argv += (
            ["--symlink", str(Path(path).readlink()), path] if Path(path).is_symlink() else ["--ro-bind", path, path]
        )
    for name in ("null", "zero", "full", "random", "urandom"):
        argv += ["--dev-bind", f"/dev/{name}", f"/dev/{name}"]
    argv += ["--symlink", "/tmp", "/dev/shm", "--proc", "/proc", "--ro-bind", str(INIT), "/init.py"]
    return [*argv, "--remount-ro", "/", "--chdir", "/tmp", "--", *command]


class PythonSandbox(ForgeActor):
    """Executes Python programs in sandboxes; see `Sandbox`, whose arguments and limits it takes by keyword.

    `concurrent` programs run at a time on each replica.
    """

    max_concurrent_requests = 256  # those above `concurrent` wait in the sandbox

    def __init__(
        self,
        *,
        memory: int = Limits.memory,
        processes: int = Limits.processes,
        output: int = Limits.output,
        files: int = Limits.files,
        cpu_seconds: int = Limits.cpu_seconds,
        isolation: Isolation | Literal["auto"] = "auto",
        concurrent: int | None = None,
        readable: Sequence[str] = (),
    ) -> None:
        super().__init__()
        limits = Limits(memory, processes, output, files, cpu_seconds)
        self.sandbox = Sandbox(limits, isolation=isolation, concurrent=concurrent, readable=readable)

    @endpoint
    async def setup(self) -> None:
        """Raises SandboxUnavailable where programs cannot be isolated."""
        self.logger.info("isolation of programs: %s", await self.sandbox.start())

    @endpoint(concurrent=True, idempotent=True)
    async def execute(self, code: str, stdin: str = "", timeout: float = 10.0) -> Result:
        """Run a program; see `Sandbox.execute`. A service may run it again where its replica has died."""
        return await self.sandbox.execute(code, stdin, timeout)

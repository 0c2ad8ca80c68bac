"""PythonSandbox against programs that attack it, as root and as a real other user, by each kind of isolation."""

from __future__ import annotations

import asyncio
import ctypes
import encodings.idna  # noqa: F401  # sockets need it, and another user may not be able to import it
import os
import pickle
import select
import shutil
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import actors.sandbox
from actors.sandbox import Isolation, Limits, Result, Sandbox, SandboxUnavailable, bubblewrap, visible
from tests.conftest import Forge, processes_with

NOBODY = 65534
KINDS = ["namespaces", "namespaces as another user", "bubblewrap as another user"]
SECRET = "sesame-7319"


def in_a_child(uid: int, work: Callable[[], Any]) -> Any:
    """What `work` returns in a forked child that is this user; raises what it raises."""
    out, into = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            if uid != os.getuid():
                os.setgroups([])
                os.setresgid(uid, uid, uid)
                os.setresuid(uid, uid, uid)
            answer: tuple[bool, Any] = (True, work())
        except BaseException as e:
            answer = (False, e)
        os.write(into, pickle.dumps(answer))
        os._exit(0)
    os.close(into)
    with open(out, "rb") as file:
        fine, value = pickle.loads(file.read())  # noqa: S301
    os.waitpid(pid, 0)
    if fine:
        return value
    raise value


class Attacker:
    """Runs programs in a sandbox of one kind, as its caller root or another user."""

    def __init__(self, kind: str) -> None:
        self.isolation: Isolation = "bubblewrap" if kind.startswith("bubblewrap") else "namespaces"
        self.another = kind.endswith("another user")
        self.uid = NOBODY if self.another and os.getuid() == 0 else os.getuid()
        self.python = "/usr/bin/python3" if self.uid != os.getuid() else sys.executable

    def run(self, code: str, *, stdin: str = "", timeout: float = 60.0, readable: Any = (), **limits: int) -> Result:
        """Execute one program."""

        async def execute() -> Result:
            sandbox = Sandbox(Limits(**limits), isolation=self.isolation, readable=readable, python=self.python)
            assert await sandbox.start() == self.isolation
            return await sandbox.execute(code, stdin, timeout)

        result = in_a_child(self.uid, lambda: asyncio.run(execute()))
        assert isinstance(result, Result)
        return result

    def output(self, code: str, **options: Any) -> str:
        """The output of a program that has to succeed."""
        result = self.run(code, **options)
        assert result.ok, result
        return result.stdout


@pytest.fixture(params=KINDS)
def attacker(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Attacker:
    kind = str(request.param)
    if "bubblewrap" in kind and not shutil.which("bwrap"):
        pytest.skip("bubblewrap is not installed")
    if kind == KINDS[0] and os.getuid() != 0:
        pytest.skip("this user is not root; the same test runs as an ordinary user")
    found = Attacker(kind)
    if found.uid != os.getuid():
        subprocess.run(["setpriv", f"--reuid={NOBODY}", found.python, "-c", "pass"], check=True)  # can there be one?
        folder = Path("/tmp") / f"init-{uuid.uuid4().hex}"  # where that user can read it
        folder.mkdir(mode=0o755)
        request.addfinalizer(lambda: shutil.rmtree(folder))  # noqa: PT021
        init = Path(shutil.copy(actors.sandbox.INIT, folder))
        init.chmod(0o644)
        monkeypatch.setattr(actors.sandbox, "INIT", init)
    return found


@pytest.fixture
def mark() -> Iterator[str]:
    """A name for processes; none that has it is left after the test."""
    name = uuid.uuid4().hex[:12]
    yield name
    assert not marked(name)


def marked(name: str) -> list[int]:
    """The processes of this machine that have the name."""
    found = []
    for path in Path("/proc").glob("[0-9]*/comm"):
        try:
            if path.read_text().strip() == name:
                found.append(int(path.parent.name))
        except OSError:  # it has ended
            pass
    return found


def naming(mark: str) -> str:
    return f"open('/proc/self/comm', 'w').write({mark!r})\n"


# ------------------------------------------------------------ what a program may do


def test_a_program_has_its_streams_and_its_exit_code(attacker: Attacker) -> None:
    code = "import sys; print(sys.stdin.read().upper()); print('no', file=sys.stderr); sys.exit(3)"
    result = attacker.run(code, stdin="grüße")
    assert (result.stdout, result.stderr, result.exit_code) == ("GRÜSSE\n", "no\n", 3)
    assert (result.signal, result.timed_out, result.out_of_memory, result.ok) == (None, False, False, False)
    assert result.seconds > 0


def test_an_exception_is_shown_with_its_line(attacker: Attacker) -> None:
    result = attacker.run("x = 1\nx / 0\n")
    assert result.exit_code == 1
    assert 'main.py", line 2' in result.stderr and "x / 0" in result.stderr and "ZeroDivisionError" in result.stderr


def test_a_crash_is_a_result(attacker: Attacker) -> None:
    assert attacker.run("import ctypes; ctypes.string_at(0)").signal == "SIGSEGV"
    assert attacker.run("import os; os.kill(os.getpid(), 9)").signal == "SIGKILL"
    assert attacker.run("syntax error").exit_code == 1
    assert attacker.run("x = '\ud800'").exit_code == 1


def test_a_program_may_write_to_its_folder_import_from_it_and_start_processes(attacker: Attacker) -> None:
    code = """
import os, pathlib, subprocess, sys, tempfile, threading, multiprocessing
pathlib.Path('helper.py').write_text('value = 41')
import helper
with tempfile.NamedTemporaryFile('w') as file:
    assert file.name.startswith('/tmp/')
out = subprocess.run([sys.executable, '-c', 'print(1)'], capture_output=True, text=True, check=True).stdout
thread = threading.Thread(target=lambda: None); thread.start(); thread.join()
with multiprocessing.Pool(2) as pool:
    assert pool.map(abs, [-1, -2]) == [1, 2]
print(helper.value + int(out), os.getcwd())
"""
    assert attacker.output(code) == "42 /tmp\n"


def test_nothing_is_left_of_a_program_before(attacker: Attacker) -> None:
    code = "import os; print(sorted(os.listdir('/tmp')), sorted(os.listdir('/dev/shm'))); open('/tmp/left', 'w')"
    names = {attacker.output(code) for _ in range(2)}
    assert len(names) == 1 and "left" not in names.pop()
    assert not Path("/tmp/left").exists()


def test_folders_are_readable_where_the_caller_says_so(attacker: Attacker) -> None:
    with reachable_folder() as folder:
        (folder / "data.txt").write_text("17")
        path = str(folder / "data.txt")
        assert attacker.output(f"print(open({path!r}).read())", readable=[str(folder)]) == "17\n"
        denied = attacker.run(f"open({path!r}, 'w')", readable=[str(folder)])
        assert "Read-only file system" in denied.stderr or "Permission denied" in denied.stderr
        assert "FileNotFoundError" in attacker.run(f"open({path!r})").stderr
        assert (folder / "data.txt").read_text() == "17"


class reachable_folder:  # used as a function
    """A folder that every user can read and write, outside of pytest's, which are private."""

    def __enter__(self) -> Path:
        self.path = Path("/var/tmp") / f"sandbox-{uuid.uuid4().hex}"
        self.path.mkdir()
        self.path.chmod(0o777)
        return self.path

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.path)


# ------------------------------------------------------------ too much of everything


def test_a_fork_bomb_ends_with_its_time(attacker: Attacker, mark: str) -> None:
    code = "import os\nwhile True:\n  try: os.fork()\n  except OSError: pass\n"
    result = attacker.run(naming(mark) + code, timeout=1.0, processes=16)
    assert result.timed_out and result.signal == "SIGKILL" and result.exit_code is None


def test_processes_and_threads_are_counted(attacker: Attacker) -> None:
    code = """
import os, signal
number = 1
try:
    while number < 100:
        if os.fork() == 0: signal.pause()
        number += 1
except OSError: pass
print(number)
"""
    assert attacker.output(code, processes=8) == "8\n"


@pytest.mark.parametrize(
    "code",
    [
        "bytearray(10 << 30)",
        "import mmap; m = mmap.mmap(-1, 10 << 30)\nfor i in range(0, 10 << 30, 4096): m[i] = 1",
        "import os\nfor _ in range(8): pid = os.fork()\nb = bytearray(40 << 20)\nwhile True: pass",
        "open('big', 'wb').write(bytes(100 << 20)); b = bytearray(100 << 20)\nwhile True: pass",
    ],
    ids=["private", "shared", "many processes", "files and memory"],
)
def test_memory_is_limited_in_sum(attacker: Attacker, code: str, mark: str) -> None:
    result = attacker.run(naming(mark) + code, memory=160 << 20, files=120 << 20, processes=300)
    assert result.out_of_memory and not result.timed_out, result


def test_a_program_within_its_memory_is_let_alone(attacker: Attacker) -> None:
    code = "import os\nb = bytearray(60 << 20)\npid = 1\nfor _ in range(3): pid = pid and os.fork()\n"
    code += "import time; time.sleep(0.3)\nif pid:\n  for _ in range(3): os.wait()\n  print('fine')"
    assert attacker.output(code, memory=160 << 20) == "fine\n"  # four processes share 60 MiB


def test_a_process_that_forbids_to_be_looked_at_is_counted(attacker: Attacker) -> None:
    code = "import ctypes, os; ctypes.CDLL(None).prctl(4, 0, 0, 0, 0); os.fork(); os.fork()\n"
    result = attacker.run(code + "b = bytearray(60 << 20)\nwhile True: pass", memory=160 << 20)
    assert result.out_of_memory


def test_endless_output_is_cut_with_a_note(attacker: Attacker) -> None:
    code = "import os\nfor stream in (1, 2):\n  for _ in range(1024): os.write(stream, b'x' * (1 << 20))"
    result = attacker.run(code, output=1000, timeout=100.0)
    for text in (result.stdout, result.stderr):
        assert text.startswith("x" * 1000 + "\n[") and "more bytes were not kept" in text and len(text) < 1100
    assert "1,073,740,824" in result.stdout + result.stderr or result.stdout.count("x") == 1000


def test_endless_files_end_at_the_limit(attacker: Attacker) -> None:
    code = "f = open('{}', 'wb')\nfor _ in range(1024): f.write(bytes(1 << 20)); f.flush()"
    for path in ("/tmp/big", "/dev/shm/big"):
        result = attacker.run(code.format(path), files=8 << 20)
        assert "OSError" in result.stderr and result.exit_code == 1
    many = "for i in range(100_000): open(f'{i}', 'w')"
    assert attacker.run(many, memory=64 << 20).out_of_memory


def test_processor_time_is_limited(attacker: Attacker) -> None:
    result = attacker.run("while True: pass", cpu_seconds=1)
    assert result.signal in {"SIGXCPU", "SIGKILL"} and not result.timed_out


def test_a_program_that_ignores_signals_ends_with_its_time(attacker: Attacker, mark: str) -> None:
    code = "import signal\nfor s in (2, 15, 1): signal.signal(s, 1)\nprint('on', flush=True)\nwhile True: pass"
    result = attacker.run(naming(mark) + code, timeout=1.0)
    assert result.timed_out and result.signal == "SIGKILL" and result.stdout == "on\n"


DAEMON = """
import os, signal
ready, started = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        signal.signal(15, signal.SIG_IGN); signal.signal(1, signal.SIG_IGN)
        os.write(started, b'x')
        while True: signal.pause()
    os._exit(0)
os.read(ready, 1)
print('started', flush=True)
"""


def test_daemons_end_with_the_main_program(attacker: Attacker, mark: str) -> None:
    assert attacker.output(naming(mark) + DAEMON) == "started\n"
    result = attacker.run(naming(mark) + DAEMON + "while True: signal.pause()", timeout=1.0)
    assert result.timed_out and result.stdout == "started\n"


def test_the_first_process_cannot_be_stopped_or_killed_from_inside(attacker: Attacker, mark: str) -> None:
    code = "import os\nfor s in range(1, 65):\n  try: os.kill(1, s)\n  except OSError: pass\nprint('alive')"
    assert attacker.output(code) == "alive\n"
    stop = "import os; os.kill(os.getpid(), 19)"
    assert attacker.run(naming(mark) + stop, timeout=1.0).timed_out


# ------------------------------------------------------------ out of the sandbox


def test_nothing_but_its_folder_can_be_written(attacker: Attacker) -> None:
    code = """
import os, sys
tried = ['/', '/usr', '/usr/bin', '/etc', '/dev', '/bin', '/lib', '/proc', sys.prefix, sys.base_prefix]
for folder in tried:
    try: open(folder + '/planted', 'w')
    except OSError: continue
    print('wrote to', folder)
for path in ['/proc/sys/kernel/core_pattern', '/proc/sys/vm/drop_caches', '/proc/sysrq-trigger', '/proc/1/mem',
             '/proc/1/oom_score_adj', '/init.py', sys.executable, '/etc/ld.so.cache']:
    try: open(path, 'r+b')
    except OSError: continue
    print('opened', path)
print(sorted(os.listdir('/')))
"""
    names = attacker.output(code)
    assert "wrote" not in names and "opened" not in names
    assert not {"run", "home", "var", "sys", "srv", "mnt", "opt", "boot"} & set(eval(names.splitlines()[-1]))  # noqa: S307
    assert "/proc/sys/vm/drop_caches" in code  # writable for root without this sandbox
    assert os.access("/proc/sys/vm/drop_caches", os.W_OK) == (os.getuid() == 0)


def test_the_machines_files_are_not_there(attacker: Attacker, tmp_path: Path) -> None:
    with reachable_folder() as folder:
        (folder / "secret").write_text(SECRET)
        paths = [str(folder / "secret"), "/etc/passwd", "/etc/shadow", "/run", "/dev/shm/..", "/proc/1/root/etc/passwd"]
        paths += [f"/proc/self/root/{folder}/secret", "../" * 20 + f"{folder}/secret", "/dev/mem", "/dev/kmsg", "/sys"]
        code = f"import os\nfor p in {paths}: print(p) if os.path.exists(p) and 'shm' not in p else None"
        assert attacker.output(code) == ""


def test_there_is_no_network(attacker: Attacker) -> None:
    with reachable_folder() as folder, socket.socket() as tcp, socket.socket(socket.AF_UNIX) as abstract:
        named = socket.socket(socket.AF_UNIX)
        named.bind(str(folder / "socket"))
        (folder / "socket").chmod(0o777)
        tcp.bind(("127.0.0.1", 0))
        abstract.bind("\0" + folder.name)
        for listener in (tcp, abstract, named):
            listener.listen()
        code = f"""
import socket
def attempt(what, kind, address):
    try: socket.socket(kind).connect(address)
    except OSError: return
    print('reached', what)
attempt('loopback', socket.AF_INET, {tcp.getsockname()!r})
attempt('abstract', socket.AF_UNIX, {chr(0) + folder.name!r})
attempt('named', socket.AF_UNIX, {str(folder / "socket")!r})
for family in (socket.AF_INET6, socket.AF_NETLINK, socket.AF_PACKET, 40, 38):
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW):
        try: socket.socket(family, kind)
        except OSError: continue
        print('socket of family', family)
a, b = socket.socketpair(); a.send(b'x'); print(b.recv(1))
"""
        assert attacker.output(code) == "b'x'\n"
        assert in_a_child(attacker.uid, lambda: connects(tcp.getsockname(), folder)) == 3  # it could without a sandbox
        named.close()


def connects(address: Any, folder: Path) -> int:
    """How many of the three listeners can be reached."""
    socket.create_connection(address).close()
    for name in ("\0" + folder.name, str(folder / "socket")):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(name)
    return 3


def test_other_processes_are_neither_seen_nor_reached(attacker: Attacker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORGE_TEST_TOKEN", SECRET)  # of the caller, too
    victim = subprocess.Popen(["sleep", "1000"], user=attacker.uid if attacker.another else None)
    code = f"""
import os, glob
print(sorted(int(n) for n in os.listdir('/proc') if n.isdigit()))
for path in glob.glob('/proc/[0-9]*/environ') + glob.glob('/proc/[0-9]*/cmdline'):
    try: print({SECRET[:4]!r} + {SECRET[4:]!r} in open(path).read())
    except OSError: pass
print({SECRET[:4]!r} + {SECRET[4:]!r} in str(os.environ))
for kill in (lambda: os.kill({victim.pid}, 9), lambda: os.kill(-1, 0)):
    try: kill()
    except OSError: pass
for path in ('/proc/1/mem', '/proc/1/fd/3', '/proc/1/environ', '/proc/1/maps', '/proc/{victim.pid}/status'):
    try: open(path).read(1)
    except OSError: continue
    print('read', path)
"""
    try:
        lines = attacker.output(code).splitlines()
        assert lines[0] == "[1, 2]"
        assert set(lines[1:]) == {"False"}
        assert victim.poll() is None
    finally:
        victim.kill()
        victim.wait()


def test_system_calls_that_lead_out_are_refused(attacker: Attacker) -> None:
    code = """
import ctypes, os, platform
libc = ctypes.CDLL(None, use_errno=True)
def attempt(name, *args):
    if getattr(libc, name)(*args) != -1: print(name, 'succeeded')
attempt('unshare', 0x10000000)          # a user namespace
attempt('unshare', 0)
attempt('ptrace', 16, 1, 0, 0)          # attach to process 1
attempt('memfd_create', b'x', 0)
attempt('shmget', 0, 1 << 30, 0o1600)
attempt('mount', b'x', b'/tmp', b'tmpfs', 0, b'')
attempt('umount2', b'/proc', 2)
attempt('setuid', 0)
attempt('klogctl', 3, ctypes.create_string_buffer(100), 100)
attempt('chroot', b'/usr')
for number in {'x86_64': (250, 56, 321, 240), 'aarch64': (219, 220, 280, 180)}[platform.machine()]:
    attempt('syscall', number, 0x10000011, 0, 0, 0, 0)  # keyctl, clone with a user namespace, bpf, mq_open
for number in (425, 435, 447, 0x40000000 + 39):    # io_uring_setup, clone3, memfd_secret, getpid of x32
    attempt('syscall', number, 0, 0, 0)
names = 'CapEff', 'CapPrm', 'NoNewPrivs', 'Seccomp'
print([line for line in open('/proc/self/status') if line.split(':')[0] in names])
"""
    lines = attacker.output(code).splitlines()
    assert len(lines) == 1, lines
    assert lines[0].count("0000000000000000") == 2 and r"NoNewPrivs:\t1" in lines[0] and r"Seccomp:\t2" in lines[0]


def test_setuid_programs_gain_nothing(attacker: Attacker) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can make a program setuid root")
    with reachable_folder() as folder:
        program = Path(shutil.copy("/usr/bin/id", folder))
        program.chmod(0o4755)
        command = [str(program), "-u"]
        assert in_a_child(NOBODY, lambda: subprocess.check_output(command, text=True)) == "0\n"  # it is setuid root
        code = f"import subprocess; print(subprocess.check_output({command}, text=True))"
        assert attacker.output(code, readable=[str(folder)]) == "1000\n\n"


# ------------------------------------------------------------ its caller


def wait_for_end(mark: str) -> None:
    """Return when no process has this name."""
    while pids := marked(mark):
        try:
            fd = os.pidfd_open(pids[0])
        except ProcessLookupError:
            continue
        select.select([fd], [], [])
        os.close(fd)


def test_everything_ends_with_a_killed_caller(attacker: Attacker, mark: str) -> None:
    owner = os.fork()
    if owner == 0:
        try:
            attacker.run(naming(mark) + DAEMON + "while True: signal.pause()", timeout=1000.0)
        finally:
            os._exit(0)
    while len(marked(mark)) < 2:  # the program and its daemon; they cannot tell us
        assert os.waitpid(owner, os.WNOHANG) == (0, 0), "it ended by itself"
    [caller] = Path(f"/proc/{owner}/task/{owner}/children").read_text().split()  # `run` forks once more
    os.kill(int(caller), signal.SIGKILL)
    os.waitpid(owner, 0)
    wait_for_end(mark)


def test_a_cancelled_execution_leaves_nothing(mark: str) -> None:
    async def main() -> None:
        sandbox = Sandbox()
        await sandbox.start()
        task = asyncio.create_task(sandbox.execute(naming(mark) + DAEMON + "while True: pass", timeout=1000.0))
        while not marked(mark):
            await asyncio.sleep(0)
            assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not marked(mark)

    asyncio.run(main())


def test_many_programs_run_at_a_time_and_do_not_see_each_other() -> None:
    async def main() -> None:
        sandbox = Sandbox(concurrent=4)
        await sandbox.start()
        code = "import os; print(sorted(n for n in os.listdir('/proc') if n.isdigit()), input())"
        results = await asyncio.gather(*(sandbox.execute(code, stdin=f"{i}\n", timeout=60.0) for i in range(12)))
        assert [r.stdout for r in results] == [f"['1', '2'] {i}\n" for i in range(12)]

    asyncio.run(main())


def no_more_user_namespaces() -> None:
    """Enter a user namespace in which there can be no other."""
    assert ctypes.CDLL(None).unshare(0x10000000) == 0
    Path("/proc/sys/user/max_user_namespaces").write_text("0")


def test_where_there_is_no_isolation_it_refuses_and_says_why() -> None:
    def refused() -> str:
        no_more_user_namespaces()
        with pytest.raises(SandboxUnavailable) as caught:
            asyncio.run(Sandbox(python="/usr/bin/python3").start())
        return str(caught.value)

    text = in_a_child(NOBODY if os.getuid() == 0 else os.getuid(), refused)
    assert "namespaces: the sandbox did not start" in text and "new user namespace: No space left on device" in text
    assert "Install bubblewrap" in text and 'isolation="none"' in text


def test_an_old_kernel_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    old = os.uname_result(("Linux", "old", "5.4.0-150-generic", "#1", "x86_64"))
    monkeypatch.setattr(os, "uname", lambda: old)
    with pytest.raises(SandboxUnavailable, match=r"Linux 5\.4\.0-150-generic is too old, 5\.14 is needed"):
        asyncio.run(Sandbox().start())


def test_without_isolation_programs_still_have_limits(mark: str) -> None:
    async def main() -> None:
        sandbox = Sandbox(Limits(memory=160 << 20), isolation="none")
        assert await sandbox.start() == "none"
        assert (await sandbox.execute("print(input())", stdin="hello")).stdout == "hello\n"
        assert (await sandbox.execute("bytearray(1 << 30)")).out_of_memory
        assert (await sandbox.execute(naming(mark) + DAEMON)).stdout == "started\n"
        assert not marked(mark)
        assert (await sandbox.execute(naming(mark) + DAEMON + "while True: pass", timeout=1.0)).timed_out
        folder = (await sandbox.execute("import os; open('x', 'w'); print(os.getcwd())")).stdout.strip()
        assert folder.startswith("/") and not os.path.exists(folder)  # noqa: ASYNC240

    asyncio.run(main())


def test_a_wrong_argument_is_named() -> None:
    with pytest.raises(ValueError, match="memory must be at least 1, not 0"):
        Limits(memory=0)
    with pytest.raises(ValueError, match="isolation must be"):
        Sandbox(isolation="docker")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"not an absolute path of this machine: data, /no/such"):
        Sandbox(readable=["data", "/no/such"])
    for isolation in ("auto", "namespaces"):
        with pytest.raises(RuntimeError, match=r"await start\(\) first"):
            asyncio.run(Sandbox(isolation=isolation).execute("1"))


def test_a_missing_interpreter_is_named() -> None:
    with pytest.raises((SandboxUnavailable, FileNotFoundError), match="/no/such/python"):
        asyncio.run(Sandbox(python="/no/such/python").start())


def test_paths_below_visible_ones_are_left_out(tmp_path: Path) -> None:
    inner, other = tmp_path / "a" / "b", tmp_path / "ab"
    inner.mkdir(parents=True)
    other.mkdir()
    paths = visible([str(inner), str(other), str(tmp_path / "a")], [str(tmp_path / "none")])
    assert [p for p in paths if p.startswith(str(tmp_path))] == [str(tmp_path / "a"), str(other)]
    command = bubblewrap(paths, 100, ["python"])
    assert command[-2:] == ["--", "python"] and "--unshare-all" in command
    assert command[command.index(str(other)) - 1] == "--ro-bind"


# ------------------------------------------------------------ the actor


SERVICE = """
import asyncio, sys
from actors import PythonSandbox

async def main():
    sandbox = await PythonSandbox.options(num_replicas=2, preload=[]).as_service(memory=160 << 20, concurrent=2)
    results = await asyncio.gather(*(sandbox.execute.route(f"print({i} * {i})") for i in range(6)))
    print([int(r.stdout) for r in results])
    print((await sandbox.execute.route("bytearray(1 << 30)")).out_of_memory)
    print(*sys.argv[1:], flush=True)
    if sys.argv[1:]:
        code = f"open('/proc/self/comm', 'w').write({sys.argv[1]!r})\\nwhile True: pass"
        await sandbox.execute.route(code, timeout=1000.0)

asyncio.run(main())
"""


def test_a_service_executes_programs(forge: Forge) -> None:
    out, err = forge.python(forge.write("script.py", SERVICE)).communicate(timeout=90)
    assert out.splitlines()[:2] == ["[0, 1, 4, 9, 16, 25]", "True"], err
    assert not processes_with(f"FORGECTL_HOME={forge.home}")


def test_programs_end_with_a_killed_driver(forge: Forge, mark: str) -> None:
    driver = forge.python(forge.write("script.py", SERVICE), mark)
    assert driver.stdout
    assert [driver.stdout.readline() for _ in range(3)][2] == f"{mark}\n", driver.communicate()
    while not marked(mark):
        assert driver.poll() is None, driver.communicate()
    driver.kill()
    wait_for_end(mark)

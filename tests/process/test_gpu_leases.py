"""GPU leases between real processes, some of other users and some that are up to no good."""

from __future__ import annotations

import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import forgectl
from forgectl.errors import BusyError, UsageError
from forgectl.hosts import gpu_holders, gpu_leases
from forgectl.hosts.gpu_holders import lock_name
from forgectl.hosts.gpu_leases import GpuTaken, acquire, holders, lock_dir
from forgectl.model.plan import Gpu

PROGRAM = Path(__file__).parents[1] / "programs" / "hold_gpu.py"
A, B, C = "GPU-aaaa", "GPU-bbbb", "declared:local:0"
ANN, BOB = 65533, 65534

root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become other users")

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def directory() -> Iterator[Path]:
    """Not tmp_path, which other users cannot enter."""
    path = Path(tempfile.mkdtemp(prefix="forgectl-test-locks-", dir="/tmp"))
    path.chmod(0o1777)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def start(directory: Path) -> Iterator[Start]:
    """Starts hold_gpu.py; at the end its standard input is closed, so that all of it goes."""
    started: list[subprocess.Popen[str]] = []

    def run(*args: str, before: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        argv = [*before, sys.executable, str(PROGRAM), str(directory), *args]
        env = {**os.environ, "PYTHONPATH": str(Path(forgectl.__file__).parents[1])}
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True, bufsize=1, env=env))
        return started[-1]

    yield run
    for process in started:
        process.communicate()  # until the last process that has its stdout is gone
        assert process.returncode in (0, -signal.SIGKILL)


def said(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    found: dict[str, Any] = json.loads(process.stdout.readline())
    return found


def take(directory: Path, *uuids: str, run: str = "mine-0001") -> gpu_leases.GpuLease:
    gpus = [Gpu(visible=str(i), uuid=uuid) for i, uuid in enumerate(uuids)]
    return acquire(gpus, run=run, mesh="policy", host="here", directory=directory)


def is_free(directory: Path, uuid: str) -> bool:
    take(directory, uuid).release()
    return not holders([uuid], directory)


def kill(pid: int) -> None:
    """Returns when the process is gone, its descriptors with it."""
    process = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(process, signal.SIGKILL)
        select.select([process], [], [])
    finally:
        os.close(process)


def test_of_fifty_at_once_exactly_one_gets_the_gpu_and_all_others_name_it(directory: Path, start: Start) -> None:
    rivals = start("rival", A, "--rivals", "50")
    lines = [said(rivals) for _ in range(50)]
    winners = [line for line in lines if not line["taken"]]
    assert len(winners) == 1
    winner = f", mesh trainer, of user {own_name()}, pid {winners[0]['pid']}"
    for line in lines:
        if line is not winners[0]:
            assert line["taken"][A].startswith("run rival-") and line["taken"][A].endswith(winner)
            assert line["exit_code"] == 75


def test_rivals_for_sets_that_overlap_do_not_refuse_each_other_for_ever(directory: Path, start: Start) -> None:
    rivals = [start(f"r{i}", *pair, "--rivals", "5") for i, pair in enumerate([(A, B), (B, C), (C, A)])]
    lines = [said(process) for process in rivals for _ in range(5)]
    assert sum(not line["taken"] for line in lines) == 1


def test_all_or_nothing_and_every_taken_gpu_is_named(directory: Path, start: Start) -> None:
    holder = start("other-0001", A, C)
    pid = said(holder)["pid"]
    with pytest.raises(GpuTaken) as error:
        take(directory, A, B, C)
    assert error.value.holders.keys() == {A, C}
    assert "2 of the 3 GPUs of mesh policy on host here are taken" in error.value.message
    assert f"GPU 0 by run other-0001, mesh trainer, of user {own_name()}, pid {pid}" in error.value.message
    assert "GPU 2 by run other-0001" in error.value.message
    assert error.value.exit_code == 75 and error.value.hint
    assert is_free(directory, B)


def own_name() -> str:
    return gpu_holders._user(os.geteuid())


def test_a_holder_that_is_killed_frees_its_gpus_at_once(directory: Path, start: Start) -> None:
    holder = start("other-0001", A, B)
    said(holder)
    assert holders([A, B], directory).keys() == {A, B}
    holder.kill()
    holder.wait()
    assert "other-0001" in (directory / lock_name(A)).read_text()  # stale, and not believed
    assert holders([A, B], directory) == {}
    take(directory, A, B).release()


def test_the_lease_lasts_while_a_process_that_was_sent_the_locks_lives(directory: Path, start: Start) -> None:
    agent = start("other-0001", A, B, "--heir")
    heir = said(agent)["heir"]
    agent.kill()
    agent.wait()
    for _ in range(2):  # looking does not take it away
        words = holders([A, B], directory)
        assert words.keys() == {A, B}
        assert words[A].startswith("run other-0001, mesh trainer, of user ")
        assert f"pid {agent.pid} (ended" in words[A]
    with pytest.raises(GpuTaken):
        take(directory, B)
    kill(heir)
    assert is_free(directory, A) and is_free(directory, B)


def test_releasing_lets_go_of_ones_own_share_only(directory: Path) -> None:
    lease = take(directory, A)
    rank = os.dup(lease.locks[0])
    lease.release()
    assert holders([A], directory).keys() == {A}
    os.close(rank)
    assert is_free(directory, A)


def test_a_second_release_closes_nothing_of_others(directory: Path) -> None:
    lease = take(directory, A)
    number = lease.locks[0]
    lease.release()
    with open("/dev/null") as other:
        os.dup2(other.fileno(), number)
    lease.release()
    os.close(number)  # OSError if it had been closed


def test_a_gpu_that_is_named_twice_does_not_block_itself(directory: Path) -> None:
    lease = take(directory, A, A)
    assert lease.uuids == (A,)
    lease.release()


def test_nothing_is_leased_for_no_gpus(directory: Path) -> None:
    assert take(directory).locks == ()
    assert list(directory.iterdir()) == []


def test_a_process_started_by_the_holder_does_not_inherit_the_locks(directory: Path) -> None:
    lease = take(directory, A)
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, close_fds=False)
    lease.release()
    free = is_free(directory, A)
    child.communicate()
    assert free


def test_those_who_only_look_never_make_an_acquire_fail(directory: Path) -> None:
    stop = threading.Event()
    looks = [0]

    def look() -> None:
        while not stop.is_set():
            holders([A], directory)
            looks[0] += 1

    lookers = [threading.Thread(target=look) for _ in range(3)]
    take(directory, A).release()
    for thread in lookers:
        thread.start()
    try:
        for _ in range(100):
            take(directory, A).release()
    finally:
        stop.set()
        for thread in lookers:
            thread.join()
    assert looks[0]


def test_looking_makes_no_files(directory: Path) -> None:
    assert holders([A, B, C, "../../x", "\x00"], directory) == {}
    assert list(directory.iterdir()) == []


@pytest.mark.parametrize("uuid", ["../../etc/x", "a/b", "declared:h:0", ".", "MIG-GPU-1/2/0", "ä\n", "\x00", "%2F"])
def test_any_uuid_has_a_file_of_its_own_in_the_folder(directory: Path, uuid: str) -> None:
    lease = take(directory, uuid)
    assert [path.name for path in directory.iterdir()] == [lock_name(uuid)]
    assert holders([uuid, "a%2Fb"], directory).keys() == {uuid}
    lease.release()


# What others may have put into the folder.

HOSTILE = [
    b"",
    b"\n",
    b"x" * 5_000_000,
    b"[" * 5_000,
    b"null",
    b"[]",
    b'{"run": "a"}',
    b"\xff\xfe\x00",
    b'{"run": "a", "mesh": "b", "pid": "1", "pidns": 0}',
    b'{"run": "a", "mesh": "b", "pid": true, "pidns": 0}',
    b'{"run": "a", "mesh": "b", "pid": -1, "pidns": 0}',
    b'{"run": "a", "mesh": "b", "pid": 1e400, "pidns": 0}',
    b'{"run": "a", "mesh": "b", "pid": ' + b"9" * 900 + b', "pidns": 0}',
    b'{"run": "\\u001b]52;c;eA==\\u0007", "mesh": "b", "pid": 1, "pidns": 0}',
    b'{"run": "a\\n", "mesh": "b", "pid": 1, "pidns": 0}',
    b'{"run": ["a"], "mesh": {}, "pid": 1, "pidns": 0}',
]


@pytest.mark.parametrize("content", HOSTILE, ids=range(len(HOSTILE)))
def test_what_a_file_says_is_never_believed_beyond_a_well_formed_record(directory: Path, content: bytes) -> None:
    (directory / lock_name(A)).write_bytes(content)
    assert holders([A], directory) == {}
    lease = take(directory, A)
    (directory / lock_name(A)).write_bytes(content)
    words = holders([A], directory)[A]
    assert words.startswith(f"pid {os.getpid()} (")
    assert words.isprintable() and len(words) < 200
    lease.release()


def test_a_record_of_another_process_than_the_kernel_names_is_not_believed(directory: Path) -> None:
    lease = take(directory, A)
    record = {"run": "innocent", "mesh": "m", "pid": 1, "pidns": gpu_holders._pid_namespace()}
    (directory / lock_name(A)).write_text(json.dumps(record))
    assert holders([A], directory)[A].startswith(f"pid {os.getpid()} (")
    lease.release()


def test_a_shorter_record_leaves_nothing_of_a_longer_one(directory: Path) -> None:
    take(directory, A, run="r" * 100).release()
    lease = take(directory, A, run="s")
    record = json.loads((directory / lock_name(A)).read_text())
    assert record["run"] == "s" and record["pid"] == os.getpid() and record["user"] == own_name()
    lease.release()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_leases, "PATIENCE", 0.0)
    monkeypatch.setattr(gpu_leases, "LONG_PATIENCE", 0.0)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("kind", ["symlink", "dangling", "fifo", "folder", "hard link", "socket"])
def test_what_is_no_lock_file_is_not_followed_written_or_waited_for(directory: Path, tmp_path: Path, kind: str) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    place = directory / lock_name(A)
    if kind == "symlink":
        place.symlink_to(victim)
    elif kind == "dangling":
        place.symlink_to(tmp_path / "absent")
    elif kind == "fifo":
        os.mkfifo(place)
    elif kind == "folder":
        place.mkdir()
    elif kind == "hard link":
        place.hardlink_to(victim)
    else:
        os.mknod(place, 0o140666)
    with pytest.raises(GpuTaken, match=f"user {own_name()}, whose forgectl-gpu-GPU-aaaa.lock"):
        take(directory, A)
    assert holders([A], directory).keys() == {A}
    assert victim.read_text() == "precious" and not (tmp_path / "absent").exists()


@pytest.mark.usefixtures("impatient")
def test_a_file_that_somebody_shares_for_ever_is_taken_by_him(directory: Path) -> None:
    with (directory / lock_name(A)).open("w") as held:
        fcntl.flock(held, fcntl.LOCK_SH)
        with pytest.raises(GpuTaken, match=f"GPU 0 by pid {os.getpid()} "):
            take(directory, A)


def test_a_file_removed_between_opening_and_locking_is_not_taken_for_the_lock(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, real = directory / lock_name(A), fcntl.flock
    removed: list[int] = []

    def flock(fd: int, how: int) -> None:
        if not removed:
            removed.append(place.stat().st_ino)
            place.rename(directory / "old")
        real(fd, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    lease = take(directory, A)
    assert os.fstat(lease.locks[0]).st_ino == place.stat().st_ino != removed[0]
    lease.release()


def test_too_few_descriptors_are_not_reported_as_a_taken_gpu(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(gpu_leases, "_open_lock", refuse)
    with pytest.raises(BusyError, match=r"GPU-aaaa\.lock cannot be taken: Too many open files") as error:
        take(directory, A)
    assert not isinstance(error.value, GpuTaken)


# Other users and other containers.


@root
def test_another_users_file_can_be_locked_and_its_text_is_not_taken_for_ours(directory: Path, start: Start) -> None:
    ann = start("anns-0001", A, "--uid", str(ANN))
    assert said(ann)["taken"] == {}
    words = holders([A], directory)[A]
    assert words == f"run anns-0001, mesh trainer, of user {gpu_holders._user(ANN)}, pid {ann.pid}"
    ann.communicate()

    bob = start("bobs-0001", A, "--uid", str(BOB))
    assert said(bob)["taken"] == {}
    assert (directory / lock_name(A)).stat().st_uid == ANN
    assert "anns-0001" in (directory / lock_name(A)).read_text()
    words = holders([A], directory)[A]
    assert words.startswith(f"pid {bob.pid} (python") and words.endswith(f"of user {gpu_holders._user(BOB)}")
    assert "hold_gpu.py" in words and "bobs-0001" not in words  # no arguments: they may be secrets

    again = said(start("anns-0002", A, "--uid", str(ANN)))
    assert again["taken"][A] == words
    bob.communicate()
    lease = take(directory, A)  # root neither writes into Ann's file nor needs to
    assert "anns-0001" in (directory / lock_name(A)).read_text()
    lease.release()


@root
def test_a_file_that_another_user_keeps_to_himself_is_his(directory: Path, start: Start) -> None:
    place = directory / lock_name(A)
    place.touch(0o600)
    os.chown(place, ANN, ANN)
    bob = said(start("bobs-0001", A, "--uid", str(BOB)))
    assert bob["taken"][A].startswith(f"user {gpu_holders._user(ANN)}, whose forgectl-gpu-GPU-aaaa.lock")


@root
def test_locks_made_under_a_narrow_umask_can_be_opened_by_others(directory: Path, start: Start) -> None:
    before = os.umask(0o077)
    try:
        lease = take(directory, A)
    finally:
        os.umask(before)
    bob = said(start("bobs-0001", A, "--uid", str(BOB)))
    assert bob["taken"][A] == f"run mine-0001, mesh policy, of user root, pid {os.getpid()}"
    lease.release()


@root
@pytest.mark.skipif(shutil.which("unshare") is None, reason="no unshare")
def test_a_holder_in_another_container_is_named_from_both_sides(directory: Path, start: Start) -> None:
    container = ("unshare", "--pid", "--mount-proc", "--fork", "--kill-child")
    if subprocess.run([*container, "true"], capture_output=True).returncode:
        pytest.skip("no namespaces here")
    inside = start("inside-0001", A, before=container)
    assert said(inside) == {"pid": 1, "taken": {}, "heir": 0}
    assert holders([A], directory)[A] == ("run inside-0001, mesh trainer, of user root, pid 1 of another container")
    lease = take(directory, B)
    other = said(start("inside-0002", A, B, before=container))
    assert other["taken"] == {
        A: "run inside-0001, mesh trainer, of user root, pid 1 of another container",
        B: f"run mine-0001, mesh policy, of user root, pid {os.getpid()} of another container",
    }
    lease.release()


# The folder.


def test_all_users_find_the_same_folder_where_all_may_write_and_none_may_remove() -> None:
    path = lock_dir({})
    assert path in (Path("/run/lock"), Path("/tmp"))
    assert path.stat().st_mode & 0o1777 == 0o1777
    assert lock_dir({"FORGECTL_GPU_LOCK_DIR": ""}) == path


def test_a_folder_of_ones_choice_is_made_for_all_whatever_the_umask(tmp_path: Path) -> None:
    chosen = tmp_path / "locks"
    before = os.umask(0o077)
    try:
        assert lock_dir({"FORGECTL_GPU_LOCK_DIR": str(chosen)}) == chosen
    finally:
        os.umask(before)
    assert chosen.stat().st_mode & 0o7777 == 0o1777
    assert lock_dir({"FORGECTL_GPU_LOCK_DIR": str(chosen)}) == chosen


@pytest.mark.parametrize("wrong", ["relative", "symlink", "file", "no sticky bit", "parent absent"])
def test_a_folder_that_cannot_be_trusted_is_refused(tmp_path: Path, wrong: str) -> None:
    real, chosen = tmp_path / "real", tmp_path / "locks"
    real.mkdir()
    text = str(chosen)
    why = {
        "relative": "not an absolute path",
        "symlink": "symbolic link",
        "file": "Not a directory",
        "no sticky bit": "no sticky bit",
        "parent absent": "No such file or directory",
    }[wrong]
    if wrong == "relative":
        text = "locks"
    elif wrong == "symlink":
        chosen.symlink_to(real)
    elif wrong == "file":
        chosen.touch()
    elif wrong == "no sticky bit":
        chosen.mkdir()
        chosen.chmod(0o777)
    else:
        text = str(chosen / "deeper")
    with pytest.raises(UsageError, match=why) as error:
        lock_dir({"FORGECTL_GPU_LOCK_DIR": text})
    assert text in error.value.message and error.value.hint


@root
def test_a_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    os.chown(tmp_path, ANN, ANN)
    with pytest.raises(UsageError, match="belongs to another user"):
        lock_dir({"FORGECTL_GPU_LOCK_DIR": str(tmp_path)})
    with pytest.raises(UsageError, match="belongs to another user"):
        take(tmp_path, A)

"""Run directories: where a run's spec, plan, journal and logs live, and where its sockets are."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import stat
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

from forgectl.errors import BusyError, ForgeError, InternalError, NotOursError, UsageError
from forgectl.frozen import dataclass
from forgectl.model.plan import HostPlan, Plan
from forgectl.model.status import RunStatus
from forgectl.system.files import open_lock, open_to_read, write_whole
from forgectl.wire.codec import CodecError, from_json, to_json
from forgectl.wire.unix_sockets import check_private, private_folder

RESERVE = 64 * 1024
RESERVE_PER_RANK = 1024
"""Bytes that a run keeps free for its final state: without one, later commands would take the run for a crashed one."""
CHECKED_SECONDS = 600.0
"""How long commands read a final state to see that it is whole: to read those of thousands of runs would take long.
What damages one later, such as a crash of the machine, has ended the run's processes, too."""
_TAKEN = ".pruned-"
"""Prefix of the folders of runs that are being removed. No run has such a name."""
_OURS_HINT = (
    "a user who can put files there can run programs as you: remove it, or make it private (chmod 700); "
    "or set FORGECTL_HOME to a folder of your own"
)


def _home() -> Path | None:
    """$FORGECTL_HOME; None if it is not set. Raises UsageError for a relative path."""
    home = os.environ.get("FORGECTL_HOME")
    if home and not Path(home).is_absolute():
        what = f"FORGECTL_HOME={home} is a relative path, so that each folder would have runs of its own"
        raise UsageError(what, hint=f'export FORGECTL_HOME="{Path(home).absolute()}"')
    return Path(home) if home else None


def runs_folder() -> Path:
    """The folder of all runs of this user: $FORGECTL_HOME or $XDG_STATE_HOME/forgectl, then `runs`."""
    if home := _home():
        return home / "runs"
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "forgectl" / "runs"


def cache_folder() -> Path:
    """The folder of files that can be made again, beside the runs; raises NotOursError."""
    return _ours(runs_folder().parent / "cache")


def sockets_folder() -> Path:
    """The folder of all sockets of this user, private to them."""
    if home := _home():
        return home / "sockets"
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(runtime) / "forgectl"
    return Path("/tmp") / f"forgectl-{os.getuid()}"  # not $TMPDIR: every shell must find the same


@dataclass(frozen=True)
class AgentPlace:
    """Paths on an agent's own host: its socket and its run directory."""

    socket: Path
    run_dir: Path


@dataclass(frozen=True)
class RunDir:
    """The directory of one run (0700). For a run that exists already, use `existing`, which checks it."""

    path: Path

    @classmethod
    def existing(cls, path: Path) -> RunDir:
        """The directory of an existing run. Raises NotOursError, before reading it, if it may be another user's."""
        return cls(_ours(path))

    @property
    def run(self) -> str:
        """The run's id, such as grpo-7f3a."""
        return self.path.name

    @property
    def name(self) -> str:
        """The run's name, such as grpo."""
        return self.run.rpartition("-")[0]

    @property
    def sockets(self) -> Path:
        """The folder of its sockets, as chosen when it began: $XDG_RUNTIME_DIR may differ in another shell.

        Raises NotOursError if others could listen in place of our processes, for example after /tmp was emptied.
        """
        return _ours(Path((self.path / "sockets").readlink()))

    @property
    def messages(self) -> Path:
        """The private folder of sockets for messages: in /tmp if the usual path is too long, as the limit is 107 bytes.

        Raises NotOursError.
        """
        sockets = self.sockets
        if len(os.fsencode(sockets)) <= 64:
            return sockets
        return _ours(Path(f"/tmp/forgectl-{os.getuid()}") / f"{zlib.crc32(os.fsencode(sockets)):08x}")

    @property
    def driver_socket(self) -> Path:
        return self.sockets / "driver"

    @property
    def control_socket(self) -> Path:
        return self.sockets / "control"

    def agent_socket(self, index: int) -> Path:
        """The socket of the agent on the run's host number `index`, where that host is this machine."""
        return self.sockets / f"agent-{index}"

    def agent_place(self, index: int, host: HostPlan) -> AgentPlace:
        """The paths of the agent on the run's host number `index`."""
        if host.local:
            return AgentPlace(self.agent_socket(index), self.path)
        folder = Path(host.root) / "runs" / self.run / host.name
        return AgentPlace(folder / "agent", folder)

    def log(self, mesh: str, generation: int, rank: int) -> Path:
        """The log of a rank; for a rank on an ssh host, the part that has been fetched."""
        return Path(f"{self.path}/logs/{mesh}/{generation}/rank-{rank}.log")  # one string: each `/` takes as long

    @property
    def owned_file(self) -> Path:
        """A file that marks a run as ending with the process that began it, even if no controller knew that process."""
        return self.path / "owned"

    @property
    def spec_file(self) -> Path:
        """The spec as given, or as `forgectl run` made it."""
        return self.path / "spec.yaml"

    @property
    def plan_file(self) -> Path:
        return self.path / "plan.json"

    @property
    def journal_file(self) -> Path:
        return self.path / "events.jsonl"

    def incident(self, seq: int, subject: str) -> Path:
        """The incident of event number `seq`, about a mesh, a rank or a host."""
        return self.path / "incidents" / f"{seq:06d}-{subject.partition('/')[0]}.json"

    @property
    def hooks_log(self) -> Path:
        """What the commands of `on:` printed, and how they ended."""
        return self.path / "hooks.log"

    @property
    def keys_file(self) -> Path:
        """The secret from which the keys for messages between machines are made; it exists while the run lasts."""
        return self.path / "message-keys"

    @property
    def services_folder(self) -> Path:
        """What a driver that may be restarted has written down of its services."""
        return self.path / "services"

    @property
    def final_file(self) -> Path:
        """The state of a run that has ended; there is none before."""
        return self.path / "status.json"

    @property
    def reserve_file(self) -> Path:
        """A file that is removed to make room for the final state if the disk is full by then."""
        return self.path / ".reserve"

    def write_final(self, status: RunStatus) -> None:
        """Write the state of the ended run; raises OSError if even the reserve does not suffice."""
        data = seal(json.dumps(to_json(status)).encode())
        try:
            write_whole(self.final_file, data)
        except OSError:
            self.reserve_file.unlink(missing_ok=True)
            write_whole(self.final_file, data)
        self.reserve_file.unlink(missing_ok=True)

    def read_plan(self) -> Plan:
        """The plan that was launched; raises InternalError if it cannot be read."""
        try:
            return from_json(Plan, json.loads(self.plan_file.read_bytes()))
        except (OSError, ValueError, CodecError) as e:
            hint = f"what still runs of it ends with its lease; then remove {self.path}"
            message = f"the plan of run {self.run} cannot be read: {self.plan_file}: {e}"
            raise InternalError(message, hint=hint) from None

    @property
    def has_ended(self) -> bool:
        """Whether there is a whole final state. The check is cheap: every command makes it for every run."""
        try:
            found = os.stat(f"{self.path}/status.json")  # noqa: PTH116  (as in all_runs)
            if found.st_size == 0 or time.time() - found.st_mtime < CHECKED_SECONDS:
                unseal(self.final_file.read_bytes())
            return True
        except FileNotFoundError:
            return False
        except (OSError, ValueError):
            set_aside(self.final_file)
            return False

    def begin_time(self) -> float:
        """When its plan was written, in Unix seconds; 0 if it is gone."""
        try:
            return self.plan_file.stat().st_mtime
        except OSError:
            return 0.0

    def end_time(self) -> float | None:
        """When its final state was written, in Unix seconds; None before."""
        try:
            return os.stat(f"{self.path}/status.json").st_mtime  # noqa: PTH116
        except OSError:
            return None

    def read_final(self) -> RunStatus | None:
        """The state of an ended run; a corrupt one is set aside, and the run counts as not ended."""
        try:
            status = from_json(RunStatus, json.loads(unseal(self.final_file.read_bytes())))
            if status.run != self.run:
                raise ValueError("not the status of this run")
            return status
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            set_aside(self.final_file)
            return None

    def may_have_had(self, mesh: str) -> bool:
        """Whether a mesh of an ended run may have a name that begins so; much cheaper than to read its final state."""
        try:
            with open(f"{self.path}/status.json", "rb") as file:
                return f'"mesh": {json.dumps(mesh)[:-1]}'.encode() in file.read()
        except OSError:
            return False

    def has_controller(self) -> bool:
        """Whether the run has a controller, even one that is starting or ending."""
        return _is_locked(self.path / "controller.lock")

    def has_agent(self) -> bool:
        """Whether an agent of the run lives on this machine, even one that does not listen yet."""
        return any(_is_locked(lock) for lock in (self.path / "agents").glob("*.lock"))

    def lock_controller(self) -> int | None:
        """A descriptor that makes its holder the run's only controller; None if there is one already."""
        fd = open_lock(self.path / "controller.lock")
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        return fd


def _is_locked(path: Path) -> bool:
    try:
        fd = open_to_read(path)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared, so that such checks do not block each other
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def all_runs() -> list[RunDir]:
    """Every run of this user, oldest first, without those that others may have touched (see `refused_runs`).

    Raises NotOursError if others may have put runs there.
    """
    found = []
    for path in _run_folders():
        with contextlib.suppress(OSError):  # not a run, or one that is being discarded, or not ours
            if not _is_ours_alone(path):
                RunDir.existing(Path(path))
            plan = os.stat(f"{path}/plan.json")  # noqa: PTH116  (a Path takes four times as long, for each run)
            found.append((plan.st_mtime_ns, path))
    return [RunDir(Path(path)) for _, path in sorted(found)]


def refused_runs() -> dict[str, NotOursError]:
    """Run id → why the run is not read: another user may have made or touched its folder."""
    found = {}
    for path in _run_folders():
        try:
            if not _is_ours_alone(path):
                RunDir.existing(Path(path))
        except NotOursError as e:
            if Path(path).is_dir():
                found[Path(path).name] = e
        except OSError:
            continue
    return found


def _run_folders() -> list[str]:
    """The paths of what may be runs; raises NotOursError if the folder that holds them is not ours alone."""
    try:
        with os.scandir(_ours(runs_folder())) as entries:
            return [entry.path for entry in entries if not entry.name.startswith(".")]
    except FileNotFoundError:
        return []


def _is_ours_alone(path: str) -> bool:
    """Whether a path in the folder of runs, which has been checked, is a private folder of ours."""
    found = os.lstat(path)
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077


def _ours(path: Path) -> Path:
    """The path; raises NotOursError if others can have made, or can replace, what it leads to."""
    return check_private(path, hint=_OURS_HINT)


@contextlib.contextmanager
def launch_lock() -> Iterator[None]:
    """Lock the folder of runs while a name is checked and its directory is made, so that no name is taken twice."""
    folder = _writable(runs_folder())
    fd = open_lock(folder / ".lock")
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def create(plan: Plan, spec_text: bytes, *, own: bool) -> tuple[RunDir, int]:
    """A new run directory with the spec as given and the plan, and the descriptor that locks it for its controller.

    With `own` the run ends when this process does. Raises BusyError when the disk is full.
    """
    folder = _writable(runs_folder())
    sockets = _writable(sockets_folder())
    while True:
        run = RunDir(folder / f"{plan.name}-{os.urandom(2).hex()}")
        try:
            run.path.mkdir(mode=0o700)
            break
        except FileExistsError:
            continue
        except OSError as e:
            raise _cannot_write(run.path, e) from None
    try:
        (run.path / "sockets").symlink_to(sockets / run.run)
        for part in ("agents", "logs"):
            (run.path / part).mkdir(mode=0o700)
        write_whole(run.spec_file, spec_text)
        if own:
            run.owned_file.touch()
        ranks = sum(m.procs for m in plan.meshes)
        write_whole(
            run.reserve_file, os.urandom(max(RESERVE, ranks * RESERVE_PER_RANK))
        )  # noise: no disk compresses it
        lock = run.lock_controller()
        assert lock is not None, "nobody else knows of this run yet"
        # The plan comes last: a folder without a plan is not a run.
        write_whole(run.plan_file, json.dumps(to_json(plan)).encode())
    except OSError as e:
        discard(run)
        raise _cannot_write(run.path, e) from None
    return run, lock


def discard(run: RunDir) -> None:
    """Remove a run that never began."""
    import shutil  # late, as few commands need it

    shutil.rmtree(sockets_folder() / run.run, ignore_errors=True)
    shutil.rmtree(run.path, ignore_errors=True)


def take_away(run: RunDir) -> bool:
    """Take an ended run out of all commands' sight, for `remove_taken`; False if something of it lives, or it is gone.

    Raises OSError if its folder cannot be renamed.
    """
    try:
        lock = run.lock_controller()  # a controller holds it until its last step
    except FileNotFoundError:
        return False
    if lock is None:
        return False
    try:
        if run.has_agent() or run.read_final() is None:
            return False
        run.path.rename(run.path.with_name(f"{_TAKEN}{run.run}-{os.urandom(2).hex()}"))
        return True
    except FileNotFoundError:  # another command was faster
        return False
    finally:
        os.close(lock)


def remove_taken() -> list[OSError]:
    """Remove the runs that were taken away, also by commands that did not get so far; returns what resists."""
    import shutil
    import sys

    errors: list[OSError] = []

    def note(why: BaseException) -> None:
        if isinstance(why, OSError) and not isinstance(why, FileNotFoundError):  # another command may remove it, too
            errors.append(why)

    with contextlib.suppress(FileNotFoundError):
        for path in [entry.path for entry in os.scandir(_ours(runs_folder())) if entry.name.startswith(_TAKEN)]:
            if sys.version_info >= (3, 12):
                shutil.rmtree(path, onexc=lambda _, __, why: note(why))
            else:
                shutil.rmtree(path, onerror=lambda _, __, info: note(info[1]))
    return errors


def set_aside(path: Path) -> None:
    """Rename a file that cannot be read, to keep it."""
    with contextlib.suppress(OSError):
        path.replace(_aside(path))


def keep_copy(path: Path) -> None:
    """Keep the present content of a file under another name; replacing the file later does not change the copy."""
    with contextlib.suppress(OSError):
        os.link(path, _aside(path), follow_symlinks=False)


def _aside(path: Path) -> Path:
    return path.with_name(f"{path.name}.corrupt-{os.urandom(2).hex()}")


def seal(text: bytes) -> bytes:
    """Add a checksum to a JSON object, as its last member, so that even a flipped bit is detected."""
    return b'%s,"crc":"%08x"}' % (text[:-1], zlib.crc32(text))


def unseal(data: bytes) -> bytes:
    """The JSON object that was sealed; raises ValueError if it has changed."""
    text = data[:-_SEAL] + b"}"
    if data != seal(text):
        raise ValueError("its checksum does not match")
    return text


_SEAL = len(b',"crc":"00000000"}')


def _writable(folder: Path) -> Path:
    try:
        return private_folder(folder)
    except NotOursError as e:
        raise NotOursError(e.message, hint=_OURS_HINT) from None
    except OSError as e:
        raise _cannot_write(folder, e) from None


def _cannot_write(path: Path, error: OSError) -> ForgeError:
    message = f"cannot write {path}: {error.strerror}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return BusyError(message, hint="free some space there, or set FORGECTL_HOME to a folder on another disk")
    return BusyError(message, hint="set FORGECTL_HOME to a folder that you can write")

"""Run directories: where a run's spec, plan, journal and logs live, and where its sockets are."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

from forgectl.errors import BusyError, ForgeError, InternalError, NotOursError
from forgectl.frozen import dataclass
from forgectl.model.plan import HostPlan, Plan
from forgectl.model.status import RunStatus
from forgectl.system.files import open_lock, open_to_read, write_whole
from forgectl.wire.codec import CodecError, from_json, to_json
from forgectl.wire.unix_sockets import check_private, private_folder

RESERVE = 64 * 1024
RESERVE_PER_RANK = 1024
"""Bytes that a run keeps for its final state: without that every later command would take it for a crashed one."""
_OURS_HINT = (
    "whoever could put files there could have programs run as you: remove it, or make it private (chmod 700); "
    "or set FORGECTL_HOME to a folder of your own"
)


def runs_folder() -> Path:
    """The folder of all runs of this user: $FORGECTL_HOME or $XDG_STATE_HOME/forgectl, then `runs`."""
    if home := os.environ.get("FORGECTL_HOME"):
        return Path(home).absolute() / "runs"
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "forgectl" / "runs"


def cache_folder() -> Path:
    """Where things are kept that can be made anew, beside the runs; raises NotOursError."""
    return _ours(runs_folder().parent / "cache")


def sockets_folder() -> Path:
    """The folder of all sockets of this user, private to them."""
    if home := os.environ.get("FORGECTL_HOME"):
        return Path(home).absolute() / "sockets"
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(runtime) / "forgectl"
    return Path("/tmp") / f"forgectl-{os.getuid()}"  # not $TMPDIR: every shell must find the same


@dataclass(frozen=True)
class AgentPlace:
    """Where an agent listens, and its run directory, on its own host."""

    socket: Path
    run_dir: Path


@dataclass(frozen=True)
class RunDir:
    """The directory of one run (0700). Of a run that was there before, get it by `existing`."""

    path: Path

    @classmethod
    def existing(cls, path: Path) -> RunDir:
        """A run that was begun before. Raises NotOursError where another user may have: nothing of it was read."""
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
        """Where its sockets are, as it was when it began: $XDG_RUNTIME_DIR may differ in another shell.

        Raises NotOursError where others could listen in place of our processes, as after /tmp was emptied.
        """
        return _ours(Path((self.path / "sockets").readlink()))

    @property
    def messages(self) -> Path:
        """Where sockets for messages are, in a folder of ours alone: their addresses are limited to 107 bytes."""
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

    def seat(self, index: int, host: HostPlan) -> AgentPlace:
        """Where the agent on the run's host number `index` keeps what is the run's."""
        if host.local:
            return AgentPlace(self.agent_socket(index), self.path)
        folder = Path(host.root) / "runs" / self.run / host.name
        return AgentPlace(folder / "agent", folder)

    def log(self, mesh: str, generation: int, rank: int) -> Path:
        """The log of a rank; of one on an ssh host as far as it has come home."""
        return Path(f"{self.path}/logs/{mesh}/{generation}/rank-{rank}.log")  # at once: each / would take as long

    @property
    def owned_file(self) -> Path:
        """There where the run ends with the process that began it, even if no controller came to know that process."""
        return self.path / "owned"

    @property
    def plan_file(self) -> Path:
        return self.path / "plan.json"

    @property
    def journal_file(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def keys_file(self) -> Path:
        """The secret that keys for messages between machines are made of, while the run lasts."""
        return self.path / "message-keys"

    @property
    def final_file(self) -> Path:
        """The state of a run that has ended; there is none before."""
        return self.path / "status.json"

    @property
    def reserve_file(self) -> Path:
        """Space that is given up for the final state where the disk is full by then."""
        return self.path / ".reserve"

    def write_final(self, status: RunStatus) -> None:
        """Leave the state of the ended run; raises OSError where even the reserve does not suffice."""
        data = seal(json.dumps(to_json(status)).encode())
        try:
            write_whole(self.final_file, data)
        except OSError:
            self.reserve_file.unlink(missing_ok=True)
            write_whole(self.final_file, data)
        self.reserve_file.unlink(missing_ok=True)

    def read_plan(self) -> Plan:
        """The plan that was launched; raises InternalError where it cannot be read."""
        try:
            return from_json(Plan, json.loads(self.plan_file.read_bytes()))
        except (OSError, ValueError, CodecError) as e:
            hint = f"what still runs of it ends with its lease; then remove {self.path}"
            message = f"the plan of run {self.run} cannot be read: {self.plan_file}: {e}"
            raise InternalError(message, hint=hint) from None

    @property
    def has_ended(self) -> bool:
        """Whether there is a final state, and whole. Every command asks this of every run: most have ended."""
        try:
            unseal(self.final_file.read_bytes())
            return True
        except FileNotFoundError:
            return False
        except (OSError, ValueError):
            set_aside(self.final_file)
            return False

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

    def has_controller(self) -> bool:
        """Whether there is one, or one that begins or ends."""
        try:
            fd = open_to_read(self.path / "controller.lock")
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: others who look are not in the way
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False

    def lock_controller(self) -> int | None:
        """A descriptor that makes its holder the one controller of the run, or None where there is one."""
        fd = open_lock(self.path / "controller.lock")
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        return fd


def all_runs() -> list[RunDir]:
    """Every run of this user, oldest first; those that others may have touched are left out (`refused_runs`).

    Raises NotOursError where others may have put runs there.
    """
    found = []
    for path in _run_folders():
        with contextlib.suppress(OSError):  # no run, or one that is just being discarded, or not ours
            run = RunDir.existing(path)
            found.append((run.plan_file.stat().st_mtime_ns, path))
    return [RunDir(path) for _, path in sorted(found)]


def refused_runs() -> dict[str, NotOursError]:
    """Why nothing is read of what lies among the runs and others may have made or touched, by the run's id."""
    found = {}
    for path in _run_folders():
        try:
            RunDir.existing(path)
        except NotOursError as e:
            if path.is_dir():
                found[path.name] = e
        except OSError:
            continue
    return found


def _run_folders() -> list[Path]:
    """All that lies in the folder of runs, once that is seen to be ours alone."""
    try:
        return list(_ours(runs_folder()).iterdir())
    except FileNotFoundError:
        return []


def _ours(path: Path) -> Path:
    """The path, unless others can have put there, or can exchange, what it leads to (NotOursError)."""
    return check_private(path, hint=_OURS_HINT)


@contextlib.contextmanager
def launch_lock() -> Iterator[None]:
    """Held while a run's name is checked and its directory is made, so that names are not taken twice."""
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
        write_whole(run.path / "spec.yaml", spec_text)
        if own:
            run.owned_file.touch()
        ranks = sum(m.procs for m in plan.meshes)
        write_whole(
            run.reserve_file, os.urandom(max(RESERVE, ranks * RESERVE_PER_RANK))
        )  # noise: no disk compresses it
        lock = run.lock_controller()
        assert lock is not None, "nobody else knows of this run yet"
        # The plan comes last: a folder without one is no run.
        write_whole(run.plan_file, json.dumps(to_json(plan)).encode())
    except OSError as e:
        discard(run)
        raise _cannot_write(run.path, e) from None
    return run, lock


def discard(run: RunDir) -> None:
    """Remove a run that never began."""
    import shutil  # only here

    shutil.rmtree(sockets_folder() / run.run, ignore_errors=True)
    shutil.rmtree(run.path, ignore_errors=True)


def set_aside(path: Path) -> None:
    """Keep a file that cannot be read under another name, out of the way."""
    with contextlib.suppress(OSError):
        path.replace(_aside(path))


def keep_copy(path: Path) -> None:
    """Keep the present content of a file under another name; whoever replaces the file leaves that as it is."""
    with contextlib.suppress(OSError):
        os.link(path, _aside(path), follow_symlinks=False)


def _aside(path: Path) -> Path:
    return path.with_name(f"{path.name}.corrupt-{os.urandom(2).hex()}")


def seal(text: bytes) -> bytes:
    """A JSON object with a checksum as its last member, so that not even a flipped bit goes unseen."""
    return b'%s,"crc":"%08x"}' % (text[:-1], zlib.crc32(text))


def unseal(data: bytes) -> bytes:
    """The JSON object that was sealed; raises ValueError where it is not what was written."""
    text = data[:-_SEAL] + b"}"
    if data != seal(text):
        raise ValueError("its checksum does not fit")
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

"""Real families of processes to be ended by tests. Needs nothing but the standard library and forgectl."""

import contextlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

from forgectl.agent.enclosure.enclosure import Enclosure
from forgectl.system.processes import Identity, alive, boot_id, identify

PROGRAMS = Path(__file__).parent.parent / "programs"
HOST = "host1"


def identified(pid: int) -> Identity:
    """The identity of a process that is there."""
    it = identify(pid)
    assert it, f"there is no process {pid}"
    return it


class Family:
    """A running `programs/family.py`, and the pipe that all of the family hold open."""

    known: Collection[Identity | None] = ()

    def __init__(
        self,
        run: str,
        kind: str,
        enclosure: Enclosure | None = None,
        *,
        mesh: str = "m",
        size: int = 1,
        host: str = HOST,
        user: int | None = None,
    ) -> None:
        self.pipe, theirs = os.pipe()
        path = (enclosure.cgroup_procs_path if enclosure else None) or "-"
        env = {
            "FORGE_RUN_ID": run,
            "FORGE_HOST": host,
            "FORGE_ROLE": "forkserver",
            "FAMILY_MESH": mesh,
            "PATH": os.environ["PATH"],
        }
        self.server = subprocess.Popen(
            [sys.executable, "-S", PROGRAMS / "family.py", kind, path, str(theirs)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=env,
            pass_fds=[theirs],
            user=user,
        )
        os.close(theirs)
        assert self.server.stdout
        _, pid, start_time = self.server.stdout.readline().split()
        self.rank = Identity(int(pid), int(start_time), boot_id())
        if enclosure:
            enclosure.add(self.rank)
        self.pids = self._await(size)

    def _await(self, size: int) -> list[int]:
        """The pids of the first `size` of the family; the family is there once all of them have spoken."""
        text = b""
        while text.count(b"\n") < size:
            ready, _, _ = select.select([self.pipe], [], [], 30)
            chunk = os.read(self.pipe, 65536) if ready else b""
            assert chunk, f"only {text.count(10)} of {size} processes came up"
            text += chunk
        return [int(p) for p in text.split()]

    @property
    def gone(self) -> bool:
        """Whether every process that holds the pipe has ended: a proof that owes nothing to /proc."""
        with contextlib.suppress(BlockingIOError):
            os.set_blocking(self.pipe, False)
            while os.read(self.pipe, 65536):
                pass
            return True
        return False

    @property
    def members(self) -> list[Identity | None]:
        """Of each pid; None for one that has ended."""
        return [identify(pid) for pid in self.pids]

    def close(self) -> None:
        for pid in self.pids:
            if (identity := identify(pid)) and alive(identity) and identity in self.known:
                os.kill(pid, signal.SIGKILL)
        self.server.kill()
        self.server.communicate()
        os.close(self.pipe)

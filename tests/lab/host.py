"""One host of the lab: namespaces of its own with an sshd, and what can be seen and done there."""

from __future__ import annotations

import contextlib
import json
import pwd
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.lab.cgroups import Cgroups
from tests.lab.machine import ENVIRONMENT, remove
from tests.lab.network import Network, end_machine, hear, start_machine

PROJECT = Path(__file__).parents[2]
HOME = pwd.getpwuid(0).pw_dir
OURS = "LAB_COMMAND=1"  # marks what a test itself runs on a host
ENV = {**ENVIRONMENT, "HOME": HOME, "USER": "root", "LOGNAME": "root", "SHELL": "/bin/bash"}


class Host:
    """A machine of its own, as near as can be had; `folder` holds its sshd's files, its disk and its home."""

    def __init__(
        self, name: str, number: int, network: Network, folder: Path, home: Path, shared: Path, cgroups: Cgroups
    ) -> None:
        self.name = name
        self.number = number
        self.address = network.address(number)
        self.folder = folder
        self.cgroup_mount = cgroups.mount  # where the host's own cgroup v2 tree is; "" if it has none
        self._cgroup = cgroups.of.get(name)
        self._network = network
        self._config = {
            "name": name,
            "keep": sorted({str(shared), str(folder), str(PROJECT), sys.prefix, sys.base_prefix}),
            "own": {
                "/var/tmp": str(folder / "var_tmp"),
                HOME: str(home),
                "/etc/hosts": str(folder / "etc_hosts"),
                "/proc/sys/kernel/random/boot_id": str(folder / "boot_id"),
            },
            "cgroup": str(self._cgroup or ""),
            "cgroup_mount": self.cgroup_mount,
        }
        (folder / "var_tmp").mkdir()
        (folder / "var_tmp").chmod(0o1777)
        self._log = folder / "machine.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._init = 0  # pid, as seen here, of the host's first process
        self._sshd = 0  # pid, as seen there, of the listening sshd
        self.is_cut = False
        self.has_drops = False

    # ------------------------------------------------------------ power

    @property
    def is_up(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def begin(self) -> None:
        """Switch it on; `boot` waits until it is up, so that several may start at once."""
        if self._cgroup:
            remove(self._cgroup)  # with what an earlier life left: a machine that starts has none
            self._cgroup.mkdir(exist_ok=True)
        (self.folder / "boot_id").write_text(f"{uuid.uuid4()}\n")
        self._process = start_machine("host", self._config, self._log)

    def boot(self) -> None:
        """Switch it on, if `begin` has not, and wait for its sshd."""
        if not self.is_up:
            self.begin()
        assert self._process is not None
        self._init = int(hear(self._process, self._log))
        self._network.plug(self.number, self._init)
        assert hear(self._process, self._log) == "ready"
        self._sshd = 0
        self.is_cut = self.has_drops = False
        self.start_sshd()

    def halt(self, silently: bool = False) -> None:
        """Everything there dies; `silently` as when power fails, so that no peer hears the connections close."""
        if self._process is None:
            return
        if silently:
            self._network.cut(self.number)
        end_machine(self._process)
        self._network.unplug(self.number)
        self._process = None

    # ------------------------------------------------------------ commands

    def argv(self, argv: Sequence[object]) -> list[str]:
        """A command here that runs `argv` there."""
        enter = ["nsenter", "-t", str(self._init), "-m", "-u", "-i", "-n", "-p", "-C", *map(str, argv)]
        if self._cgroup:
            return ["sh", "-c", 'echo 0 >"$0/cgroup.procs" && exec "$@"', str(self._cgroup), *enter]
        return enter

    @staticmethod
    def env(more: Mapping[str, str] | None) -> dict[str, str]:
        mark, _, value = OURS.partition("=")
        return {**ENV, mark: value, **(more or {})}

    def run(self, argv: Sequence[object], **options: Any) -> subprocess.CompletedProcess[str]:
        check = options.pop("check", False)
        options = {"capture_output": True, "text": True, "timeout": 60, **options}
        result = subprocess.run(self.argv(argv), **{**options, "env": self.env(options.get("env"))})
        assert not (check and result.returncode), f"{argv} on {self.name}: {result.returncode}, {result.stderr}"
        return result

    def popen(self, argv: Sequence[object], **options: Any) -> subprocess.Popen[str]:
        options = {"text": True, "stdin": subprocess.DEVNULL, **options}
        return subprocess.Popen(self.argv(argv), **{**options, "env": self.env(options.get("env"))})

    def kill(self, pids: Sequence[int], signal: int = 9) -> None:
        """Send a signal to processes, whose pids are those seen there; who has gone already is no error."""
        if pids:
            self.run(["sh", "-c", f'kill -{signal} "$@"', "sh", *pids])

    # ------------------------------------------------------------ what is seen

    def path(self, path: str | Path = "/") -> Path:
        """A path of the host, to be used here (absolute symbolic links lead astray)."""
        return Path(f"/proc/{self._init}/root") / str(path).lstrip("/")

    def pids(self) -> dict[int, Path]:
        """Of each pid as seen there, its directory in the host's /proc."""
        return {int(p.name): p for p in self.path("/proc").iterdir() if p.name.isdigit()} if self.is_up else {}

    def processes(self, mark: str) -> dict[int, str]:
        """Command lines, by pid, of the processes with a variable, given as NAME or NAME=VALUE."""
        found = {}
        for pid, folder in self.pids().items():
            with contextlib.suppress(OSError):
                if _carries((folder / "environ").read_bytes(), mark.encode()):
                    found[pid] = _command(folder)
        return found

    def strangers(self) -> dict[int, str]:
        """Command lines, by pid, of what is neither the host's own (its first process, its listening sshd) nor dead."""
        found = {}
        for pid, folder in self.pids().items():
            with contextlib.suppress(OSError):
                if pid not in (1, self._sshd) and (command := _command(folder)):
                    found[pid] = command
        return found

    def listening(self) -> set[tuple[str, int]]:
        """(address, port) of each TCP listener but sshd's."""
        found = set()
        for table in ("tcp", "tcp6"):
            for line in Path(f"/proc/{self._init}/net/{table}").read_text().splitlines()[1:]:
                local, state = line.split()[1], line.split()[3]
                if state == "0A":
                    found.add(_endpoint(local))
        return found - {(self.address, 22)}

    def sessions(self) -> dict[int, str]:
        """Titles, by pid, of the sshd processes that serve a connection."""
        found = {}
        for pid, folder in self.pids().items():
            with contextlib.suppress(OSError):
                if pid != self._sshd and (folder / "comm").read_text().startswith("sshd"):
                    found[pid] = _command(folder)
        return found

    # ------------------------------------------------------------ sshd

    @property
    def serves_ssh(self) -> bool:
        return self._sshd in self.pids()

    def start_sshd(self) -> None:
        """Start sshd, and wait until it listens."""
        assert self._process is not None and self._process.stdin is not None
        log = self.folder / "sshd.log"
        argv = [
            shutil.which("sshd", path=ENVIRONMENT["PATH"]),
            "-D",
            "-f",
            f"{self.folder}/sshd_config",
            "-E",
            str(log),
        ]
        self._process.stdin.write(json.dumps(argv).encode() + b"\n")
        self._process.stdin.flush()
        self._sshd = int(hear(self._process, self._log))
        path = Path(f"/proc/{self._init}/net/tcp")
        until(lambda: _listens(path, self.address, 22) or not self.serves_ssh, f"sshd of {self.name}, see {log}")
        assert self.serves_ssh, f"sshd of {self.name} ended: {log.read_text()}"

    def stop_sshd(self) -> None:
        """No new connections; those that are up stay."""
        self.kill([self._sshd], 15)
        until(lambda: not self.serves_ssh, f"the end of {self.name}'s sshd")

    # ------------------------------------------------------------ drops

    def drop(self, direction: str, peer: str | None, dials: bool, but_ssh: bool = False) -> None:
        """Silently drop packets `in` or `out`, of one peer's address or of all.

        `dials`: only new connections', `but_ssh`: none to the port of ssh.
        """
        hook, side = {"in": ("input", "saddr"), "out": ("output", "daddr")}[direction]
        match = f"ip {side} {peer}" if peer else "meta iifname eth0" if direction == "in" else "meta oifname eth0"
        syn = "tcp flags & (syn | ack) == syn" if dials else ""
        syn += " tcp dport != 22" if but_ssh else ""
        self._nft(
            "add table inet lab\n"
            f"add chain inet lab {direction} {{ type filter hook {hook} priority 0; }}\n"
            f"add rule inet lab {direction} {match} {syn} drop\n"
        )
        self.has_drops = True

    def undrop(self) -> None:
        self._nft("add table inet lab\ndelete table inet lab\n")
        self.has_drops = False

    def _nft(self, commands: str) -> None:
        self.run(["nft", "-f", "-"], input=commands, check=True)


def until(condition: Callable[[], Any], what: str, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"the lab waited {seconds:g} s for {what}"
        time.sleep(0.005)


def _carries(environ: bytes, mark: bytes) -> bool:
    return any(v == mark if b"=" in mark else v.startswith(mark + b"=") for v in environ.split(b"\0"))


def _command(folder: Path) -> str:
    return (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()


def _endpoint(text: str) -> tuple[str, int]:
    """ADDRESS:PORT of /proc/net/tcp and tcp6: words of four bytes in the order of this machine, in hexadecimal."""
    address, port = text.split(":")
    words = [bytes.fromhex(address[i : i + 8])[::-1] for i in range(0, len(address), 8)]
    family = socket.AF_INET if len(words) == 1 else socket.AF_INET6
    return socket.inet_ntop(family, b"".join(words)), int(port, 16)


def _listens(table: Path, address: str, port: int) -> bool:
    rows = [line.split() for line in table.read_text().splitlines()[1:]]
    return any(row[3] == "0A" and _endpoint(row[1]) == (address, port) for row in rows)

"""Hosts on this one machine for tests: real sshd, real TCP, and namespaces that make each a machine of its own."""

from __future__ import annotations

import contextlib
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.lab import keys
from tests.lab.cgroups import Cgroups
from tests.lab.host import OURS, Host, until
from tests.lab.network import LAUNCHER, Network

RUN_MARK = "FORGE_RUN_ID"


class Lab:
    """`count` hosts named host1, host2, …; root alone can make it. Close it, or use it as a context.

    Each has its own network namespace, processes, mounts (/tmp, /var/tmp, /run, /dev/shm, root's home), cgroup, host
    name, boot id and sshd; the rest of the file system is this machine's, which is the launching machine.
    Names for ssh that do not work: stranger (no known key), changed (another key), denied (our key is refused), silent
    (nobody there), refusing (nobody listens). `twin` is another name of host1.
    """

    launcher = LAUNCHER  # stands for the launching machine in cut() and mend()

    def __init__(
        self,
        count: int = 3,
        *,
        shared_home: bool = False,
        aliases: Mapping[str, str] | None = None,
        max_startups: str = "10:30:100",
        named_by_dns: bool = False,
        decoy: bool = False,
    ) -> None:
        """Make `count` hosts.

        Options: one home for all, as on NFS; further ssh names, alias → host; sshd's MaxStartups; whether hosts know
        each other's names, and their own by the address that others use (else it is 127.0.1.1, as on Debian); a bridge
        "docker0" on each host with one same address, 172.17.0.1.
        """
        self.names = [f"host{n}" for n in range(1, count + 1)]
        self.folder = Path(tempfile.mkdtemp(prefix="forgectl-lab-"))
        self._aliases = {"twin": "host1", **(aliases or {})}
        self._decoy = decoy
        self._hosts: dict[str, Host] = {}
        self._launcher_cut = False
        self._network: Network | None = None
        try:
            self._build(shared_home, max_startups, named_by_dns)
        except BaseException:
            self.close()
            raise

    # ------------------------------------------------------------ what to tell forgectl

    @property
    def gateway(self) -> str:
        """The launching machine's address."""
        return self._net.gateway

    @property
    def interface(self) -> str:
        """The launching machine's network interface to the hosts."""
        return self._net.interface

    @property
    def silent(self) -> str:
        """An address that nobody has."""
        return self._net.silent

    @property
    def ssh(self) -> str:
        """The ssh command that knows the hosts, for FORGECTL_SSH."""
        return f"ssh -F {shlex.quote(str(self.folder / 'config'))}"

    @property
    def env(self) -> dict[str, str]:
        """Variables for a forgectl command."""
        return {"FORGECTL_SSH": self.ssh}

    @property
    def shared(self) -> Path:
        """A folder that all hosts and this machine see under the same path."""
        return self.folder / "shared"

    def address(self, name: str) -> str:
        return self[name].address

    def __getitem__(self, name: str) -> Host:
        return self._hosts[self._aliases.get(name, name)]

    # ------------------------------------------------------------ commands and sights

    def run(self, name: str, argv: Sequence[object], **options: Any) -> subprocess.CompletedProcess[str]:
        """A command on a host, without ssh, as by subprocess.run; text is captured, `env` adds to the usual."""
        return self[name].run(argv, **options)

    def popen(self, name: str, argv: Sequence[object], **options: Any) -> subprocess.Popen[str]:
        """Likewise in the background; what is left of it ends with the test."""
        return self[name].popen(argv, **options)

    def kill(self, name: str, *pids: int, signal: int = 9) -> None:
        """Signal processes of a host, by the pids seen there."""
        self[name].kill(pids, signal)

    def processes(self, name: str, mark: str = RUN_MARK) -> dict[int, str]:
        """pid, as seen there → command line of a host's processes with a variable: NAME or NAME=VALUE."""
        return self[name].processes(mark)

    def path(self, name: str, path: str | Path) -> Path:
        """A host's path, to be used here."""
        return self[name].path(path)

    def files(self, name: str, pattern: str) -> list[str]:
        """The paths on a host, as seen there, that match an absolute glob."""
        root = self[name].path()
        return sorted(f"/{p.relative_to(root)}" for p in root.glob(pattern.lstrip("/")))

    def listening(self, name: str) -> set[tuple[str, int]]:
        """(address, port) of each TCP listener of a host but its sshd's."""
        return self[name].listening()

    def boot_id(self, name: str) -> str:
        return self[name].path("/proc/sys/kernel/random/boot_id").read_text().strip()

    # ------------------------------------------------------------ faults

    def cut(self, name: str) -> None:
        """Pull the cable of a host, or of `lab.launcher`."""
        if name == LAUNCHER:
            self._launcher_cut = True
            self._net.cut(None)
        else:
            self[name].is_cut = True
            self._net.cut(self[name].number)

    def mend(self, name: str) -> None:
        if name == LAUNCHER:
            self._net.mend(None)
            self._launcher_cut = False
        else:
            self._net.mend(self[name].number)
            self[name].is_cut = False

    def drop(
        self, name: str, direction: str, peer: str | None = None, *, dials: bool = False, but_ssh: bool = False
    ) -> None:
        """Silently drop what comes "in" to a host or goes "out" of it.

        `peer`: only from or to that host, or `lab.launcher`; `dials`: only the first packets of new connections, so
        `lab.drop(name, "out", lab.launcher, dials=True)` is a launching machine that cannot be dialled back;
        `but_ssh`: but what goes to the port of ssh.
        """
        address = None if peer is None else self.gateway if peer == LAUNCHER else self[peer].address
        self[name].drop(direction, address, dials, but_ssh)

    def undrop(self, name: str) -> None:
        """End all drops of a host."""
        self[name].undrop()

    def sshd_sessions(self, name: str) -> dict[int, str]:
        """pid, as seen there → title of the sshd processes that serve a connection."""
        return self[name].sessions()

    def kill_sessions(self, name: str) -> None:
        """SIGKILL to these, as when a connection dies."""
        self[name].kill(list(self[name].sessions()))

    def stop_sshd(self, name: str) -> None:
        """No new connections; those that are up stay."""
        self[name].stop_sshd()

    def start_sshd(self, name: str) -> None:
        self[name].start_sshd()

    def halt(self, name: str, *, silently: bool = False) -> None:
        """Everything on a host dies; `silently` as when power fails: no peer hears its connections close."""
        self[name].halt(silently)

    def boot(self, name: str) -> None:
        """Up again, with a new boot id and nothing in /tmp, /run and /dev/shm; /var/tmp and home are as they were."""
        self[name].boot()
        self._decorate(self[name])

    def reboot(self, name: str, *, silently: bool = False) -> None:
        self.halt(name, silently=silently)
        self.boot(name)

    def wipe(self, name: str) -> None:
        """Empty a host's /var/tmp, /tmp and /dev/shm."""
        self.run(name, ["find", "/var/tmp", "/tmp", "/dev/shm", "-xdev", "-mindepth", "1", "-delete"])

    # ------------------------------------------------------------ between tests

    def heal(self) -> None:
        """All hosts up, linked, reachable and served by an sshd."""
        if self._launcher_cut:
            self.mend(LAUNCHER)
        for name, host in self._hosts.items():
            if not host.is_up:
                self.boot(name)
            if host.is_cut:
                self.mend(name)
            if host.has_drops:
                host.undrop()
            if not host.serves_ssh:
                host.start_sshd()

    def left(self, seconds: float = 5.0) -> dict[str, dict[int, str]]:
        """What a test left running, after a moment to end: host → pid → command line. It is killed.

        That is whatever carries a run's id; then, once every ssh connection is closed, whatever did not end with it.
        """
        self.heal()
        left = {name: _after(host, lambda h: h.processes(RUN_MARK), seconds) for name, host in self._hosts.items()}
        for host in self._hosts.values():
            host.kill([*left[host.name], *host.processes(OURS), *host.sessions()])
        for host in self._hosts.values():
            left[host.name] |= (strangers := _after(host, Host.strangers, seconds))
            host.kill(list(strangers))
            assert not _after(host, Host.strangers, 30), f"what cannot be killed on {host.name}: {host.strangers()}"
        return {name: found for name, found in left.items() if found}

    # ------------------------------------------------------------ making and removing

    @property
    def _net(self) -> Network:
        assert self._network is not None
        return self._network

    def _build(self, shared_home: bool, max_startups: str, named_by_dns: bool) -> None:
        self.shared.mkdir()
        cgroups = Cgroups(self.folder.name, self.names)
        self._network = Network(self.folder, [str(c) for c in cgroups.of.values()])
        ours, stranger = (keys.generate(self.folder / name) for name in ("key", "denied_key"))
        public = {}
        for number, name in enumerate(self.names):
            folder = self.folder / name
            folder.mkdir()
            home = self.folder / ("home" if shared_home else f"{name}/home")
            home.mkdir(mode=0o700, exist_ok=True)
            host = self._hosts[name] = Host(name, number, self._net, folder, home, self.shared, cgroups)
            public[name] = (host.address, keys.write_server(folder, host.address, max_startups, ours))
        self._name_hosts(named_by_dns)
        keys.write_client(self.folder, public, self._aliases, self._net.silent, stranger)
        for host in self._hosts.values():
            host.begin()
        for name in self.names:
            self.boot(name)

    def _name_hosts(self, named_by_dns: bool) -> None:
        everyone = "".join(f"{host.address} {name}\n" for name, host in self._hosts.items())
        for name, host in self._hosts.items():
            names = everyone if named_by_dns else f"127.0.1.1 {name}\n"
            (host.folder / "etc_hosts").write_text(f"127.0.0.1 localhost\n{names}")

    def _decorate(self, host: Host) -> None:
        if self._decoy:
            for command in (
                "link add docker0 type bridge",
                "addr add 172.17.0.1/16 dev docker0",
                "link set docker0 up",
            ):
                host.run(["ip", *command.split()], check=True)

    def close(self) -> None:
        """End and remove everything."""
        with contextlib.ExitStack() as last:  # each, whatever befalls the others
            last.callback(shutil.rmtree, self.folder, ignore_errors=True)
            if self._network is not None:
                last.callback(self._network.close)
            for host in self._hosts.values():
                last.callback(host.halt)

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _after(host: Host, look: Callable[[Host], dict[int, str]], seconds: float) -> dict[int, str]:
    try:
        until(lambda: not look(host), "it to end", seconds)
    except AssertionError:
        return dict(look(host))
    return {}

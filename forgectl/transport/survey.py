"""Asks hosts for the facts that planning needs; connections by ssh stay open."""

from __future__ import annotations

import hashlib
import ipaddress
import os
import socket
import subprocess
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

from forgectl.errors import ForgeError, NotFoundError, SpecError, SpecProblem, SshRefusedError, UnreachableError
from forgectl.hosts.facts import gather as gather_here
from forgectl.model.plan import HostFacts, impossible_gpus
from forgectl.names import name_of
from forgectl.protocol.host_survey import GetFacts, HostReport
from forgectl.transport.destination import Destination
from forgectl.transport.ssh import RelayConnection, dial

if TYPE_CHECKING:
    from forgectl.spec.model import Host, Spec

T = TypeVar("T")
MODULES = ("torch", "zmq", "cloudpickle")
"""Modules that a mesh may need in a host's interpreter, and that forgectl itself does not."""
SLOW_SECONDS = 5.0
"""Seconds after which the user sees which hosts have not answered."""
Slow = Callable[[Sequence[str]], None]


@dataclass
class Hosts:
    """The hosts of a spec: their facts by name, and connections to the relays of those that ssh reaches."""

    facts: dict[str, HostFacts] = field(default_factory=dict)
    connections: dict[str, RelayConnection] = field(default_factory=dict)
    missing: dict[str, tuple[str, ...]] = field(default_factory=dict)  # the MODULES that an ssh host lacks

    listeners: list[socket.socket] = field(default_factory=list)  # on this machine, while other hosts dial it

    _dialling: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _given_up: bool = False

    def note(self, ssh: subprocess.Popen[bytes]) -> None:
        """Remember an ssh that is dialling, so that `give_up` can end it."""
        self._dialling.append(ssh)
        if self._given_up:
            ssh.kill()

    def give_up(self) -> None:
        """Kill every ssh, dialling or connected, even while other threads wait for it."""
        self._given_up = True
        for ssh in self._dialling:
            ssh.kill()

    def stop_listening(self) -> None:
        """Close the listeners on this machine."""
        for listener in self.listeners:
            listener.close()
        self.listeners = []

    def descriptors(self, names: Collection[str]) -> dict[str, tuple[int, int]]:
        """Host → its connection and a pidfd of its ssh, to be handed to another process."""
        return {n: c.descriptors() for n, c in self.connections.items() if n in names}

    def hand_over(self) -> None:
        """Close our copies of the connections, which another process has taken over."""
        for connection in self.connections.values():
            connection.hand_over()

    def __enter__(self) -> Hosts:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop_listening()
        for connection in self.connections.values():
            connection.close()


def gather(spec: Spec, environ: Mapping[str, str], slow: Slow | None = None) -> Hosts:
    """Reach every host of the spec, all at once. Raises SpecError for GPUs that do not exist, and ForgeError from ssh.

    `slow` gets the names of hosts that have not answered after SLOW_SECONDS.
    """
    hosts = Hosts()
    wanted = any(m.with_gpus for m in (*spec.scripts.values(), *spec.actors.values(), *spec.services.values()))
    try:
        remote = {h.name: h for h in spec.all_hosts if not h.local}
        reports = _reports(spec, remote, hosts, slow, look_for_gpus=wanted)
        problems: list[SpecProblem] = []
        for index, host in enumerate(spec.all_hosts):
            if host.name in reports:
                report = reports[host.name]
                facts, no_such_gpu = on_ssh_host(spec, host, report.facts), report.no_such_gpu
                hosts.missing[host.name] = report.missing
            else:
                facts, no_such_gpu = gather_here(host.name, host.gpus if wanted else "none", environ=environ)
            hosts.facts[host.name] = facts
            if no_such_gpu:
                problems.append(spec.problem(f"hosts[{index}].gpus", no_such_gpu))
        if problems:
            raise SpecError(spec.source, problems)
    except BaseException:
        hosts.__exit__(None, None, None)
        raise
    return hosts


def destination(host: Host) -> Destination:
    """How ssh reaches a host of the spec."""
    return Destination(host.name, host.ssh or host.name, host.python or "python3", host.root or "")


def for_all(
    work: Mapping[str, Callable[[], T]], hosts: Hosts, slow: Slow | None = None
) -> tuple[dict[str, T], dict[str, ForgeError]]:
    """Do the work of all hosts at once; returns the results and the errors, both by host.

    `slow` gets the names of hosts that are not done after SLOW_SECONDS. Ctrl-C ends every connection in `hosts`, so
    that no thread keeps waiting.
    """
    done: dict[str, T] = {}
    failed: dict[str, ForgeError] = {}
    threads = ThreadPoolExecutor(max(1, len(work)))
    try:
        futures = {name: threads.submit(job) for name, job in work.items()}
        if slow is not None and (waiting := wait(futures.values(), SLOW_SECONDS).not_done):
            slow([name for name, future in futures.items() if future in waiting])
        for name, future in futures.items():
            try:
                done[name] = future.result()
            except ForgeError as e:
                failed[name] = e
    except BaseException:
        hosts.give_up()
        raise
    finally:
        threads.shutdown(cancel_futures=True)
    return done, failed


def combined_error(errors: Mapping[str, ForgeError]) -> ForgeError:
    """One error for all hosts that failed, with each message and each distinct hint."""
    first, *others = errors.values()
    if not others:
        return first
    kinds = {type(e) for e in errors.values()}
    kind = kinds.pop() if len(kinds) == 1 else SshRefusedError if SshRefusedError in kinds else UnreachableError
    message = "\n".join(e.message for e in errors.values())
    hints = dict.fromkeys(e.hint for e in errors.values() if e.hint)
    return kind(f"{len(errors)} hosts cannot be used:\n{message}", hint="\n  hint: ".join(hints) or None)


def _reports(
    spec: Spec, remote: Mapping[str, Host], hosts: Hosts, slow: Slow | None, *, look_for_gpus: bool
) -> dict[str, HostReport]:
    def ask(host: Host) -> HostReport:
        connection = hosts.connections[host.name] = dial(destination(host), started=hosts.note)
        folder = str(spec.workdir) if spec.sync == "none" else ""
        report = connection.ask_for(HostReport, GetFacts(host.name, host.gpus, look_for_gpus, MODULES, folder))
        if not report.facts.root.startswith("/"):
            raise connection.out_of_step(f"it keeps its files in {report.facts.root!r}, which is not a path")
        if wrong := [a for a in report.facts.addresses if not _is_address(a)]:
            raise connection.out_of_step(f"it has the address {wrong[0]!r}")
        if why := impossible_gpus(report.facts.gpus):
            raise connection.out_of_step(why)
        if report.no_such_folder:
            hint = "with `sync: none` all hosts must have it under the same path; without that it is copied"
            raise NotFoundError(f"host {host.name}: no workdir {folder}", hint=hint)
        return report

    def job(host: Host) -> Callable[[], HostReport]:
        return lambda: ask(host)

    reports, errors = for_all({name: job(host) for name, host in remote.items()}, hosts, slow)
    if errors:
        raise combined_error(errors)
    return reports


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
        return True
    except ValueError:
        return False


def on_ssh_host(spec: Spec, host: Host, facts: HostFacts) -> HostFacts:
    """What an ssh host has found out about itself, under the spec's name, and with where its workdir is."""
    synced = spec.sync == "content"
    workdir = str(Path(facts.root) / "work" / workdir_key(spec.workdir)) if synced else str(spec.workdir)
    return replace(facts, name=host.name, workdir=workdir)


def workdir_key(workdir: Path) -> str:
    """The name that hosts give their copy of a workdir; it depends on this machine, this user and the path."""
    try:
        machine = Path("/etc/machine-id").read_text().strip()
    except OSError:
        machine = ""
    whole = f"{machine or socket.gethostname()}\0{os.getuid()}\0{workdir}"
    return f"{name_of(workdir.name, 'workdir')}-{hashlib.sha256(os.fsencode(whole)).hexdigest()[:12]}"

"""The controller: takes in what happens, writes it down, tells agents what follows and commands what was asked."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Collection, Coroutine
from pathlib import Path
from typing import Any

from forgectl.controller import journal
from forgectl.controller.additions import Additions
from forgectl.controller.agent_link import AgentLink, Use, note
from forgectl.controller.changes import Changes
from forgectl.controller.commands import Command, commands, last_commands
from forgectl.controller.configs import agent_config
from forgectl.controller.control_socket import ControlServer
from forgectl.controller.host_claims import check_event, own_use
from forgectl.controller.log_fetcher import LogFetcher
from forgectl.controller.message_keys import MessageKeys
from forgectl.controller.records import Added, AgentLost, Born, Happened, Moved, Record, StopAsked, Stranded
from forgectl.controller.run_dir import AgentPlace, RunDir
from forgectl.controller.run_state import Run
from forgectl.controller.state import FAILURE_GRACE, MeshState
from forgectl.controller.status_document import run_document
from forgectl.errors import ForgeError, NotOursError
from forgectl.model.plan import Gpu, HostPlan, Unit
from forgectl.model.status import RunStatus
from forgectl.protocol.control import MeshAdded, Report
from forgectl.protocol.supervision import AgentConfig, Event, GetGpus, HostGpus, Stop
from forgectl.system.processes import Identity, boot_id, identify, open_pidfd
from forgectl.system.tasks import Background
from forgectl.transport.ways import way_to
from forgectl.wire.envelope import ProtocolError, Refusal
from forgectl.wire.listener import LOOK_SECONDS
from forgectl.wire.unix_sockets import dial, private_folder

REPORT_SECONDS = 0.02
"""Between two reports to followers; the first change after a quiet time is reported at once."""
REPORT_REST = 4.0
"""Between two reports, too, in times of what the last one took: of thousands of ranks each takes longer than the above,
and reports must not keep the controller from what they are about."""
FAREWELL_SECONDS = 15.0
LOGS_SECONDS = 300.0
"""What logs may take to come here after the end of a run, however slowly they come; the rest stays on its host."""
Handed = dict[str, list[int]]
"""Host → descriptors of what the launching command has begun there."""
GPU_SECONDS = 10.0


class Controller:
    """One run, from its first agent to its last."""

    def __init__(
        self, run_dir: RunDir, secrets: dict[str, str], adopt: bool, owner: Identity | None, handed: Handed
    ) -> None:
        self.dir = run_dir
        self._sockets, self._messages = run_dir.sockets, run_dir.messages
        self.run = Run.new(run_dir.run, run_dir.read_plan())
        self._secrets = secrets
        self._keys = MessageKeys(run_dir, self.run.plan)
        self.server = ControlServer(self, run_dir.control_socket)
        self.mirror = LogFetcher(run_dir, self.run.plan.log_limit, self.server.followed)
        whole = not adopt or self._recall()
        self._journal = journal.Journal(run_dir.journal_file)
        self._over = asyncio.Event()
        self._report_due = False
        self._next_report = 0.0  # the earliest time
        self._additions = Additions(self._look_for_gpus)
        self._changes = Changes()
        self._moving: set[str] = set()
        self._tasks = Background()
        seats = [run_dir.seat(i, host) for i, host in enumerate(self.run.plan.hosts)]
        self.links = {
            name: AgentLink(
                host,
                self._config_of(host.plan, seat),
                way_to(host.plan, seat.socket, handed.get(name, ())),
                self,
                unsure=not whole,
                adopted=adopt,
            )
            for seat, (name, host) in zip(seats, self.run.hosts.items(), strict=True)
        }
        self.mirror.attach(self.links.values())
        self.record(Born(os.getpid(), adopt, not whole, owner or self.run.owner))
        reachable = (_may_answer(h, s) for h, s in zip(self.run.plan.hosts, seats, strict=True))
        if adopt and not self.run.ended and not any(reachable):
            # Nothing is left to adopt: the leases have run out, or the machine was started anew.
            self.record(StopAsked(None, 0.0, "the loss of its controller"))

    def _recall(self) -> bool:
        """The state as the journal has it; False for a damaged one: the living agents are to fill the gaps."""
        records, whole = journal.read(self.dir.journal_file)
        try:
            self._replay(records)
        except Exception as e:  # whatever is in it: a run that cannot be brought up cannot be ended either
            whole = False
            note(f"the journal misses too much to go by: {e!r}")
            self.run = Run.new(self.run.id, self.run.plan)
            records = [(when, r) for when, r in records if isinstance(r, (Born, StopAsked))]
            self._replay(records)
        if not whole:
            journal.repair(self.dir.journal_file, records)
        for host in self.run.hosts.values():
            if host.state == "up":
                host.state = "reconnecting"
        return whole

    def _replay(self, records: list[tuple[float, Record]]) -> None:
        for when, record in records:
            if isinstance(record, Happened) and not self._is_sound(record):
                continue
            self._apply(when, record)

    def _is_sound(self, record: Happened) -> bool:
        """Whether a host may have said that: before hosts were checked, controllers wrote down whatever these sent."""
        try:
            return check_event(self.run, record.host, Event(record.seq, record.what), catching_up=True) is not None
        except ProtocolError as e:
            note(f"left out of the journal: an event of host {record.host[:80]!r}: {str(e)[:200]}")
            return False

    def _config_of(self, host: HostPlan, seat: AgentPlace) -> Callable[[bool], AgentConfig]:
        def config(sweep: bool) -> AgentConfig:
            plan, member = self.run.plan, self._keys.of(host)
            return agent_config(self.dir, plan, host, seat, self._secrets, first=not sweep, membership=member)

        return config

    # ------------------------------------------------------------ what happens, and what follows

    def record(self, record: Record) -> None:
        """Write a fact down, let the state follow from it, and tell whom it concerns."""
        now = time.time()
        if isinstance(record, AgentLost):
            note(record.why)
        self._journal.append(now, record)
        self._apply(now, record)
        for host, subjects in self._changes.after(self.run, record).items():
            self.links[host].push(subjects)
        if self.run.ended:
            self._over.set()
        for mesh in self.run.meshes.values():
            if mesh.homeless and mesh.name not in self._moving:
                self._moving.add(mesh.name)
                self._tasks.begin(self._move(mesh))
        self._report_soon()

    def take_event(self, host: str, event: Event, *, catching_up: bool) -> bool:
        """Write down what happened on a host; False where that was known. Raises ProtocolError where it cannot be."""
        if check_event(self.run, host, event, catching_up=catching_up) is None:
            return False
        self.record(Happened(host, event.seq, event.what))
        return True

    async def _move(self, mesh: MeshState) -> None:
        """Find other hosts for a mesh that has lost one."""
        try:
            record: Record = Moved(await self._additions.replace(self.run, mesh))
        except ForgeError as e:
            lost = ", ".join(n for n in mesh.plan.hosts if self.run.hosts[n].given_up)
            record = Stranded(mesh.name, f"host {lost} was lost, and no other takes its place: {e.message}")
        self._moving.discard(mesh.name)
        self.record(record)

    async def _look_for_gpus(self, host: HostPlan) -> tuple[Gpu, ...]:
        """The GPUs of a host; none where it does not answer."""
        answer = await self.links[host.name].ask(GetGpus(host.gpus), HostGpus, GPU_SECONDS)
        return answer.gpus if answer else ()

    def changed(self) -> None:
        """Something is to be shown that is no fact of the journal."""
        self._report_soon()

    def _apply(self, when: float, record: Record) -> None:
        self.run.apply(when, record)
        if isinstance(record, (Happened, AgentLost)) and not self.run.hosts[record.host].plan.local:
            self.mirror.take(record)

    def logs_are_home(self, host: str) -> bool:
        """Whether the host's agent may go: of an ssh host, whose logs go with it."""
        return self.mirror.is_home(host)

    def commands_for(self, host: str, subjects: Collection[str] | None = None) -> list[Command]:
        """What a host's agent should be doing now; `subjects` as of `commands`."""
        return commands(self.run, host, subjects)

    def last_commands_for(self, host: str) -> list[Stop]:
        """What a host is told that will be given up."""
        return last_commands(self.run, host)

    def ask_stop(self, meshes: tuple[str, ...] | None, grace: float, by: str, exit_code: int = 0) -> None:
        """End meshes (None: the run), unless the run has ended."""
        if not self.run.ended:
            self.record(StopAsked(meshes, grace, by, exit_code))

    async def add_mesh(self, unit: Unit, named: bool) -> MeshAdded | Refusal:
        """Make one more mesh a part of the run."""
        try:
            plan = await self._additions.place(self.run, unit, named=named)
        except ForgeError as e:
            return Refusal.of(e)
        self.record(Added(plan))
        return MeshAdded(plan.mesh, self.run.meshes[plan.mesh].first)

    def take_report(self, report: Report) -> None:
        """What the driver made of a mesh."""
        if not self.run.ended:
            self.record(report)

    def owner_left(self) -> None:
        """The launch in the foreground is gone: so shall be its run."""
        self.ask_stop(None, FAILURE_GRACE, "the end of its launcher")

    async def use(self) -> Use:
        """What every rank uses now."""
        found: Use = {}
        parts = await asyncio.gather(*(link.stats() for link in self.links.values()))
        for host, part in zip(self.links, parts, strict=True):
            for mesh, ranks in own_use(self.run, host, part).items():
                found.setdefault(mesh, {}).update(ranks)
        return found

    def document(self, use: Use | None = None) -> RunStatus:
        """The run as `forgectl status` shows it."""
        return run_document(self.run, self.dir, use=use)

    def _report_soon(self) -> None:
        if not self._report_due:
            self._report_due = True
            wait = self._next_report - time.monotonic()
            asyncio.get_running_loop().call_later(max(0.0, wait), self._report)

    def _report(self) -> None:
        self._report_due, began = False, time.process_time()
        taken = not self.server.is_followed or self.server.broadcast(self.document())
        took = time.process_time() - began
        self._next_report = time.monotonic() + max(REPORT_SECONDS, REPORT_REST * took)
        if not taken:
            self._report_soon()  # somebody was too slow for this one

    # ------------------------------------------------------------ life

    async def serve(self, announce: Callable[[], None]) -> None:
        """Run until the run has ended and every agent has quit."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.ask_stop, None, FAILURE_GRACE, signal.Signals(number).name)
        await self.server.door.open()
        announce()
        self._watch_owner()
        links = [asyncio.create_task(link.run()) for link in self.links.values()]
        keepers = [asyncio.create_task(k) for k in self._keepers()]
        await self._over.wait()
        await self._say_farewell(links)
        for keeper in keepers:
            keeper.cancel()
        with contextlib.suppress(OSError):
            shutil.rmtree(self._messages, ignore_errors=True)
            shutil.rmtree(self._sockets)  # before the state is final: from then on nobody would clean up
        self._keys.forget()
        self._leave_final_state()
        await self.server.farewell(self.document())
        self._journal.close()

    def _keepers(self) -> tuple[Coroutine[Any, Any, None], ...]:
        return self.server.door.keep_open(), self.mirror.run(), self._keep_directory()

    async def _say_farewell(self, links: list[asyncio.Task[None]]) -> None:
        """Wait until every agent has quit, as long as logs come home or one might yet."""
        fetched = -1
        late = set(links)
        end = time.monotonic() + LOGS_SECONDS
        while late and fetched != self.mirror.fetched and time.monotonic() < end:
            fetched = self.mirror.fetched
            _, late = await asyncio.wait(late, timeout=FAREWELL_SECONDS)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)

    async def _keep_directory(self) -> None:
        """End a run whose directory was removed: nobody could find it any more."""
        while self.dir.plan_file.exists():
            await asyncio.sleep(LOOK_SECONDS)
        self.ask_stop(None, FAILURE_GRACE, "the removal of its run directory")

    def _leave_final_state(self) -> None:
        final = run_document(self.run, self.dir, alive=False)
        with contextlib.suppress(OSError):  # a full disk: the journal says the same, less handily
            self.dir.write_final(final)

    def _watch_owner(self) -> None:
        """Notice the end of the launch in the foreground even while it is not connected, or was not yet."""
        if self.run.owner is None:
            if self.dir.owned_file.exists():  # who held the lock until we got it, and died before it named itself
                self.owner_left()
            return
        pidfd = open_pidfd(self.run.owner)
        if pidfd is None:
            self.owner_left()
            return
        loop = asyncio.get_running_loop()

        def left(pidfd: int) -> None:
            loop.remove_reader(pidfd)
            os.close(pidfd)
            self.owner_left()

        loop.add_reader(pidfd, left, pidfd)


def _may_answer(host: HostPlan, seat: AgentPlace) -> bool:
    """Whether an agent listens on the host; of an ssh host that takes a while to learn (AgentLink does)."""
    if not host.local:
        return True
    try:
        dial(seat.socket, 5.0).close()
        return True
    except OSError:
        return False


def main(arguments: list[str]) -> None:
    """`boot.py controller RUN_DIR [--adopt] [--lock=FD] [--owner=PID] [--handed=JSON]`.

    Says `ready` once the run has a controller, which it gets only where no other user can have touched it. Secrets
    come as JSON on standard input. `--lock` is the inherited lock of the run, `--owner` the parent, `--handed` what
    `transport.ways` takes, by host.
    """
    options = dict(a.split("=", 1) for a in arguments[1:] if "=" in a)
    try:
        run_dir = RunDir.existing(Path(arguments[0]))
        sockets = run_dir.sockets
    except NotOursError as e:
        sys.exit(e.message)
    owner = _parent(int(options["--owner"])) if "--owner" in options else None
    secrets = json.loads(sys.stdin.buffer.readline() or b"{}")
    handed: Handed = json.loads(options.get("--handed", "{}"))
    for fd in (fd for fds in handed.values() for fd in fds):
        os.set_inheritable(fd, False)
    if "--lock" in options:
        os.set_inheritable(int(options["--lock"]), False)
    elif not _become_the_one(run_dir):
        os.write(1, b"ready\n")
        return
    if run_dir.read_final() is None:
        private_folder(sockets)  # not before: of a run that has ended nobody would remove it
        asyncio.run(_run(run_dir, secrets, "--adopt" in arguments, owner, handed))
    else:
        os.write(1, b"ready\n")


def _parent(pid: int) -> Identity:
    """The identity of our parent; one that fits no process if it has ended already."""
    identity = identify(pid)
    if identity is None or os.getppid() != pid:
        return Identity(pid, 0, boot_id())
    return identity


def _become_the_one(run_dir: RunDir) -> bool:
    """Take the run's lock, or wait until whoever has it listens (False) or has ended."""
    while run_dir.lock_controller() is None:  # held until this process ends
        try:
            dial(run_dir.control_socket, 5.0).close()
            return False
        except NotOursError as e:
            sys.exit(e.message)
        except OSError:
            time.sleep(0.02)
    return True


async def _run(run_dir: RunDir, secrets: dict[str, str], adopt: bool, owner: Identity | None, handed: Handed) -> None:
    def announce() -> None:
        os.write(1, b"ready\n")
        os.dup2(2, 1)  # the log: whoever waits for the line above sees the end of the pipe

    await Controller(run_dir, secrets, adopt, owner, handed).serve(announce)

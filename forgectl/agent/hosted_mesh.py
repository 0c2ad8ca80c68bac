"""The share of one mesh that runs on this host: its GPU leases, its generation, its ranks, its store."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import json
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path
from typing import Any

from forgectl.agent import rank_logs
from forgectl.agent.enclosure.enclosure import Enclosure
from forgectl.agent.enclosure.oom import OomWitness
from forgectl.agent.forkserver.forks import ForkedProcess, ForkServer, ForkServerError
from forgectl.agent.log_clock import LogClock
from forgectl.agent.reports import exit_report
from forgectl.agent.run_leases import RunLeases
from forgectl.agent.stacks import LiveRank, place_of, remove
from forgectl.errors import NotInstalledError
from forgectl.hosts import gpu_leases, interface
from forgectl.hosts.installation import install_command
from forgectl.model.environment import launch_environment
from forgectl.model.mesh_share import MeshShare
from forgectl.names import STOP_FILE
from forgectl.protocol.supervision import (
    Happening,
    MeshGone,
    Notice,
    Prepared,
    RankStarted,
    Refused,
    Start,
    StartFailed,
    Stop,
    StoreOpened,
)
from forgectl.system.files import write_whole
from forgectl.system.processes import Identity
from forgectl.system.shared_folders import SharedFolders
from forgectl.wire.codec import to_json
from forgectl.wire.envelope import Refusal
from forgectl.wire.unix_sockets import listen_tcp, private_folder

HUNG_SECONDS = 10.0
"""A fork server that only has to report ended children, and takes longer than this, is hung."""


class Generation:
    """One start of the mesh on this host, from its store's socket to its last process."""

    def __init__(self, number: int, enclosure: Enclosure) -> None:
        self.number = number
        self.enclosure = enclosure
        self.oom = OomWitness(enclosure.cgroup.path if enclosure.cgroup else None)
        self.oom.note()
        self.listener: socket.socket | None = None
        self.server: ForkServer | None = None
        self.store: ForkedProcess | None = None
        self.starting: asyncio.Task[None] | None = None
        self.ending: asyncio.Task[None] | None = None
        self.stopping = asyncio.Event()
        self.ranks: dict[int, ForkedProcess] = {}
        self.places: dict[int, str] = {}  # where each can be asked for its stacks
        self.watchers: list[asyncio.Task[None]] = []
        self.log_files: list[Path] = []
        self.log_clock = LogClock()


class HostMesh:
    """Carries out what the controller commands for one mesh; every command may come twice."""

    def __init__(
        self,
        share: MeshShare,
        first: int,
        *,
        before: int = 0,
        run: str,
        run_dir: Path,
        messages: Path,
        shared: SharedFolders,
        place: str,
        agent: str,
        stacks: Path,
        input: str,
        emit: Callable[[Happening], None],
        fork_server: Callable[[MeshShare], ForkServer],
        leases: RunLeases,
    ) -> None:
        self.share = share
        self.first = first
        self._before = before
        self.run = run
        self.host = share.host
        self._run_dir = run_dir
        self._messages = messages  # the folder of actors' sockets
        self._shared = shared
        self._place = place
        self._agent = agent  # this agent's own socket
        self._stacks = stacks  # the folder in which ranks can be asked where they are
        self._input = input  # the socket that lends the one rank of the run its standard input, or ""
        self._logs = run_dir / "logs" / share.mesh
        self._emit = emit
        self._fork_server = fork_server
        self._leases = leases
        self._lease: gpu_leases.GpuLease | None = None
        self._unguarded = False  # whether it was reported that other users can reach the store
        self.preparing: asyncio.Task[None] | None = None
        self.generation: Generation | None = None

    # ------------------------------------------------------------ prepare and release

    def prepare(self) -> None:
        """Lease the GPUs and start warming the fork server; report why if that fails."""
        if self.preparing is None:
            self.preparing = asyncio.create_task(self._prepare())

    async def _prepare(self) -> None:
        if self.share.stays and (why := self._no_messages()):
            await self._refuse(69, f"on host {self.host}: {why}", "remove it, or have its owner do so")
            return
        try:
            self._fork_server(self.share)  # first: it warms while we wait for GPUs
            if self.share.gpus:
                self._lease = await self._leases.acquire(self.share.gpus, mesh=self.share.mesh)
        except gpu_leases.GpuTaken as e:
            hint = "wait, or end the holder; `forgectl status` shows the runs of this user"
            await self._refuse(75, f"on host {self.host}: {e}", hint)
        except KeyError as e:
            hint = "a controller that took over does not know secrets; launch the run again"
            await self._refuse(69, f"on host {self.host}: the secret {e.args[0]} is not known any more", hint)
        except OSError as e:
            what = f"on host {self.host}: cannot start {self.share.python}: {e.strerror}"
            full = e.errno in (errno.ENOSPC, errno.EDQUOT)
            await self._refuse(75 if full else 66, what, "free some disk space" if full else "check `python:`")
        else:
            self._emit(Prepared(self.share.mesh))

    def _no_messages(self) -> str:
        """Why the folder for the sockets of actors' ranks cannot be used; "" if it can."""
        try:
            private_folder(self._messages.parent if self._place == "" else self._messages)
            private_folder(self._messages)
        except OSError as e:
            return f"there is no folder for its sockets: {e}"
        return ""

    async def _refuse(self, code: int, message: str, hint: str) -> None:
        await self.release()
        self._emit(Refused(self.share.mesh, Refusal(code, message, hint)))

    async def release(self) -> None:
        """Give the GPUs back and need no fork server. Call it only once every process of the mesh is gone."""
        if self.preparing is not None and self.preparing is not asyncio.current_task():
            await self.preparing
        if self._lease is not None:
            self._lease.release()
            self._lease = None
        self.preparing = None

    # ------------------------------------------------------------ a generation

    def _enter(self, number: int) -> Generation | None:
        """The generation `number`, created if it is new; None if a later one has begun."""
        now = self.generation
        if now is None or now.number < number:
            enclosure = Enclosure.create(self.run, self.host, self.share.mesh, number)
            self.generation = now = Generation(number, enclosure)
        return now if now.number == number else None

    def open_store(self, number: int, address: str) -> None:
        """Bind the rendezvous socket of a generation and report its port."""
        generation = self._enter(number)
        if generation is None or generation.listener is not None or generation.stopping.is_set():
            return
        try:
            generation.listener = listen_tcp(address)
        except OSError as e:
            message = f"cannot bind a port on {address} of host {self.host}: {e.strerror}"
            self._emit(StartFailed(self.share.mesh, number, message))
            return
        self._emit(StoreOpened(self.share.mesh, number, generation.listener.getsockname()[1]))

    def start(self, order: Start) -> None:
        """Fork this host's ranks."""
        generation = self._enter(order.generation)
        if generation is None or generation.starting is not None or generation.stopping.is_set():
            return
        generation.starting = asyncio.create_task(self._start(generation, order))

    async def _start(self, generation: Generation, order: Start) -> None:
        try:
            private_folder(self._stacks)
            server = generation.server = self._fork_server(self.share)
            if not await self._warm(server, generation):
                return
            if generation.listener is not None:
                await self._serve_store(server, generation, order.master_addr)
            elif self.share.hosts > 1 and self._serves_at_once(server):
                await interface.check_reachable(order.master_addr, order.master_port)
            await asyncio.gather(*(self._start_rank(server, generation, order, n) for n in self.share.ranks))
        except ForkServerError as e:
            if generation.stopping.is_set():
                return
            what = f"could not start on host {self.host}: {e}"
            self._emit(StartFailed(self.share.mesh, generation.number, what, e.detail, *self._lacking(e.absent)))
        except OSError as e:
            what = f"could not start on host {self.host}: {e}"
            self._emit(StartFailed(self.share.mesh, generation.number, what))

    def _lacking(self, module: str) -> tuple[int, str | None]:
        """The exit code and the hint for a module that cannot be preloaded as it is not installed; "": for all else."""
        if not module:
            return 1, None
        if module != "torch":
            return NotInstalledError.exit_code, f"install it for {self.share.python}, or correct `preload`"
        return NotInstalledError.exit_code, install_command(self.share.python, "torch", ["torch", "numpy"])

    @staticmethod
    async def _warm(server: ForkServer, generation: Generation) -> bool:
        """Wait until the server is warm; False if the generation is stopped meanwhile. Raises ForkServerError."""
        stopped = asyncio.ensure_future(generation.stopping.wait())
        either: set[asyncio.Future[Any]] = {server.warm, stopped}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if generation.stopping.is_set():
            return False
        server.check_warm()
        return True

    async def _serve_store(self, server: ForkServer, generation: Generation, address: str) -> None:
        """Serve the store: now if ranks will need it at once, else when somebody first dials it."""
        if self._serves_at_once(server):
            await self._fork_store(server, generation, address)
            return
        assert generation.listener is not None
        loop = asyncio.get_running_loop()

        def on_dial() -> None:
            assert generation.listener is not None
            loop.remove_reader(generation.listener)
            generation.watchers.append(loop.create_task(self._fork_store(server, generation, address)))

        generation.listener.setblocking(False)
        loop.add_reader(generation.listener, on_dial)

    def _serves_at_once(self, server: ForkServer) -> bool:
        """Whether to fork the store now: ranks will dial it soon, and other hosts' agents dial it before they start."""
        wanted = not self.share.stays or self.share.hosts > 1
        return wanted and server.has_torch

    async def _fork_store(self, server: ForkServer, generation: Generation, address: str) -> None:
        listener = generation.listener
        if listener is None or generation.stopping.is_set():
            return
        listener.setblocking(True)
        request = {"what": "store", "address": address, "world_size": self.share.world_size}
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        generation.watchers.append(asyncio.create_task(self._report_unguarded(ours)))
        with theirs:
            generation.store = await server.fork(request, [listener.fileno(), theirs.fileno()])
        listener.close()

    async def _report_unguarded(self, report: socket.socket) -> None:
        """Report once why other users can reach the store, if they can and should not."""
        with report:
            why = await asyncio.get_running_loop().sock_recv(report, 1000)
        if why and not self._unguarded:
            self._unguarded = True
            what = f"other users of host {self.host} can reach the rendezvous store of this mesh: {why.decode()}"
            self._emit(Notice(self.share.mesh, what))

    async def _start_rank(self, server: ForkServer, generation: Generation, order: Start, rank: int) -> ForkedProcess:
        if generation.stopping.is_set():
            raise ForkServerError("stopped before it began")
        folder = self._logs / str(generation.number)
        log_path = folder / f"rank-{rank}.log"
        error_path = folder / f"rank-{rank}.error.json"
        place = place_of(self._stacks, self.share.mesh, generation.number, rank)
        log = rank_logs.open_log(log_path)
        try:
            launch = launch_environment(
                self.run,
                generation.number - self.first + self._before,
                order.master_addr,
                order.master_port,
                str(error_path),
                self._shared,
            )
            request = {
                "what": "rank",
                "env": {
                    **self._network(order.master_addr),
                    **self.share.environment(rank),
                    **launch,
                    **self._context(generation.number),
                },
                "cgroup": str(generation.enclosure.cgroup_procs_path or ""),
                "workdir": self.share.workdir,
                "start_method": self.share.start_method,
                "stacks": place if self.share.program.kind != "command" else "",
                "input": self._input if self.share.kind == "script" else "",
                "program": {
                    "kind": self.share.program.kind,
                    "target": self.share.program.target,
                    "args": list(self.share.program.args),
                },
            }
            child = await server.fork(request, [log, *(self._lease.locks if self._lease else ())])
        finally:
            os.close(log)
        identity = child.identity
        generation.enclosure.add(identity)
        generation.ranks[rank] = child
        generation.places[rank] = place
        generation.log_files.append(log_path)
        generation.log_clock.add(log_path)
        self._emit(
            RankStarted(self.share.mesh, generation.number, rank, identity.pid, identity.start_time, str(log_path))
        )
        watcher = self._watch(generation, rank, child, log_path, error_path)
        generation.watchers.append(asyncio.create_task(watcher))
        return child

    def _network(self, master_addr: str) -> dict[str, str]:
        return interface.gloo_environment(master_addr, self.share.env) if self.share.hosts > 1 else {}

    def _context(self, generation: int) -> dict[str, str]:
        """The variables that the driver and actors need to reach their run."""
        if self.share.kind == "driver":
            return {"FORGE_RUN_DIR": str(self._run_dir), "FORGE_GENERATION": str(generation)}
        if not self.share.stays:
            return {}
        return {
            "FORGE_RUN_DIR": str(self._run_dir),
            "FORGE_GENERATION": str(generation),
            "FORGE_MESSAGES": str(self._messages),
            "FORGE_PLACE": self._place,
            "FORGE_AGENT": self._agent,
        }

    async def _watch(self, generation: Generation, rank: int, child: ForkedProcess, log: Path, error: Path) -> None:
        status, when = await child.exited
        os.close(child.pidfd)
        generation.log_clock.note()
        if generation.enclosure.cgroup is None:
            generation.enclosure.members()  # look now: what it leaves behind is found through it
        report = exit_report(
            self.share.mesh,
            generation.number,
            rank,
            status=status,
            exited_at=when,
            asked=generation.stopping.is_set(),
            oom=generation.oom.killed(child.identity.pid) if os.WIFSIGNALED(status) else None,
            log=log,
            error_file=error,
        )
        if child.orphaned and report.signal == signal.SIGKILL and not (report.asked or report.error):
            report = dataclasses.replace(report, error=f"{child.orphaned}, and its ranks with it")
        if rank_logs.disk_is_full(log):
            self._emit(Notice(self.share.mesh, f"{log.name}: its last lines may be lost, since the disk is full"))
        self._emit(report)

    # ------------------------------------------------------------ the end of a generation

    def stop(self, order: Stop) -> None:
        """End a generation; a second order can only shorten its grace."""
        generation = self.generation
        if generation is None or generation.number < order.generation:
            self._emit(MeshGone(self.share.mesh, order.generation))  # it never started here
            return
        if generation.number > order.generation:
            return
        if generation.ending is None:
            generation.stopping.set()
            generation.ending = asyncio.create_task(self._end(generation, order))
        else:
            generation.enclosure.hurry(order.grace)

    async def _end(self, generation: Generation, order: Stop) -> None:
        if generation.starting is not None:  # a requested fork must be known before it can be ended
            await self._wait_for_server(generation, generation.starting)
        if self.share.stays and order.grace > 0:
            self._leave_reason(order)
        report = await generation.enclosure.end(order.grace)
        await self._wait_for_server(generation, self._end_store(generation))
        generation.log_clock.note()  # what others than ranks wrote at last
        unkillable = tuple(str(p) for p in report.unkillable)
        if not unkillable:
            await self._wait_for_server(generation, asyncio.gather(*generation.watchers, return_exceptions=True))
            generation.enclosure.close()
            generation.oom.close()
            remove(generation.places.values())
        self._emit(MeshGone(self.share.mesh, generation.number, report.killed, unkillable))

    def _leave_reason(self, order: Stop) -> None:
        """Write down why they are to end, for actors to read at SIGTERM, which carries no text."""
        path = self._logs / str(order.generation) / STOP_FILE
        with contextlib.suppress(OSError):  # the disk is full, or no rank was started
            write_whole(path, json.dumps(to_json(order)).encode())

    @staticmethod
    async def _wait_for_server(generation: Generation, what: Awaitable[Any]) -> None:
        """Wait for work that the fork server does at once. If it hangs, end it: its children become the agent's."""
        task = asyncio.ensure_future(what)
        _, late = await asyncio.wait({task}, timeout=HUNG_SECONDS)
        if late and generation.server is not None:
            generation.server.stop()
        await task

    @staticmethod
    async def _end_store(generation: Generation) -> None:
        if generation.listener is not None:
            with contextlib.suppress(OSError, ValueError):
                asyncio.get_running_loop().remove_reader(generation.listener)
            generation.listener.close()
        if (child := generation.store) is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(child.pidfd, signal.SIGKILL)
            await child.exited
            os.close(child.pidfd)

    def log_files(self) -> list[Path]:
        """The logs of the current generation."""
        return self.generation.log_files if self.generation is not None else []

    def note_log_times(self) -> None:
        """Note when the logs of the current generation have grown."""
        if self.generation is not None:
            self.generation.log_clock.note()

    def live_ranks(self, wanted: Collection[int]) -> list[LiveRank]:
        """Those of the wanted ranks that run now."""
        if self.generation is None:
            return []
        places, share = self.generation.places, self.share
        return [
            LiveRank(n, self.host, identity, places[n], share.workdir, share.python)
            for n, identity in self.rank_identities().items()
            if n in wanted and n in places
        ]

    def watched_ranks(self) -> dict[LiveRank, Path]:
        """The ranks that run and should make progress, with their logs. A driver may wait for its meshes for ever."""
        generation = self.generation
        unwatched = self.share.kind == "driver" or self.share.hang.do == "nothing"
        if generation is None or generation.stopping.is_set() or unwatched:
            return {}
        logs = self._logs / str(generation.number)
        return {rank: logs / f"rank-{rank.rank}.log" for rank in self.live_ranks(self.share.ranks)}

    def rank_identities(self) -> dict[int, Identity]:
        """Rank → its process, for the ranks that run now."""
        if self.generation is None:
            return {}
        return {n: c.identity for n, c in self.generation.ranks.items() if not c.exited.done()}

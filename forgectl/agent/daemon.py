"""The agent: owns all of one run on one host, obeys a controller, and fences itself when no controller reaches it."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import shutil
import tempfile
import time
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from forgectl.agent.enclosure.enclosure import sweep_run
from forgectl.agent.event_log import EventLog
from forgectl.agent.forkserver.forks import ForkServerError
from forgectl.agent.forkserver.pool import ForkServers
from forgectl.agent.forkserver.spawn import StartedForkServer
from forgectl.agent.hang_watch import HangWatch
from forgectl.agent.hosted_mesh import HostMesh
from forgectl.agent.log_clock import LOOK_SECONDS
from forgectl.agent.log_parts import read_logs
from forgectl.agent.messengers import Messengers
from forgectl.agent.reaper import Reaper
from forgectl.agent.run_leases import RunLeases
from forgectl.agent.stacks import StackReader
from forgectl.agent.usage import UseMeter
from forgectl.errors import ForgeError
from forgectl.hosts.gpus import NoSuchGpu, discover
from forgectl.model.status import OVER
from forgectl.names import NAME, socket_prefix
from forgectl.protocol.supervision import (
    CONTROLLER_TO_AGENT,
    FOLLOWER_TO_AGENT,
    Ack,
    AgentConfig,
    Event,
    Follow,
    GetGpus,
    GetStacks,
    GetStats,
    HostGpus,
    Links,
    Membership,
    MeshGone,
    MeshNews,
    MessengerGone,
    Notice,
    OpenMessenger,
    OpenStore,
    Ping,
    Pong,
    Prepare,
    Quit,
    ReadLogs,
    Release,
    Stacks,
    StandBy,
    StandingBy,
    Start,
    Stats,
    Stop,
    Synced,
    Welcome,
)
from forgectl.redaction import Redaction
from forgectl.system.log_cap import LogCap
from forgectl.system.processes import boot_id
from forgectl.system.shared_folders import keep, shared_folders
from forgectl.system.tasks import Background
from forgectl.version import __version__
from forgectl.wire.envelope import Hello, ProtocolError
from forgectl.wire.listener import Listener
from forgectl.wire.stream import Stream
from forgectl.wire.unix_sockets import HANDSHAKE_SECONDS, private_folder, wrong_version

LOG_CHECK_SECONDS = 1.0


class Agent:
    """Everything of one run on one host."""

    def __init__(self, config: AgentConfig, warming: Iterable[StartedForkServer] = ()) -> None:
        self.config = config
        self.run_dir = Path(config.run_dir)
        redaction = Redaction(config.secrets.values())
        self.events = EventLog(redaction)
        self.meshes: dict[str, HostMesh] = {}
        self.reaper = Reaper(asyncio.get_running_loop())
        self.use = UseMeter()
        self.stacks = StackReader(redaction)
        self.hangs = HangWatch(self.meshes, self.events.emit)
        self.log_cap = LogCap(config.log_limit)
        self.lease_start = time.monotonic()  # when the last message was sent that the controller surely received
        self._last_sent = self.lease_start  # when the last Welcome or Pong was sent
        self.done = asyncio.Event()
        self._leases = RunLeases(config.run, config.host)
        self._servers = ForkServers(config, self.reaper, warming)
        self._messages = Path(config.messages) if config.messages else messages_folder(self.run_dir, config.membership)
        self._messengers = self._messengers_of(config)
        self._shared = shared_folders(config.run, self.run_dir, config.host)
        self._keeps_shared = keep(self._shared)
        self._news: dict[str, MeshNews] = {}
        self._followers: set[Stream] = set()
        self._stream: Stream | None = None
        self._tasks = Background()
        self._quitting: asyncio.Task[None] | None = None
        self.events.listener = self._pass_on

    async def serve(self) -> None:
        """Serve controllers until one sends Quit or the agent fences itself."""
        listener = Listener(Path(self.config.socket), self._on_connection)
        await listener.open()
        keep = (self._keep_lease(), self._keep_logs(), self._keep_log_times(), self.hangs.keep(), listener.keep_open())
        keepers = [asyncio.create_task(k) for k in keep]
        await self.done.wait()
        for keeper in keepers:
            keeper.cancel()
        listener.close()
        if self._stream is not None:
            await self._stream.close()
        self._remove_socket()

    def _remove_socket(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            Path(self.config.socket).unlink()

    # ------------------------------------------------------------ the controller's connection

    async def _on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        stream = Stream(reader, writer, (*CONTROLLER_TO_AGENT, *FOLLOWER_TO_AGENT))
        try:
            if not stream.is_ours():
                return
            first = await stream.receive(HANDSHAKE_SECONDS)
            if isinstance(first, Follow):
                await self._inform(stream, first)
            elif isinstance(first, Hello) and await self._greet(stream, first):
                await self._obey(stream)
        except (ProtocolError, asyncio.TimeoutError, ConnectionError) as e:
            log(f"connection dropped: {e!r}")
        finally:
            if self._stream is stream:
                self._stream = None
            stream.abort()

    async def _inform(self, stream: Stream, request: Follow) -> None:
        """Send the news of meshes to a process that has handles, until it ends."""
        if request.run != self.config.run or wrong_version(request.version):
            return
        self._followers.add(stream)
        try:
            for news in self._news.values():
                stream.send(news)
            stream.send(Synced())
            await stream.receive()  # it sends nothing more, so this returns at its end
        finally:
            self._followers.discard(stream)

    def _take_news(self, news: MeshNews) -> None:
        before = self._news.get(news.mesh)
        self._news[news.mesh] = news
        for stream in self._followers:
            stream.send(news)
        if self._messengers is not None and before is not None and before.generation < news.generation:
            self._messengers.ended(socket_prefix(news.mesh), before.generation)
        if self._messengers is not None and news.state in OVER:
            self._messengers.ended(socket_prefix(news.mesh), news.generation)

    async def _greet(self, stream: Stream, hello: Hello) -> bool:
        if hello.run != self.config.run:
            return False
        if await stream.refuse_version(hello):
            return False
        if self._stream is not None:
            self._stream.abort()  # only the newest controller counts
        self._stream = stream
        self._last_sent = time.monotonic()
        stream.send(Welcome(__version__, self.config.host, os.getpid(), boot_id()))
        for event in self.events.after(hello.since if hello.of == os.getpid() else 0):
            stream.send(event)
        stream.send(Synced())
        return True

    async def _obey(self, stream: Stream) -> None:
        while (command := await stream.receive()) is not None and self._stream is stream:
            self._carry_out(command)

    def _pass_on(self, event: Event) -> None:
        if self._stream is not None:
            self._stream.send(event)

    def _answer(self, message: Any) -> None:
        if self._stream is not None:
            self._stream.send(message)

    # ------------------------------------------------------------ commands

    def _carry_out(self, command: Any) -> None:
        if isinstance(command, Ping):
            self.lease_start, self._last_sent = self._last_sent, time.monotonic()
            self._answer(Pong())
        elif isinstance(command, Ack):
            self.events.acknowledge(command.seq)
        elif isinstance(command, GetStats):
            ranks = {name: mesh.rank_identities() for name, mesh in self.meshes.items()}
            still = {name: self.hangs.still(mesh) for name, mesh in self.meshes.items()}
            self._answer(Stats(self.use.measure(ranks, still)))
        elif isinstance(command, GetStacks):
            self._tasks.begin(self._read_stacks(command))
        elif isinstance(command, ReadLogs):
            self._tasks.begin(self._read_logs(command))
        elif isinstance(command, GetGpus):
            self._tasks.begin(self._look_for_gpus(command))
        elif isinstance(command, StandBy):
            self._tasks.begin(self._stand_by(command))
        elif isinstance(command, Prepare):
            if not NAME.fullmatch(command.mesh.mesh):
                raise ProtocolError(f"{command.mesh.mesh[:80]!r} is not the name of a mesh")  # it becomes part of paths
            self._mesh(command).prepare()
        elif isinstance(command, Quit):
            self.quit(COMMANDED)
        elif isinstance(command, MeshNews):
            self._take_news(command)
        elif isinstance(command, (OpenMessenger, Links)):
            self._command_messengers(command)
        elif isinstance(command, (OpenStore, Start, Stop, Release)):
            self._command_mesh(command)

    def _messengers_of(self, config: AgentConfig) -> Messengers | None:
        if config.membership is None:
            return None

        def log_file(role: str) -> Path:
            return self.run_dir / "agents" / f"{config.host}.{role}.log"

        return Messengers(config.membership, self._messages, log_file, self.reaper, self.events.emit)

    def _command_messengers(self, command: OpenMessenger | Links) -> None:
        if self._messengers is None or self._quitting is not None:
            return
        if isinstance(command, Links):
            self._messengers.link(command)
            return
        try:
            private_folder(self._messages)
        except OSError as e:
            self.events.emit(MessengerGone(command.generation, f"it could not be started: {e}"))
        else:
            self._messengers.open(command.generation)

    async def _read_logs(self, request: ReadLogs) -> None:
        self._answer(await read_logs(self.run_dir / "logs", request))

    async def _read_stacks(self, request: GetStacks) -> None:
        wanted = {
            name: self.meshes[name].live_ranks(ranks) for name, ranks in request.ranks.items() if name in self.meshes
        }
        self._answer(Stacks(await self.stacks.look(wanted, native=request.native)))

    async def _stand_by(self, request: StandBy) -> None:
        """Be a spare: warm what ranks would need, and hold the GPUs until the agent ends. Answer once that is done."""
        why = ""
        try:
            servers = self._servers.stand_by(request.shares)
            if {g.uuid for g in request.gpus} - self._leases.uuids:
                await self._leases.acquire(request.gpus, mesh="spare")
            for server in servers:
                await asyncio.wait({server.warm})
                server.check_warm()
        except KeyError as e:
            why = f"the secret {e.args[0]} is not known any more"
        except (ForgeError, ForkServerError, OSError) as e:
            why = str(e)
        self._answer(StandingBy(why))

    async def _look_for_gpus(self, request: GetGpus) -> None:
        """Answer with the host's GPUs, those of this run as free; with none if one that the spec names is gone."""
        config = self.config
        machine = boot_id() if config.leaves else ""
        try:
            found = await asyncio.to_thread(
                discover, request.gpus, host=config.host, environ=os.environ, run=config.run, machine=machine
            )
            ours = self._leases.uuids
            gpus = (dataclasses.replace(g, holder=None) if g.uuid in ours else g for g in found.gpus)
            self._answer(HostGpus(tuple(gpus)))
        except (NoSuchGpu, ForgeError) as e:
            log(f"no GPUs: {e}")
            self._answer(HostGpus(()))

    def _command_mesh(self, command: OpenStore | Start | Stop | Release) -> None:
        mesh = self.meshes.get(command.mesh)
        if mesh is None:
            if isinstance(command, Stop):
                self.events.emit(MeshGone(command.mesh, command.generation))  # the mesh was never prepared here
        elif isinstance(command, Release):
            if mesh.first == command.generation:
                self._release_soon(mesh)
        elif isinstance(command, OpenStore):
            mesh.open_store(command.generation, command.address)
        elif isinstance(command, Start):
            mesh.start(command)
        else:
            mesh.stop(command)

    def _release_soon(self, mesh: HostMesh) -> None:
        self._tasks.begin(self._release(mesh))

    async def _release(self, mesh: HostMesh) -> None:
        await mesh.release()
        self._servers.keep(m.share for m in self.meshes.values() if m.preparing is not None)

    def _mesh(self, command: Prepare) -> HostMesh:
        share, first = command.mesh, command.generation
        known = self.meshes.get(share.mesh)
        if known is not None and known.first != first:  # that mesh has ended, and another one has its name now
            self._release_soon(known)
            known = None
        if known is None:
            self.meshes[share.mesh] = HostMesh(
                share,
                first,
                before=command.before,
                run=self.config.run,
                run_dir=self.run_dir,
                messages=self._messages,
                shared=self._shared,
                place=self.config.place,
                agent=self.config.socket,
                stacks=Path(self.config.socket).parent / "stacks",
                input=self.config.input,
                emit=self.events.emit,
                fork_server=self._servers.of,
                leases=self._leases,
            )
        return self.meshes[share.mesh]

    # ------------------------------------------------------------ keeping and ending

    async def _keep_lease(self) -> None:
        while True:
            left = self.lease_start + self.config.lease - time.monotonic()
            if left <= 0:
                self.quit(f"no controller for {self.config.lease:g} s")
                return
            await asyncio.sleep(left)

    async def _keep_log_times(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            for mesh in self.meshes.values():
                mesh.note_log_times()

    async def _keep_logs(self) -> None:
        while True:
            await asyncio.sleep(LOG_CHECK_SECONDS)
            owners = {p: m for m in self.meshes.values() for p in m.log_files()}
            for change in self.log_cap.check(list(owners)):
                if change.worth_reporting:
                    self.events.emit(Notice(owners[change.path].share.mesh, change.describe()))

    def quit(self, why: str) -> None:
        """End everything that is left, then the agent."""
        if self._quitting is None:
            log(f"quitting: {why}")
            self._quitting = asyncio.get_running_loop().create_task(self._quit(why))

    async def _quit(self, why: str) -> None:
        for mesh in self.meshes.values():
            if mesh.generation is not None:
                mesh.stop(Stop(mesh.share.mesh, mesh.generation.number, 0.0))
        endings = [m.generation.ending for m in self.meshes.values() if m.generation and m.generation.ending]
        await asyncio.gather(*endings, return_exceptions=True)
        for mesh in self.meshes.values():
            await self._release(mesh)
        if self._messengers is not None:
            self._messengers.stop()
        if self.config.leaves:
            shutil.rmtree(self._messages, ignore_errors=True)
        await sweep_run(self.config.run, self.config.host)
        self._shared.remove()
        if self.config.leaves and why == COMMANDED:
            shutil.rmtree(self.run_dir, ignore_errors=True)
            with contextlib.suppress(OSError):
                self.run_dir.parent.rmdir()  # the run's folder, unless another host of the run is still in it
        self.done.set()


COMMANDED = "the controller sent Quit"


def messages_folder(run_dir: Path, membership: Membership | None) -> Path:
    """The folder of an ssh host's sockets for messages: in /tmp, since a socket's address has at most 107 bytes.

    It is made at once where there will be messages. If another user guessed its name and made it first, a folder with
    another name takes its place.
    """
    folder = Path(f"/tmp/forgectl-{os.getuid()}-{zlib.crc32(os.fsencode(run_dir)):08x}")
    if membership is not None:
        try:
            private_folder(folder)
        except OSError as e:
            folder = Path(tempfile.mkdtemp(prefix=f"forgectl-{os.getuid()}-", dir="/tmp"))
            log(f"{e}; messages go by {folder}")
    return folder


def log(text: str) -> None:
    """Write a line to the agent's own log, if there is room: a full disk must not keep the agent from quitting."""
    with contextlib.suppress(OSError):
        os.write(2, f"{time.strftime('%H:%M:%S')} {text}\n".encode(errors="backslashreplace"))

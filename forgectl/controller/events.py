"""The events of a run, as its users see them. Pure: they follow from its records, the same ones from the same records.

So nothing is stored twice, and no event can be lost or doubled by the death of a controller.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from forgectl.controller.causes import failure_in, hang_of
from forgectl.controller.records import (
    Added,
    Adopted,
    AgentLost,
    AgentUp,
    Born,
    Diagnosed,
    Happened,
    HookEnded,
    Moved,
    Record,
)
from forgectl.controller.restarts import policy_of, restart_text
from forgectl.controller.run_state import Run, replaced
from forgectl.controller.state import MOST_TEXT, MeshState, RankState, describe
from forgectl.model.event import EventName, Failure, RunEvent
from forgectl.model.status import OVER, MeshStateName, RunStateName
from forgectl.names import DRIVER
from forgectl.protocol.supervision import Notice, RankExited, RankStarted


class _Seen(NamedTuple):
    """A mesh as it was after the last record."""

    state: MeshStateName
    generation: int
    failed: bool
    restarts: int
    asked: str | None
    cause: str | None
    detail: str
    hangs: bool  # and was looked at
    ended_by_hang: bool
    ranks: Mapping[int, RankState]  # those of that generation, which keep changing with it
    hosts: tuple[str, ...]

    @property
    def waits(self) -> bool:
        """Whether its generation begins once its hosts are ready: one that ends has failed, or was asked to."""
        return self.state in ("pending", "restarting") and not self.failed and self.asked is None

    @classmethod
    def of(cls, m: MeshState) -> _Seen:
        asked = m.again.by if m.again else None
        return cls(
            *(m.state, m.generation, m.failed, len(m.restarts), asked, m.cause, m.detail),
            *(m.diagnosed is not None, m.ended_by_hang, m.ranks, m.plan.hosts),
        )


class Events:
    """Follows a run: `after` must be called after every record, in their order."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self.count = 0
        self.failing: dict[str, int] = {}  # mesh → the number of the event that has its incident
        self._meshes = {m.name: _Seen.of(m) for m in run.meshes.values()}
        self._state: RunStateName = run.state
        self._was_up = run.was_up
        self._read: dict[str, int] = {}  # host → the number of the last event of its agent
        self._agents: dict[str, tuple[int, str]] = {}  # host → pid and boot of the agent that was not lost yet
        self._now, self._monotonic = 0.0, None  # type: tuple[float, float | None]

    def after(self, record: Record, now: float, monotonic: float | None) -> list[RunEvent]:
        """What has happened with a record, which was applied to the run at `now`; both times in seconds."""
        self._now, self._monotonic = now, monotonic
        found = [*self._of_record(record)]
        for mesh in self._run.meshes.values():
            before, after = self._meshes.get(mesh.name), _Seen.of(mesh)
            self._meshes[mesh.name] = after
            if before is not None and before != after and before[:4] != after[:4]:
                found += self._of_mesh(mesh, before, after)
            elif before is not None and before.hangs and not after.hangs:
                found.append(
                    self._event("mesh_resumed", "it makes progress again", mesh=mesh.name, generation=after.generation)
                )
        return [*found, *self._of_run()]

    def _event(self, event: EventName, message: str, **more: Any) -> RunEvent:
        self.count += 1
        return RunEvent(self.count, self._now, self._monotonic, event, self._run.id, message, **more)

    # ------------------------------------------------------------ what a record says by itself

    def _of_record(self, record: Record) -> Iterator[RunEvent]:
        if self._state in OVER and not isinstance(record, HookEnded):
            return  # only cleaning up: with `run_ended` all has been said
        if isinstance(record, Born):
            yield self._born(record)
        elif isinstance(record, AgentUp):
            yield from self._agent_up(record)
        elif isinstance(record, AgentLost):
            self._agents.pop(record.host, None)
            yield self._event("host_lost", record.why, host=record.host)
        elif isinstance(record, Added):
            yield self._event("mesh_added", _size(record.plan.procs), mesh=record.plan.mesh)
        elif isinstance(record, Adopted):
            generation = self._run.meshes[DRIVER].generation
            yield self._event("mesh_adopted", f"by generation {generation} of the driver", mesh=record.mesh)
        elif isinstance(record, Moved):
            message = f"its next generation is on {', '.join(record.plan.hosts)}"
            before = self._meshes[record.plan.mesh].hosts if record.plan.mesh in self._meshes else ()
            came = {host for host in record.plan.hosts if host not in before}
            took = [f"{new} takes the place of {old}" for old, new in self._run.heirs.items() if new in came]
            message += f": spare {', '.join(took)}" if took else ""
            yield self._event("mesh_moved", message, mesh=record.plan.mesh)
        elif isinstance(record, Diagnosed):
            mesh = self._run.meshes.get(record.mesh)
            if record.call:
                yield self._event("call_timed_out", record.message, mesh=record.mesh, generation=record.generation)
            elif mesh is not None and mesh.diagnosed is record:
                yield self._hung(mesh, record)
        elif isinstance(record, HookEnded) and record.why:
            yield self._event("hook_failed", f"`on: {record.hook}` for event {record.seq}: {record.why}")
        elif isinstance(record, Happened) and self._read.get(record.host, 0) < record.seq:
            self._read[record.host] = record.seq
            yield from self._of_host(record)

    def _hung(self, mesh: MeshState, record: Diagnosed) -> RunEvent:
        policy = policy_of(mesh, self._now) if mesh.ended_by_hang else "reported only: nothing was ended"
        failure = hang_of(mesh, record, policy)
        self.failing[mesh.name] = self.count + 1
        about = {"mesh": mesh.name, "generation": record.generation, "rank": failure.rank, "host": failure.host}
        return self._event("mesh_hung", record.message, **about, failure=_at(failure, self._now))

    def _born(self, record: Born) -> RunEvent:
        if record.adopted:
            return self._event("controller_replaced", f"controller {record.pid} took over", pid=record.pid)
        plan = self._run.plan
        meshes = ", ".join(f"{m.mesh} ({_size(m.procs)})" for m in plan.meshes[:8])
        more = f" and {len(plan.meshes) - 8} more" if len(plan.meshes) > 8 else ""
        return self._event("run_started", f"{meshes}{more}" or "no meshes yet", pid=record.pid)

    def _agent_up(self, record: AgentUp) -> Iterator[RunEvent]:
        self._read.pop(record.host, None)
        agent = record.pid, record.boot_id
        if (
            self._agents.setdefault(record.host, agent) != agent
        ):  # the controller that saw the loss died before it wrote it
            yield self._event("host_lost", replaced(record.host), host=record.host)
        self._agents[record.host] = agent
        yield self._event("host_up", f"agent {record.pid} answers", host=record.host, pid=record.pid)

    def _of_host(self, record: Happened) -> Iterator[RunEvent]:
        what, host = record.what, record.host
        if isinstance(what, Notice):
            yield self._event("notice", what.message[:MOST_TEXT], mesh=what.mesh, host=host)
        elif isinstance(what, RankStarted):
            place = {"mesh": what.mesh, "generation": what.generation, "rank": what.rank, "host": host}
            yield self._event("rank_started", f"pid {what.pid} on {host}", **place, pid=what.pid)
        elif isinstance(what, RankExited):
            yield from self._of_rank(what, host)

    def _of_rank(self, what: RankExited, host: str) -> Iterator[RunEvent]:
        mesh = self._run.meshes.get(what.mesh)
        before = self._meshes.get(what.mesh)
        if mesh is None or before is None:
            return
        ranks = mesh.ranks if mesh.generation == what.generation else before.ranks
        if (rank := ranks.get(what.rank)) is None:
            return
        yield self._event(
            "rank_exited",
            describe(rank),
            mesh=what.mesh,
            generation=what.generation,
            rank=what.rank,
            host=host,
            pid=rank.pid,
            exit_code=what.exit_code,
            signal=what.signal,
        )

    # ------------------------------------------------------------ what follows for a mesh

    def _of_mesh(self, mesh: MeshState, before: _Seen, after: _Seen) -> Iterator[RunEvent]:
        same = before.generation == after.generation
        restarted = not same and after.restarts > before.restarts
        fails = (after.failed and not before.failed) if same else restarted and not before.failed
        if fails or (after.state in ("failed", "lost") and before.state != after.state and not before.failed):
            if before.waits:  # whoever reads of the end of a generation has read of its beginning
                number, message = before.generation, f"generation {before.generation} waited for its hosts"
                yield self._event("mesh_starting", message, mesh=mesh.name, generation=number, state=before.state)
            policy = restart_text(mesh, after.restarts) if restarted else policy_of(mesh, self._now)
            found = self._failure(mesh, before, after, policy)
            if not after.ended_by_hang:  # else the event `mesh_hung` has its incident
                self.failing[mesh.name] = self.count + 1
            yield self._about("mesh_failing", mesh, found, before.generation, state=after.state)
        if restarted:
            found = self._failure(mesh, before, before, restart_text(mesh, after.restarts))
            yield self._about("mesh_restarted", mesh, found, before.generation)
        elif not same:
            yield self._asked(mesh, before)
        if before.state != after.state or not same:
            yield from self._of_state(mesh, before, after)

    def _of_state(self, mesh: MeshState, before: _Seen, after: _Seen) -> Iterator[RunEvent]:
        about: dict[str, Any] = {"mesh": mesh.name, "generation": after.generation, "state": after.state}
        if after.state == "starting":
            yield self._event("mesh_starting", f"generation {after.generation}", **about)
        elif mesh.up:
            yield self._event("mesh_up", f"{_size(mesh.plan.procs)} {after.state}", **about)
        elif after.state == "stopping" and mesh.stop is not None and not mesh.failed and not mesh.done:
            yield self._event("mesh_stopping", f"stopped by {mesh.stop.by}", **about, by=mesh.stop.by)
        elif after.state in ("failed", "lost"):
            found = self._failure(mesh, after, after, policy_of(mesh, self._now))
            yield self._about("mesh_failed", mesh, found, after.generation, state=after.state)
        elif after.state in OVER:
            by = mesh.stop.by if mesh.stop and after.state == "stopped" else None
            yield self._event("mesh_ended", f"stopped by {by}" if by else after.state, **about, by=by)

    def _failure(self, mesh: MeshState, of: _Seen, cause: _Seen, policy: str) -> Failure | None:
        """The failure of a generation: its ranks are those `of` then, what else is known is in `cause`."""
        return failure_in(
            mesh,
            of.generation,
            of.ranks,
            cause=cause.cause,
            detail=cause.detail,
            hung=cause.ended_by_hang,
            policy=policy,
        )

    def _about(
        self, event: EventName, mesh: MeshState, failure: Failure | None, generation: int, **more: Any
    ) -> RunEvent:
        message = f"{failure.message}; {failure.policy}".removesuffix("; ") if failure else mesh.last_failure or ""
        rank, host = (failure.rank, failure.host) if failure else (None, None)
        return self._event(
            event, message, mesh=mesh.name, generation=generation, host=host, failure=_at(failure, self._now),
            exit_code=failure.exit_code if failure else None, signal=failure.signal if failure else None,
            **({"rank": rank} if event == "mesh_failing" else {}), **more,
        )  # fmt: skip

    def _asked(self, mesh: MeshState, before: _Seen) -> RunEvent:
        """A new generation that is no restart after a failure: somebody asked for it, or it moves to other hosts."""
        by = before.asked
        message = f"restarted by {by}" if by else "begins anew"
        return self._event("mesh_restarted", message, mesh=mesh.name, generation=before.generation, by=by)

    # ------------------------------------------------------------ what follows for the run

    def _of_run(self) -> Iterator[RunEvent]:
        run = self._run
        if run.was_up and not self._was_up:
            yield self._event("run_up", "everything is up")
        before, self._state, self._was_up = self._state, run.state, run.was_up
        if run.state == before:
            return
        by = run.stop.by if run.stop else None
        if run.state == "stopping":
            yield self._event("run_stopping", f"by {by}" if by else "", by=by)
        elif run.ended:
            message = f"{run.state}, exit code {run.exit_code}"
            yield self._event("run_ended", message, state=run.state, exit_code=run.exit_code, by=by)


def _at(failure: Failure | None, now: float) -> Failure | None:
    """The failure, at the latest `now`: what is no rank's has no time of its own."""
    return failure and dataclasses.replace(failure, failed_at=failure.failed_at or now)


def _size(procs: int) -> str:
    return f"{procs} rank" + "s" * (procs != 1)

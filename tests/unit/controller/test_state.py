"""The run's state machine: recorded histories, replayed through the real one."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from forgectl.controller import backoff
from forgectl.controller.causes import reason
from forgectl.controller.commands import commands, key
from forgectl.controller.records import (
    AgentLost,
    AgentUp,
    Born,
    Diagnosed,
    Happened,
    Moved,
    Record,
    RestartAsked,
    StopAsked,
    TimeUp,
    Waited,
    from_line,
    to_line,
)
from forgectl.controller.run_dir import RunDir
from forgectl.controller.run_state import Run
from forgectl.controller.state import MESH_TRANSITIONS, MeshState, describe
from forgectl.controller.status_document import run_document
from forgectl.model.plan import (
    BACKOFF,
    HangAction,
    HangPolicy,
    HostPlan,
    MeshPlan,
    OnFailure,
    Plan,
    Program,
    RankPlan,
    RestartPolicy,
    Unit,
)
from forgectl.model.status import OVER
from forgectl.protocol.control import Report
from forgectl.protocol.supervision import (
    Happening,
    MeshGone,
    MeshNews,
    OpenStore,
    Prepare,
    Prepared,
    ProgressResumed,
    ProgressStopped,
    Quit,
    RankExited,
    RankStarted,
    Refused,
    Release,
    Start,
    StartFailed,
    Stop,
    StoreOpened,
)
from forgectl.system.processes import Identity
from forgectl.wire.envelope import Refusal


class History:
    """A run that is told what happened, one second after the other."""

    def __init__(self, *meshes: MeshPlan, hosts: tuple[str, ...] = ("a",), on_failure: OnFailure | None = None) -> None:
        plan = Plan(
            name="t",
            spec="",
            workdir="/",
            lease=30.0,
            log_limit=1 << 20,
            hosts=tuple(HostPlan(h, True, "python3", "127.0.0.1") for h in hosts),
            meshes=meshes,
            on_failure=on_failure,
        )
        self.run = Run.new("t-0000", plan)
        self.now = 1000.0
        self.seq = dict.fromkeys(hosts, 0)
        self.records: list[tuple[float, Record]] = []
        for index, host in enumerate(hosts):
            self.record(AgentUp(host, 100 + index, "boot"))

    def record(self, record: Record) -> None:
        self.now += 1.0
        self.records.append((self.now, record))
        self.run.apply(self.now, record)

    def happen(self, what: Happening, host: str = "a") -> None:
        self.seq[host] += 1
        self.record(Happened(host, self.seq[host], what))

    def mesh(self, name: str = "m") -> MeshState:
        return self.run.meshes[name]

    def told(self, host: str = "a") -> list[type]:
        return [type(c) for c in commands(self.run, host)]

    def start(self, name: str = "m") -> None:
        """Everything up to all ranks running, on all hosts of the mesh."""
        mesh = self.mesh(name)
        for host in mesh.plan.hosts:
            if host not in mesh.prepared:
                self.happen(Prepared(name), host)
        generation = mesh.generation
        self.happen(StoreOpened(name, generation, 4000 + generation), mesh.plan.hosts[0])
        for rank in mesh.plan.ranks:
            self.happen(RankStarted(name, generation, rank.rank, 500 + rank.rank, 1, "/log"), rank.host)

    def exit(self, rank: int, code: int | None = 0, signal: int | None = None, **more: object) -> None:
        mesh = self.mesh()
        host = mesh.plan.ranks[rank].host
        self.happen(RankExited("m", mesh.generation, rank, code, signal, **more), host)  # type: ignore[arg-type]

    def gone(self, name: str = "m") -> None:
        mesh = self.mesh(name)
        generation = mesh.generation
        for host in mesh.plan.hosts:
            self.happen(MeshGone(name, generation), host)

    def ring(self) -> float:
        """The next alarm goes off when it is due; how long that was from now."""
        [(record, (due, _))] = self.run.alarms().items()
        waited, self.now = due - self.now, due - 1.0  # `record` adds a second
        self.record(record)
        return waited

    def fail(self, name: str = "m", code: int | None = None) -> None:
        """Its first rank fails, each time in another way, and nothing is left of its generation."""
        mesh = self.mesh(name)
        code = 1 + mesh.generation if code is None else code
        self.happen(RankExited(name, mesh.generation, 0, code, None), mesh.plan.ranks[0].host)
        self.gone(name)


def mesh(
    name: str = "m", procs: int = 2, hosts: tuple[str, ...] = ("a",), kind: str = "script", **more: object
) -> MeshPlan:
    """A mesh in equal shares on hosts; `more` fields of its unit. One of kind actor stays until it is ended."""
    each = procs // len(hosts)
    unit = Unit(
        mesh=name,
        kind=kind,  # type: ignore[arg-type]
        program=Program("actor", "x:X") if kind == "actor" else Program("file", "x.py"),
        procs=procs,
        hosts=None,
        with_gpus=False,
        env={},
        python=None,
        preload=("torch",),
        start_method="fork",
        restart=RestartPolicy(),
    )
    return MeshPlan(
        unit=dataclasses.replace(unit, **more),  # type: ignore[arg-type]
        workdir="/",
        hosts=hosts,
        ranks=tuple(RankPlan(r, r % each, hosts[r // each], (), {}) for r in range(procs)),
        env={h: {} for h in hosts},
        gpus=dict.fromkeys(hosts, ()),
        python=dict.fromkeys(hosts, "python3"),
    )


def test_the_way_of_a_mesh_that_succeeds() -> None:
    h = History(mesh())
    assert (h.mesh().state, h.told()) == ("pending", [Prepare])
    h.happen(Prepared("m"))
    assert (h.mesh().state, h.told()) == ("starting", [OpenStore])
    h.happen(StoreOpened("m", 0, 4000))
    assert h.told() == [Start]
    h.happen(RankStarted("m", 0, 0, 500, 1, "/log"))
    assert h.mesh().state == "starting"
    h.happen(RankStarted("m", 0, 1, 501, 1, "/log"))
    assert (h.mesh().state, h.run.state, h.told()) == ("running", "running", [])
    h.exit(0)
    assert h.mesh().state == "running"
    h.exit(1)
    assert (h.mesh().state, h.told()) == ("stopping", [Stop])
    h.gone()
    assert (h.mesh().state, h.run.state, h.run.exit_code) == ("succeeded", "succeeded", 0)
    assert h.told() == [Quit]


def test_no_rank_starts_before_every_mesh_has_its_gpus() -> None:
    h = History(mesh("m"), mesh("n"))
    h.happen(Prepared("m"))
    assert h.told() == [Prepare]
    h.happen(Prepared("n"))
    assert h.told() == [OpenStore, OpenStore]


def test_a_refused_lease_rolls_the_launch_back() -> None:
    h = History(mesh("m"), mesh("n"))
    h.happen(Prepared("m"))
    h.happen(Refused("n", Refusal(75, "GPU 0 is taken", "wait")))
    assert h.told() == [Stop, Release]
    h.happen(MeshGone("m", 0))
    assert (h.run.state, h.run.exit_code, h.run.error and h.run.error.code) == ("failed", 75, 75)


def test_the_first_cause_is_told_from_what_fell_with_it() -> None:
    h = History(mesh(procs=3))
    h.start()
    h.exit(0, 1, error="RuntimeError: Connection closed by peer")
    h.exit(1, 1, error="ValueError: bad", failed_ago=2.5)  # it exited later, but failed before
    h.exit(2, None, 15, asked=True)
    root = h.mesh().root_cause()
    assert root is not None
    assert root.plan.rank == 1
    assert [r.plan.rank for r in h.mesh().collateral()] == [0]
    h.gone()
    assert (h.mesh().state, h.run.state, h.run.exit_code) == ("failed", "failed", 1)


def test_a_rank_that_lost_its_peer_is_not_the_cause() -> None:
    """The death of the peer is noticed later than its connections end."""
    lost = "RuntimeError: [pair.cc:537] Connection closed by peer [127.0.0.1]:4711"
    for end in ((None, 9), (6, None)):
        h = History(mesh(procs=2))
        h.start()
        h.exit(1, 1, error=lost, failed_ago=0.8)
        h.exit(0, *end, failed_ago=0.05)
        root = h.mesh().root_cause()
        assert root is not None and root.plan.rank == 0
    h = History(mesh(procs=2))
    h.start()
    h.exit(1, 1, error=lost, failed_ago=0.8)
    h.exit(0, 1, error=lost, failed_ago=0.2)
    root = h.mesh().root_cause()
    assert root is not None and root.plan.rank == 1, "of two, the first"


def test_the_exit_code_of_a_signal() -> None:
    h = History(mesh())
    h.start()
    h.exit(1, None, 9)
    h.exit(0, None, 15, asked=True)
    h.gone()
    assert h.run.exit_code == 137


def test_restart_makes_a_new_generation_until_the_limit() -> None:
    h = History(mesh(restart=RestartPolicy(max=1)))
    h.start()
    h.exit(0, 1)
    assert (h.mesh().state, h.told()) == ("restarting", [Stop])
    h.gone()
    assert (h.mesh().state, h.mesh().generation, h.told()) == ("starting", 1, [OpenStore])
    h.start()
    assert (h.mesh().state, len(h.mesh().restarts)) == ("running", 1)
    h.exit(0, 3)
    assert h.mesh().state == "stopping"
    h.gone()
    assert (h.mesh().state, h.run.exit_code) == ("failed", 3)


def test_restarts_are_forgotten_after_their_time() -> None:
    h = History(mesh(restart=RestartPolicy(max=1, within=60.0)))
    for _ in range(3):
        h.start()
        h.now += backoff.healthy_after(BACKOFF)
        h.exit(0, 1)
        h.gone()
    assert (h.mesh().state, h.mesh().generation) == ("starting", 3)


def test_events_of_an_older_generation_change_nothing() -> None:
    h = History(mesh(restart=RestartPolicy(max=1)))
    h.start()
    h.exit(0, 1)
    h.gone()
    h.happen(RankExited("m", 0, 1, 1, None))
    assert all(r.exit is None for r in h.mesh().ranks.values())


def test_a_lost_agent_loses_its_ranks_and_the_others_are_ended() -> None:
    h = History(mesh(procs=2, hosts=("a", "b")), hosts=("a", "b"))
    h.start()
    h.record(AgentLost("b", "the agent on host b was killed"))
    assert [r.state for r in h.mesh().ranks.values()] == ["running", "lost"]
    assert h.told("a") == [Stop]
    h.exit(0, None, 15, asked=True)
    h.happen(MeshGone("m", 0), "a")
    assert (h.mesh().state, h.run.state, h.run.exit_code) == ("lost", "lost", 69)


def test_of_two_lost_hosts_each_rank_tells_of_its_own() -> None:
    h = History(mesh(procs=2, hosts=("a", "b"), restart=RestartPolicy(max=1)), hosts=("a", "b"))
    h.start()
    h.record(AgentLost("a", "host a was cut"))
    h.record(AgentLost("b", "host b was cut"))
    root = h.mesh().last_root_cause
    assert root is not None
    assert describe(root) == "rank 0 on a was lost: host a was cut"  # also when the generation is over
    assert reason(h.mesh()) == "restarted: rank 0 on a was lost: host a was cut"


def test_a_lost_agent_is_replaced_where_restart_allows() -> None:
    h = History(mesh(restart=RestartPolicy(max=1)))
    h.start()
    h.record(AgentLost("a", "killed"))
    h.record(AgentUp("a", 999, "boot"))
    h.seq["a"] = 0
    assert (h.mesh().state, h.mesh().generation, h.told()) == ("restarting", 1, [Prepare])
    h.start()
    assert h.mesh().state == "running"


def test_a_stop_that_was_asked_for_is_no_failure() -> None:
    h = History(mesh(restart=RestartPolicy(max=5)))
    h.start()
    h.record(StopAsked(None, 10.0, "forgectl shutdown"))
    h.exit(0, None, 15, asked=True)
    h.exit(1, 1, asked=True, error="RuntimeError: interrupted in its SIGTERM handler")
    h.gone()
    assert (h.mesh().state, h.run.state, h.run.exit_code) == ("stopped", "stopped", 143)


def test_ctrl_c_decides_the_exit_code() -> None:
    h = History(mesh())
    h.start()
    h.record(StopAsked(None, 10.0, "Ctrl-C", 130))
    h.gone()
    assert h.run.exit_code == 130


def test_stopping_one_mesh_leaves_the_others() -> None:
    h = History(mesh("m"), mesh("n"))
    h.happen(Prepared("m"))
    h.happen(Prepared("n"))
    h.record(StopAsked(("m",), 10.0, "forgectl shutdown"))
    assert h.told() == [Stop, OpenStore]


def test_a_generation_that_cannot_start_rolls_the_launch_back() -> None:
    h = History(mesh())
    h.happen(Prepared("m"))
    h.happen(StartFailed("m", 0, "could not start: no module named nope", "Traceback …"))
    h.gone()
    assert (h.run.state, h.run.exit_code) == ("failed", 1)


def test_a_run_ends_with_its_driver_though_scripts_go_on() -> None:
    h = History(mesh("m", procs=1, kind="driver"), mesh("n", procs=1))
    h.start("n")
    h.start("m")
    h.exit(0)
    h.gone()
    assert h.told() == [MeshNews, Release, Stop]
    h.happen(MeshGone("n", 0))
    assert h.run.state == "succeeded"


def test_the_journal_gives_the_state_again() -> None:
    h = History(mesh(restart=RestartPolicy(max=2)))
    h.start()
    h.exit(0, 1, error="ValueError: bad", log_tail=("line",))
    h.gone()
    h.start()
    again = Run.new("t-0000", h.run.plan)
    for line in [to_line(t, r) for t, r in h.records]:
        again.apply(*from_line(line))
    assert again == h.run


def test_a_replayed_event_counts_once() -> None:
    h = History(mesh())
    h.start()
    h.run.apply(h.now, h.records[-1][1])
    assert h.mesh().state == "running"


@pytest.mark.parametrize("state", sorted(OVER))
def test_nothing_follows_an_end(state: str) -> None:
    assert MESH_TRANSITIONS[state] == ()  # type: ignore[index]


def test_a_transition_that_is_not_in_the_table_is_a_fault_of_ours() -> None:
    m = MeshState(mesh())
    with pytest.raises(AssertionError, match="pending cannot become running"):
        m.become("running", 0.0)


def test_what_an_agent_ended_to_fence_itself_is_lost() -> None:
    """A controller that was stopped hears of ends that nobody had asked for, then finds the agent gone."""
    h = History(mesh())
    h.start()
    for rank in (0, 1):
        h.exit(rank, None, 9, asked=True)
    h.gone()
    assert h.mesh().state == "running"
    h.record(AgentLost("a", "it fenced itself"))
    assert (h.mesh().state, h.run.state) == ("lost", "lost")
    assert [r.state for r in h.mesh().ranks.values()] == ["lost", "lost"]


def test_another_agent_than_before_means_that_the_ranks_are_lost() -> None:
    """The controller that replaced it died before it could write that down."""
    h = History(mesh(restart=RestartPolicy(max=1)))
    h.start()
    h.record(AgentUp("a", 999, "boot"))
    assert (h.mesh().state, h.mesh().generation, h.told()) == ("restarting", 1, [Prepare])


def test_nothing_restarts_where_no_agent_can_be_started() -> None:
    h = History(mesh(restart=RestartPolicy(max=5)))
    h.start()
    h.record(AgentLost("a", "killed"))
    assert h.mesh().state == "restarting"
    h.record(AgentLost("a", "its agent could not start", final=True))
    assert (h.mesh().state, h.run.state) == ("lost", "lost")


def test_a_rebuilt_journal_takes_events_again() -> None:
    h = History(mesh())
    h.start()
    missing = [(t, r) for t, r in h.records if not (isinstance(r, Happened) and isinstance(r.what, Prepared))]
    again = Run.new("t-0000", h.run.plan)
    for when, record in [*missing, (h.now, Born(1, True, rebuilt=True)), *h.records]:
        again.apply(when, record)
    assert again.meshes["m"].state == "running"


# ------------------------------------------------------------ waits between restarts


def waits(policy: RestartPolicy, up_for: list[float]) -> list[float]:
    """How long a mesh waits before each restart, where its generations were up for so many seconds."""
    h = History(mesh(restart=policy))
    waited = []
    for seconds in up_for:
        h.start()
        h.now += seconds - 1.0
        h.fail()
        waited.append(h.ring() if h.mesh().due else 0.0)
        assert (h.mesh().state, h.told()) == ("starting", [OpenStore])
    return waited


def test_each_further_restart_in_a_row_waits_twice_as_long_up_to_a_minute() -> None:
    assert waits(RestartPolicy(10), [0] * 10) == [0, 1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert waits(RestartPolicy(10, backoff=25), [0] * 5) == [0, 25, 50, 60, 60]
    assert waits(RestartPolicy(10, backoff=90), [0] * 4) == [0, 90, 90, 90]
    assert waits(RestartPolicy(10, backoff=0), [0] * 4) == [0, 0, 0, 0]


def test_a_mesh_that_was_up_for_long_restarts_at_once() -> None:
    assert waits(RestartPolicy(10), [0, 0, 0, 120, 0, 0, 119, 3600]) == [0, 1, 2, 0, 1, 2, 4, 0]
    assert waits(RestartPolicy(10, backoff=100), [0, 0, 120, 200, 0]) == [0, 100, 100, 0, 100]


def test_thousands_of_restarts_in_a_row_wait_no_longer() -> None:
    assert [backoff.wait_before(b, 10**6) for b in (0.0, 0.001, 1.0, 1e7)] == [0.0, 60.0, 60.0, 1e7]


def waiting() -> History:
    """A mesh that waits two seconds before its third restart of nine."""
    h = History(mesh(restart=RestartPolicy(9)))
    for _ in range(3):
        h.start()
        h.fail()
        if h.mesh().due and len(h.mesh().restarts) < 3:
            h.ring()
    assert (h.mesh().state, h.mesh().generation, h.told()) == ("restarting", 3, [])
    return h


def test_a_waiting_mesh_says_for_what_and_until_when() -> None:
    h = History(mesh(restart=RestartPolicy(9)))
    seen = []

    def look() -> None:
        [m] = run_document(h.run, RunDir(Path("/runs/t-0000"))).meshes
        r = m.restarting
        seen.append((m.state, m.restarts, r and (r.number, r.wait, r.at is not None), m.reason))

    for code in (6, 7):
        h.start()
        h.exit(0, code)
        look()
        h.gone()
        look()
    h.ring()
    look()
    first, why = "rank 0 on a exited with code 6", "rank 0 on a exited with code 7"
    assert seen == [
        ("restarting", 0, (1, 0.0, False), first),
        ("starting", 1, None, f"restarted: {first}"),
        ("restarting", 1, (2, 1.0, False), why),
        ("restarting", 2, (2, 1.0, True), why),
        ("starting", 2, None, f"restarted: {why}"),
    ]


def test_a_stop_ends_the_wait() -> None:
    h = waiting()
    h.record(StopAsked(None, 10.0, "Ctrl-C", 130))
    assert (h.run.alarms(), h.told()) == ({}, [Stop])
    h.gone()
    assert (h.mesh().state, h.run.state, h.run.exit_code) == ("stopped", "stopped", 130)


def test_the_journal_keeps_what_is_left_of_a_wait() -> None:
    h = waiting()
    again = Run.new("t-0000", h.run.plan)
    for line in [to_line(t, r) for t, r in h.records]:
        again.apply(*from_line(line))
    again.apply(h.now + 0.5, Born(2, adopted=True))
    assert again.alarms() == h.run.alarms() == {Waited("m", 3): (h.now + 2.0, 2.0)}


def test_a_wait_that_the_journal_lost_the_end_of_is_over() -> None:
    """The agent has started the generation, so it had the command."""
    h = waiting()
    h.start()
    assert (h.mesh().state, h.run.alarms()) == ("running", {})


def test_the_end_of_an_older_wait_changes_nothing() -> None:
    h = waiting()
    h.record(Waited("m", 2))
    assert (h.mesh().state, h.told()) == ("restarting", [])


def test_a_mesh_that_moves_waits_no_less() -> None:
    h = History(mesh(restart=RestartPolicy(9)), hosts=("a", "b"))
    h.start()
    h.fail()
    h.start()
    h.record(AgentLost("a", "it was cut", final=True))
    assert (h.mesh().needs_hosts, h.mesh().generation) == (True, 2)
    h.record(Moved(mesh(hosts=("b",), restart=RestartPolicy(9))))
    h.happen(Prepared("m"), "b")
    assert (h.mesh().state, h.told("b")) == ("restarting", [])
    h.ring()
    assert (h.mesh().state, h.told("b")) == ("starting", [OpenStore])


# ------------------------------------------------------------ time limits


def test_a_mesh_has_failed_at_its_time_limit() -> None:
    h = History(mesh(time_limit=7200.0))
    assert h.run.alarms() == {}
    h.start()
    begun = h.mesh().begun_at
    assert begun is not None
    assert h.run.alarms() == {TimeUp("m"): (begun + 7200.0, 7200.0)}
    h.ring()
    assert (h.mesh().state, h.told(), reason(h.mesh())) == ("stopping", [Stop], "time limit of 2h")
    h.exit(0, None, 15, asked=True)
    h.exit(1, 1, asked=True, error="KeyError: 'raised at SIGTERM'")
    h.gone()
    assert (h.mesh().state, h.run.state, h.run.exit_code, reason(h.mesh())) == (
        *("failed", "failed", 124),
        "time limit of 2h",
    )
    [m] = run_document(h.run, RunDir(Path("/runs/t-0000"))).meshes
    assert m.failure is not None
    assert (m.failure.rank, m.failure.message) == (None, "time limit of 2h")


def test_restarts_do_not_extend_a_time_limit() -> None:
    h = History(mesh(restart=RestartPolicy(9), time_limit=30.0))
    h.start()
    begun = h.mesh().begun_at
    h.fail()
    h.start()
    h.exit(0, 2)
    assert h.run.alarms() == {}  # it is ended already
    h.gone()
    assert begun is not None
    assert h.run.alarms()[TimeUp("m")] == (begun + 30.0, 30.0)
    h.record(TimeUp("m"))  # while it waits
    assert (h.mesh().state, h.told()) == ("stopping", [Stop])
    h.gone()
    assert (h.mesh().state, h.run.exit_code, len(h.mesh().restarts)) == ("failed", 124, 2)


def test_a_time_limit_after_the_end_changes_nothing() -> None:
    h = History(mesh("m"), mesh("n", time_limit=5.0))
    h.start("m")
    h.start("n")
    h.record(StopAsked(("n",), 0.0, "forgectl shutdown"))
    assert h.run.alarms() == {}
    h.record(TimeUp("n"))
    h.gone("n")
    h.record(TimeUp("n"))
    assert h.mesh("n").state == "stopped"


# ------------------------------------------------------------ what a failure means for the run

OWNER = Identity(77, 1, "boot")


def failing(
    on_failure: OnFailure | None, *, owner: Identity | None, kind: str = "script", driver: bool = False
) -> History:
    """A mesh that has failed beside one that runs."""
    first = [mesh("driver", 1, kind="driver")] if driver else []
    h = History(*first, mesh("m", kind=kind), mesh("n", kind=kind), on_failure=on_failure)
    h.record(Born(5, owner=owner))
    for name in h.run.meshes:
        h.start(name)
    h.fail(code=7)
    assert h.mesh().state == "failed"
    return h


@pytest.mark.parametrize(
    ("on_failure", "owner", "kind", "ends"),
    [
        (None, OWNER, "script", True),
        (None, None, "script", False),
        (None, OWNER, "actor", False),
        ("stop", None, "script", True),
        ("stop", None, "actor", True),
        ("continue", OWNER, "script", False),
        ("continue", None, "actor", False),
    ],
)
@pytest.mark.parametrize("driver", [False, True])
def test_whether_a_failure_ends_the_run(
    on_failure: OnFailure | None, owner: Identity | None, kind: str, ends: bool, driver: bool
) -> None:
    h = failing(on_failure, owner=owner, kind=kind, driver=driver)
    if not ends:
        assert (h.run.stop, h.mesh("n").ending) == (None, False)
        return
    assert (h.run.state, h.run.stop and h.run.stop.by, reason(h.mesh("n"))) == (
        *("stopping", "the failure of m"),
        "stopped by the failure of m",
    )
    for name in ("n", "driver") if driver else ("n",):
        h.gone(name)
    assert (h.mesh("n").state, h.run.state, h.run.exit_code) == ("stopped", "failed", 7)


def test_only_a_failure_for_good_ends_the_run() -> None:
    h = History(mesh("m", restart=RestartPolicy(1)), mesh("n"), on_failure="stop")
    for code in (3, 4):
        for name in ("m", "n") if code == 3 else ("m",):
            h.start(name)
        assert h.run.stop is None
        h.fail(code=code)
    assert h.run.stop is not None
    h.gone("n")
    assert (h.run.state, h.run.exit_code) == ("failed", 4)


def test_a_lost_script_ends_its_run_too() -> None:
    h = History(mesh("m", hosts=("b",)), mesh("n"), hosts=("a", "b"), on_failure="stop")
    h.start("m")
    h.start("n")
    h.record(AgentLost("b", "it was cut"))
    assert (h.mesh("m").state, h.run.state) == ("lost", "stopping")
    h.gone("n")
    assert (h.run.state, h.run.exit_code) == ("lost", 69)


# ---------------------------------------------------------------- restarts that somebody asks for


def again(h: History, grace: float = 10.0, **generations: int) -> None:
    h.record(RestartAsked(generations or {"m": h.mesh().generation}, grace, "forgectl restart"))


def test_a_restart_on_demand_is_a_new_generation_and_no_failure() -> None:
    h = History(mesh())
    h.start()
    again(h)
    assert (h.mesh().state, reason(h.mesh())) == ("restarting", "restarted by forgectl restart")
    [stop] = commands(h.run, "a")
    assert stop == Stop("m", 0, 10.0, "forgectl restart")
    h.exit(0, None, 15, asked=True)
    h.exit(1, 3, asked=True, error="KeyboardInterrupt")
    h.gone()
    assert (h.mesh().state, h.mesh().generation, h.mesh().restarts) == ("starting", 1, [])
    assert h.told() == [OpenStore]
    h.start()
    assert (h.mesh().state, reason(h.mesh()), h.run.state) == ("running", None, "running")


def test_a_restart_on_demand_restarts_ranks_that_succeed_meanwhile() -> None:
    h = History(mesh())
    h.start()
    again(h)
    h.exit(0)
    h.exit(1)
    h.gone()
    assert (h.mesh().state, h.mesh().generation) == ("starting", 1)


def test_a_restart_is_for_one_generation_only() -> None:
    h = History(mesh(restart=RestartPolicy(1)))
    h.start()
    h.exit(0, 1)
    h.exit(1, None, 15, asked=True)
    h.gone()
    h.start()
    again(h, m=0)
    assert (h.mesh().state, h.mesh().generation) == ("running", 1)
    again(h, m=1)
    assert h.mesh().state == "restarting"
    h.gone()
    assert (h.mesh().generation, len(h.mesh().restarts)) == (2, 1), "only the failure counts"


def test_every_state_of_an_actors_mesh_is_news_once() -> None:
    """By its own name: the memory of news that is gone may soon be that of other news."""
    h = History(mesh(kind="actor"))
    states, sent = [], set()

    def look() -> None:
        [news] = [c for c in commands(h.run, "a") if isinstance(c, MeshNews)]
        states.append((news.generation, news.state))
        sent.add(key(news))
        h.records.clear()  # as a controller, which keeps none in memory

    look()
    for generation in range(50):
        h.start()
        look()
        h.record(Report("m", generation))
        look()
        again(h)
        look()
        h.gone()
        look()
    assert len(sent) == len(set(states)) == 2 + 3 * 50


def test_a_second_request_hurries_the_first() -> None:
    h = History(mesh())
    h.start()
    again(h)
    assert h.mesh().state == "restarting"
    again(h, grace=0.0)
    assert [c.grace for c in commands(h.run, "a") if isinstance(c, Stop)] == [0.0]


def test_a_shutdown_comes_before_a_restart() -> None:
    h = History(mesh(), mesh("n"))
    h.start()
    h.start("n")
    again(h)
    h.record(StopAsked(("m",), 3.0, "forgectl shutdown"))
    assert (h.mesh().state, h.mesh().grace) == ("stopping", 3.0)
    h.gone()
    assert h.mesh().state == "stopped"
    again(h)
    assert h.mesh().state == "stopped"


def test_what_ends_waits_or_drives_is_not_restarted() -> None:
    h = History(mesh(), mesh("driver", 1, kind="driver"), mesh("waits"))
    h.happen(Prepared("m"))
    again(h, m=0, waits=0, driver=0, nobody=0)
    assert [m.state for m in h.run.meshes.values()] == ["pending"] * 3
    for name in ("driver", "waits"):
        h.happen(Prepared(name))
    h.start()
    h.start("driver")
    again(h, driver=0)
    assert h.mesh("driver").state == "running"
    h.exit(0)
    h.exit(1)
    assert h.mesh().state == "stopping"
    again(h)
    h.gone()
    assert h.mesh().state == "succeeded"


def test_a_restart_on_demand_whose_host_is_lost_moves() -> None:
    h = History(mesh(procs=2, hosts=("a", "b")), hosts=("a", "b", "c"))
    h.start()
    again(h)
    h.record(AgentLost("b", "host b was rebooted", final=True))
    h.happen(MeshGone("m", 0), "a")
    assert (h.mesh().state, h.mesh().generation, h.mesh().needs_hosts) == ("restarting", 1, True)


def test_a_restart_on_demand_ends_a_wait() -> None:
    h = waiting()
    again(h)
    assert (h.mesh().state, h.mesh().generation, h.told(), h.run.alarms()) == ("starting", 3, [OpenStore], {})
    h.start()
    assert (h.mesh().state, len(h.mesh().restarts)) == ("running", 3)


def test_a_restart_on_demand_waits_for_nothing_however_often_it_failed_before() -> None:
    h = History(mesh(restart=RestartPolicy(9)))
    for _ in range(2):
        h.start()
        h.fail()
    h.ring()
    h.start()
    again(h)
    h.exit(0, None, 15, asked=True)
    h.gone()
    assert (h.mesh().state, h.told(), h.run.alarms()) == ("starting", [OpenStore], {})


def hang(do: HangAction = "report", restarts: int = 0) -> History:
    h = History(
        mesh(procs=4, hosts=("a", "b"), hang=HangPolicy(do=do), restart=RestartPolicy(restarts)), hosts=("a", "b")
    )
    h.start()
    h.happen(ProgressStopped("m", 0, (0, 1), 600.0), "a")
    return h


FOUND = Diagnosed("m", 0, "no progress for 10m: rank 2 is missing", ("rank 2 is missing",), (2,))


def test_a_hang_is_diagnosed_once_and_ends_nothing() -> None:
    h = hang()
    assert h.mesh().to_diagnose
    h.record(FOUND)
    h.happen(ProgressStopped("m", 0, (2, 3), 605.0), "b")
    assert not h.mesh().to_diagnose
    assert (h.mesh().state, h.told(), reason(h.mesh())) == ("running", [], FOUND.message)
    h.happen(ProgressResumed("m", 0), "a")
    assert reason(h.mesh()) == FOUND.message, "ranks of b still hang"
    h.happen(ProgressResumed("m", 0), "b")
    assert reason(h.mesh()) is None
    h.happen(ProgressStopped("m", 0, (0,), 600.0), "a")
    assert h.mesh().to_diagnose, "it hangs anew"


def test_a_diagnosis_that_comes_too_late_changes_nothing() -> None:
    h = hang("restart", restarts=1)
    h.happen(ProgressResumed("m", 0), "a")
    h.record(FOUND)
    assert (h.mesh().state, reason(h.mesh())) == ("running", None)


def test_a_hang_restarts_only_what_was_looked_at_and_the_next_generation_forgets_it() -> None:
    h = hang("restart", restarts=1)
    assert h.told() == [], "its stacks are not saved yet"
    h.record(FOUND)
    assert (h.mesh().state, h.told()) == ("restarting", [Stop])
    for rank in range(4):
        h.exit(rank, None, 15, asked=True, error="RuntimeError: Connection closed by peer")
    h.gone()
    m = h.mesh()
    assert (m.generation, m.last_failure, m.last_root_cause) == (1, FOUND.message, None)
    assert (m.hung, m.diagnosed, m.ended_by_hang) == ({}, None, False)
    h.start()
    h.happen(ProgressStopped("m", 1, (0,), 600.0), "a")
    h.record(dataclasses.replace(FOUND, generation=1))
    h.gone()
    assert (h.mesh().state, h.run.state, h.run.exit_code) == ("failed", "failed", 1)

"""The run's state machine: recorded histories, replayed through the real one."""

from __future__ import annotations

import dataclasses

import pytest

from forgectl.controller.commands import commands
from forgectl.controller.records import (
    AgentLost,
    AgentUp,
    Born,
    Happened,
    Record,
    RestartAsked,
    StopAsked,
    from_line,
    to_line,
)
from forgectl.controller.run_state import Run
from forgectl.controller.state import MESH_TRANSITIONS, MeshState, describe
from forgectl.controller.status_document import reason
from forgectl.model.plan import HostPlan, MeshPlan, Plan, Program, RankPlan, RestartPolicy, Unit
from forgectl.model.status import OVER
from forgectl.protocol.supervision import (
    Happening,
    MeshGone,
    OpenStore,
    Prepare,
    Prepared,
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
from forgectl.wire.envelope import Refusal


class History:
    """A run that is told what happened, one second after the other."""

    def __init__(self, *meshes: MeshPlan, hosts: tuple[str, ...] = ("a",)) -> None:
        plan = Plan(
            name="t",
            spec="",
            workdir="/",
            lease=30.0,
            log_limit=1 << 20,
            hosts=tuple(HostPlan(h, True, "python3", "127.0.0.1") for h in hosts),
            meshes=meshes,
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

    def gone(self) -> None:
        mesh = self.mesh()
        generation = mesh.generation
        for host in mesh.plan.hosts:
            self.happen(MeshGone("m", generation), host)


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
        h.now += 100
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
    assert h.told() == [Release, Stop]
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

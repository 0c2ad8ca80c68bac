"""What a look at the changed meshes and hosts gives is what a look at everything gives, whatever happens in a run."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from forgectl.controller.changes import Changes
from forgectl.controller.commands import HOST, Command, commands
from forgectl.controller.host_claims import check_event
from forgectl.controller.records import (
    Added,
    AgentLost,
    AgentUp,
    Born,
    Happened,
    Moved,
    Record,
    RestartAsked,
    StopAsked,
    Stranded,
)
from forgectl.controller.run_state import Run
from forgectl.controller.state import MeshState
from forgectl.model.plan import HostPlan, MeshPlan, Plan, RestartPolicy
from forgectl.protocol.control import Report
from forgectl.protocol.supervision import (
    Event,
    Happening,
    MeshGone,
    MessengerGone,
    MessengerOpened,
    Notice,
    Prepared,
    RankExited,
    RankStarted,
    Refused,
    Release,
    StartFailed,
    Stop,
    StoreOpened,
)
from forgectl.wire.envelope import ProtocolError, Refusal
from tests.unit.controller.test_state import mesh

HOSTS = (
    HostPlan("a", True, "python3", "10.0.0.1", reaches=("b",)),
    HostPlan("b", False, "python3", "10.0.0.2", ssh="b", reaches=("c",)),
    HostPlan("c", False, "python3", "10.0.0.3", ssh="c"),
    HostPlan("d", True, "python3", "10.0.0.1"),
)
NAMES = tuple(h.name for h in HOSTS)
PLACES: tuple[tuple[str, ...], ...] = (("a",), ("b",), ("a", "b"), ("b", "c"), ("a", "b", "c", "d"))


class Followed:
    """A run, and what its hosts should be doing as one knows who only looks where `Changes` says."""

    def __init__(self, meshes: tuple[MeshPlan, ...]) -> None:
        plan = Plan("t", "", "/", 30.0, 1 << 20, HOSTS, meshes)
        self.run = Run.new("t-0000", plan)
        self.now = 1000.0
        self.seq = Counter[str]()
        self.changes = Changes()
        self.known: dict[str, dict[str, list[Command]]] = {name: {} for name in NAMES}
        self.looks = 0
        self.record(Born(1))

    def record(self, record: Record) -> None:
        """As the controller does it."""
        self.now += 1.0
        self.run.apply(self.now, record)
        for host, subjects in self.changes.after(self.run, record).items():
            for subject in subjects:
                self.known[host][subject] = commands(self.run, host, [subject])
                self.looks += 1

    def happen(self, host: str, what: Happening) -> None:
        """Only what a host may say becomes a record."""
        self.seq[host] += 1
        try:
            if check_event(self.run, host, Event(self.seq[host], what)) is None:
                return
        except ProtocolError:
            return
        self.record(Happened(host, self.seq[host], what))

    def check(self) -> None:
        """Compare with a look at everything."""
        for host in NAMES:
            known = [command for found in self.known[host].values() for command in found]
            assert sorted(map(_as_sent, known)) == sorted(map(_as_sent, commands(self.run, host))), host
        for m in self.run.meshes.values():
            assert m.unstarted == {n for n, r in m.ranks.items() if r.pid is None}
            assert m.unfinished == {n for n, r in m.ranks.items() if r.exit is None or r.exit.exit_code != 0}


def _as_sent(command: Command) -> str:
    """Without the reason for an end, which may change: an agent keeps the first, as no later one is sent."""
    return repr(dataclasses.replace(command, by=None, failure=None) if isinstance(command, Stop) else command)


def planned(draw: st.DrawFn, name: str, places: tuple[tuple[str, ...], ...] = PLACES) -> MeshPlan:
    hosts = draw(st.sampled_from(places))
    kind = draw(st.sampled_from(["script", "actor", "actor", "driver"]))
    restart = RestartPolicy(draw(st.integers(0, 3)))
    limit = draw(st.sampled_from([None, None, 5.0]))
    return mesh(name, len(hosts) * draw(st.integers(1, 2)), hosts, kind=kind, restart=restart, time_limit=limit)


def of_a_host(draw: st.DrawFn, f: Followed) -> None:
    """An agent comes, goes, or is replaced."""
    host = draw(st.sampled_from(NAMES))
    if draw(st.booleans()):
        f.seq[host] = 0
        f.record(AgentUp(host, draw(st.integers(1, 3)), "boot"))
    else:
        f.record(AgentLost(host, f"host {host} was cut", final=draw(st.booleans())))


def of_a_messenger(draw: st.DrawFn, f: Followed) -> None:
    host = draw(st.sampled_from(NAMES))
    number = f.run.hosts[host].messengers_lost
    port = draw(st.sampled_from([0, 7001]))
    gone = draw(st.integers(0, 3)) == 0
    f.happen(host, MessengerGone(number, "it ended") if gone else MessengerOpened(number, port, "/s"))


def of_a_mesh(draw: st.DrawFn, f: Followed) -> None:
    """Whatever an agent may report of a mesh."""
    m = draw(st.sampled_from(list(f.run.meshes.values())))
    host = draw(st.sampled_from(m.plan.hosts))
    rank = draw(st.sampled_from([r.rank for r in m.plan.ranks_on(host)]))
    code = draw(st.sampled_from([0, 0, 1]))
    choices: list[Happening] = [
        Prepared(m.name),
        Refused(m.name, Refusal(75, "taken")),
        StoreOpened(m.name, m.generation, 4000),
        StartFailed(m.name, m.generation, "no module"),
        RankStarted(m.name, m.generation, rank, 500 + rank, 1, "/log"),
        RankExited(m.name, m.generation, rank, code, None, asked=draw(st.booleans())),
        MeshGone(m.name, m.generation),
        Notice(m.name, "a notice"),
    ]
    f.happen(host, draw(st.sampled_from(choices)))


def step(m: MeshState) -> dict[str, list[Happening]]:
    """What every host of a mesh would report next if all goes well."""
    of = {host: m.plan.ranks_on(host) for host in m.plan.hosts}
    if m.ending:
        return {host: [MeshGone(m.name, m.generation)] for host in of}
    if not m.covers(m.prepared):
        return {host: [Prepared(m.name)] for host in of}
    if m.port is None:
        return {m.plan.hosts[0]: [StoreOpened(m.name, m.generation, 4000)]}
    return {h: [RankStarted(m.name, m.generation, r.rank, 500, 1, "/log") for r in ranks] for h, ranks in of.items()}


def all_well(f: Followed) -> None:
    for m in list(f.run.meshes.values()):
        for host, reports in step(m).items():
            for what in reports:
                f.happen(host, what)
                f.check()


def all_goes_well(draw: st.DrawFn, f: Followed) -> None:
    """Without it few runs would come far."""
    all_well(f)
    for m in list(f.run.meshes.values()):
        if m.open and draw(st.booleans()):
            f.record(Report(m.name, m.generation, draw(st.sampled_from([None, None, "it raised"]))))


def of_the_user(draw: st.DrawFn, f: Followed) -> None:
    names = tuple(draw(st.lists(st.sampled_from(list(f.run.meshes)), max_size=2)))
    grace = draw(st.sampled_from([0.0, 10.0]))
    if draw(st.booleans()):
        generations = {m.name: m.generation - draw(st.integers(0, 1)) for m in f.run.meshes.values()}
        f.record(RestartAsked(generations, grace, "the user"))
    elif draw(st.booleans()):
        f.record(StopAsked(names or None, grace, "the user"))
    elif not f.run.ended and f.run.stop is None:
        ended = [m.name for m in f.run.meshes.values() if m.ended]
        f.record(Added(planned(draw, draw(st.sampled_from(["added", *ended])))))


def of_time(draw: st.DrawFn, f: Followed) -> None:
    """A wait or a time limit is over."""
    if alarms := f.run.alarms():
        record = draw(st.sampled_from(list(alarms)))
        event(f"{type(record).__name__} was due")
        f.record(record)


def of_moves(draw: st.DrawFn, f: Followed) -> None:
    for m in [m for m in f.run.meshes.values() if m.needs_hosts]:
        left = tuple(p for p in PLACES if not any(f.run.hosts[h].given_up for h in p))
        if len(left) > 0 and draw(st.booleans()):
            hosts = draw(st.sampled_from(left))
            f.record(Moved(mesh(m.name, len(hosts), hosts, kind=m.plan.kind, restart=m.plan.restart)))
        else:
            f.record(Stranded(m.name, "no room"))
        event("a mesh moved, or was stranded")


ACTIONS: tuple[Callable[[st.DrawFn, Followed], None], ...] = (
    of_a_host, of_a_messenger, of_a_mesh, of_a_mesh, all_goes_well, all_goes_well, all_goes_well, of_the_user, of_moves,
    of_time,
)  # fmt: skip


@st.composite
def followed_runs(draw: st.DrawFn) -> Followed:
    f = Followed(tuple(planned(draw, f"m{i}") for i in range(draw(st.integers(1, 3)))))
    f.check()
    for act in draw(st.lists(st.sampled_from(ACTIONS), max_size=30)):
        act(draw, f)
        f.check()
    return f


@pytest.mark.thorough
@settings(max_examples=300, deadline=None)
@given(followed_runs())
def test_a_look_at_what_changed_gives_what_a_look_at_everything_gives(f: Followed) -> None:
    event(f"the run is {f.run.state}")


def test_a_name_that_is_given_again_after_a_move_concerns_the_hosts_that_were_left() -> None:
    f = Followed((mesh("m", 2, ("a", "b"), restart=RestartPolicy(2)), mesh("n", 1, ("d",), kind="driver")))
    for _ in range(3):
        all_well(f)
    assert f.run.state == "running"
    f.record(AgentLost("b", "host b was cut", final=True))
    f.happen("a", MeshGone("m", 0))
    f.record(Moved(mesh("m", 2, ("c",), restart=RestartPolicy(2))))
    f.check()
    assert f.run.meshes["m"].left
    assert [type(c) for c in commands(f.run, "b", ["m"])] == [Release]
    f.record(StopAsked(("m",), 10.0, "the user"))
    f.happen("c", MeshGone("m", 1))
    f.record(Added(mesh("m", 2, ("c",))))
    f.check()
    assert not commands(f.run, "b", ["m"])


@pytest.mark.parametrize("hosts", [8, 64])
def test_a_run_takes_as_many_looks_for_each_host_however_many_there_are(hosts: int) -> None:
    names = tuple(f"h{i}" for i in range(hosts))
    plan = mesh("m", 2 * hosts, names)
    whole = Plan("t", "", "/", 30.0, 1 << 20, tuple(HostPlan(n, True, "p", "") for n in names), (plan,))
    run, changes, looks = Run.new("t-0000", whole), Changes(), 0

    def record(record: Record) -> None:
        nonlocal looks
        run.apply(1000.0, record)
        looks += sum(map(len, changes.after(run, record).values()))

    seq = Counter[str]()

    def happen(host: str, what: Happening) -> None:
        seq[host] += 1
        record(Happened(host, seq[host], what))

    for i, name in enumerate(names):
        record(AgentUp(name, 100 + i, "boot"))
    for _ in range(3):
        for host, reports in step(run.meshes["m"]).items():
            for what in reports:
                happen(host, what)
    states = [run.state]
    record(StopAsked(None, 10.0, "the user"))
    for rank in plan.ranks:
        happen(rank.host, RankExited("m", 0, rank.rank, None, 15, asked=True))
    for host in names:
        happen(host, MeshGone("m", 0))
    assert [*states, run.state] == ["running", "stopped"]
    assert looks <= 16 * hosts


def test_what_is_known_of_a_host_that_nothing_happens_on_is_not_looked_at() -> None:
    f = Followed((mesh("m", 2, ("a",)), mesh("n", 2, ("d",))))
    before = f.looks
    f.happen("a", Prepared("m"))
    assert f.looks == before + 1
    assert [type(c).__name__ for c in commands(f.run, "a", ["m"])] == []
    assert commands(f.run, "a", [HOST]) == []

"""What a host may say: news of its own ranks, what is known already, or a breach; and a run is none the worse."""

from __future__ import annotations

import base64
import copy
import json
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forgectl.controller import host_claims
from forgectl.controller.host_claims import MOST_TEXT, check_event, check_parts, own_use
from forgectl.controller.records import AgentLost, AgentUp, Diagnosed, Happened, StopAsked
from forgectl.controller.run_dir import RunDir
from forgectl.controller.run_state import Run
from forgectl.controller.status_document import run_document
from forgectl.model.plan import RestartPolicy
from forgectl.protocol.control import Report, StatusReport
from forgectl.protocol.supervision import (
    AGENT_TO_CONTROLLER,
    Event,
    Happening,
    LogAt,
    LogPart,
    LogParts,
    MeshGone,
    MessengerGone,
    MessengerOpened,
    Notice,
    Prepared,
    ProgressResumed,
    ProgressStopped,
    RankExited,
    RankStarted,
    RankStats,
    Refused,
    StartFailed,
    StoreOpened,
)
from forgectl.wire.codec import to_tagged
from forgectl.wire.envelope import MAX_LINE, ProtocolError, Refusal, decode, encode
from tests.unit.controller.test_state import History, mesh

BOTH = ("a", "b")


def two() -> History:
    """A mesh of two hosts with two ranks each, and one of the first host alone."""
    return History(mesh(procs=4, hosts=BOTH, restart=RestartPolicy(5)), mesh("other"), hosts=BOTH)


def said(h: History, host: str, what: Any, *, seq: int = 0, catching_up: bool = False) -> Any:
    return check_event(h.run, host, Event(seq or h.seq[host] + 1, what), catching_up=catching_up)


def received(seq: int, what: Any) -> Any:
    """An event as a host sends it, of whatever JSON value."""
    return decode(json.dumps({"type": "Event", "seq": seq, "what": what}).encode(), AGENT_TO_CONTROLLER)


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ({"type": "Prepared", "mesh": "m", "more": 1}, "Event.what/Prepared: unknown field 'more'"),
        ({"type": "Prepared", "mesh": 1}, "Event.what/Prepared.mesh: expected str, got int"),
        ({"type": "MeshGone", "mesh": "m", "generation": 0, "unkillable": ["x", 1]}, r"Gone.unkillable\[1\]: expected"),
        ({"type": "Event", "seq": 1, "what": {}}, "Event.what: unknown message 'Event'"),
        ({"mesh": "m"}, "Event.what: the message does not name its type"),
        (None, "Event.what: the message is not a JSON object"),
    ],
)
def test_what_is_no_happening_is_refused_as_it_arrives(what: Any, words: str) -> None:
    with pytest.raises(ProtocolError, match=words):
        received(1, what)


def test_every_event_of_a_run_from_its_beginning_to_its_end_is_news_once() -> None:
    h = two()
    whole: list[tuple[str, Any]] = [(host, Prepared("m")) for host in BOTH]
    for generation in range(3):
        whole += [("a", StoreOpened("m", generation, 4000))]
        whole += [("ab"[r // 2], RankStarted("m", generation, r, 500 + r, 1, "/log")) for r in range(4)]
        whole += [("b", Notice("m", "its disk is full"))]
        whole += [("b", ProgressStopped("m", generation, (2, 3), 600.0)), ("b", ProgressResumed("m", generation))]
        whole += [("ab"[r // 2], RankExited("m", generation, r, None, 9)) for r in range(4)]
        whole += [(host, MeshGone("m", generation, 4)) for host in BOTH]
    h.happen(Prepared("other"), "a")
    for host, what in whole:
        assert said(h, host, what) == what, what
        h.happen(what, host)
        assert said(h, host, what, seq=h.seq[host]) is None, f"replayed: {what}"
        if not isinstance(what, Notice):
            assert said(h, host, what) is None, f"said again: {what}"
    assert h.mesh().generation == 3


def test_late_news_of_an_old_generation_is_no_breach() -> None:
    h = two()
    for host in BOTH:
        h.happen(Prepared("m"), host)
    h.happen(Prepared("other"))
    h.start()
    h.exit(0, 1)
    h.gone()
    assert h.mesh().generation == 1
    for what in (RankExited("m", 0, 2, 1, None), MeshGone("m", 0), RankStarted("m", 0, 99, 1, 1, "/x")):
        assert said(h, "b", what) is None


@pytest.mark.parametrize(
    ("host", "what", "words"),
    [
        ("b", RankStarted("m", 0, 0, 1, 1, "/x"), "is on host a"),
        ("b", RankStarted("m", 0, 4, 1, 1, "/x"), "which has 4"),
        ("b", RankExited("m", 0, -1, 0, None), "which has 4"),
        ("b", RankStarted("m", 1, 2, 1, 1, "/x"), "which is in generation 0"),
        ("b", RankStarted("m", -1, 2, 1, 1, "/x"), "generation -1"),
        ("b", MeshGone("m", 300_000_000), "which is in generation 0"),
        ("b", MeshGone("other", 0), "but has no rank of it"),
        ("b", StoreOpened("m", 0, 1), "which has its store on a"),
        ("a", StoreOpened("m", 0, 65536), "port 65536"),
        ("b", Notice("../m", "x"), "not a valid name"),
        ("b", Notice("/etc", "x"), "not a valid name"),
        ("b", Prepared("a\n"), "not a valid name"),
        ("b", RankExited("m", 0, 2, 256, None), "exit_code 256"),
        ("b", RankExited("m", 0, 2, None, 65), "signal 65"),
        ("b", RankExited("m", 0, 2, 0, 9), "both exited and was killed"),
        ("b", RankExited("m", 0, 2, 0, None, failed_ago=float("nan")), "failed nan s ago"),
        ("b", RankExited("m", 0, 2, 1, None, traceback="x" * (MOST_TEXT + 1)), "of more than"),
        ("b", ProgressStopped("m", 0, (1,), 600.0), "is on host a"),
        ("b", ProgressStopped("m", 0, (), 600.0), "that 0 ranks hang"),
        ("b", ProgressStopped("m", 0, (2,), float("nan")), "hang for nan s"),
        ("b", MeshGone("m", 0, unkillable=("x",) * 10_000), "of more than"),
        ("b", Refused("m", Refusal(0, "x")), "not an exit code"),
        ("c", Prepared("m"), "not a host of this run"),
    ],
)
def test_breaches_say_what_the_host_did(host: str, what: Any, words: str) -> None:
    with pytest.raises(ProtocolError, match=words):
        said(two(), host, what, seq=1)


def test_meshes_that_are_not_known_are_let_pass() -> None:
    """A journal may have lost that code added them."""
    assert said(two(), "a", RankStarted("added", 0, 0, 1, 1, "/x")) is None


def test_a_controller_that_took_over_learns_from_agents_of_restarts_that_its_journal_lost() -> None:
    h = two()
    what = RankStarted("m", 2, 2, 1, 1, "/x")
    assert said(h, "b", what, catching_up=True) == what
    with pytest.raises(ProtocolError, match="generation 300000000"):
        said(h, "b", RankStarted("m", 300_000_000, 2, 1, 1, "/x"), catching_up=True)
    with pytest.raises(ProtocolError, match="is on host a"):
        said(h, "b", RankStarted("m", 2, 0, 1, 1, "/x"), catching_up=True)


@pytest.mark.parametrize("what", [Notice("m", "x"), StartFailed("m", 0, "x")])
def test_what_could_be_reported_for_ever_is_news_so_many_times(what: Any) -> None:
    h = two()
    h.record(StopAsked(("m",), 1.0, "test"))
    count = 0
    while said(h, "b", what) is not None:
        h.happen(what, "b")
        count += 1
        assert count < 1000
    assert count > 100
    assert said(h, "a", what) == what, "the other host has not said anything yet"


def test_a_refusal_while_the_mesh_runs_ends_no_other_host_s_share() -> None:
    """Its ranks elsewhere have to be ended before their GPUs are given back."""
    h = two()
    h.happen(Prepared("other"))
    h.start()
    h.record(AgentLost("b", "x"))
    h.record(AgentUp("b", 7, "boot"))
    h.seq["b"] = 0
    assert said(h, "b", Refused("m", Refusal(75, "x"))) is not None
    h.happen(Refused("m", Refusal(75, "x")), "b")
    assert h.mesh().gone == {"b"}


# ---------------------------------------------------------------- whatever comes

NUMBERS = st.one_of(st.integers(-2, 6), st.sampled_from([1 << 31, 1 << 53, 1 << 63, -(1 << 63), 300_000_000, 10**40]))
TEXTS = st.one_of(st.sampled_from(["", "x", "a\0b", "\ud800", "../m", "/m", "x" * 5000]), st.text(max_size=20))
MESHES = st.one_of(st.sampled_from(["m", "m", "m", "other", "unknown"]), TEXTS)
MAYBE = st.one_of(st.none(), NUMBERS)
GENERATIONS = st.one_of(st.integers(0, 3), NUMBERS)
HAPPENED = st.one_of(
    st.builds(Prepared, MESHES),
    st.builds(Notice, MESHES, TEXTS),
    st.builds(Refused, MESHES, st.builds(Refusal, NUMBERS, TEXTS)),
    st.builds(StoreOpened, MESHES, GENERATIONS, st.one_of(st.just(4000), NUMBERS)),
    st.builds(StartFailed, MESHES, GENERATIONS, TEXTS),
    st.builds(RankStarted, MESHES, GENERATIONS, NUMBERS, st.one_of(st.just(5), NUMBERS), st.just(1), TEXTS),
    st.builds(RankExited, MESHES, GENERATIONS, NUMBERS, MAYBE, MAYBE, st.booleans()),
    st.builds(ProgressStopped, MESHES, GENERATIONS, st.lists(NUMBERS, max_size=3).map(tuple), st.floats()),
    st.builds(ProgressResumed, MESHES, GENERATIONS),
    st.builds(MeshGone, MESHES, GENERATIONS, NUMBERS, st.lists(TEXTS, max_size=3).map(tuple)),
).map(to_tagged)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.floats(), TEXTS),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(["type", "mesh", "x"]), inner)
    ),
    max_leaves=8,
)
OURS = st.sampled_from(
    [
        *(AgentLost(host, "lost", final=final) for host in BOTH for final in (False, True)),
        *(AgentUp(host, pid, "boot") for host in BOTH for pid in (7, 8)),
        *(StopAsked(meshes, 1.0, "test") for meshes in (None, ("m",))),
        Report("m", 0),
        Diagnosed("m", 0, "no progress"),
        Report("m", 1, "it raised"),
    ]
)
EVENTS = st.tuples(st.sampled_from(BOTH), st.one_of(NUMBERS, st.just(0)), st.one_of(HAPPENED, HAPPENED, JSON))


@pytest.mark.thorough
@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(EVENTS, EVENTS, EVENTS, OURS), max_size=40), st.booleans())
def test_whatever_hosts_say_the_run_is_sound_and_the_same_after_a_replay(events: list[Any], catching_up: bool) -> None:
    h = two()
    complaints: list[str] = []
    for each in events:
        if not isinstance(each, tuple):
            h.record(each)
            if isinstance(each, AgentUp):
                h.seq[each.host] = h.run.hosts[each.host].last_seq
            continue
        host, seq, what = each
        seq = seq or h.seq[host] + 1
        try:
            event = received(seq, what)
            news = check_event(h.run, host, event, catching_up=catching_up)
        except ProtocolError as e:
            complaints.append(str(e))
            continue
        if news is not None:
            h.seq[host] = seq
            h.record(Happened(host, seq, event.what))
    assert all(complaints)
    for found in h.run.meshes.values():
        assert {n: r.plan.host for n, r in found.ranks.items()} == {r.rank: r.host for r in found.plan.ranks}
        assert found.prepared <= set(found.plan.hosts) and found.gone <= set(found.plan.hosts)
        assert len(found.restarts) <= 100_000 + 5
    again = Run.new(h.run.id, h.run.plan)
    for when, record in h.records:
        if isinstance(record, Happened):
            assert check_event(again, record.host, Event(record.seq, record.what), catching_up=True) is not None
        again.apply(when, record)
    assert copy.copy(again) == h.run


# ---------------------------------------------------------------- logs, and use


def part(**more: Any) -> LogParts:
    fields = {"at": LogAt("m", 0, 0, 10), "offset": 10, "data": base64.b64encode(b"hello").decode(), "size": 15}
    return LogParts((LogPart(**{**fields, **more}),))


@pytest.mark.parametrize(
    "good", [{}, {"offset": 100, "size": 105}, {"data": "", "size": 10}, {"data": "", "size": 0}, {"size": 1 << 50}]
)
def test_parts_of_logs_as_agents_send_them(good: dict[str, Any]) -> None:
    check_parts({("m", 0, 0)}, part(**good))


@pytest.mark.parametrize(
    "bad",
    [
        {"offset": 9},
        {"offset": -1},
        {"offset": 11},
        {"size": 14},
        {"size": -1},
        {"size": 1 << 63},
        {"offset": 1 << 63, "size": 1 << 63},
        {"data": "hello!"},
        {"data": "é"},
        {"at": LogAt("m", 0, 1, 10)},
        {"at": LogAt("m", 1, 0, 10)},
        {"at": LogAt("../m", 0, 0, 10)},
        {"at": LogAt("m", 0, 0, -1), "offset": -1},
    ],
)
def test_parts_of_logs_that_cannot_be(bad: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        check_parts({("m", 0, 0)}, part(**bad))


def test_a_host_tells_the_use_of_its_own_ranks_only() -> None:
    use = RankStats(1.0, 1)
    found = own_use(two().run, "b", {"m": dict.fromkeys((0, 2, 3, 9), use), "other": {0: use}, "x": {0: use}})
    assert found == {"m": {2: use, 3: use}}
    for wrong in (RankStats(float("nan"), 1), RankStats(float("inf"), 1), RankStats(-1.0, 1), RankStats(1.0, -1)):
        assert own_use(two().run, "b", {"m": {2: wrong}}) == {}
        json.dumps(own_use(two().run, "b", {"m": {2: wrong}}), allow_nan=False)


@pytest.mark.parametrize("letter", ["x", "\U0001f525"])
def test_the_status_of_a_run_fits_a_message_whatever_hosts_sent(letter: str, tmp_path: Any) -> None:
    h = History(*(mesh(f"m{n}") for n in range(30)), hosts=("a",))
    for n in range(30):
        h.happen(Prepared(f"m{n}"))
    most = letter * (MOST_TEXT // 3 - 10)
    for n in range(30):
        h.happen(StoreOpened(f"m{n}", 0, 4000))
        for what in (
            RankExited(f"m{n}", 0, 0, 1, None, error=most, traceback=most, log_tail=(most,)),
            Notice(f"m{n}", most),
            MeshGone(f"m{n}", 0, 1, (most, most)),
        ):
            assert said(h, "a", what) == what
            h.happen(what)
    (tmp_path / "sockets").symlink_to(tmp_path)
    document = run_document(h.run, RunDir(tmp_path))
    assert len(encode(StatusReport(document))) < MAX_LINE
    assert all(m.failure and m.failure.traceback and m.failure.log_tail for m in document.meshes)


def test_every_event_is_checked() -> None:
    """One that is not would end its host at its first arrival."""
    of_hosts_and_meshes = {MessengerOpened, MessengerGone, Prepared, Refused, Notice}
    assert set(get_args(Happening)) == of_hosts_and_meshes | host_claims._CHECKS.keys()

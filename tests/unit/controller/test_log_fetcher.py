"""Logs that come home: from a real agent's files, by the real messages, over a link that only passes them on."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from forgectl.agent import log_parts
from forgectl.agent.log_clock import LogClock
from forgectl.agent.log_parts import read_logs
from forgectl.controller.log_fetcher import LogFetcher
from forgectl.controller.records import AgentLost, Happened
from forgectl.controller.run_dir import RunDir
from forgectl.controller.state import HostState
from forgectl.model.plan import HostPlan
from forgectl.protocol.supervision import LogAt, LogParts, MeshGone, RankStarted, ReadLogs
from forgectl.system.log_cap import LogCap, leading_hole
from forgectl.system.log_times import SAMPLE, append_samples, times_path
from forgectl.wire.envelope import ProtocolError, decode, encode
from tests.conftest import eventually


class Link:
    """Asks the code of an agent whose logs are in `folder`, by encoded messages: all is real but the wire."""

    def __init__(self, folder: Path) -> None:
        self.name = "b"
        self.host = HostState(HostPlan("b", False, "python3", "10.0.0.2"))
        self.up = True
        self.pushed = 0
        self.distort: Callable[[LogParts], LogParts] = lambda answer: answer
        self.breach = ""
        self._folder = folder

    async def ask(self, request: ReadLogs, kind: type, timeout: float, check: Callable[[Any], None]) -> Any:
        if not self.up:
            return None
        asked = decode(encode(request), (ReadLogs,))
        answer = self.distort(decode(encode(await read_logs(self._folder, asked)), (kind,)))
        try:
            check(answer)
        except ProtocolError as e:  # the real one gives its host up
            self.breach, self.host.given_up = str(e), True
            return None
        return answer

    def push(self) -> None:
        self.pushed += 1


class Case:
    def __init__(self, tmp_path: Path) -> None:
        self.there, home = tmp_path / "there", tmp_path / "home" / "run-0000"
        home.mkdir(parents=True)
        self.dir = RunDir(home)
        self.followed: set[str] | None = set()
        self.link = Link(self.there)
        self.mirror = LogFetcher(self.dir, 1 << 30, lambda: self.followed)
        self.mirror.attach([self.link])  # type: ignore[list-item]
        self._seq = 0

    def path(self, rank: int = 0, generation: int = 0) -> Path:
        path = self.there / "m" / str(generation) / f"rank-{rank}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def at_home(self, rank: int = 0, generation: int = 0) -> bytes:
        path = self.dir.log("m", generation, rank)
        return path.read_bytes() if path.exists() else b""

    def happen(self, what: Any) -> None:
        self._seq += 1
        self.mirror.take(Happened("b", self._seq, what))

    def start(self, rank: int = 0, generation: int = 0) -> None:
        self.happen(RankStarted("m", generation, rank, 1, 1, "/log"))

    async def running(self, condition: Callable[[], bool]) -> None:
        """Run the mirror until a condition holds."""
        task = asyncio.create_task(self.mirror.run())
        try:
            await eventually(condition, "what the mirror is to do", 30)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


def test_nothing_comes_before_somebody_wants_it(case: Case) -> None:
    case.path().write_bytes(b"x" * 100)
    case.start()

    async def go() -> None:
        task = asyncio.create_task(case.mirror.run())
        await asyncio.sleep(0.05)
        assert case.at_home() == b""
        assert await case.mirror.bring({"m"}) == ()
        assert case.at_home() == b"x" * 100
        task.cancel()

    asyncio.run(go())


def test_what_is_followed_comes_as_it_is_written(case: Case) -> None:
    case.followed = None
    case.path().write_bytes(b"one\n")
    case.start()
    asyncio.run(case.running(lambda: case.at_home() == b"one\n"))
    with case.path().open("ab") as log:
        log.write(b"two\n")
    asyncio.run(case.running(lambda: case.at_home() == b"one\ntwo\n"))


def test_a_generation_that_is_over_comes_home_whole_before_the_agent_may_go(case: Case) -> None:
    data = os.urandom(5_000_000)
    for rank in range(3):
        case.path(rank).write_bytes(data[rank:])
        case.start(rank)
    case.happen(MeshGone("m", 0))
    assert not case.mirror.has_all("b")
    asyncio.run(case.running(lambda: case.mirror.has_all("b")))
    assert all(case.at_home(rank) == data[rank:] for rank in range(3))
    assert case.link.pushed


def test_an_empty_log_and_one_that_is_gone_are_home_too(case: Case) -> None:
    case.path(0).write_bytes(b"")
    case.start(0)
    case.start(1)
    case.happen(MeshGone("m", 0))
    asyncio.run(case.running(lambda: case.mirror.has_all("b")))


def test_a_host_that_does_not_answer_is_asked_again(case: Case) -> None:
    case.path().write_bytes(b"late")
    case.start()
    case.link.up = False
    case.happen(MeshGone("m", 0))

    async def go() -> None:
        assert await case.mirror.bring({"m"}) == ("b",)
        asyncio.get_running_loop().call_later(0.1, setattr, case.link, "up", True)
        await case.running(lambda: case.mirror.has_all("b"))

    asyncio.run(go())
    assert case.at_home() == b"late"


def test_logs_of_an_agent_that_died_come_through_the_next(case: Case) -> None:
    case.path().write_bytes(b"its last words")
    case.start()
    case.mirror.take(AgentLost("b", "killed"))
    asyncio.run(case.running(lambda: case.mirror.has_all("b")))
    assert case.at_home() == b"its last words"


def test_another_controller_goes_on_where_the_first_was(case: Case) -> None:
    case.path().write_bytes(b"0123456789")
    home = case.dir.log("m", 0, 0)
    home.parent.mkdir(parents=True)
    home.write_bytes(b"01234")
    case.start()
    asyncio.run(case.mirror.bring({"m"}))
    assert case.at_home() == b"0123456789"


def test_holes_stay_holes(case: Case) -> None:
    case.path().write_bytes(b"a" * (4 << 20))
    LogCap(1 << 20).check([case.path()])
    begin = _hole(case.path())
    assert begin > 0
    case.start()
    case.happen(MeshGone("m", 0))
    asyncio.run(case.running(lambda: case.mirror.has_all("b")))
    home = case.dir.log("m", 0, 0)
    assert home.stat().st_size == 4 << 20
    assert _hole(home) == begin


def _hole(path: Path) -> int:
    fd = os.open(path, os.O_RDONLY)
    try:
        return leading_hole(fd)
    finally:
        os.close(fd)


def test_more_logs_than_fit_a_question_all_come(case: Case) -> None:
    case.followed = None
    for rank in range(600):
        case.path(rank).write_bytes(b"%d" % rank)
        case.start(rank)
    asyncio.run(case.running(lambda: all(case.at_home(rank) == b"%d" % rank for rank in range(600))))


def test_an_answer_is_bounded_however_much_there_is(case: Case) -> None:
    case.path().write_bytes(b"x" * (8 << 20))
    answer = asyncio.run(read_logs(case.there, ReadLogs((LogAt("m", 0, 0, 0),))))
    assert len(answer.parts[0].data) <= log_parts.ANSWER_BYTES * 4 / 3 + 4
    assert answer.parts[0].size == 8 << 20


@pytest.mark.parametrize("mesh", ["../../etc", "a/b", "", ".", "-m", "x" * 64])
def test_names_that_lead_elsewhere_are_refused(case: Case, mesh: str) -> None:
    with pytest.raises(ProtocolError):
        asyncio.run(read_logs(case.there, ReadLogs((LogAt(mesh, 0, 0, 0),))))


def test_a_link_in_a_log_s_place_is_not_followed(case: Case, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    case.path().symlink_to(tmp_path / "secret")
    answer = asyncio.run(read_logs(case.there, ReadLogs((LogAt("m", 0, 0, 0),))))
    assert answer.parts[0].data == ""


# ---------------------------------------------------------------- hosts that lie


def each(answer: LogParts, **fields: Any) -> LogParts:
    return LogParts(tuple(dataclasses.replace(part, **fields) for part in answer.parts))


def test_a_log_that_grows_for_ever_ends_where_it_was_when_its_mesh_was_gone(case: Case) -> None:
    case.path().write_bytes(b"x" * 100)
    case.start()
    case.happen(MeshGone("m", 0))
    more = iter(range(1000))

    def grow(answer: LogParts) -> LogParts:
        with case.path().open("ab") as log:
            log.write(b"y" * (1 + next(more)))
        return answer

    case.link.distort = grow
    asyncio.run(case.running(lambda: case.mirror.has_all("b")))
    assert case.at_home() == b"x" * 100


def test_a_log_of_terabytes_stays_on_its_host(case: Case) -> None:
    case.path().write_bytes(b"x" * 100)
    case.start()
    case.happen(MeshGone("m", 0))
    case.link.distort = lambda answer: each(answer, offset=4 << 40, size=(4 << 40) + 100)
    asyncio.run(case.running(lambda: case.mirror.has_all("b")))
    assert case.at_home() == b""


def test_a_log_that_does_not_come_is_not_waited_for(case: Case) -> None:
    """Whoever asks for logs is told that those of this host are not all there."""
    case.path().write_bytes(b"x" * 100)
    case.start()
    case.link.distort = lambda answer: each(answer, data="", size=1 << 39)
    assert asyncio.run(asyncio.wait_for(case.mirror.bring({"m"}), 30)) == ("b",)
    assert case.at_home() == b""


@pytest.mark.parametrize(
    "fields", [{"offset": -1}, {"offset": 1 << 63, "size": 1 << 64}, {"data": "?"}, {"at": LogAt("m", 0, 1, 0)}]
)
def test_a_part_that_cannot_be_is_told_of_and_not_written(case: Case, fields: dict[str, Any]) -> None:
    case.path().write_bytes(b"x" * 100)
    case.start()
    case.happen(MeshGone("m", 0))
    case.link.distort = lambda answer: each(answer, **fields)
    asyncio.run(case.running(lambda: bool(case.link.breach)))
    assert not list(case.dir.path.rglob("*.log"))


def test_a_round_that_fails_ends_no_other(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    case.path().write_bytes(b"x" * 100)
    case.start()
    case.happen(MeshGone("m", 0))
    times = iter([True, False])

    def fail(answer: LogParts) -> LogParts:
        if next(times, False):
            raise RuntimeError("a fault of ours")
        return answer

    case.link.distort = fail
    asyncio.run(case.running(lambda: case.mirror.has_all("b")))
    assert case.at_home() == b"x" * 100
    assert "a fault of ours" in capsys.readouterr().err


# ---------------------------------------------------------------- when lines were written


def note(case: Case, *writes: tuple[bytes, float], rank: int = 0) -> None:
    """Write to the log on the host at some times, noted by its agent's clock."""
    clock = LogClock()
    clock.add(case.path(rank))
    for data, when in writes:
        with case.path(rank).open("ab") as log:
            log.write(data)
        os.utime(case.path(rank), ns=(0, int(when * 1e9)))
        clock.note()


def times_at_home(case: Case, rank: int = 0) -> list[tuple[int, float]]:
    path = times_path(case.dir.log("m", 0, rank))
    return [(size, when / 1e9) for size, when in SAMPLE.iter_unpack(path.read_bytes())] if path.exists() else []


def test_times_come_with_the_lines(case: Case) -> None:
    note(case, (b"one\n", 10), (b"two\n", 11.5))
    case.start()
    asyncio.run(case.mirror.bring({"m"}))
    assert times_at_home(case) == [(4, 10), (8, 11.5)]
    case.mirror = LogFetcher(case.dir, 1 << 30, lambda: None)  # that of a controller that took over
    case.mirror.attach([case.link])  # type: ignore[list-item]
    case.start()
    note(case, (b"three\n", 12))
    case.happen(MeshGone("m", 0))
    asyncio.run(case.running(lambda: case.mirror.has_all("b")))
    assert case.at_home() == b"one\ntwo\nthree\n"
    assert times_at_home(case) == [(4, 10), (8, 11.5), (14, 12)]


def test_every_time_comes_however_many_there_are(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_parts, "ANSWER_SAMPLES", 64)
    path = case.path()
    path.write_bytes(b"x\n" * 5000)
    append_samples(path, b"".join(SAMPLE.pack(2 * n, n * 10**9) for n in range(1, 5001)))
    case.start()
    case.happen(MeshGone("m", 0))
    asyncio.run(case.running(lambda: case.mirror.has_all("b")))
    assert times_at_home(case) == [(2 * n, n) for n in range(1, 5001)]
    assert case.at_home() == b"x\n" * 5000


def test_the_clock_of_a_host_that_differs_is_corrected(case: Case) -> None:
    case.link.distort = lambda answer: dataclasses.replace(answer, now=answer.now + 3600)
    note(case, (b"one\n", 5000), (b"two\n", 5001))
    case.start()
    asyncio.run(case.mirror.bring({"m"}))
    (_, first), (_, second) = times_at_home(case)
    assert first == pytest.approx(1400, abs=60)
    assert second - first == pytest.approx(1)


@pytest.mark.parametrize(
    "times",
    [
        b"123",
        SAMPLE.pack(4, 2) + SAMPLE.pack(4, 3),
        SAMPLE.pack(3, 2) + SAMPLE.pack(2, 3),
        SAMPLE.pack(3, 2) + SAMPLE.pack(4, 1),
        SAMPLE.pack(5, 1),
    ],
)
def test_times_that_cannot_be_are_told_of_and_not_written(case: Case, times: bytes) -> None:
    note(case, (b"one\n", 10))
    case.start()
    text = base64.b64encode(times).decode()
    case.link.distort = lambda answer: LogParts(tuple(dataclasses.replace(p, times=text) for p in answer.parts))
    assert asyncio.run(case.mirror.bring({"m"})) == ("b",)
    assert "times" in case.link.breach
    assert times_at_home(case) == []

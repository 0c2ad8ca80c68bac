"""What a driver writes down of its services, and what the next one reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from forgectl.actor.driver import service_record
from forgectl.actor.driver.service_record import ServiceRecords
from forgectl.actor.service.session import SessionTable
from forgectl.errors import NotFoundError


def table_of(records: ServiceRecords, claim: str = "pool", most_idle: int = 100) -> SessionTable:
    record = records.earlier.get(claim) or records.begin("pool", claim)
    record.write()
    return SessionTable("pool", most_idle, record.sessions, record.note, record.note_end)


def use(table: SessionTable, session: str, index: int) -> None:
    with table.use(session):
        table.move(session, index)


def test_the_next_driver_has_the_sessions_and_the_key(tmp_path: Path) -> None:
    folder = tmp_path / "services"
    records = ServiceRecords(folder)
    first = table_of(records)
    started, ended = first.start(), first.start()
    first.terminate(ended)
    use(first, "mine", 2)
    use(first, started, 1)
    use(first, started, 0)

    [earlier] = ServiceRecords(folder).earlier.values()
    assert (earlier.name, earlier.claim) == ("pool", "pool")
    assert earlier.key.startswith("pool ")
    second = table_of(ServiceRecords(folder))
    assert {s: second.replica_of(s) for s in ("mine", started)} == {"mine": 2, started: 0}
    with pytest.raises(NotFoundError):
        second.terminate(ended)
    use(second, "mine", 1)
    assert table_of(ServiceRecords(folder)).replica_of("mine") == 1
    assert folder.stat().st_mode & 0o077 == 0


def test_own_ids_are_forgotten_in_their_order_by_the_next_driver_too(tmp_path: Path) -> None:
    first = table_of(ServiceRecords(tmp_path / "s"), most_idle=3)
    for n in range(5):
        use(first, f"user-{n}", n)
    second = table_of(ServiceRecords(tmp_path / "s"), most_idle=3)
    assert len(second) == 3
    use(second, "user-9", 0)
    assert [second.replica_of(f"user-{n}") for n in range(5)] == [None, None, None, 3, 4]


def test_a_file_does_not_grow_with_what_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_record, "LEAST_LINES", 20)
    table = table_of(ServiceRecords(tmp_path / "s"), most_idle=2)
    for n in range(500):
        use(table, f"user-{n}", n)
    [file] = (tmp_path / "s").iterdir()
    assert len(file.read_text().splitlines()) < 50
    [record] = ServiceRecords(tmp_path / "s").earlier.values()
    assert record.sessions == {"user-498": 498, "user-499": 499}


@pytest.mark.parametrize("left", [b'["x', b"[]\n", b'["x"]\n', b"\xff\n", b"{}\n", b'["x",\n'])
def test_half_a_line_is_left_out(tmp_path: Path, left: bytes) -> None:
    table = table_of(ServiceRecords(tmp_path / "s"))
    use(table, "mine", 2)
    [file] = (tmp_path / "s").iterdir()
    with file.open("ab") as end:
        end.write(left)
    [record] = ServiceRecords(tmp_path / "s").earlier.values()
    assert record.sessions == {"mine": 2}
    record.write()
    record.note("other", 1)
    [record] = ServiceRecords(tmp_path / "s").earlier.values()
    assert record.sessions == {"mine": 2, "other": 1}


def test_a_service_that_is_shut_down_and_a_file_without_a_beginning_are_unknown(tmp_path: Path) -> None:
    records = ServiceRecords(tmp_path / "s")
    record = records.begin("pool", "pool")
    record.write()
    record.delete()
    record.note("late", 1)
    (tmp_path / "s" / "empty.jsonl").touch()
    assert ServiceRecords(tmp_path / "s").earlier == {}


def test_nothing_is_written_where_no_driver_follows(tmp_path: Path) -> None:
    records = ServiceRecords(None)
    first, second = records.begin("pool", "pool"), records.begin("pool", "pool")
    first.write()
    first.note("mine", 1)
    first.delete()
    assert first.key != second.key
    assert list(tmp_path.iterdir()) == []

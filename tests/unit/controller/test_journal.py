"""The journal and the final state notice every change that is not theirs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from forgectl.controller import journal
from forgectl.controller.records import AgentLost, AgentUp, Born, Happened, Record, StopAsked
from forgectl.controller.run_dir import seal, unseal
from forgectl.protocol.supervision import Prepared, RankStarted
from forgectl.system.processes import Identity

RECORDS: list[tuple[float, Record]] = [
    (1.5, Born(10, owner=Identity(9, 77, "boot"))),
    (2.25, AgentUp("local", 11, "boot")),
    (3.0, Happened("local", 1, Prepared("m"))),
    (4.0, Happened("local", 2, RankStarted("m", 0, 0, 12, 99, "/log/ä\u2028✓"))),
    (5.0, AgentLost("local", "killed", final=True)),
    (6.0, StopAsked(None, 0.0, "Ctrl-C", 130)),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "events.jsonl"
    writer = journal.Journal(path)
    for when, record in RECORDS:
        writer.append(when, record)
    writer.close()
    return path


def test_what_was_written_is_read(path: Path) -> None:
    assert journal.read(path) == (RECORDS, True)
    assert all(json.loads(line)["type"] for line in path.read_text().splitlines())


def test_a_flipped_bit_is_noticed_wherever_it_is_and_costs_at_most_two_records(path: Path) -> None:
    data = path.read_bytes()
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= 1 << position % 8
        path.write_bytes(changed)
        found, whole = journal.read(path)
        assert not whole
        assert len(found) >= len(RECORDS) - 2
        assert all(record in RECORDS for record in found)


def test_every_cut_within_a_line_is_noticed(path: Path) -> None:
    data = path.read_bytes()
    for length in range(0, len(data), 3):
        path.write_bytes(data[:length])
        found, whole = journal.read(path)
        assert whole == (length > 0 and data[length - 1 : length] == b"\n")
        assert found == RECORDS[: len(found)]


def test_a_repaired_journal_is_whole_and_the_old_one_is_kept(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])
    damaged = path.read_bytes()
    found, whole = journal.read(path)
    assert not whole
    journal.repair(path, found)
    assert journal.read(path) == (RECORDS[:-1], True)
    [kept] = path.parent.glob("events.jsonl.corrupt-*")
    assert kept.read_bytes() == damaged


@pytest.mark.parametrize("data", [b"", b"{}", b"}", b',"crc":"00000000"}', b'{"a":1}', seal(b'{"a":1}') + b" "])
def test_what_was_never_sealed_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="checksum"):
        unseal(data)

"""Datasets: every row once an epoch, in a seeded order, resumed at the very next row; what is malformed is named."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actors import Dataset, DatasetActor
from forgectl import NotFoundError, NotInstalledError, UsageError


def rows_of(count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"{i}", "answer": i} for i in range(count)]


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def answers(dataset: Dataset, count: int) -> list[int]:
    return [row["answer"] for row in dataset.batch(count)]


@pytest.fixture(params=["jsonl", "parquet", "folder of parquet", "save_to_disk", "function"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """Twenty rows in each form."""
    rows = rows_of(20)
    if request.param == "jsonl":
        return jsonl(tmp_path / "rows.jsonl", rows)
    if request.param == "function":
        return lambda: rows
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import ipc, parquet

    table = arrow.Table.from_pylist(rows)
    if request.param == "parquet":
        parquet.write_table(table, tmp_path / "rows.parquet", row_group_size=7)
        return tmp_path / "rows.parquet"
    for number, part in enumerate((table.slice(0, 8), table.slice(8))):
        if request.param == "folder of parquet":
            parquet.write_table(part, tmp_path / f"train-{number}.parquet")
        else:
            with ipc.new_stream(tmp_path / f"data-{number}.arrow", part.schema) as writer:
                writer.write_table(part, max_chunksize=3)
    if request.param == "save_to_disk":
        files = [{"filename": f"data-{number}.arrow"} for number in range(2)]
        (tmp_path / "state.json").write_text(json.dumps({"_data_files": files}))
    return str(tmp_path)


def test_every_row_comes_once_an_epoch_in_an_order_of_the_seed(source: Any) -> None:
    dataset = Dataset(source, seed=1)
    first, second = answers(dataset, 20), answers(dataset, 20)
    assert sorted(first) == sorted(second) == list(range(20))
    assert first != second
    assert first != list(range(20))
    assert answers(Dataset(source, seed=1), 40) == first + second
    assert answers(Dataset(source, seed=2), 20) != first
    assert answers(Dataset(source, shuffle=False), 25) == [*range(20), *range(5)]


@pytest.mark.parametrize("taken", [0, 1, 19, 20, 33])
def test_it_goes_on_at_the_very_next_row(source: Any, taken: int) -> None:
    one = Dataset(source, seed=3, epochs=2)
    one.batch(taken)
    state = json.loads(json.dumps(one.state_dict()))
    other = Dataset(source, seed=3, epochs=2)
    other.batch(7)
    other.load_state_dict(state)
    assert answers(other, 100) == answers(one, 100)


@pytest.mark.parametrize("size", [2, 3, 7])
def test_the_parts_of_ranks_are_disjoint_and_complete(source: Any, size: int) -> None:
    parts = [Dataset(source, rank=rank, size=size, epochs=1) for rank in range(size)]
    assert sorted(itertools.chain(*(answers(part, 100) for part in parts))) == list(range(20))


def test_another_number_of_ranks_goes_on_without_losing_or_repeating_a_row(source: Any) -> None:
    before = [Dataset(source, rank=rank, size=2, epochs=1) for rank in range(2)]
    seen = [answer for part in before for answer in answers(part, 4)]
    after = [Dataset(source, rank=rank, size=3, epochs=1) for rank in range(3)]
    for part in after:
        part.load_state_dict(before[0].state_dict())
    seen += [answer for part in after for answer in answers(part, 100)]
    assert sorted(seen) == list(range(20))


def test_after_the_last_epoch_there_is_nothing(source: Any) -> None:
    dataset = Dataset(source, epochs=2)
    assert dataset.epoch == 0
    assert len(dataset.batch(30)) == 30
    assert dataset.epoch == 1
    assert len(dataset.batch(30)) == 10
    assert dataset.sample() is None
    assert dataset.batch(3) == []


def endless(seed: int, epoch: int, step: int = 1) -> Iterator[dict[str, Any]]:
    return ({"prompt": "?", "answer": seed + epoch + step * i} for i in itertools.count())


def test_a_function_may_yield_without_end() -> None:
    dataset = Dataset(endless, seed=10, arguments={"step": 5}, rank=1, size=2)
    assert answers(dataset, 3) == [15, 25, 35]
    again = Dataset(endless, seed=10, arguments={"step": 5}, rank=1, size=2)
    again.load_state_dict(dataset.state_dict())
    assert answers(again, 1) == [45]


def test_a_function_is_called_anew_for_each_epoch() -> None:
    def two(epoch: int) -> Iterator[dict[str, Any]]:
        yield {"prompt": "", "answer": epoch}
        yield {"prompt": "", "answer": -epoch}

    assert answers(Dataset(two), 6) == [0, 0, 1, -1, 2, -2]


def test_a_function_is_named_as_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_rows.py").write_text("def rows():\n    yield {'prompt': 'p', 'answer': 3}\n")
    (tmp_path / "my_broken_rows.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert answers(Dataset("my_rows:rows"), 1) == [3]
    with pytest.raises(NotFoundError, match="there is no function my_rows:row: "):
        Dataset("my_rows:row")
    with pytest.raises(NotFoundError, match="there is no function no_such_module:rows: "):
        Dataset("no_such_module:rows")
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        Dataset("my_broken_rows:rows")


def test_columns_are_renamed_and_made() -> None:
    def rows() -> list[dict[str, Any]]:
        return [{"question": "1+1", "answer": "so: #### 2"}]

    def last(row: dict[str, Any]) -> dict[str, Any]:
        return {**row, "answer": int(row["answer"].split("####")[1])}

    dataset = Dataset(rows, columns={"question": "prompt"}, map=last)
    assert dataset.sample() == {"prompt": "1+1", "answer": 2}


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"prompt": "x"', "not JSON: "),
        (b"[1, 2]", "not an object of columns"),
        (b'{"prompt": "\xff"}', "not JSON: "),
        (b'{"Prompt": "x"}', "neither a prompt nor messages, but Prompt; "),
        (b'{"prompt": null}', "neither a prompt nor messages, but prompt; "),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, line: bytes, problem: str) -> None:
    path = jsonl(tmp_path / "rows.jsonl", rows_of(2000))
    lines = path.read_bytes().splitlines()
    lines[1015:1017] = [b"", line]  # a blank line is no row, and counts as a line
    path.write_bytes(b"\n".join(lines))
    for shuffle in (False, True):
        with pytest.raises(ValueError, match=r"rows\.jsonl, line 1,017: .*" + problem):
            Dataset(path, shuffle=shuffle).batch(2000)


def test_a_map_that_fails_names_the_row(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "rows.jsonl", rows_of(3))

    def halves(row: dict[str, Any]) -> dict[str, Any]:
        return {**row, "half": 1 / row["answer"]}

    with pytest.raises(ZeroDivisionError, match=r"rows\.jsonl, line 1: division by zero"):
        Dataset(path, map=halves).batch(3)
    with pytest.raises(AttributeError, match=r"rows\.jsonl, line 1: 'NoneType' object"):
        Dataset(path, map=lambda row: None, shuffle=False).sample()  # type: ignore[arg-type, return-value]


def test_sources_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotFoundError, match=r"there is no dataset .*/rows\.jsonl"):
        Dataset(tmp_path / "rows.jsonl")
    (tmp_path / "rows.txt").touch()
    with pytest.raises(UsageError, match=r"not known how to read .*rows\.txt"):
        Dataset(tmp_path / "rows.txt")
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(UsageError, match="has several splits") as caught:
        Dataset(tmp_path)
    assert caught.value.hint == f"name one: {tmp_path}/train, {tmp_path}/test"
    (tmp_path / "bad.parquet").write_bytes(b"no parquet at all")
    with pytest.raises(ValueError, match=r"bad\.parquet cannot be read"):
        Dataset(tmp_path / "bad.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(NotInstalledError, match="takes pyarrow"):
        Dataset(tmp_path / "bad.parquet")


def test_an_epoch_without_rows_ends_it_loudly(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "rows.jsonl", rows_of(2))
    with pytest.raises(UsageError, match="has no row in epoch 0 for rank 2 of 3"):
        Dataset(path, rank=2, size=3).sample()


def test_a_dataset_that_has_changed_does_not_go_on(tmp_path: Path) -> None:
    state = Dataset(jsonl(tmp_path / "rows.jsonl", rows_of(5)), seed=1).state_dict()
    with pytest.raises(UsageError, match="it had rows 5, and has 6"):
        Dataset(jsonl(tmp_path / "rows.jsonl", rows_of(6)), seed=1).load_state_dict(state)
    with pytest.raises(UsageError, match="it had seed 1, and has 2"):
        Dataset(jsonl(tmp_path / "rows.jsonl", rows_of(5)), seed=2).load_state_dict(state)


def test_the_actor_gives_what_the_dataset_gives() -> None:
    actor, dataset = DatasetActor(endless, seed=4), Dataset(endless, seed=4)
    actor.setup()
    assert actor.sample() == dataset.sample()
    assert actor.batch(3) == dataset.batch(3)
    assert actor.epoch() == 0
    state = actor.state_dict()
    assert state == dataset.state_dict()
    following = actor.sample()
    actor.load_state_dict(state)
    assert actor.sample() == following

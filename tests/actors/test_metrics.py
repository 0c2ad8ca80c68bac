"""Metrics: reduced as if one process had recorded them all, written whole, right after a restart."""

from __future__ import annotations

import json
import math
import multiprocessing
import pickle
import resource
import statistics
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from actors import Completion, Episode, MetricLogger, Reduce, collect_metrics, merge_metrics, plot, record_metric
from actors.metrics import ConsoleTable, MetricFiles, Tally, read_metrics, smoothed
from forgectl import BusyError, NotInstalledError, UsageError

VALUES = [3.0, -1.5, 4.25, 4.25, 1e9, 1e9 + 1]


@pytest.mark.parametrize(
    ("reduce", "expected"),
    [
        (Reduce.MEAN, statistics.fmean(VALUES)),
        (Reduce.SUM, math.fsum(VALUES)),
        (Reduce.MAX, max(VALUES)),
        (Reduce.MIN, min(VALUES)),
        (Reduce.STD, statistics.stdev(VALUES)),
    ],
)
@pytest.mark.parametrize("split", range(len(VALUES) + 1))
def test_parts_reduce_as_the_whole(reduce: Reduce, expected: float, split: int) -> None:
    parts = []
    for part in (VALUES[:split], VALUES[split:]):
        for value in part:
            record_metric("x", value, reduce)
        parts.append(pickle.loads(pickle.dumps(collect_metrics())))  # noqa: S301
    assert merge_metrics(parts)["x"].value == pytest.approx(expected, rel=1e-12)
    assert collect_metrics() == {}


def test_a_close_spread_around_a_large_mean_is_not_lost() -> None:
    for value in (1e9, 1e9 + 1, 1e9 + 2):
        record_metric("x", value, Reduce.STD)
    assert collect_metrics()["x"].value == pytest.approx(1.0)


def test_one_value_has_no_spread() -> None:
    assert Tally.of(7.0, Reduce.STD).value == 0.0


@pytest.mark.parametrize("reduce", Reduce)
def test_nan_is_not_hidden_by_other_values(reduce: Reduce) -> None:
    for values in ([1.0, math.nan, 2.0], [math.nan, 1.0], [1.0, math.nan]):
        for value in values:
            record_metric("x", value, reduce)
        assert math.isnan(collect_metrics()["x"].value)


def test_threads_lose_no_value() -> None:
    def record() -> None:
        for _ in range(2000):
            record_metric("n", 1, Reduce.SUM)

    threads = [threading.Thread(target=record) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert collect_metrics()["n"].value == 8000


def test_one_key_has_one_reduction_and_a_number() -> None:
    record_metric("x", torch.tensor([2.5]))
    with pytest.raises(ValueError, match="metric 'x': recorded as mean and as max; use two keys"):
        record_metric("x", 1, Reduce.MAX)
    with pytest.raises(TypeError, match="metric 'y' must be a number, not str"):
        record_metric("y", "much")  # type: ignore[arg-type]
    assert {key: tally.value for key, tally in collect_metrics().items()} == {"x": 2.5}


def lines_of(path: Path) -> list[Any]:
    return [json.loads(line, parse_constant=pytest.fail) for line in path.read_text().splitlines()]


def test_each_step_is_a_line_and_what_json_has_not_is_null(tmp_path: Path) -> None:
    files = MetricFiles(tmp_path / "new" / "folder")
    files.log(1, {"loss": 0.5})
    files.log(2, {"loss": math.nan, "norm": math.inf})
    files.log(2, {"accuracy": 0.75})
    lines = lines_of(tmp_path / "new" / "folder" / "metrics.jsonl")
    assert [{key: line[key] for key in line if key != "time"} for line in lines] == [
        {"step": 1, "loss": 0.5},
        {"step": 2, "loss": None, "norm": None},
        {"step": 2, "accuracy": 0.75},
    ]
    first, second = files.history()
    assert (first["step"], first["loss"]) == (1, 0.5)
    assert (second["step"], second["accuracy"]) == (2, 0.75)
    assert math.isnan(second["loss"])


def test_a_step_that_is_done_again_counts_once(tmp_path: Path) -> None:
    files = MetricFiles(tmp_path)
    for step in range(1, 7):
        files.log(step, {"loss": float(step)})
        files.log_samples(step, [{"text": f"{step}"}])
    again = MetricFiles(tmp_path)
    again.resume(4)
    again.log(5, {"loss": 50.0})
    again.log_samples(5, [{"text": "again"}])
    assert [row["loss"] for row in again.history()] == [1, 2, 3, 4, 50]
    assert [row["text"] for row in lines_of(tmp_path / "samples.jsonl")] == ["1", "2", "3", "4", "again"]


def test_a_line_that_was_cut_short_is_removed(tmp_path: Path) -> None:
    MetricFiles(tmp_path).log(1, {"loss": 0.5})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    assert [row["step"] for row in read_metrics(tmp_path)] == [1], "a reader beside the writer"
    files = MetricFiles(tmp_path)
    files.log(2, {"loss": 0.25})
    assert [row["loss"] for row in files.history()] == [0.5, 0.25]


def test_samples_are_episodes_or_rows(tmp_path: Path) -> None:
    completion = Completion(
        prompt_ids=torch.tensor([1, 2]),
        token_ids=torch.tensor([3, 4]),
        logprobs=torch.tensor([-0.5, -math.inf]),
        text="ünï \ud800",
        stop_reason="stop",
        version=3,
        max_version=3,
        request_id="r",
    )
    files = MetricFiles(tmp_path)
    files.log_samples(7, [Episode.of(completion, group_id="g", reward=1.0, episode_id="e"), {"text": completion.text}])
    episode, row = lines_of(tmp_path / "samples.jsonl")
    assert row == {"step": 7, "text": "ünï ?"}
    assert episode["step"] == 7
    assert episode["token_ids"] == [3, 4]
    assert episode["logprobs"] == [-0.5, None]
    assert episode["loss_mask"] == [True, True]
    assert episode["policy_version"] == 3


def test_the_configuration_is_written(tmp_path: Path) -> None:
    config = {"trainer": {"lr": 3e-4, "dtype": torch.float32, "path": Path("/models")}, "stop": ("a", "b")}
    MetricFiles(tmp_path).write_config(config)
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == {
        "trainer": {"lr": 3e-4, "dtype": "torch.float32", "path": "/models"},
        "stop": ["a", "b"],
    }


def fill_up(folder: Path, results: Any) -> None:
    """Log until files must not grow further, as on a disk that is full."""
    files = MetricFiles(folder)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    try:
        for step in range(1000):
            files.log(step, {"loss": 0.5})
    except BusyError as e:
        results.put((str(e), step))


def test_a_full_disk_is_named_with_the_file_and_no_half_line_stays(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    results = fork.SimpleQueue()
    process = fork.Process(target=fill_up, args=(tmp_path, results))
    process.start()
    process.join()
    assert process.exitcode == 0
    message, step = results.get()
    assert message == f"{tmp_path}/metrics.jsonl cannot be written: File too large"
    assert [row["step"] for row in lines_of(tmp_path / "metrics.jsonl")] == [*range(step)]


def test_the_table_has_a_head_when_columns_change_and_now_and_then() -> None:
    table = ConsoleTable(every=2)
    printed = [line for step in range(1, 4) for line in table.lines(step, {"reward": step / 3, "loss": 1e-7})]
    printed += table.lines(4, {"held_out_accuracy": math.nan})
    assert printed == [
        "  step     reward       loss",
        "     1     0.3333      1e-07",
        "     2     0.6667      1e-07",
        "  step     reward       loss",
        "     3          1      1e-07",
        "  step  held_out_accuracy",
        "     4                nan",
    ]
    chosen = ConsoleTable(["loss", "absent"]).lines(1, {"reward": 1.0, "loss": 2.0})
    assert [line.split() for line in chosen] == [["step", "loss", "absent"], ["1", "2", "-"]]


def logger(folder: Path, **options: Any) -> tuple[MetricLogger, list[str]]:
    printed: list[str] = []
    actor = MetricLogger(folder, show=printed.append, **options)
    actor.setup()
    return actor, printed


def test_the_logger_merges_what_ranks_recorded(tmp_path: Path) -> None:
    actor, printed = logger(tmp_path, tensorboard=False, console=["loss"], config={"seed": 1})
    ranks = []
    for rank in range(2):
        record_metric("loss", float(rank))
        record_metric("tokens", 100, Reduce.SUM)
        ranks.append(collect_metrics())
    assert actor.log(1, [*ranks, {"reward": 0.5}]) == {"loss": 0.5, "tokens": 200, "reward": 0.5}
    actor.log(2, {"loss": 0.25})
    actor.log_samples(2, [{"text": "x"}])
    actor.flush()
    assert [row["loss"] for row in actor.history()] == [0.5, 0.25]
    assert [line.split() for line in printed] == [["step", "loss"], ["1", "0.5"], ["2", "0.25"]]
    assert (tmp_path / "config.yaml").read_text() == "seed: 1\n"
    assert {path.name for path in tmp_path.iterdir()} == {"config.yaml", "metrics.jsonl", "samples.jsonl"}


def test_tensorboard_reads_what_is_written(tmp_path: Path) -> None:
    events_of = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator").EventAccumulator
    actor, printed = logger(tmp_path, console=())
    for step in range(1, 5):
        actor.log(step, {"loss": 1.0})
    actor.resume(2)
    actor.log(3, {"loss": 0.5})
    actor.flush()
    events = events_of(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 1.0), (2, 1.0), (3, 0.5)]
    assert printed == []


def test_without_tensorboard_it_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    for _ in range(2):
        logger(tmp_path)[0].log(1, {"loss": 1.0})
    assert [record.message for record in caplog.records] == [
        "tensorboard is not installed, so no files for it are written: pip install tensorboard"
    ]


def test_the_plot_shows_the_keys_that_are_there(tmp_path: Path) -> None:
    matplotlib_image = pytest.importorskip("matplotlib.image")
    files = MetricFiles(tmp_path)
    for step in range(60):
        files.log(step, {"reward": step / 60, "mismatch_kl": math.nan if step == 30 else 1e-4})
        if step % 10 == 0:
            files.log(step, {"held_out": step / 60})
    picture = matplotlib_image.imread(plot(tmp_path))
    assert picture.shape[1] > picture.shape[0], "two panels beside each other"
    assert picture[..., :3].std() > 0.05, "something is drawn"
    assert plot(tmp_path, ["reward"], tmp_path / "other.png") == tmp_path / "other.png"
    with pytest.raises(UsageError, match="has no numbers of") as caught:
        plot(tmp_path, ["rewards"])
    assert caught.value.hint == "it has held_out, mismatch_kl, reward"


def test_without_matplotlib_the_plot_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(NotInstalledError, match="takes matplotlib"):
        plot(tmp_path)


def test_smoothing_keeps_the_ends_and_skips_nan() -> None:
    assert smoothed([1.0, 2.0, math.nan, 4.0]) == [1.5, 1.5, 3.0, 4.0]
    assert math.isnan(smoothed([math.nan])[0])

"""Numbers of a run by step: recorded in any process, merged, and written so that a plot of them is right."""

from __future__ import annotations

import dataclasses
import enum
import functools
import importlib
import json
import logging
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from forgectl import BusyError, ForgeActor, NotInstalledError, UsageError, endpoint

METRICS, SAMPLES, CONFIG = "metrics.jsonl", "samples.jsonl", "config.yaml"
PANELS = (
    ("reward", "held_out"),
    ("loss",),
    ("policy_age_mean", "policy_age_max"),
    ("mismatch_kl",),
)
"""What `plot` draws unless it is told otherwise."""
_log = logging.getLogger(__name__)


class Reduce(enum.Enum):
    """How the values that processes recorded become one."""

    MEAN = "mean"
    SUM = "sum"
    MAX = "max"
    MIN = "min"
    STD = "std"
    """The unbiased standard deviation; 0 of one value."""


@dataclass(frozen=True)
class Tally:
    """What is kept of recorded values: enough to reduce them later, together with those of other processes."""

    reduce: Reduce
    count: int
    mean: float
    deviations: float
    """The sum of squared deviations from the mean."""
    least: float
    most: float

    @classmethod
    def of(cls, value: float, reduce: Reduce = Reduce.MEAN) -> Tally:
        """Of one value."""
        return cls(reduce, 1, value, 0.0, value, value)

    def __add__(self, other: Tally) -> Tally:
        """Of the values of both; see Chan, Golub and LeVeque, "Updating formulae …", 1979. ValueError: they differ."""
        if self.reduce is not other.reduce:
            raise ValueError(f"recorded as {self.reduce.value} and as {other.reduce.value}; use two keys")
        count, apart = self.count + other.count, other.mean - self.mean
        return Tally(
            self.reduce,
            count,
            self.mean + apart * other.count / count,
            self.deviations + other.deviations + apart**2 * self.count * other.count / count,
            _picked(min, self.least, other.least),
            _picked(max, self.most, other.most),
        )

    @property
    def value(self) -> float:
        """The values, reduced."""
        match self.reduce:
            case Reduce.MEAN:
                return self.mean
            case Reduce.SUM:
                return self.mean * self.count
            case Reduce.MAX:
                return self.most
            case Reduce.MIN:
                return self.least
            case Reduce.STD:
                return math.sqrt(self.deviations / max(1, self.count - 1))


def _picked(pick: Callable[[float, float], float], a: float, b: float) -> float:
    """The less or the greater; NaN if one is NaN, which `min` and `max` hide or not depending on the order."""
    return math.nan if math.isnan(a) or math.isnan(b) else pick(a, b)


Values = Mapping[str, float | Tally]
"""Numbers by key, or what `collect_metrics` gave."""
_recorded: dict[str, Tally] = {}
_lock = threading.Lock()


def record_metric(key: str, value: float, reduce: Reduce = Reduce.MEAN) -> None:
    """Record a value in this process, until `collect_metrics`. Raises ValueError for a key of another reduction."""
    tally = Tally.of(as_number(key, value), reduce)
    with _lock:
        _recorded[key] = _added(key, _recorded.get(key), tally)


def collect_metrics() -> dict[str, Tally]:
    """What this process has recorded since it was last asked. A small pickle, for `MetricLogger.log`."""
    with _lock:
        collected = dict(_recorded)
        _recorded.clear()
    return collected


def merge_metrics(parts: Iterable[Values]) -> dict[str, Tally]:
    """One tally a key. A plain number counts as one value of a mean."""
    merged: dict[str, Tally] = {}
    for part in parts:
        for key, value in part.items():
            tally = value if isinstance(value, Tally) else Tally.of(as_number(key, value))
            merged[key] = _added(key, merged.get(key), tally)
    return merged


def _added(key: str, before: Tally | None, tally: Tally) -> Tally:
    try:
        return tally if before is None else before + tally
    except ValueError as e:
        raise ValueError(f"metric {key!r}: {e}") from None


def as_number(key: str, value: Any) -> float:
    """A number, or a tensor or array of one element, as a float. Raises TypeError, which names the key."""
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as e:
        raise TypeError(f"metric {key!r} must be a number, not {type(value).__name__}: {e}") from None


class MetricFiles:
    """The files of a run's numbers and samples in a folder; a plain class.

    `metrics.jsonl` has one object a line: `step`, `time` (seconds since 1970), and numbers by key; null for NaN and
    infinity, which JSON has not. `samples.jsonl` has one object a row, with `step`. A line is written by one system
    call, so that a reader sees whole lines, and a line that a dying process left half is removed.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in (METRICS, SAMPLES):
            _cut_torn_line(self.folder / name)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Append the numbers of a step; a step may have several lines. BusyError: the disk is full."""
        self._append(METRICS, [{"step": step, "time": time.time(), **values}])

    def log_samples(self, step: int, rows: Iterable[Any]) -> None:
        """Append rows: mappings, or dataclasses such as episodes, whose tensors become lists."""
        self._append(SAMPLES, [{"step": step, **plain(row)} for row in rows])

    def write_config(self, config: Any) -> None:
        """Write config.yaml."""
        path = self.folder / CONFIG
        draft = path.with_suffix(".new")
        try:
            draft.write_text(yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True))
            draft.replace(path)
        except OSError as e:
            raise _cannot_write(path, e) from e

    def resume(self, step: int) -> None:
        """Remove what was logged for steps after `step`: a run that goes on from a checkpoint does them again."""
        for path in (self.folder / METRICS, self.folder / SAMPLES):
            lines = path.read_bytes().splitlines(keepends=True)
            kept = [line for line in lines if json.loads(line)["step"] <= step]
            if len(kept) < len(lines):
                draft = path.with_suffix(".new")
                try:
                    draft.write_bytes(b"".join(kept))
                    draft.replace(path)
                except OSError as e:
                    raise _cannot_write(path, e) from e

    def history(self) -> list[dict[str, float]]:
        """The numbers of each step, by step."""
        return read_metrics(self.folder)

    def _append(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        path = self.folder / name
        text = "".join(json.dumps(plain(row), ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
        data = text.encode("utf-8", "replace")  # what a model samples may have half characters
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        begin = os.fstat(file).st_size
        try:
            if (count := os.write(file, data)) < len(data):
                os.write(file, data[count:])  # it fails, and says why
        except OSError as e:
            os.truncate(file, begin)
            raise _cannot_write(path, e) from e
        finally:
            os.close(file)


def _cannot_write(path: Path, error: OSError) -> BusyError:
    return BusyError(f"{path} cannot be written: {error.strerror}", hint="make room, or log into another folder")


def _cut_torn_line(path: Path) -> None:
    """Remove the last line if it has no end."""
    data = path.read_bytes() if path.exists() else b""
    if not data.endswith(b"\n"):
        with path.open("ab") as file:
            file.truncate(data.rfind(b"\n") + 1)


def read_metrics(folder: str | os.PathLike[str]) -> list[dict[str, float]]:
    """The numbers of each step, with `step`, by step; of a key that a step has twice the later. NaN stands for null."""
    steps: dict[int, dict[str, float]] = {}
    for line in (Path(folder) / METRICS).read_text().splitlines(keepends=True):
        if line.endswith("\n"):  # the last may still be in writing
            row = json.loads(line)
            numbers = {key: math.nan if value is None else value for key, value in row.items()}
            steps.setdefault(row["step"], {}).update(numbers)
    return [steps[step] for step in sorted(steps)]


def plain(value: Any) -> Any:
    """A value as JSON and YAML have it: dataclasses and mappings as objects, tensors as lists, NaN as null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if callable(getattr(value, "tolist", None)):
        return plain(value.tolist())
    if isinstance(value, Iterable):
        return [plain(item) for item in value]
    return str(value)


class ConsoleTable:
    """Lines of a table on the console, one a step; its head comes again when the columns change, and now and then."""

    def __init__(self, keys: Sequence[str] | None = None, every: int = 20) -> None:
        """`keys`: the columns, with "-" where a step lacks one; None: all that a step has. `every`: lines a head."""
        self._keys, self._every = keys, every
        self._head: list[str] = []
        self._lines = 0

    def lines(self, step: int, values: Mapping[str, float]) -> list[str]:
        """What to print for a step."""
        columns = [*values] if self._keys is None else [*self._keys]
        widths = [max(len(key), 9) for key in columns]
        cells = [f"{values[key]:.4g}" if key in values else "-" for key in columns]
        line = "  ".join([f"{step:>6}", *(f"{cell:>{w}}" for cell, w in zip(cells, widths, strict=True))])
        head = []
        if columns != self._head or self._lines == self._every:
            self._head, self._lines = columns, 0
            head = ["  ".join([f"{'step':>6}", *(f"{k:>{w}}" for k, w in zip(columns, widths, strict=True))])]
        self._lines += 1
        return [*head, line]


def open_tensorboard(folder: Path, resumed_at: int | None = None) -> Any:
    """A SummaryWriter of torch, which hides what was logged after step `resumed_at`; None where it is not installed."""
    try:
        writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter
    except ImportError:
        _say_once("tensorboard is not installed, so no files for it are written: pip install tensorboard")
        return None
    return writer(str(folder), purge_step=None if resumed_at is None else resumed_at + 1)


@functools.cache
def _say_once(text: str) -> None:
    _log.warning(text)


def plot(
    folder: str | os.PathLike[str],
    keys: Sequence[str | Sequence[str]] = PANELS,
    png: str | os.PathLike[str] | None = None,
) -> Path:
    """Draw the metrics of a folder over the steps. Returns the path of the picture, `metrics.png` unless it is given.

    Args:
        folder: where metrics.jsonl is.
        keys: what each panel shows, one key or several; keys without a number are left out.
        png: where to write the picture.

    Raises:
        NotInstalledError: matplotlib is missing.
        UsageError: none of the keys has a number.
    """
    try:
        figure_of = importlib.import_module("matplotlib.figure").Figure
    except ModuleNotFoundError:
        raise NotInstalledError("plotting metrics takes matplotlib", hint="pip install matplotlib") from None
    rows = read_metrics(folder)
    wanted = [[key] if isinstance(key, str) else list(key) for key in keys]
    panels = [shown for group in wanted if (shown := [key for key in group if any(key in row for row in rows)])]
    if not panels:
        there = sorted({key for row in rows for key in row} - {"step", "time"})
        raise UsageError(f"{folder} has no numbers of {keys}", hint=f"it has {', '.join(there) or 'none at all'}")
    across = min(2, len(panels))
    down = -(-len(panels) // across)
    figure = figure_of(figsize=(6 * across, 3.4 * down), layout="constrained")
    for number, shown in enumerate(panels):
        _draw(figure.add_subplot(down, across, number + 1), rows, shown)
    path = Path(folder) / "metrics.png" if png is None else Path(png)
    figure.savefig(path, dpi=120)
    return path


def _draw(axes: Any, rows: Sequence[Mapping[str, float]], keys: Sequence[str]) -> None:
    """Each key as a line: many points pale, and their running mean over them."""
    for number, key in enumerate(keys):
        steps, values = zip(*((row["step"], row[key]) for row in rows if key in row), strict=True)
        color = f"C{number}"
        if len(steps) > 40:
            axes.plot(steps, values, color=color, alpha=0.25, linewidth=1)
            axes.plot(steps, smoothed(values), color=color, linewidth=2, label=key)
        else:
            axes.plot(steps, values, color=color, linewidth=2, marker="o", markersize=4, label=key)
    axes.set_xlabel("step")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=len(keys), borderaxespad=0)


def smoothed(values: Sequence[float], share: float = 0.03) -> list[float]:
    """The mean around each value, over the given share of all on either side; NaN and infinity do not count."""
    reach = max(1, round(len(values) * share))
    around = ([v for v in values[max(0, i - reach) : i + reach + 1] if math.isfinite(v)] for i in range(len(values)))
    return [math.fsum(near) / len(near) if near else math.nan for near in around]


class MetricLogger(ForgeActor):
    """Writes a run's metrics and samples into a folder, for TensorBoard, and as a table on the console."""

    def __init__(
        self,
        folder: str | os.PathLike[str],
        config: Any = None,
        tensorboard: bool = True,
        console: Sequence[str] | None = None,
        show: Callable[[str], object] | None = None,
    ) -> None:
        """Nothing is opened before `setup`.

        Args:
            folder: where the files go.
            config: what config.yaml is to have; None: no such file.
            tensorboard: whether to write for TensorBoard, too, if it is installed.
            console: the columns of the table; None: all metrics; (): no table.
            show: what is called with each line of the table, instead of writing it to stdout.
        """
        super().__init__()
        self._folder, self._config, self._with_tensorboard = Path(folder), config, tensorboard
        self._columns, self._show = console, show or _to_stdout

    @endpoint
    def setup(self) -> None:
        """Open the files. Raises UsageError on more than one rank."""
        if self.size > 1:
            raise UsageError("a MetricLogger has one rank, which writes the files", hint="leave out procs")
        self._files = MetricFiles(self._folder)
        if self._config is not None:
            self._files.write_config(self._config)
        self._tensorboard = open_tensorboard(self._folder) if self._with_tensorboard else None
        self._table = ConsoleTable(self._columns)

    @endpoint
    def log(self, step: int, values: Values | Sequence[Values]) -> dict[str, float]:
        """Write the numbers of a step, and return them.

        `values`: numbers by key; or several such mappings, as `collect_metrics` gives in several processes, of which
        equal keys are merged. Raises BusyError, with the file and the cause, where it cannot be written.
        """
        merged = merge_metrics([values] if isinstance(values, Mapping) else values)
        reduced = {key: tally.value for key, tally in merged.items()}
        self._files.log(step, reduced)
        if self._tensorboard is not None:
            for key, value in reduced.items():
                self._tensorboard.add_scalar(key, value, step)
        if self._columns is None or self._columns:
            for line in self._table.lines(step, reduced):
                self._show(line)
        return reduced

    @endpoint
    def log_samples(self, step: int, rows: Sequence[Any]) -> None:
        """Write episodes, or mappings by column, into samples.jsonl."""
        self._files.log_samples(step, rows)

    @endpoint
    def resume(self, step: int) -> None:
        """Forget the steps after `step`, which will be done again. Call it after loading a checkpoint."""
        self._files.resume(step)
        if self._tensorboard is not None:
            self._tensorboard.close()
            self._tensorboard = open_tensorboard(self._folder, step)

    @endpoint
    def history(self) -> list[dict[str, float]]:
        """The numbers of each step, by step."""
        return self._files.history()

    @endpoint
    def plot(self, keys: Sequence[str | Sequence[str]] = PANELS) -> Path:
        """Draw the metrics into metrics.png. See the function `plot`."""
        return plot(self._folder, keys)

    @endpoint
    def flush(self) -> None:
        """Bring to the files what TensorBoard holds back; our own files hold nothing back."""
        if self._tensorboard is not None:
            self._tensorboard.flush()

    async def __cleanup__(self, exc: Exception | None) -> None:
        """Close the files of TensorBoard."""
        if (tensorboard := self.__dict__.get("_tensorboard")) is not None:
            tensorboard.close()


def _to_stdout(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()

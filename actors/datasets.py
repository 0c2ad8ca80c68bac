"""Rows of a dataset in a seeded order, a part to each rank, resumable at the very next row."""

from __future__ import annotations

import importlib
import inspect
import json
import random
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from forgectl import ForgeActor, NotFoundError, NotInstalledError, UsageError, endpoint

Row = dict[str, Any]
"""A row by column: `prompt` (text or messages) or `messages`, perhaps `completion`, and what rewards need besides."""
Source = str | Path | Callable[..., Iterable[Row]]
"""A file, a folder, "module:function", or a function that returns or yields rows."""


class Rows(Protocol):
    """Rows that can be read in any order."""

    def __len__(self) -> int:
        """How many there are."""

    def __getitem__(self, index: int, /) -> Row:
        """One of them. Raises ValueError, which says where it is, if it is malformed."""

    def where(self, index: int) -> str:
        """Where a row is, for errors."""


class JsonLines:
    """The rows of a JSONL file, one object a line. Of each row 16 bytes are in memory: where it is."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("rb")
        self._begins, self._numbers = array("Q"), array("Q")  # bytes, and lines from 1; blank lines are no rows
        begin = 0
        for number, line in enumerate(self._file, start=1):
            if not line.isspace():
                self._begins.append(begin)
                self._numbers.append(number)
            begin += len(line)

    def __len__(self) -> int:
        return len(self._begins)

    def __getitem__(self, index: int) -> Row:
        self._file.seek(self._begins[index])
        line = self._file.readline()
        try:
            row = json.loads(line)
        except ValueError as e:  # of the encoding, too
            raise ValueError(f"{self.where(index)}: not JSON: {e}; it begins with {line[:80]!r}") from None
        if not isinstance(row, dict):
            raise ValueError(f"{self.where(index)}: not an object of columns: {line[:80]!r}")
        return row

    def where(self, index: int) -> str:
        return f"{self._path}, line {self._numbers[index]:,}"


class Table:
    """The rows of an Arrow table: of a file that is mapped into memory, or in columns that were read from Parquet."""

    def __init__(self, path: Path, table: Any) -> None:
        self._path = path
        self._table = table

    def __len__(self) -> int:
        count: int = self._table.num_rows
        return count

    def __getitem__(self, index: int) -> Row:
        row: Row = self._table.slice(index, 1).to_pylist()[0]
        return row

    def where(self, index: int) -> str:
        return f"{self._path}, row {index:,}"


class RowList:
    """Rows that a function returned as a list."""

    def __init__(self, name: str, rows: Sequence[Row]) -> None:
        self._name = name
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row:
        return self._rows[index]

    def where(self, index: int) -> str:
        return f"{self._name}, row {index:,}"


class Dataset:
    """Rows in an order that depends on the seed and the epoch alone.

    Of a JSONL file only where its rows are is in memory, of a Hugging Face folder (`save_to_disk`) what was read
    lately, of Parquet all columns in Arrow's form. Ranks that share a dataset get disjoint rows; where the number of
    rows is no multiple of `size`, the first ranks have one more in an epoch.
    """

    def __init__(
        self,
        source: Source,
        *,
        columns: Mapping[str, str] | None = None,
        map: Callable[[Row], Row] | str | None = None,
        arguments: Mapping[str, Any] | None = None,
        seed: int = 0,
        shuffle: bool = True,
        epochs: int | None = None,
        rank: int = 0,
        size: int = 1,
    ) -> None:
        """Open it.

        Args:
            source: a `.jsonl` or `.parquet` file, a folder of either kind that the class names, or a function, also as
                "module:function", that returns a list or yields rows. The function is called once an epoch, with
                `epoch` and `seed` if it has such parameters; what it yields is not shuffled, and need not end.
            columns: our name of a column by the dataset's, as `{"question": "prompt"}`.
            map: a function, also as "module:function", that makes a row of each row, after the renaming.
            arguments: further arguments of the function.
            seed: of the order of rows.
            shuffle: whether rows come in another order in each epoch.
            epochs: how often each row comes; None: without end.
            rank: whose part this is.
            size: how many parts there are.

        Raises:
            NotFoundError: there is no such file, folder or function.
            NotInstalledError: pyarrow is missing, and the source needs it.
            UsageError: it is not known how to read the source, or it has fewer rows than there are parts.
        """
        self._columns = dict(columns or {})
        self._map = function_of(map) if isinstance(map, str) else map
        self._arguments = dict(arguments or {})
        self._seed, self._shuffle, self._epochs, self._rank, self._size = seed, shuffle, epochs, rank, size
        self._source = source
        self._function = None if is_file(source) else function_of(source)
        self._rows = open_rows(Path(str(source))) if self._function is None else None
        self._begin(epoch=0, taken=0)

    @property
    def epoch(self) -> int:
        """Of the row that comes next, from 0."""
        return self._epoch

    def sample(self) -> Row | None:
        """The next row; None once all epochs are over.

        Raises ValueError with file and line, or function and row, where the row is malformed.
        """
        while self._epochs is None or self._epoch < self._epochs:
            for where, row in self._coming:
                self._taken += 1
                return self._checked(where, row)
            if not self._taken:
                raise UsageError(
                    f"{self._source} has no row in epoch {self._epoch} for rank {self._rank} of {self._size}"
                )
            self._begin(self._epoch + 1, taken=0)
        return None

    def batch(self, count: int) -> list[Row]:
        """The next rows, as many as asked for; fewer, or none, once all epochs are over."""
        rows: list[Row] = []
        while len(rows) < count and (row := self.sample()) is not None:
            rows.append(row)
        return rows

    def state_dict(self) -> dict[str, int | None]:
        """Where it is; it fits into JSON. With `load_state_dict` the row comes next that would come next here."""
        rows = None if self._rows is None else len(self._rows)
        return {"epoch": self._epoch, "taken": self._taken * self._size, "rows": rows, "seed": self._seed}

    def load_state_dict(self, state: Mapping[str, int | None]) -> None:
        """Go to where another was. With another `size` no row is lost if all ranks had taken as many.

        Raises UsageError where the dataset has another number of rows, or another seed.
        """
        for what, ours in self.state_dict().items():
            if what in {"rows", "seed"} and state[what] != ours:
                raise UsageError(
                    f"{self._source} cannot go on where it was: it had {what} {state[what]}, and has {ours}",
                    hint="restore the dataset, or start anew without its state",
                )
        epoch, taken = state["epoch"] or 0, state["taken"] or 0
        self._begin(epoch, max(0, -(-(taken - self._rank) // self._size)))

    def _begin(self, epoch: int, taken: int) -> None:
        self._epoch, self._taken = epoch, taken
        self._coming = self._part_of_epoch(epoch, taken)

    def _part_of_epoch(self, epoch: int, taken: int) -> Iterator[tuple[str, Row]]:
        """The rows of our part of an epoch, after so many of them, each with where it is."""
        begin = self._rank + taken * self._size
        rows = self._rows
        if self._function is not None:
            name = getattr(self._function, "__qualname__", str(self._function))
            found = self._function(**self._arguments, **self._known_to_the_function(epoch))
            if not isinstance(found, Sequence):
                for index, row in islice(enumerate(found), begin, None, self._size):
                    yield f"{name}, row {index:,}", row
                return
            rows = RowList(name, found)
        assert rows is not None
        for index in self._order(len(rows), epoch)[begin :: self._size]:
            yield rows.where(index), rows[index]

    def _known_to_the_function(self, epoch: int) -> dict[str, int]:
        assert self._function is not None
        parameters = inspect.signature(self._function).parameters
        values = {"epoch": epoch, "seed": self._seed}
        return {name: value for name, value in values.items() if name in parameters and name not in self._arguments}

    def _order(self, count: int, epoch: int) -> Sequence[int]:
        if not self._shuffle:
            return range(count)
        order = array("Q", range(count))
        random.Random(f"{self._seed}/{epoch}").shuffle(order)
        return order

    def _checked(self, where: str, row: Any) -> Row:
        try:
            row = {self._columns.get(name, name): value for name, value in row.items()}
            row = row if self._map is None else self._map(row)
            if row.get("prompt") is None and row.get("messages") is None:
                raise ValueError(
                    f"there is neither a prompt nor messages, but {', '.join(row) or 'nothing'}; "
                    f"rename columns by columns={{'question': 'prompt'}}, or make them by map="
                )
        except Exception as e:
            e.args = (f"{where}: {e}",)
            raise
        made: Row = row
        return made


def is_file(source: Source) -> bool:
    """Whether a source is a path, and not a function."""
    return isinstance(source, Path) or (isinstance(source, str) and ("/" in source or ":" not in source))


def function_of(source: Any) -> Callable[..., Any]:
    """A function, itself or as "module:function". Raises NotFoundError."""
    if callable(source):
        function: Callable[..., Any] = source
        return function
    module, _, name = str(source).partition(":")
    try:
        return function_of(getattr(importlib.import_module(module), name))
    except (ModuleNotFoundError, AttributeError) as e:
        if isinstance(e, ModuleNotFoundError) and e.name != module:
            raise
        raise NotFoundError(f"there is no function {source}: {e}") from None


def open_rows(path: Path) -> Rows:
    """The rows of a file, of a folder of Parquet files, or of one that Hugging Face's `save_to_disk` wrote."""
    if path.suffix == ".jsonl" and path.is_file():
        return JsonLines(path)
    if path.suffix == ".parquet" and path.is_file():
        return Table(path, read_parquet([path]))
    if (state := path / "state.json").is_file():
        return Table(
            path, map_arrow([path / file["filename"] for file in json.loads(state.read_text())["_data_files"]])
        )
    if (splits := path / "dataset_dict.json").is_file():
        names = [str(path / name) for name in json.loads(splits.read_text())["splits"]]
        raise UsageError(f"{path} has several splits", hint=f"name one: {', '.join(names)}")
    if path.is_dir() and (files := sorted(path.glob("*.parquet"))):
        return Table(path, read_parquet(files))
    if not path.exists():
        raise NotFoundError(f"there is no dataset {path.absolute()}")
    raise UsageError(
        f"it is not known how to read {path} as a dataset",
        hint="give a .jsonl or .parquet file, a folder of Parquet files or of save_to_disk, or module:function",
    )


def read_parquet(paths: Sequence[Path]) -> Any:
    """One Arrow table of Parquet files. Raises ValueError with the file that cannot be read."""
    arrow = _pyarrow(paths[0])
    parquet = importlib.import_module("pyarrow.parquet")
    return arrow.concat_tables([_read(path, parquet.read_table) for path in paths])


def map_arrow(paths: Sequence[Path]) -> Any:
    """One Arrow table of files in the stream format, mapped into memory. Raises ValueError with the file."""
    arrow = _pyarrow(paths[0])
    return arrow.concat_tables(
        [_read(p, lambda q: arrow.ipc.open_stream(arrow.memory_map(q)).read_all()) for p in paths]
    )


def _read(path: Path, read: Callable[[str], Any]) -> Any:
    try:
        return read(str(path))
    except (OSError, ValueError) as e:  # Arrow's own errors are among them
        raise ValueError(f"{path} cannot be read: {e}") from e


def _pyarrow(path: Path) -> Any:
    try:
        return importlib.import_module("pyarrow")
    except ModuleNotFoundError:
        raise NotInstalledError(f"reading {path} takes pyarrow", hint="pip install pyarrow") from None


class DatasetActor(ForgeActor):
    """A `Dataset` that all share who have its handle. Each rank of it has a part of its own."""

    def __init__(self, source: Source, **options: Any) -> None:
        """As `Dataset`; `rank` and `size` are the actor's."""
        super().__init__()
        self._source, self._options = source, options

    @endpoint
    def setup(self) -> None:
        """Open the dataset."""
        self.dataset = Dataset(self._source, **{"rank": self.rank, "size": self.size, **self._options})

    @endpoint
    def sample(self) -> Row | None:
        """The next row; None once all epochs are over."""
        return self.dataset.sample()

    @endpoint
    def batch(self, count: int) -> list[Row]:
        """The next rows; fewer than asked for once all epochs are over."""
        return self.dataset.batch(count)

    @endpoint
    def epoch(self) -> int:
        """Of the row that comes next, from 0."""
        return self.dataset.epoch

    @endpoint
    def state_dict(self) -> dict[str, int | None]:
        """Where it is, for `load_state_dict`."""
        return self.dataset.state_dict()

    @endpoint
    def load_state_dict(self, state: Mapping[str, int | None]) -> None:
        """Go to where it was when `state_dict` was called."""
        self.dataset.load_state_dict(state)

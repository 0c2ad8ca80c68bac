"""The values of a call, by rank, and the position of a rank in its mesh. Modelled on Monarch's ValueMesh and Point."""

from __future__ import annotations

import contextvars
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

R = TypeVar("R")

DIMENSION = "procs"
"""The one dimension of every mesh: `handle.slice(procs=0)`."""

serving: contextvars.ContextVar[bool] = contextvars.ContextVar("forgectl_serving", default=False)
"""Whether the current context runs code of a ForgeActor: its constructor or an endpoint."""


class Point(Mapping[str, int]):
    """A rank's position in its mesh: `point["procs"]` or `point.rank`. `point.size()` is the number of ranks."""

    __slots__ = ("_label", "_size", "rank")

    def __init__(self, rank: int, size: int, label: str = DIMENSION) -> None:
        self.rank = rank
        self._size = size
        self._label = label

    @property
    def extent(self) -> dict[str, int]:
        """Dimension → number of ranks along it."""
        return {self._label: self._size}

    def size(self, label: str = DIMENSION) -> int:
        """The number of ranks along a dimension; raises KeyError for an unknown dimension."""
        return self.extent[label]

    def __getitem__(self, label: str) -> int:
        if label != self._label:
            raise KeyError(label)
        return self.rank

    def __iter__(self) -> Iterator[str]:
        return iter((self._label,))

    def __len__(self) -> int:
        return 1

    def __repr__(self) -> str:
        return f"{{'{self._label}': {self.rank}/{self._size}}}"


class ValueMesh(Generic[R]):
    """The values of a call, in the order of ranks.

    Iterating yields (Point, value). See also `values()`, `get(RANK)`, `item(procs=RANK)`, `slice(procs=…)`, `len()`.
    """

    __slots__ = ("_label", "_values")

    def __init__(self, values: Sequence[R], label: str = DIMENSION) -> None:
        self._values = tuple(values)
        self._label = label

    def get(self, rank: int) -> R:
        """The value of a rank; raises IndexError if there is no such rank."""
        if not 0 <= rank < len(self._values):
            raise IndexError(f"there is no rank {rank} of {len(self._values)}")
        return self._values[rank]

    def item(self, **coordinates: int) -> R:
        """The value at `procs=RANK`, or without arguments the only value.

        Raises KeyError for a missing or unknown dimension, IndexError for an unknown rank.
        """
        if not coordinates and len(self._values) == 1:
            return self._values[0]
        rank = coordinates.pop(self._label)
        if coordinates:
            raise KeyError(f"item has extra dimensions: {list(coordinates)}")
        return self.get(rank)

    def values(self) -> Iterator[R]:
        """The values, by rank."""
        return iter(self._values)

    def items(self) -> Iterator[tuple[Point, R]]:
        """(Point, value) of each rank."""
        size = len(self._values)
        return ((Point(rank, size, self._label), value) for rank, value in enumerate(self._values))

    def __iter__(self) -> Iterator[tuple[Point, R]]:
        return self.items()

    def __len__(self) -> int:
        return len(self._values)

    def slice(self, **where: Any) -> ValueMesh[R]:
        """Some of the values: `slice(procs=0)`, `slice(procs=slice(2, 4))`.

        Raises KeyError for an unknown dimension, IndexError for an unknown rank.
        """
        chosen = where.pop(self._label, slice(None))
        if where:
            raise KeyError(f"there is only the dimension {self._label!r}, not {next(iter(where))!r}")
        return ValueMesh(self._values[chosen] if isinstance(chosen, slice) else (self.get(chosen),), self._label)

    def flatten(self, name: str) -> ValueMesh[R]:
        """The same values along one dimension with this name."""
        return ValueMesh(self._values, name)

    def rename(self, **names: str) -> ValueMesh[R]:
        """The same values with the dimension renamed: `rename(procs="gpus")`."""
        return ValueMesh(self._values, names.get(self._label, self._label))

    @property
    def extent(self) -> dict[str, int]:
        """Dimension → number of values along it."""
        return {self._label: len(self._values)}

    @property
    def sizes(self) -> dict[str, int]:
        """The same as `extent`."""
        return self.extent

    def size(self, dim: str | None = None) -> int:
        """The number of values, in total or along a dimension; raises KeyError for an unknown dimension."""
        return len(self._values) if dim is None else self.extent[dim]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ValueMesh):
            return NotImplemented
        return (self._label, self._values) == (other._label, other._values)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"ValueMesh({self._label}: {list(self._values)!r})"


def rank_and_size() -> tuple[int, int]:
    """This process's rank and the world size of its mesh; 0 and 1 outside a mesh."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def current_rank() -> Point:
    """This process's position in its mesh: `current_rank()["procs"]`, `current_rank().rank`. Outside a mesh: 0 of 1."""
    return Point(*rank_and_size())


def current_size() -> dict[str, int]:
    """The size of this process's mesh, by dimension: `{"procs": 8}`. Outside a mesh: `{"procs": 1}`."""
    return current_rank().extent

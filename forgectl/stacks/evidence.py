"""What is known of one rank at one moment: its stacks, its process groups, and the collectives that it recorded."""

from __future__ import annotations

from dataclasses import field
from typing import Literal

from forgectl.frozen import UNLESS_DEFAULT, dataclass

RankView = Literal["seen", "stopped", "blocked", "silent", "ended", "unreachable"]
"""`seen`: its stacks are here. `stopped`: by a signal or a debugger. `blocked`: in the kernel, without a stack.
`silent`: it gave no stack. `unreachable`: its host did not answer. `detail` says more."""
Source = Literal["", "rank", "signal", "py-spy"]
"""Where stacks come from: the rank itself, which needed the GIL; a signal, which needs none; py-spy."""


@dataclass(frozen=True)
class Frame:
    """A call. `file` is relative to the rank's workdir if it is in there."""

    file: str
    line: int
    function: str


@dataclass(frozen=True)
class ThreadStack:
    """A thread, or an asyncio task that waits, with its calls: the innermost first."""

    name: str
    frames: tuple[Frame, ...]
    task: bool = field(default=False, metadata=UNLESS_DEFAULT)


@dataclass(frozen=True)
class Group:
    """A process group that the rank is in. `ranks` are those of the mesh, in the group's order."""

    name: str
    description: str
    ranks: tuple[int, ...]


@dataclass(frozen=True)
class Collective:
    """An operation that the rank has entered. `age` is in seconds; `shapes` and `dtypes` are of its input tensors.

    `sequence` counts the collectives of a group by one backend from 1; of operations between two ranks, `peer` is the
    other one, as numbered in the group.
    """

    group: str
    description: str
    backend: str
    sequence: int
    operation: str
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]
    pending: bool
    age: float
    peer: int | None = field(default=None, metadata=UNLESS_DEFAULT)


@dataclass(frozen=True)
class RankEvidence:
    """One rank. `threads` has its main thread first. `recorded`: its recorder was read: `collectives` are its last."""

    rank: int
    host: str
    view: RankView
    pid: int | None = None
    detail: str = ""
    source: Source = ""
    workdir: str = ""
    threads: tuple[ThreadStack, ...] = ()
    groups: tuple[Group, ...] = ()
    recorded: bool = False
    collectives: tuple[Collective, ...] = ()

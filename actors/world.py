"""The ranks that train one model: what they tell each other besides gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch.distributed as dist

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """The ranks as one of them sees them. A world of one rank needs no process group."""

    rank: int = 0
    size: int = 1
    group: dist.ProcessGroup | None = None
    """Of gloo: objects travel through memory of the CPU. None: the default group, or no group in a world of one."""

    @classmethod
    def join(cls, rank: int, size: int) -> World:
        """Meet the other ranks of the mesh; they all must call it."""
        if size == 1:
            return cls()
        if not dist.is_initialized():
            dist.init_process_group()
        return cls(rank, size).another()

    def another(self) -> World:
        """The same ranks with a group of their own, for use in another thread; they all must call it."""
        return self if self.size == 1 else World(self.rank, self.size, dist.new_group(backend="gloo"))

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, in their order, on each of them."""
        values = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value, group=self.group)
        return values

    def from_leader(self, decide: Callable[[], T]) -> T:
        """What `decide` returns on rank 0, on all ranks; what it raises there, all raise."""
        outcome: list[tuple[T | None, Exception | None]] = [(None, None)]
        if self.rank == 0:
            try:
                outcome = [(decide(), None)]
            except Exception as e:
                outcome = [(None, e)]
        if self.size > 1:
            dist.broadcast_object_list(outcome, 0, group=self.group)
        value, error = outcome[0]
        if error is not None:
            raise error
        return value  # type: ignore[return-value]  # it is None only where T is

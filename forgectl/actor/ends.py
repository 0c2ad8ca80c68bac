"""`with` and `async with` for what has to be shut down."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from forgectl.system.futures import Future
from forgectl.system.loops import running_loop, stands_still

if TYPE_CHECKING:
    from typing_extensions import Self


class Ends(ABC):
    """`with` and `async with` shut it down at their end, also if their body raises."""

    @abstractmethod
    def shutdown(self) -> Future[None]:
        """End it."""

    def __enter__(self) -> Self:
        if (loop := running_loop()) is not None and not stands_still(loop):
            raise RuntimeError(f"the end of `with` would block this event loop; use `async with` for {self!r}")
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown().get()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.shutdown()

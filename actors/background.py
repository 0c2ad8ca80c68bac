"""Writing that goes on in a thread while the trainer goes on, too."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class BackgroundWriter:
    """Writes one thing at a time in a thread. What a write raises is raised by the next `wait` or `check`."""

    def __init__(self, name: str) -> None:
        """`name` is the thread's."""
        self.writing: Future[Any] | None = None
        """The write that goes on, or has ended and was not asked for."""
        self._thread = ThreadPoolExecutor(1, name)

    def _begin(self, write: Callable[..., Any], *arguments: Any) -> None:
        self.writing = self._thread.submit(write, *arguments)

    def wait(self) -> None:
        """Return once nothing is being written; raises what the last write raised."""
        writing, self.writing = self.writing, None
        if writing is not None:
            writing.result()

    def check(self) -> None:
        """Raise what the last write raised; return at once if it goes on."""
        if self.writing is not None and self.writing.done():
            self.wait()

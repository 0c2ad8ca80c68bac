"""An actor whose processes each keep a counter."""

from forgectl import ForgeActor, endpoint


class Counter(ForgeActor):
    """Keeps a number between calls."""

    def __init__(self, start: int = 0) -> None:
        super().__init__()
        self.n = start

    @endpoint
    async def add(self, k: int) -> int:
        """Add `k`, which may be negative; returns the new number."""
        self.n += k
        self.logger.info("%d more makes %d", k, self.n)
        return self.n

    @endpoint
    async def value(self) -> int:
        """The number now."""
        return self.n

"""An actor that counts, in each of its processes for itself."""

from forgectl import ForgeActor, endpoint


class Counter(ForgeActor):
    """Keeps a number from call to call."""

    def __init__(self, start: int = 0) -> None:
        super().__init__()
        self.n = start

    @endpoint
    async def add(self, k: int) -> int:
        """Count `k` up (or down), and say where that leads."""
        self.n += k
        self.logger.info("%d more makes %d", k, self.n)
        return self.n

    @endpoint
    async def value(self) -> int:
        """Where it stands."""
        return self.n

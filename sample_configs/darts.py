"""An actor that throws darts at a square."""

import random

from forgectl import ForgeActor, endpoint


class Darts(ForgeActor):
    """Each process throws for itself, with a seed of its own."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.random = random.Random(1000 * seed + self.rank)

    @endpoint
    def throw(self, darts: int) -> int:
        """How many of so many darts hit the quarter of a circle."""
        return sum(self.random.random() ** 2 + self.random.random() ** 2 < 1 for _ in range(darts))

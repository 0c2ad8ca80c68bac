"""An actor that throws darts at a square."""

import random

from forgectl import ForgeActor, endpoint


class Darts(ForgeActor):
    """Each process throws its own darts, with its own seed."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.random = random.Random(1000 * seed + self.rank)

    @endpoint
    def throw(self, darts: int) -> int:
        """Throw some darts; returns how many of them hit the quarter circle."""
        return sum(self.random.random() ** 2 + self.random.random() ** 2 < 1 for _ in range(darts))

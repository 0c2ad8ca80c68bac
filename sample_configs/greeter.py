"""A service that greets guests: each replica counts its own guests."""

import os

from forgectl import ForgeActor, endpoint


class Greeter(ForgeActor):
    """One replica. The service chooses which replica answers a call."""

    def __init__(self, greeting: str = "Hello") -> None:
        super().__init__()
        self.greeting = greeting
        self.guests = 0

    @endpoint
    async def greet(self, name: str) -> str:
        """A greeting for `name`, with the name of the replica."""
        self.guests += 1
        return f"{self.greeting} {name}, guest {self.guests} of {os.environ['FORGE_MESH']}"

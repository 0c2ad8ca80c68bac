"""A service that greets: each replica counts the guests that were sent to it."""

import os

from forgectl import ForgeActor, endpoint


class Greeter(ForgeActor):
    """One replica. Calls are routed: the caller does not choose which replica answers."""

    def __init__(self, greeting: str = "Hello") -> None:
        super().__init__()
        self.greeting = greeting
        self.guests = 0

    @endpoint
    async def greet(self, name: str) -> str:
        """A greeting for `name`, and who said it."""
        self.guests += 1
        return f"{self.greeting} {name}, guest {self.guests} of {os.environ['FORGE_MESH']}"

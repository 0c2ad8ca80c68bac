"""An actor that imports Monarch only while it serves a call."""

from __future__ import annotations

from forgectl import ForgeActor, endpoint


class Late(ForgeActor):
    @endpoint
    async def where(self) -> tuple[int, dict[str, int]]:
        from monarch.actor import current_rank, current_size

        return int(current_rank().rank), dict(current_size())

    @endpoint
    async def there(self) -> list[int]:
        """The ranks of a mesh of Monarch's that this rank starts."""
        from monarch.actor import this_host

        from theirs import Plain

        procs = this_host().spawn_procs(per_host={"gpus": 2})
        found = await procs.spawn("plain", Plain).where.call()
        await procs.stop()
        return [int(value) for value in found.values()]

"""How a driver takes part in a run of several machines: dialled by their workers, or through one of these alone."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any

from forgectl.actor import places
from forgectl.errors import UnreachableError
from forgectl.plan.model import Plan
from forgectl.protocol import Membership

if TYPE_CHECKING:
    from forgectl.actor.engine import Tls

Document = dict[str, Any]


class Crossing:
    """The hosts of the run as its controller reports them, and the one that all goes through where there is one."""

    def __init__(self, plan: Plan) -> None:
        self.hosts: dict[str, Document] = {}
        self.needed = places.is_far(plan)
        self._plan = plan
        self._changed = asyncio.Event()
        self._gateway: tuple[str, Document] | None = None  # a host, and its worker

    async def tls(self, membership: Callable[[], Awaitable[Membership]]) -> Tls | None:
        """What the Monarch client of this process is made with; raises ForgeError."""
        from forgectl.actor.engine import Tls

        member = await membership()
        here = places.own_host(self._plan)
        if here is not None and here.address:
            return Tls(member, address=here.address)
        gateways = places.gateways(self._plan)  # no host can dial this machine
        if not gateways:
            return None
        while not (ready := [h for h in gateways if self._worker(h.name)]):
            self._changed.clear()
            await self._changed.wait()
        self._gateway = (ready[0].name, self.hosts[ready[0].name]["worker"])
        return Tls(member, gateway=places.worker_of(ready[0], self.hosts).address)

    def take(self, hosts: Iterable[Document]) -> None:
        """Hosts have changed. Ends this process where what all goes through is lost: Monarch has no second way."""
        self.hosts = {h["name"]: h for h in hosts}
        self._changed.set()
        if self._gateway is not None and self._gateway[1] != self._worker(self._gateway[0]):
            sys.stderr.write(
                f"forgectl: all actors were reached through host {self._gateway[0]}, as no host can dial this machine, "
                "and its worker is gone\n  hint: let hosts dial this machine, at `address:` of the local host\n"
            )
            sys.stderr.flush()
            os._exit(UnreachableError.exit_code)

    def _worker(self, host: str) -> Document | None:
        worker: Document | None = self.hosts.get(host, {}).get("worker")
        return worker

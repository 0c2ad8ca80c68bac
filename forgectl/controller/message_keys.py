"""The keys with which a run's machines authenticate each other when they exchange actors' messages."""

from __future__ import annotations

import contextlib
import importlib
from typing import Any

from forgectl.controller.run_dir import RunDir
from forgectl.model.plan import HostPlan, Plan
from forgectl.names import DRIVER_KEY
from forgectl.plan.links import direct, messengers
from forgectl.protocol.supervision import Membership
from forgectl.system.files import write_whole


class MessageKeys:
    """The keys of a run. They are made when first needed, and outlive a controller in a file (0600) on its machine."""

    def __init__(self, run_dir: RunDir, plan: Plan) -> None:
        self._dir = run_dir
        self._plan = plan
        self._keys: Any = None

    def of(self, host: HostPlan) -> Membership | None:
        """The membership for a host's messenger; None if the host needs no messenger."""
        hosts = messengers(self._plan)
        if host not in hosts:
            return None
        keys, place = self._get(), host.place
        members = keys.members([*(h.place for h in hosts), DRIVER_KEY])
        driver = keys.secret(DRIVER_KEY) if host.local else ""
        address = "" if host.local else host.address  # the launching machine only dials others
        return Membership(place, address, keys.secret(place), members, direct(self._plan, host), driver)

    def _get(self) -> Any:
        if self._keys is None:
            kind: Any = importlib.import_module("forgectl.messages.keys").RunKeys  # few runs need it
            try:
                self._keys = kind.from_text(self._dir.keys_file.read_text())
            except (OSError, ValueError):
                self._keys = kind.new()
                with contextlib.suppress(OSError):  # a full disk: a later controller cannot replace a host's agent
                    write_whole(self._dir.keys_file, self._keys.text.encode())
        return self._keys

    def forget(self) -> None:
        """Remove the keys, as the run is over."""
        with contextlib.suppress(OSError):
            self._dir.keys_file.unlink()

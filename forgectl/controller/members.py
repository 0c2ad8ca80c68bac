"""Who belongs to a run whose actors are on several machines: its certificate authority, and what that has issued."""

from __future__ import annotations

import contextlib
import importlib
from typing import Any

from forgectl.controller.rundir import RunDir, write_file
from forgectl.plan.model import Plan
from forgectl.protocol import Membership


class Members:
    """Issues memberships. The authority is made when it is first needed, and outlives a controller as a file (0600)."""

    def __init__(self, run_dir: RunDir, plan: Plan) -> None:
        self._dir = run_dir
        self._needed = any(not h.local for h in plan.hosts) and (plan.may_grow or any(m.stays for m in plan.meshes))
        self._authority: Any = None
        self._issued: dict[str, Membership] = {}

    def of(self, name: str, address: str) -> Membership | None:
        """The membership of one that is dialled at `address` ("": never); None where the run needs none."""
        if not self._needed:
            return None
        if name not in self._issued:
            self._issued[name] = self._get().issue(name, [address] if address else [])
        return self._issued[name]

    def _get(self) -> Any:
        if self._authority is None:
            kind: Any = importlib.import_module("forgectl.controller.authority").Authority
            try:
                self._authority = kind.load(self._dir.authority_file.read_text())
            except (OSError, ValueError):
                self._authority = kind.new(self._dir.run)
                with contextlib.suppress(OSError):  # a full disk: later controllers cannot replace an agent's worker
                    write_file(self._dir.authority_file, self._authority.dump().encode())
        return self._authority

    def forget(self) -> None:
        """The run is over: nobody belongs to it any more."""
        with contextlib.suppress(OSError):
            self._dir.authority_file.unlink()

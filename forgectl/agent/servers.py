"""The fork servers of an agent: one for all meshes that want the same interpreter, environment and preloads."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from forgectl.agent.forks import ForkServer, Setting
from forgectl.agent.reaper import Reaper
from forgectl.plan.model import MeshPlan
from forgectl.protocol import AgentConfig

AHEAD = "forgectl.rank.ahead"
NOT_FOR_RANKS = frozenset({"FORGE_ROLE", "FORGE_MESH"})


class ForkServers:
    """Started when a mesh first needs one, ended when none does."""

    def __init__(self, config: AgentConfig, reaper: Reaper) -> None:
        self._config = config
        self._reaper = reaper
        self._servers: dict[Setting, ForkServer] = {}

    def of(self, plan: MeshPlan) -> ForkServer:
        """The living fork server of a mesh; raises OSError, and KeyError for a secret that is not known."""
        setting = self._setting(plan)
        server = self._servers.get(setting)
        if server is None or not server.alive:
            name = f"{self._config.host}.forkserver-{len(self._servers)}.log"
            log_file = Path(self._config.run_dir) / "agents" / name
            server = self._servers[setting] = ForkServer(setting, log_file, self._reaper)
        return server

    def keep(self, plans: Iterable[MeshPlan]) -> None:
        """End those that none of these meshes needs."""
        wanted = {self._setting(plan) for plan in plans}
        for setting in [s for s in self._servers if s not in wanted]:
            self._servers.pop(setting).stop()

    def _setting(self, plan: MeshPlan) -> Setting:
        env = {k: v for k, v in os.environ.items() if k not in NOT_FOR_RANKS}
        env |= plan.env[self._config.host]
        env |= {name: self._config.secrets[name] for name in plan.secrets}
        env |= {
            "FORGE_RUN_ID": self._config.run,
            "FORGE_HOST": self._config.host,
            "FORGE_ROLE": "forkserver",
        }
        preload = plan.preload if plan.start_method == "fork" and plan.program.kind != "command" else ()
        if preload and (plan.stays or plan.kind == "driver"):
            preload = (*preload, AHEAD)
        return Setting(plan.python[self._config.host], plan.workdir, preload, tuple(sorted(env.items())))

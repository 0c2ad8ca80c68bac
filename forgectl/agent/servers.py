"""The fork servers of an agent: one for all meshes that want the same interpreter, environment and preloads."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from forgectl.agent.forks import ForkServer
from forgectl.agent.reaper import Reaper
from forgectl.agent.warming import Setting, Warming, begin, log_of, setting_of
from forgectl.plan.model import MeshPlan
from forgectl.protocol import AgentConfig


class ForkServers:
    """Started when a mesh first needs one, or ahead of it (`warming`); ended when none does."""

    def __init__(self, config: AgentConfig, reaper: Reaper, warming: Iterable[Warming] = ()) -> None:
        self._config = config
        self._reaper = reaper
        self._servers = {w.setting: ForkServer(w, reaper) for w in warming}
        reaper.reap()  # one may have ended already

    def of(self, plan: MeshPlan) -> ForkServer:
        """The fork server of a mesh; raises OSError, and KeyError for a secret that is not known."""
        setting = self._setting(plan)
        server = self._servers.get(setting)
        if server is None or server.spent:
            log = log_of(Path(self._config.run_dir), self._config.host, len(self._servers))
            server = self._servers[setting] = ForkServer(begin(setting, log), self._reaper)
        return server

    def keep(self, plans: Iterable[MeshPlan]) -> None:
        """End those that none of these meshes needs."""
        wanted = {self._setting(plan) for plan in plans}
        for setting in [s for s in self._servers if s not in wanted]:
            self._servers.pop(setting).stop()

    def _setting(self, plan: MeshPlan) -> Setting:
        return setting_of(plan, self._config.run, self._config.host, self._config.secrets)

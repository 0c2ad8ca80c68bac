"""What one host is sent of a mesh: its own ranks, with the paths that hold there, and the size of the whole."""

from __future__ import annotations

from collections.abc import Mapping

from forgectl.boot import AHEAD
from forgectl.frozen import dataclass
from forgectl.model.plan import ForkServerPlan, Gpu, MeshKind, Program, StartMethod
from forgectl.names import SECRETS


@dataclass(frozen=True)
class MeshShare:
    """The part of a mesh that one host runs. Its size does not depend on how many hosts the mesh has.

    A rank's environment has three layers: `env`, which its fork server starts with; `common`, which all ranks of the
    host get; and its own of `ranks`, by rank. `secrets` are names whose values the agent was given apart from this.
    `gpus` are leased for all ranks of the share together. `world_size` and `hosts` count those of the whole mesh.
    """

    mesh: str
    kind: MeshKind
    program: Program
    host: str
    workdir: str
    python: str
    preload: tuple[str, ...]
    start_method: StartMethod
    secrets: tuple[str, ...]
    env: dict[str, str]
    gpus: tuple[Gpu, ...]
    common: dict[str, str]
    ranks: dict[int, dict[str, str]]
    world_size: int
    hosts: int

    @property
    def stays(self) -> bool:
        """Whether its ranks end only when told to: those of actors."""
        return self.program.kind == "actor"

    def environment(self, rank: int) -> dict[str, str]:
        """What a rank gets on top of its fork server's environment, as far as it is known before launch."""
        return {**self.common, **self.ranks[rank]}

    def fork_server(self, run: str, secrets: Mapping[str, str]) -> ForkServerPlan:
        """What its ranks are forked from; raises KeyError for a secret that is not known."""
        env = {**self.env, **{name: secrets[name] for name in self.secrets}}
        env |= {"FORGE_RUN_ID": run, "FORGE_HOST": self.host, "FORGE_ROLE": "forkserver"}
        env |= {SECRETS: ",".join(self.secrets)} if self.secrets else {}
        preload = self.preload if self.start_method == "fork" and self.program.kind != "command" else ()
        if preload and (self.stays or self.kind == "driver"):
            preload = (*preload, AHEAD)
        return ForkServerPlan(self.python, self.workdir, preload, tuple(sorted(env.items())))

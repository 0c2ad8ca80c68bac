"""The part of a mesh that one host receives: its own ranks, with that host's paths, and the size of the mesh."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field

from forgectl.boot import AHEAD
from forgectl.frozen import UNLESS_DEFAULT, dataclass
from forgectl.model.plan import ForkServerPlan, Gpu, HangPolicy, MeshKind, Program, StartMethod
from forgectl.names import SECRETS


@dataclass(frozen=True)
class MeshShare:
    """The part of a mesh that one host runs. Its size does not depend on how many hosts the mesh has.

    A rank's environment has three layers: `env`, with which its fork server starts; `common`, which all ranks of the
    host get; and its own in `ranks`, by rank. `secrets` are names; the agent received their values separately.
    `gpus` are leased for all ranks of the share together. `world_size` and `hosts` are counts of the whole mesh.
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
    hang: HangPolicy = field(default=HangPolicy(), metadata=UNLESS_DEFAULT)

    @property
    def stays(self) -> bool:
        """Whether its ranks run until they are stopped, as those of actors do."""
        return self.program.kind == "actor"

    def environment(self, rank: int) -> dict[str, str]:
        """The variables that a rank gets besides its fork server's, as far as they are known before launch."""
        return {**self.common, **self.ranks[rank]}

    def fork_server(self, run: str, secrets: Mapping[str, str]) -> ForkServerPlan:
        """The fork server of its ranks; raises KeyError if a secret's value is missing."""
        env = {**self.env, **{name: secrets[name] for name in self.secrets}}
        env |= {"FORGE_RUN_ID": run, "FORGE_HOST": self.host, "FORGE_ROLE": "forkserver"}
        env |= {SECRETS: ",".join(self.secrets)} if self.secrets else {}
        preload = self.preload if self.start_method == "fork" and self.program.kind != "command" else ()
        if preload and (self.stays or self.kind == "driver"):
            preload = (*preload, AHEAD)
        return ForkServerPlan(self.python, self.workdir, preload, tuple(sorted(env.items())))

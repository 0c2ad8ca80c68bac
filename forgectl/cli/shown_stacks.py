"""What `forgectl stack` shows: where the ranks are that were named, by all their hosts."""

from __future__ import annotations

from collections.abc import Collection

from forgectl.cli.address import no_rank
from forgectl.cli.find import Found
from forgectl.controller import client
from forgectl.errors import NotFoundError
from forgectl.frozen import dataclass
from forgectl.model.status import MeshStatus
from forgectl.protocol.control import ShowStacks
from forgectl.stacks.evidence import RankEvidence
from forgectl.stacks.whole_mesh import Answers, whole_mesh


@dataclass(frozen=True)
class SeenMesh:
    """A mesh, the evidence of all its ranks, and those of them to show."""

    mesh: MeshStatus
    ranks: tuple[RankEvidence, ...]
    shown: tuple[RankEvidence, ...]


def look(found: Found, wanted: Collection[int] | None, *, native: bool) -> list[SeenMesh]:
    """Where the ranks of what was named are; `wanted` alone are shown. Raises NotFoundError if there are none."""
    status = client.document(found.run)
    named = [m for m in status.meshes if found.target is None or m.mesh in found.meshes]
    meshes = [m for m in named if not m.ended and m.ranks and not (found.target is None and m.implicit)]
    if not meshes:
        hint = f"`forgectl logs {found}` shows what it printed"
        raise NotFoundError(f"no rank of {found} runs now", hint=hint)
    wanted = wanted if found.rank is None else [found.rank]
    for mesh in meshes:
        if beyond := [n for n in wanted or () if n >= mesh.desired]:
            raise no_rank(mesh.mesh, beyond[0], mesh.desired)
    request = ShowStacks({m.mesh: tuple(r.rank for r in m.ranks) for m in meshes}, native)
    answers: Answers = {part.host: part.meshes for part in client.stacks(found.run, request)}
    seen = [(mesh, whole_mesh(mesh, answers)) for mesh in meshes]
    return [SeenMesh(m, ranks, tuple(r for r in ranks if wanted is None or r.rank in wanted)) for m, ranks in seen]

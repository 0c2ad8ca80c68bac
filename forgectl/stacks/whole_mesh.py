"""All ranks of a mesh: what their hosts reported, and what the status says of the others."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from forgectl.model.status import MeshStatus, RankStatus
from forgectl.stacks.evidence import RankEvidence
from forgectl.system.processes import signal_name

Answers = Mapping[str, Mapping[str, Collection[RankEvidence]] | None]
"""Host → mesh → ranks; None for a host that did not answer."""


def whole_mesh(mesh: MeshStatus, answers: Answers) -> tuple[RankEvidence, ...]:
    """The evidence of each rank of a mesh, in their order."""
    return tuple(_of_rank(mesh.mesh, rank, answers) for rank in mesh.ranks)


def _of_rank(mesh: str, rank: RankStatus, answers: Answers) -> RankEvidence:
    answer = answers.get(rank.host)
    seen = next((r for r in (answer or {}).get(mesh, ()) if r.rank == rank.rank), None)
    if seen is not None:
        return seen
    if rank.ended:
        return RankEvidence(rank.rank, rank.host, "ended", rank.pid, _end(rank))
    if rank.state == "starting":
        return RankEvidence(rank.rank, rank.host, "silent", rank.pid, "it has not started yet")
    if answer is None:
        return RankEvidence(rank.rank, rank.host, "unreachable", rank.pid, f"host {rank.host} does not answer")
    return RankEvidence(rank.rank, rank.host, "ended", rank.pid, "it has just ended")


def _end(rank: RankStatus) -> str:
    if rank.signal is not None:
        return f"ended by {signal_name(rank.signal)}"
    return "it is lost" if rank.exit_code is None else f"ended with exit code {rank.exit_code}"

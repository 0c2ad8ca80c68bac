"""Turns the state of an ended mesh into the ActorDied that its callers get."""

from __future__ import annotations

from forgectl.errors import ActorDied
from forgectl.model.status import FailureStatus, MeshStatus
from forgectl.protocol.supervision import MeshNews


def fresh_copy(died: ActorDied) -> ActorDied:
    """A copy to raise: one exception object raised by many callers would collect the tracebacks of all of them."""
    copy = ActorDied.__new__(ActorDied)
    copy.__dict__.update(died.__dict__)
    copy.args = died.args
    return copy


def is_over(generation: int, news: MeshNews) -> bool:
    """Whether news of a mesh mean that this generation of it has ended."""
    return news.generation > generation or (
        news.generation == generation and news.state not in ("pending", "starting", "running", "ready")
    )


def died(of: MeshStatus | MeshNews) -> ActorDied:
    """The error for callers of a mesh that ended or failed, with what is known about the failure."""
    failure = of.failure or (of.last_failure if isinstance(of, MeshStatus) else None)
    text = f"mesh {of.mesh}: {failure.message if failure else of.reason or f'it is {of.state}'}"
    if failure is None:
        return ActorDied(text, mesh=of.mesh)
    if failure.log_tail:
        text += "\nthe last lines of its log:\n" + "\n".join(f"  {line}" for line in failure.log_tail[-10:])
    return died_of(failure, of.mesh, text)


def died_of(failure: FailureStatus, mesh: str, text: str) -> ActorDied:
    """The error for a failure of a mesh, with this message."""
    return ActorDied(
        text,
        mesh=mesh,
        rank=failure.rank,
        host=failure.host,
        rank_exit_code=failure.exit_code,
        signal=failure.signal,
        log_tail=failure.log_tail,
    )

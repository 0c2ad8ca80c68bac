"""Why a mesh of actors is no more, as its callers are told."""

from __future__ import annotations

from forgectl.errors import ActorDied
from forgectl.model.status import MeshStatus
from forgectl.protocol.supervision import MeshNews


def again(died: ActorDied) -> ActorDied:
    """A copy to raise: an exception that many raise would gather the tracebacks of all."""
    copy = ActorDied.__new__(ActorDied)
    copy.__dict__.update(died.__dict__)
    copy.args = died.args
    return copy


def died(of: MeshStatus | MeshNews) -> ActorDied:
    """What is known of a mesh, as the error that its callers get."""
    failure = of.failure or (of.last_failure if isinstance(of, MeshStatus) else None)
    text = f"mesh {of.mesh}: {failure.message if failure else of.reason or f'it is {of.state}'}"
    if failure is None:
        return ActorDied(text, mesh=of.mesh)
    if failure.log_tail:
        text += "\nthe last lines of its log:\n" + "\n".join(f"  {line}" for line in failure.log_tail[-10:])
    return ActorDied(
        text,
        mesh=of.mesh,
        rank=failure.rank,
        host=failure.host,
        rank_exit_code=failure.exit_code,
        signal=failure.signal,
        log_tail=failure.log_tail,
    )

"""A mesh of actors as its callers have it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from forgectl.actor.endpoint import Interface
from forgectl.errors import ActorDied

if TYPE_CHECKING:
    from forgectl.actor.ranks import Ranks


def again(died: ActorDied) -> ActorDied:
    """A copy to raise: an exception that many raise would gather the tracebacks of all."""
    copy = ActorDied.__new__(ActorDied)
    copy.__dict__.update(died.__dict__)
    copy.args = died.args
    return copy


class Mesh(Protocol):
    """What a handle needs of its mesh."""

    name: str
    interface: Interface
    procs: int

    def foreign(self) -> Any:
        """The mesh as other processes may have it; raises ActorDied while it is not up."""
        ...

    async def ranks(self) -> Ranks:
        """Those of the living generation; waits while it restarts, and raises ActorDied once it is over."""
        ...

    def now(self) -> Ranks | None:
        """Those of the living generation, if it is up."""
        ...

    async def shutdown(self, grace: float) -> None:
        """End it, and return when nothing is left of it."""
        ...


def died(document: dict[str, Any], *, mesh: str) -> ActorDied:
    """What a mesh's state in `status` says of its death."""
    failure = document.get("failure") or document.get("last_failure") or {}
    what = failure.get("message") or document.get("reason") or f"it is {document['state']}"
    tail = tuple(failure.get("log_tail") or ())
    text = f"mesh {mesh}: {what}"
    if tail:
        text += "\nthe last lines of its log:\n" + "\n".join(f"  {line}" for line in tail[-10:])
    return ActorDied(
        text,
        mesh=mesh,
        rank=failure.get("rank"),
        host=failure.get("host"),
        rank_exit_code=failure.get("exit_code"),
        signal=failure.get("signal"),
        log_tail=tail,
    )

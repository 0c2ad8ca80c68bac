"""Why a mesh of actors is no more, as its callers are told."""

from __future__ import annotations

from typing import Any

from forgectl.errors import ActorDied


def again(died: ActorDied) -> ActorDied:
    """A copy to raise: an exception that many raise would gather the tracebacks of all."""
    copy = ActorDied.__new__(ActorDied)
    copy.__dict__.update(died.__dict__)
    copy.args = died.args
    return copy


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

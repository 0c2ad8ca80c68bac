"""Calls a mesh from outside its run, for `forgectl call`: arguments and values are plain data."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from forgectl.actor.endpoint import Interface
from forgectl.actor.foreign_mesh import ForeignMesh
from forgectl.actor.origin import Origin
from forgectl.actor.verbs import ASK
from forgectl.controller.run_dir import RunDir
from forgectl.errors import TimedOutError, error_of
from forgectl.system.processes import boot_id
from forgectl.system.tasks import within


def ask(
    run: RunDir,
    mesh: str,
    procs: int,
    ranks: Sequence[int],
    endpoint: str,
    args: list[Any],
    kwargs: dict[str, Any],
    timeout: float | None,
) -> list[Any]:
    """Call an endpoint on some ranks of a mesh of `procs`.

    Returns the values in the order of `ranks`; a value that JSON cannot hold as its repr.

    Raises NotFoundError for an unknown endpoint, UsageError for arguments that do not fit, ActorDied, and
    TimedOutError after `timeout` seconds.
    """
    plan = run.read_plan()
    number = next(i for i, host in enumerate(plan.hosts) if host.local)
    origin = Origin(run.run, boot_id(), str(run.messages), str(run.agent_socket(number)))
    target = ForeignMesh(mesh, Interface(mesh, {}), procs, origin, 0, ())

    async def answers() -> list[Any]:
        known = await target.ranks()
        return await known.call(ranks, (ASK, endpoint, args, kwargs))

    try:
        found = asyncio.run(within(timeout, answers()))
    except (asyncio.TimeoutError, TimeoutError):
        raise TimedOutError(f"{mesh}.{endpoint} did not answer within {timeout:g} s") from None
    for answer in found:
        if "code" in answer:
            raise error_of(answer["code"], answer["message"], None)
    return [answer["value"] for answer in found]

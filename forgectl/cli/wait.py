"""`forgectl wait`: returns when a run or a mesh is ready, or has ended, with its exit code."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from forgectl.cli import candidates, parameters

if TYPE_CHECKING:
    from collections.abc import Collection

    from forgectl.model.status import RunStatus


@parameters.command(
    codes=(66, 77, 124, 130),
    runs_programs=True,
    variables=("FORGECTL_HOME",),
    examples={
        "forgectl wait sft": "for its end",
        "forgectl wait --for ready policy --timeout 60": "until a service answers",
    },
)
@parameters.argument(
    "name",
    required=False,
    metavar="[NAME]",
    help="RUN, MESH or RUN/MESH; default: the one run.",
    shell_complete=candidates.names(ended=True),
)
@click.option(
    "--for",
    "event",
    type=click.Choice(["ready", "ended"]),
    default="ended",
    show_default=True,
    help="What to wait for: all ranks are up, or nothing is left of them.",
)
@click.option("--timeout", type=parameters.SECONDS, metavar="S", help="Give up after S seconds, with exit code 124.")
def wait(name: str | None, event: str, timeout: float | None) -> int:
    """Wait until a run or a mesh has ended, or is ready.

    It ends with the exit code of what it waited for: of a run as `launch` in the foreground does, of a mesh 0 if it
    succeeded, the code of the rank that failed (128 + signal), or 143 if somebody stopped it. `--for ready` ends with
    0 once everything is up, and with that code if it ended before.
    """
    import sys
    import time

    from forgectl.cli.find import find_whole, only_living
    from forgectl.cli.outcome import exit_code, outcome
    from forgectl.cli.views import render
    from forgectl.cli.watch import RunWatch
    from forgectl.controller import client
    from forgectl.errors import TimedOutError

    deadline = None if timeout is None else time.monotonic() + timeout
    found = only_living() if name is None else find_whole(name, "forgectl wait", ended=True)
    meshes = None if found.target is None else found.meshes
    watch = RunWatch(found.run)
    for status in watch.steps(lambda: deadline):
        if status is not None:
            if event == "ready" and _is_up(status, meshes):
                sys.stdout.write(f"{found} is up\n")
                return 0
            if watch.ended or (meshes is not None and _is_over(status, meshes, event)):
                if watch.ended:
                    client.wait_gone(status)
                render.show(render.plain(outcome(status, meshes)))
                return exit_code(status, meshes)
        if deadline is not None and time.monotonic() >= deadline:
            raise TimedOutError(f"{found} {_state(watch.status, meshes)} after {timeout:g} s", hint="it goes on")
    raise AssertionError("the last step of a run has its final state")


def _is_up(status: RunStatus, meshes: Collection[str] | None) -> bool:
    """Whether everything is up, or was and has succeeded."""
    if meshes is None:
        return status.was_up and not status.exit_code
    return all(m.up or m.state == "succeeded" for m in status.meshes if m.mesh in meshes)


def _is_over(status: RunStatus, meshes: Collection[str], event: str) -> bool:
    """Whether the event can come no more, or has come: a mesh that ended badly will not be ready."""
    known = [m for m in status.meshes if m.mesh in meshes]
    return all(m.ended for m in known) or (event == "ready" and any(m.exit_code for m in known))


def _state(status: RunStatus | None, meshes: Collection[str] | None) -> str:
    """What it is instead, as `is starting`."""
    if status is None:
        return "has not answered"
    if meshes is None:
        return f"is {status.state}"
    return "is " + ", ".join(dict.fromkeys(m.state for m in status.meshes if m.mesh in meshes))

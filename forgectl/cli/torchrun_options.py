"""torchrun's options that `forgectl run` knows only to say what to use instead; both spellings, with - and with _."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])

_REFUSED = f"{__name__}.refused"
_RENDEZVOUS = "leave it out: forgectl makes the rendezvous of a run by itself"
_LOGS = "leave it out: the ranks' output is shown here and kept; `forgectl logs MESH` prints it again"
_NOTHING = "leave it out: forgectl has no such option"
_INSTEAD = {
    ("--node-rank",): "leave it out: forgectl starts the ranks of all machines from here; name each by --host",
    ("--rdzv-backend",): _RENDEZVOUS,
    ("--rdzv-endpoint",): _RENDEZVOUS,
    ("--rdzv-id",): _RENDEZVOUS,
    ("--rdzv-conf",): _RENDEZVOUS,
    ("--master-addr",): _RENDEZVOUS,
    ("--master-port",): _RENDEZVOUS,
    ("--local-addr",): _RENDEZVOUS,
    ("--log-dir",): _LOGS,
    ("-r", "--redirects"): _LOGS,
    ("-t", "--tee"): _LOGS,
    ("--local-ranks-filter",): "use --ranks 0,2-5, which counts over all machines",
    ("--role",): "leave it out: ROLE_NAME is the name of the mesh",
    ("--monitor-interval",): "leave it out: forgectl notices at once when a rank ends",
    ("--event-log-handler",): _NOTHING,
    ("--logs-specs",): _NOTHING,
    ("--numa-binding",): _NOTHING,
    ("--signals-to-handle",): _NOTHING,
    ("--duplicate-stdout-filters",): _NOTHING,
    ("--duplicate-stderr-filters",): _NOTHING,
}
_FLAGS = {("--run-path",): _NOTHING, ("--virtual-local-rank",): _NOTHING}


def hyphens(name: str) -> str:
    """An option's name as we spell it: torchrun takes --nproc_per_node, too."""
    return name.replace("_", "-")


def refused(function: F) -> F:
    """Give a command these options; `complaints` has those that were used."""
    for table, is_flag in ((_INSTEAD, False), (_FLAGS, True)):
        for names, advice in table.items():
            option = click.option(
                *names, is_flag=is_flag, hidden=True, expose_value=False, callback=_noting(names[-1], advice)
            )
            function = option(function)
    return function


def _noting(name: str, advice: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def note(ctx: click.Context, _: click.Parameter, value: Any) -> None:
        if value not in (None, False):
            complaints(ctx).append(f"{name}: {advice}")

    return note


def complaints(ctx: click.Context) -> list[str]:
    """What to use instead of each option that was used; empty if none was."""
    found: list[str] = ctx.meta.setdefault(_REFUSED, [])
    return found

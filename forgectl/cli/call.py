"""`forgectl call`: calls an endpoint of a running actor or service from the shell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from forgectl.cli import candidates, parameters

if TYPE_CHECKING:
    from forgectl.cli.find import Found


@parameters.command(
    codes=(1, 66, 69, 75, 77, 124, 130),
    variables=("FORGECTL_HOME",),
    examples={
        "forgectl call counter value": "on all ranks",
        "forgectl call counter/0 add 2": "on one rank, with an argument",
        "forgectl call policy generate hello --kw n=4": "a service, with a keyword",
        "forgectl call counter value --json | jq add": "for programs",
    },
    context_settings={"ignore_unknown_options": True},  # an argument may be -4
)
@parameters.argument(
    "mesh",
    metavar="MESH",
    help="An actor or a service, a RUN with only one, or [RUN/]MESH/RANK.",
    shell_complete=candidates.names(ranks=True, runs=False, kinds=candidates.CALLED),
)
@parameters.argument("endpoint", metavar="ENDPOINT", help="One of its endpoints.", shell_complete=candidates.endpoints)
@parameters.argument("args", nargs=-1, metavar="[JSON]...", help="Arguments; one that is not JSON is taken as text.")
@click.option(
    "--kw",
    "keywords",
    multiple=True,
    metavar="NAME=JSON",
    help="A keyword argument.",
    shell_complete=candidates.keywords,
)
@click.option("--timeout", type=parameters.SECONDS, metavar="S", help="Give up after S seconds.")
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print a JSON list, in the order of ranks; of NaN and Infinity the names, as texts.",
)
def call(
    mesh: str,
    endpoint: str,
    args: tuple[str, ...],
    keywords: tuple[str, ...],
    timeout: float | None,
    as_json: bool,
) -> None:
    """Call an endpoint of an actor or a service.

    An actor's endpoint is called on all ranks, or on the one that is named, and their values are printed by rank. A
    service's endpoint is called on one replica.
    """
    import sys

    from forgectl.cli.views import render
    from forgectl.cli.views.json_text import json_text

    positional = [_value(a) for a in args]
    named = dict(_keyword(k) for k in keywords)
    values = _values(mesh, endpoint, positional, named, timeout)
    if as_json:
        sys.stdout.write(json_text(values, indent=None))
    elif len(values) == 1:
        render.stdout().print(render.plain(_text(values[0])), soft_wrap=True)
    else:
        for rank, value in enumerate(values):
            render.stdout().print(render.plain(f"{rank}: {_text(value)}"), soft_wrap=True)


def _values(name: str, endpoint: str, args: list[Any], kwargs: dict[str, Any], timeout: float | None) -> list[Any]:
    """The values that the endpoint returned. Ranks of a mesh are called directly, a service through its driver."""
    from forgectl.cli.driver_client import ask_driver
    from forgectl.cli.find import find
    from forgectl.controller import client
    from forgectl.errors import BusyError, NotFoundError, UsageError
    from forgectl.protocol.endpoint_calls import CallEndpoint, Values

    named = find(name)
    target = named.target or _only_target(named)
    found = client.document(named.run)
    if target not in named.meshes:  # a service
        if named.rank is not None:
            raise UsageError(f"{name}: a service answers by any replica", hint=f"name one: {target}.0/{named.rank}")
        if any(m.kind == "driver" and m.state in ("restarting", "starting") for m in found.meshes):
            what = f"the driver of run {named.run.run}, which chooses the replica, is being restarted"
            raise BusyError(what, hint=f"try again, or call a replica: {named.run.run}/{target}.0")
        request = CallEndpoint(target, endpoint, args, kwargs, timeout)
        values: list[Any] = ask_driver(named.run, request, Values, None).values
        return values
    mesh = found.mesh(target)
    if mesh.kind not in candidates.CALLED:
        there = ", ".join(m.mesh for m in found.meshes if m.kind in candidates.CALLED) or "none"
        message = f"mesh {target} is a {mesh.kind}; only actors and services have endpoints: here {there}"
        raise NotFoundError(message)
    from forgectl.actor.asking import ask

    ranks = range(mesh.desired) if named.rank is None else [named.rank]
    return ask(named.run, target, mesh.desired, ranks, endpoint, args, kwargs, timeout)


def _only_target(named: Found) -> str:
    """The one actor or service of a run. Raises UsageError."""
    from forgectl.controller import client
    from forgectl.errors import UsageError
    from forgectl.names import service_of

    meshes = client.document(named.run).meshes
    there = dict.fromkeys(service_of(m.mesh, m.kind) or m.mesh for m in meshes if m.kind in candidates.CALLED)
    if len(there) == 1:
        return next(iter(there))
    choices = ", ".join(f"{named.run.run}/{t}" for t in there)
    hint = f"say which: {choices}" if there else None
    raise UsageError(f"run {named.run.run} has {len(there) or 'no'} actors and services", hint=hint)


def _value(word: str) -> Any:
    """The value of an argument: JSON, or the text itself if it does not look like JSON or an option."""
    import json

    from forgectl.errors import UsageError

    try:
        return json.loads(word)
    except ValueError as e:
        if word[:1] in tuple('[{"'):
            raise UsageError(f"{word!r} is not JSON: {e}", hint="quote it for the shell: '[1, 2]'") from None
        if word.startswith("-"):
            raise UsageError(f"no such option: {word}", hint=f"to pass it as text: '\"{word}\"'") from None
        return word


def _keyword(pair: str) -> tuple[str, Any]:
    from forgectl.errors import UsageError

    name, equals, value = pair.partition("=")
    if not equals or not name.isidentifier():
        raise UsageError(f"--kw {pair!r}: expected NAME=JSON")
    return name, _value(value)


def _text(value: Any) -> str:
    import json

    return value if isinstance(value, str) else json.dumps(value)

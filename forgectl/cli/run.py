"""`forgectl run`: runs one script as torchrun does; it makes the spec from its options."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import click

from forgectl.cli import parameters


@parameters.command(context_settings={"allow_interspersed_args": False})
@parameters.argument("script", nargs=-1, metavar="[SCRIPT [ARGS]...]", help="A Python file and its arguments.")
@click.option(
    "-n",
    "--nproc",
    "procs",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Processes, over all hosts together.",
)
@click.option("--gpus", is_flag=True, help="One GPU per process.")
@click.option(
    "--host", "hosts", multiple=True, metavar="H", help="A host; ranks are spread evenly over all that are named."
)
@click.option("-m", "--module", metavar="MODULE", help="A module instead of a file.")
@click.option("--env", "-e", multiple=True, metavar="K=V", help="An environment variable of the ranks.")
@click.option(
    "--max-restarts",
    "restarts",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="N",
    help="Restart the mesh at most N times.",
)
@click.option(
    "--time-limit",
    "limit",
    metavar="TIME",
    help="How long it may run, such as 2h, restarts included; then it has failed, with exit code 124.",
)
@parameters.detach
@parameters.run_name
@parameters.timeout
@parameters.run_as_json
def run(
    script: tuple[str, ...],
    procs: int,
    gpus: bool,
    hosts: tuple[str, ...],
    module: str | None,
    env: tuple[str, ...],
    restarts: int,
    limit: str | None,
    detach: bool,
    name: str | None,
    timeout: float | None,
    as_json: bool,
) -> int:
    """Run SCRIPT on N processes, as torchrun would.

    Options of forgectl come before SCRIPT, its own arguments after it.
    """
    import os

    from forgectl.cli.begin import planned
    from forgectl.cli.foreground import LaunchOptions, launch_plan
    from forgectl.errors import SpecError, UsageError
    from forgectl.spec.load import parse

    kind, words = _program(list(script), module)
    mesh = _mesh_name(words[0])
    ranks: dict[str, Any] = {"procs": procs, "with_gpus": gpus, "env": _environment(env), "restart": {"max": restarts}}
    if limit is not None:
        ranks["time_limit"] = limit
    text = _spec(name or mesh, mesh, {kind: words, **ranks}, hosts)
    try:
        spec = parse(text, source="forgectl run", folder=Path.cwd(), environ=os.environ)
        with planned(spec) as (plan, reached):
            how = LaunchOptions(detach=detach, timeout=timeout, as_json=as_json)
            return launch_plan(plan, reached, text, how, name_is_given=name is not None)
    except SpecError as e:
        raise UsageError("\n".join(f"{_option(p.where, mesh)}: {p.message}" for p in e.problems), hint=e.hint) from None


def _program(words: list[str], module: str | None) -> tuple[str, list[str]]:
    """What ranks run, as a key of a spec and its value; raises UsageError, and NotFoundError for a missing file."""
    from forgectl.errors import NotFoundError, UsageError

    if module is not None:
        return "module", [module, *words]
    if not words:
        raise UsageError("nothing to run: name a SCRIPT, or a module with -m", hint="forgectl run -n 2 train.py")
    path = Path(words[0]).expanduser()
    if not path.is_file():
        raise NotFoundError(f"no script {words[0]}; looked in {Path.cwd()}", hint=_near(words[0]))
    return "run", [str(path), *words[1:]]


def _spec(name: str, mesh: str, body: dict[str, Any], hosts: tuple[str, ...]) -> bytes:
    """A spec of one mesh, spread over all `hosts`, as YAML."""
    import yaml

    spec: dict[str, Any] = {"name": name, "scripts": {mesh: body}}
    if hosts:
        spec |= {"hosts": list(hosts), "scripts": {mesh: body | {"hosts": len(hosts)}}}
    return yaml.safe_dump(_literal(spec), sort_keys=False, allow_unicode=True).encode()


def _option(where: str, mesh: str) -> str:
    """The option for a place in the spec: the user did not write that spec, so its places would not help them."""
    options = {"name": "--name", "hosts": "--host"}
    options |= {f"scripts.{mesh}.{key}": f"--{key}" for key in ("env", "module")}
    options[f"scripts.{mesh}.time_limit"] = "--time-limit"
    options |= {f"scripts.{mesh}.procs": "-n", f"scripts.{mesh}.with_gpus": "--gpus", f"scripts.{mesh}.run": "SCRIPT"}
    near = [option for key, option in options.items() if where == key or where.startswith((f"{key}.", f"{key}["))]
    return near[0] if near else where or "forgectl run"


def _near(target: str) -> str | None:
    from forgectl.names import nearest

    with contextlib.suppress(OSError):
        names = [p.name for p in Path(target).expanduser().absolute().parent.iterdir()]
        near = nearest(Path(target).name, names[:1000])
        return f"did you mean {near!r}?" if near else None
    return None


def _mesh_name(target: str) -> str:
    from forgectl.names import name_of

    stem = Path(target).stem if target.endswith(".py") else target.rpartition(".")[2]
    return name_of(stem, "script")


def _environment(pairs: tuple[str, ...]) -> dict[str, str]:
    from forgectl.errors import UsageError

    for pair in pairs:
        if "=" not in pair:
            raise UsageError(f"--env {pair!r}: expected NAME=VALUE")
    return dict(pair.split("=", 1) for pair in pairs)


def _literal(value: Any) -> Any:
    """The value with each `$` escaped: one that the shell left alone must not become a variable of the spec."""
    if isinstance(value, str):
        return value.replace("$", "$$")
    if isinstance(value, dict):
        return {k: _literal(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_literal(v) for v in value]
    return value

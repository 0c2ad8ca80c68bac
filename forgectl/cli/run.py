"""`forgectl run`: runs one program as torchrun does; it makes the spec from its options."""

from __future__ import annotations

from typing import Any

import click

from forgectl.cli import candidates, parameters, torchrun_options

COUNTED = ("auto", "gpu", "cpu")


class _Count(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic in some versions
    """A number of processes, or what to count on this machine."""

    name = "count"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        if value in COUNTED:
            return str(value)
        try:
            number = int(value)
        except ValueError:
            self.fail(f"{value!r} is neither a number nor one of {', '.join(COUNTED)}.", param, ctx)
        if number < 1:
            self.fail(f"{number} is not in the range x>=1.", param, ctx)
        return number


@parameters.command(
    context_settings={"allow_interspersed_args": False, "token_normalize_func": torchrun_options.hyphens},
    codes=(66, 69, 75, 77, 124, 130),
    runs_programs=True,
    variables=("FORGECTL_HOME", "FORGECTL_SSH", "FORGECTL_KEEP", "FORGECTL_GPU_LOCK_DIR"),
    examples={
        "forgectl run train.py --lr 3": "one process, with this terminal",
        "forgectl run -n 4 --gpus -m package.train": "a module on four GPUs",
        "forgectl run -n 8 --host a --host b train.py": "on other machines, by ssh",
        "forgectl run -n 8 --ranks 0 train.py": "rank 0's output alone",
        "forgectl run -n 2 nvidia-smi -L": "any other program",
        "forgectl run -d --name sft --replace train.py": "anew, in the background",
    },
)
@parameters.argument(
    "words",
    nargs=-1,
    metavar="PROGRAM [ARGS]...",
    help="A Python file, or any other program, and its arguments.",
    shell_complete=candidates.files,
)
@click.option(
    "-n", "--nproc", "procs", type=_Count(), metavar="N", help="Processes, over all hosts together; default: 1."
    " gpu: one per GPU of this machine, cpu: one per core, auto: gpu where there are GPUs, else cpu."
)  # fmt: skip
@click.option("--nproc-per-node", "per_host", type=_Count(), metavar="N", help="Processes per host, as for torchrun.")
@click.option("--gpus", is_flag=True, help="One GPU per process.")
@click.option(
    "--host",
    "hosts",
    multiple=True,
    metavar="H",
    help="A host; ranks are spread evenly over all that are named.",
    shell_complete=candidates.hosts,
)
@click.option("-m", "--module", is_flag=True, help="PROGRAM is a module, as after python -m.")
@click.option("--no-python", is_flag=True, help="PROGRAM is no Python file, whatever it looks like.")
@click.option("--env", "-e", multiple=True, metavar="K=V", help="An environment variable of the ranks.")
@click.option(
    "--workdir",
    metavar="DIR",
    help="Where ranks start and import from; default: this folder.",
    shell_complete=candidates.folders,
)
@click.option(
    "--python",
    metavar="PATH",
    help="The interpreter of the ranks; default: forgectl's own.",
    shell_complete=candidates.files,
)
@click.option(
    "--preload", multiple=True, metavar="MODULE",
    help="A module that is imported once, before ranks are forked; default: torch, where it is installed. '': none.",
)  # fmt: skip
@click.option(
    "--start-method",
    type=click.Choice(["fork", "spawn"]),
    help="spawn: each rank is a fresh interpreter, as torchrun's; default: fork, which starts sooner.",
)
@click.option(
    "--max-restarts", "restarts", type=click.IntRange(min=0), default=0, show_default=True, metavar="N",
    help="Restart the mesh at most N times.",
)  # fmt: skip
@click.option(
    "--time-limit",
    "limit",
    metavar="TIME",
    help="How long it may run, such as 2h, restarts included; then it has failed, with exit code 124.",
)
@click.option("--standalone", is_flag=True, hidden=True, expose_value=False)  # torchrun's for what we do anyway
@click.option("--nnodes", hidden=True)
@torchrun_options.refused
@parameters.detach
@click.option("--name", metavar="NAME", help="Name of the run; default: that of the program.")
@parameters.replace
@parameters.timeout
@parameters.output
@parameters.run_as_json
@click.pass_context
def run(
    ctx: click.Context,
    words: tuple[str, ...],
    procs: int | str | None,
    per_host: int | str | None,
    gpus: bool,
    hosts: tuple[str, ...],
    module: bool,
    no_python: bool,
    env: tuple[str, ...],
    workdir: str | None,
    python: str | None,
    preload: tuple[str, ...],
    start_method: str | None,
    restarts: int,
    limit: str | None,
    nnodes: str | None,
    detach: bool,
    name: str | None,
    replace: bool,
    timeout: float | None,
    ranks: str | None,
    no_prefix: bool,
    quiet: bool,
    as_json: bool,
) -> int:
    """Run a program on N processes, as torchrun would.

    Options of forgectl come before PROGRAM, its own arguments after it. torchrun's spellings are known, too.
    """
    import os

    from forgectl.cli.begin import here, planned
    from forgectl.cli.foreground import LaunchOptions, end_living, launch_plan
    from forgectl.cli.output import check_ranks, output_of
    from forgectl.cli.program import mesh_name, program_of
    from forgectl.errors import SpecError, UsageError
    from forgectl.spec.load import parse

    folder = here()
    _refuse_what_cannot_be_had(ctx, nnodes, hosts)
    output = output_of(ranks, no_prefix, quiet, detach=detach)
    start = (folder / workdir).absolute() if workdir is not None else folder
    kind, program = program_of(
        list(words), module=module, command=no_python, workdir=None if start == folder else start
    )
    mesh = mesh_name(kind, program[0])
    count, with_gpus = _count(procs, per_host, gpus, hosts)
    body: dict[str, Any] = {"procs": count, "with_gpus": with_gpus, "env": _environment(env)}
    body |= {"restart": {"max": restarts}}
    body |= {
        key: value
        for key, value in (("python", python), ("start_method", start_method), ("time_limit", limit))
        if value is not None
    }
    if preload:
        body["preload"] = [module for module in preload if module]
    text = _spec({"name": name or mesh, "workdir": str(start)}, mesh, {kind: program, **body}, hosts)
    try:
        spec = parse(text, source="forgectl run", folder=folder, environ=os.environ)
        check_ranks(output, [count], grows=False)
        if replace:
            end_living(spec.name, "forgectl run --replace", quiet=quiet)
        with planned(spec) as (plan, reached):
            lends = count == 1 and all(host.local for host in plan.hosts)
            how = LaunchOptions(detach, timeout, as_json, output, lends_input=lends)
            return launch_plan(plan, reached, text, how, name_is_given=replace or name is not None)
    except SpecError as e:
        hint = "leave out --gpus to run on CPUs" if e.hint and not hosts else e.hint
        raise UsageError("\n".join(f"{_option(p.where, mesh)}: {p.message}" for p in e.problems), hint=hint) from None


def _refuse_what_cannot_be_had(ctx: click.Context, nnodes: str | None, hosts: tuple[str, ...]) -> None:
    from forgectl.errors import UsageError

    problems = torchrun_options.complaints(ctx)
    machines = max(1, len(hosts))
    if nnodes is not None and nnodes not in (str(machines), f"{machines}:{machines}"):
        problems.append(
            f"--nnodes {nnodes}: leave it out; a mesh has as many machines as --host names, here {machines}"
        )
    if problems:
        raise UsageError("\n".join(problems))


def _count(procs: int | str | None, per_host: int | str | None, gpus: bool, hosts: tuple[str, ...]) -> tuple[int, bool]:
    """The number of processes over all hosts, and whether each gets a GPU."""
    from forgectl.errors import UsageError

    if procs is not None and per_host is not None:
        raise UsageError("-n counts the processes of all hosts, --nproc-per-node those of each; keep one")
    wanted = procs if per_host is None else per_host
    if wanted is None:
        return 1, gpus
    number = wanted
    if isinstance(number, str):
        if set(hosts) - {"local"}:
            option = "-n" if per_host is None else "--nproc-per-node"
            raise UsageError(f"{option} {wanted}: it counts what this machine has; give a number for other hosts")
        number, with_gpus = _counted(number, gpus)
        gpus = gpus or with_gpus
    return number * (len(hosts) or 1) if per_host is not None else number, gpus


def _counted(what: str, gpus: bool) -> tuple[int, bool]:
    """How many of them this machine has, and whether they are GPUs."""
    import os

    from forgectl.errors import UsageError
    from forgectl.hosts.gpus import discover

    cores = len(os.sched_getaffinity(0))
    if what == "cpu":
        return cores, False
    found = len(discover("auto", host="local", environ=os.environ).gpus)
    if found:
        return found, True
    if what == "gpu" or gpus:
        raise UsageError(f"-n {what}: this machine has no GPU", hint="use -n cpu, without --gpus, to run on CPUs")
    return cores, False


def _spec(top: dict[str, Any], mesh: str, body: dict[str, Any], hosts: tuple[str, ...]) -> bytes:
    """A spec of one mesh, spread over all `hosts`, as YAML."""
    import yaml

    spec: dict[str, Any] = {**top, "scripts": {mesh: body}}
    if hosts:
        spec |= {"hosts": list(hosts), "scripts": {mesh: body | {"hosts": len(hosts)}}}
    return yaml.safe_dump(_literal(spec), sort_keys=False, allow_unicode=True).encode()


def _option(where: str, mesh: str) -> str:
    """The option for a place in the spec: the user did not write that spec, so its places would not help them."""
    if where.startswith(variable := f"scripts.{mesh}.env."):
        return f"--env {where.removeprefix(variable)}"
    options = {"name": "--name", "hosts": "--host", "workdir": "--workdir"}
    own = {"procs": "-n", "with_gpus": "--gpus", "module": "-m", "run": "PROGRAM", "command": "PROGRAM"}
    own |= {"python": "--python", "preload": "--preload", "start_method": "--start-method", "restart": "--max-restarts"}
    own |= {"time_limit": "--time-limit"}
    options |= {f"scripts.{mesh}.{key}": option for key, option in own.items()}
    near = [option for key, option in options.items() if where == key or where.startswith((f"{key}.", f"{key}["))]
    return near[0] if near else where or "forgectl run"


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

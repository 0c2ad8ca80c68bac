"""`forgectl launch`: plans, starts, waits until all meshes are up, then follows the run to its end."""

from __future__ import annotations

from pathlib import Path

from forgectl.cli import parameters


@parameters.command(
    aliases=("up",),
    codes=(65, 66, 69, 75, 77, 124, 130),
    runs_programs=True,
    variables=("FORGECTL_HOME", "FORGECTL_SSH", "FORGECTL_KEEP", "FORGECTL_GPU_LOCK_DIR"),
    examples={
        "forgectl launch": "what forge.yaml of this folder declares",
        "forgectl launch sft.yaml --set scripts.sft.procs=4": "with an override",
        "forgectl launch sft.yaml --ranks 0 --no-prefix": "rank 0's lines alone, as it prints them",
        "ID=$(forgectl launch -d sft.yaml)": "in the background; prints the run's id",
        "forgectl up -d --replace": "anew, in place of the run that lives",
    },
)
@parameters.spec
@parameters.detach
@parameters.overrides
@parameters.run_name
@parameters.replace
@parameters.timeout
@parameters.output
@parameters.run_as_json
def launch(
    spec: Path | None,
    detach: bool,
    overrides: tuple[str, ...],
    name: str | None,
    replace: bool,
    timeout: float | None,
    ranks: str | None,
    no_prefix: bool,
    quiet: bool,
    as_json: bool,
) -> int:
    """Start everything that SPEC declares.

    In the foreground it follows the logs; Ctrl-C shuts the run down in order, a second Ctrl-C at once. It ends with
    the exit code of the workload that failed (128 + signal), or 0.
    """
    import os

    from forgectl.cli.begin import here, planned, spec_file
    from forgectl.cli.foreground import LaunchOptions, end_living, launch_plan
    from forgectl.cli.interpreters import modules_of
    from forgectl.cli.output import check_ranks, output_of
    from forgectl.spec.load import load

    here()
    output = output_of(ranks, no_prefix, quiet, detach=detach)
    file = spec_file(spec, "launch")
    loaded = load(file, overrides=overrides, environ=os.environ, name=name, interpreters=modules_of)
    check_ranks(output, [script.procs for script in loaded.scripts.values()], grows=loaded.has_driver)
    if replace:
        end_living(loaded.name, "forgectl launch --replace", quiet=quiet)  # before planning: its GPUs are free then
    with planned(loaded) as (plan, hosts):
        how = LaunchOptions(detach=detach, timeout=timeout, as_json=as_json, output=output)
        return launch_plan(plan, hosts, loaded.text, how, name_is_given=True)

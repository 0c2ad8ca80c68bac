"""`forgectl launch`: plans, starts, waits until all meshes are up, then follows the run to its end."""

from __future__ import annotations

from pathlib import Path

from forgectl.cli import parameters


@parameters.command()
@parameters.spec
@parameters.detach
@parameters.overrides
@parameters.run_name
@parameters.replace
@parameters.timeout
@parameters.run_as_json
def launch(
    spec: Path | None,
    detach: bool,
    overrides: tuple[str, ...],
    name: str | None,
    replace: bool,
    timeout: float | None,
    as_json: bool,
) -> int:
    """Start everything that SPEC declares.

    In the foreground it follows the logs; Ctrl-C shuts the run down in order, a second Ctrl-C at once. It ends with
    the exit code of the workload that failed (128 + signal), or 0.
    """
    import os

    from forgectl.cli.begin import here, planned, spec_file
    from forgectl.cli.foreground import LaunchOptions, launch_plan
    from forgectl.cli.interpreters import modules_of
    from forgectl.spec.load import load

    here()
    file = spec_file(spec, "launch")
    loaded = load(file, overrides=overrides, environ=os.environ, name=name, interpreters=modules_of)
    if replace:
        from forgectl.cli.foreground import end_living

        end_living(loaded.name)  # before planning, which then finds its GPUs free
    with planned(loaded) as (plan, hosts):
        how = LaunchOptions(detach=detach, timeout=timeout, as_json=as_json)
        return launch_plan(plan, hosts, loaded.text, how, name_is_given=True)

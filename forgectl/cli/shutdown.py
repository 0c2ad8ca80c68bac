"""`forgectl shutdown`: ends meshes or runs, and prints how each ended."""

from __future__ import annotations

import click

from forgectl.cli import candidates, parameters


@parameters.command(
    aliases=("down",),
    codes=(66, 70, 77, 124, 130),
    variables=("FORGECTL_HOME",),
    examples={
        "forgectl shutdown": "the run of this folder's forge.yaml",
        "forgectl shutdown sft": "a run, or a mesh",
        "forgectl shutdown sft/judge --timeout 60": "a mesh of a run, with time to save",
        "forgectl down --all --force": "everything, at once",
    },
)
@parameters.argument(
    "names",
    nargs=-1,
    metavar="[NAME]...",
    help="Runs or meshes to end: RUN, MESH or RUN/MESH.",
    shell_complete=candidates.names(),
)
@click.option(
    "--run",
    "runs",
    multiple=True,
    metavar="RUN",
    help="End a whole run, even if a mesh has its name.",
    shell_complete=candidates.run_ids,
)
@click.option("--all", "everything", is_flag=True, help="End all runs of this user.")
@parameters.grace
@parameters.force
def shutdown(names: tuple[str, ...], runs: tuple[str, ...], everything: bool, timeout: float, force: bool) -> int:
    """End runs or meshes, and return when all is gone.

    Without a NAME it ends the run of this folder's forge.yaml.
    """
    import sys

    from forgectl.cli.ending import end_all
    from forgectl.cli.find import all_living, find_run, find_whole, raise_refused
    from forgectl.errors import UsageError

    if sum(map(bool, (names, runs, everything))) > 1:
        raise UsageError("say in one way what to end: RUN or MESH…, or --run RUN, or --all")
    targets: dict[str, tuple[str, ...] | None] = {}
    if everything:
        targets = {run.run: None for run in all_living()}
    elif runs:
        targets = {find_run(name).run: None for name in runs}
    elif names:
        for found in [find_whole(name, "forgectl shutdown") for name in names]:
            before = targets.get(found.run.run, ())
            whole = found.target is None or before is None
            targets[found.run.run] = None if whole else tuple(dict.fromkeys((*(before or ()), *found.meshes)))
    elif not (targets := _of_folder()):
        return 0
    code = end_all(targets, 0.0 if force else timeout)
    if everything:
        sys.stdout.flush()
        raise_refused()
    return code


def _of_folder() -> dict[str, tuple[str, ...] | None]:
    """The living run of the current folder's spec, if there is one. Raises UsageError."""
    from forgectl.cli.begin import default_spec
    from forgectl.cli.find import living_of
    from forgectl.cli.views import render
    from forgectl.errors import UsageError

    spec = default_spec()
    if spec is None:
        hint = "RUN or MESH…, or --run RUN, or --all; `forgectl status` shows what runs"
        raise UsageError("say what to end: this folder has no forge.yaml, whose run it could be", hint=hint)
    found = [run.run for run in living_of(spec)]
    if len(found) > 1:
        raise UsageError(f"{len(found)} runs of {spec} are alive", hint=f"say which: {', '.join(found)}")
    news = f"ending run {found[0]}, of {spec}" if found else f"no run of {spec} is alive"
    render.stderr().print(render.plain(f"forgectl: {news}"), style="dim")
    return dict.fromkeys(found)

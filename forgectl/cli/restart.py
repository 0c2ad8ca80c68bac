"""`forgectl restart`: gives meshes a new generation, on the same GPUs and from their warm fork servers."""

from __future__ import annotations

from forgectl.cli import candidates, parameters


@parameters.command(
    codes=(66, 77, 130),
    runs_programs=True,
    variables=("FORGECTL_HOME",),
    examples={
        "forgectl restart trainer": "one mesh",
        "forgectl restart sft --timeout 60": "all of a run, with time to save",
    },
)
@parameters.argument(
    "names",
    nargs=-1,
    required=True,
    metavar="NAME...",
    help="RUN, MESH or RUN/MESH, of one run.",
    shell_complete=candidates.names(kinds=("actor", "service", "script")),
)
@parameters.grace
@parameters.force
def restart(names: tuple[str, ...], timeout: float, force: bool) -> int:
    """Restart meshes on the same GPUs.

    It ends all their ranks, starts them anew, and returns when they are up. This is no failure, so `restart:` of the
    spec does not count it. Replicas of a service are restarted one after the other, so that the others answer
    meanwhile.
    """
    from forgectl.cli.find import find_whole, in_one_run
    from forgectl.cli.restarting import restart_meshes

    found = [find_whole(name, "forgectl restart") for name in names]
    run = in_one_run(found)
    named = None if any(f.target is None for f in found) else tuple(dict.fromkeys(m for f in found for m in f.meshes))
    return restart_meshes(run, named, 0.0 if force else timeout)

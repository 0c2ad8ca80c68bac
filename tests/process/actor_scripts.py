"""Python scripts with actors, outside any launch: each has a run of its own."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from typing import Any

from tests.conftest import PROGRAMS, Forge, processes_with, until

SHARED = ("players.py", "playing.py", "replicas.py", "serving.py")
"""What the scripts import."""


def bring(forge: Forge, *programs: str) -> None:
    """Copy programs, and what they import, to where specs find them."""
    for name in (*SHARED, *programs):
        shutil.copy(PROGRAMS / name, forge.folder)


def to_play(forge: Forge, scene: str) -> list[str]:
    """The arguments of Python for `FILE FUNCTION WORDS…`, a function of one of the test programs."""
    program, *words = shlex.split(scene)
    bring(forge, program)
    return [str(forge.folder / program), *words]


def play(forge: Forge, scene: str, *, code: int = 0, seconds: float = 90.0) -> subprocess.CompletedProcess[str]:
    """Run a script, whose assertions must hold, to its end; by then nothing of its run may be left."""
    process = forge.python(*to_play(forge, scene))
    out, err = process.communicate(timeout=seconds)
    assert process.returncode == code, f"{process.returncode}\n{out}\n{err}"
    assert processes_with(f"FORGECTL_HOME={forge.home}") == {}
    for run in forge.runs():
        assert forge.document(run)["ended_at"]
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def play_in_silence(forge: Forge, scene: str) -> None:
    """The same with a script that prints nothing; nor may anything else."""
    forge.env["FORGECTL_LOGS"] = "off"  # what ranks print is not the script's
    result = play(forge, scene)
    assert (result.stdout, result.stderr) == ("", ""), result.stdout + result.stderr


def background(forge: Forge, scene: str) -> subprocess.Popen[str]:
    """Begin a script; returns once it has said `up`."""
    process = forge.python(*to_play(forge, scene))
    assert process.stdout
    line = process.stdout.readline()
    if line != "up\n":
        process.kill()
        raise AssertionError(f"{line}{process.communicate()}")
    return process


def the_run(forge: Forge) -> str:
    """The only run there is."""
    [run] = forge.runs()
    return run


def meshes(forge: Forge) -> dict[str, dict[str, Any]]:
    """The meshes of the only run, by name."""
    return {m["mesh"]: m for m in forge.document(the_run(forge))["meshes"]}


def ended(forge: Forge, run: str) -> dict[str, Any]:
    """The final document of a run that ends without being told to by a command, once all processes are gone."""
    until(lambda: not processes_with(f"FORGECTL_HOME={forge.home}"), f"the end of {run}")
    document = forge.document(run)
    assert document["ended_at"]
    return document

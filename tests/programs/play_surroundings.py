"""What test_surroundings.py has scripts do: they change their variables and folder between two launches."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from forgectl import ActorDied, ForgeActor, endpoint
from playing import HERE, pids_of, play, raised

NAMES = ("KEPT", "CHANGED", "REMOVED", "ADDED", "RANK", "FIXED", "FORGE_MESH")


class Sees(ForgeActor):
    def __init__(self) -> None:
        self.at_first = os.environ.get("CHANGED"), os.getcwd()

    @endpoint
    async def variables(self) -> list[str | None]:
        return [os.environ.get(name) for name in NAMES]

    @endpoint
    async def folder(self) -> str:
        return os.getcwd()

    @endpoint
    async def first(self) -> tuple[str | None, str]:
        return self.at_first

    @endpoint
    async def imported(self) -> tuple[str | None, str | None]:
        import read_at_import

        return read_at_import.THREADS, read_at_import.OTHER


class Reveals(ForgeActor):
    def __init__(self) -> None:
        raise ValueError(f"the token is {os.environ['TOKEN']}")


Plain = Sees.options(preload=[], env={"FIXED": "by options"})


def change() -> None:
    os.environ |= {"CHANGED": "2", "ADDED": "new", "RANK": "7", "FIXED": "by script", "FORGE_MESH": "mine"}
    os.environ.pop("REMOVED", None)


async def a_later_mesh_sees_what_has_changed() -> None:
    early = await Plain.options(mesh_name="early").as_actor()
    before = ["1", "1", "1", None, "0", "by options", "early"]
    assert await early.variables.call_one() == before
    change()
    late = await Plain.options(mesh_name="late", procs=2).as_actor()
    for rank, seen in (await late.variables.call()).items():
        assert seen == ["1", "2", None, "new", str(rank["procs"]), "by options", "late"]
    spawned = await Plain.options(mesh_name="spawned", start_method="spawn").as_actor()
    assert await spawned.variables.call_one() == ["1", "2", None, "new", "0", "by options", "spawned"]
    assert await early.variables.call_one() == before
    assert list((await late.first.call()).values()) == [("2", str(HERE))] * 2  # before the constructor


async def a_later_mesh_starts_in_the_folder_of_then() -> None:
    early = await Plain.as_actor()
    there = HERE / "there"
    there.mkdir()
    os.chdir(there)
    late = await Plain.as_actor()
    os.chdir(HERE)
    again = await Plain.as_actor()
    folders = [await mesh.folder.call_one() for mesh in (early, late, again)]
    assert folders == [str(HERE), str(there), str(HERE)]
    assert (await late.first.call_one())[1] == str(there)


async def a_removed_folder_is_left_out() -> None:
    await Plain.as_actor()
    gone = HERE / "gone"
    gone.mkdir()
    os.chdir(gone)
    gone.rmdir()
    late = await Plain.as_actor()
    assert await late.folder.call_one() == str(HERE)


async def a_restart_sees_what_the_launch_saw() -> None:
    await Plain.as_actor()
    os.environ["CHANGED"] = "2"
    late = await Plain.options(mesh_name="late", restart=1).as_actor()
    os.environ["CHANGED"] = "3"
    os.kill(pids_of("late")[0], signal.SIGKILL)
    while True:
        try:
            assert (await late.first.call_one())[0] == "2"
            break
        except ActorDied:  # the death reached this call
            continue


async def what_imports_read_is_there_before_them() -> None:
    Imports = Sees.options(preload=["read_at_import"])
    os.environ.pop("OMP_NUM_THREADS", None)
    await Plain.as_actor()
    os.environ |= {"OMP_NUM_THREADS": "3", "OTHER": "late"}
    late = await Imports.as_actor()
    assert await late.imported.call_one() == ("3", None)  # only such variables are worth another import


async def a_secret_is_hidden_and_on_no_disk() -> None:
    await Plain.as_actor()
    os.environ["TOKEN"] = "sesame-open"
    error = await raised(ValueError, Reveals.options(preload=[]).as_actor())
    assert "sesame-open" in str(error)  # the script itself may know it
    home = Path(os.environ["FORGECTL_HOME"])
    stored = [path for path in home.rglob("*") if path.is_file() and b"sesame-open" in path.read_bytes()]
    assert all(path.suffix == ".log" for path in stored), stored  # what a rank prints by itself is its own
    sys.stdout.write("hidden\n")


if __name__ == "__main__":
    play(globals())

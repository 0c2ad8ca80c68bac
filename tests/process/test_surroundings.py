"""A mesh that a script launches later sees the script's variables and folder as they are then."""

from __future__ import annotations

import pytest

from tests.conftest import Forge
from tests.process.actor_scripts import bring, meshes, play

PROGRAM = "play_surroundings.py"


@pytest.mark.parametrize(
    "scene",
    [
        "a_later_mesh_sees_what_has_changed",
        "a_later_mesh_starts_in_the_folder_of_then",
        "a_removed_folder_is_left_out",
        "a_restart_sees_what_the_launch_saw",
        "what_imports_read_is_there_before_them",
    ],
)
def test_a_later_mesh(forge: Forge, scene: str) -> None:
    forge.env |= {"KEPT": "1", "CHANGED": "1", "REMOVED": "1"}
    bring(forge, "read_at_import.py")
    play(forge, f"{PROGRAM} {scene}")


def test_a_secret_is_hidden_and_on_no_disk(forge: Forge) -> None:
    forge.env |= {"FORGE_SECRETS": "TOKEN", "TOKEN": "old-secret"}
    assert play(forge, f"{PROGRAM} a_secret_is_hidden_and_on_no_disk").stdout == "hidden\n"
    assert "the token is ***" in str(meshes(forge)["reveals"])

"""A folder with programs to run, and specs that are parsed in it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from forgectl.errors import SpecError
from forgectl.spec.load import parse
from forgectl.spec.model import Spec

SOURCE = "spec.yaml"
ENVIRON = {"HOME": "/home/u", "HF_TOKEN": "hf_secret", "SIZE": "4", "EMPTY": "", "BYTES": "\udcff"}


HOSTFILE = """# hosts of the field, and what is wrong with the others
gpu01 slots=4
u@gpu02:2  # MPICH's way

gpu01
-oProxyCommand=x
gpu03 gpus=8
gpu04 slots=many
gpu05:2 slots=4
gpu06 slots=4 max_slots=2
"""


def make_folder(folder: Path) -> Path:
    """`folder` with two Python files, a folder and a hostfile full of mistakes in it."""
    (folder / "train.py").touch()
    (folder / "hosts.txt").write_text(HOSTFILE)
    (folder / "main.py").touch()
    (folder / "pkg").mkdir(exist_ok=True)
    return folder


def read(
    folder: Path,
    text: str | bytes,
    *overrides: str,
    environ: Mapping[str, str] = ENVIRON,
    name: str | None = None,
) -> Spec:
    data = text.encode() if isinstance(text, str) else text
    make_folder(folder)
    return parse(data, source=SOURCE, folder=folder, overrides=overrides, environ=environ, name=name)


def problems(folder: Path, text: str | bytes, *overrides: str, name: str | None = None) -> list[str]:
    """The lines of the SpecError that `text` raises."""
    with pytest.raises(SpecError) as caught:
        read(folder, text, *overrides, name=name)
    lines = str(caught.value).splitlines()
    assert lines == [problem.render(SOURCE) for problem in caught.value.problems]
    return lines

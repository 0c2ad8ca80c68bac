"""The wheel and the source distribution, built as pip builds them: what they hold, and what a package page says."""

from __future__ import annotations

import email
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]
BUILD = "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"
MADE = re.compile(r"PKG-INFO|setup\.cfg|\S+\.egg-info/\S+")
"""What building adds to a source distribution."""


def built(kind: str, tree: Path, folder: Path) -> Path:
    """A distribution of a source tree, which stays as it is."""
    config = folder / "setup.cfg"
    config.write_text(f"[build]\nbuild_base = {folder}/build\n[egg_info]\negg_base = {folder}\n")
    argv = ["env", f"DIST_EXTRA_CONFIG={config}", sys.executable, "-c", BUILD, kind, str(folder)]
    done = subprocess.run(argv, cwd=tree, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / done.stdout.split()[-1]


def git(*arguments: str) -> set[str]:
    done = subprocess.run(["git", "ls-files", *arguments], cwd=TOP, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("THIS IS NO CHECKOUT OF GIT")
    return set(done.stdout.splitlines())


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, unpacked."""
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(built("build_sdist", TOP, folder)) as archive:
        archive.extractall(folder, filter="data")
    return next(path for path in folder.glob("forgectl-*") if path.is_dir())


def test_the_source_distribution_has_all_that_git_has(tree: Path) -> None:
    found = {path.relative_to(tree).as_posix() for path in tree.rglob("*") if path.is_file()}
    tracked = git()
    assert not tracked - found
    assert not {name for name in found - tracked - git("--others", "--exclude-standard") if not MADE.fullmatch(name)}


def test_the_wheel_has_our_packages_and_its_metadata_is_complete(tree: Path, tmp_path: Path) -> None:
    """It is built from the source distribution, as some indexes' users do."""
    with zipfile.ZipFile(built("build_wheel", tree, tmp_path)) as wheel:
        found = {name for name in wheel.namelist() if ".dist-info/" not in name}
        about = {Path(name).name: wheel.read(name).decode() for name in wheel.namelist() if ".dist-info/" in name}
        templates = {name: wheel.read(name) for name in found if "/templates/" in name}
    assert found == git("forgectl", "actors")
    assert all(text == (TOP / name).read_bytes() for name, text in templates.items())
    assert about["entry_points.txt"].split("\n")[:2] == ["[console_scripts]", "forgectl = forgectl.cli:main"]
    assert about["LICENSE"] == (TOP / "LICENSE").read_text()
    metadata = email.message_from_string(about["METADATA"])
    assert (metadata["License-Expression"], metadata["Requires-Python"]) == ("BSD-3-Clause", ">=3.10")
    assert metadata["Summary"] and metadata["Keywords"]
    assert metadata["Description-Content-Type"] == "text/markdown"
    page = metadata.get_payload()
    assert isinstance(page, str) and page.startswith("# forgectl")
    assert not re.search(r"\]\((?!https:|#)[^)]*\)", page), "a link that leads nowhere from a package page"

"""What pyproject.toml claims of Pythons and dependencies holds together with the other files that say it."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

TOP = Path(__file__).parents[2]
PROJECT = (TOP / "pyproject.toml").read_text()
PYTHONS = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', PROJECT)


def test_the_pythons_that_are_claimed_are_the_same_everywhere() -> None:
    minors = [int(version.removeprefix("3.")) for version in PYTHONS]
    assert minors == list(range(minors[0], minors[-1] + 1))
    assert f'requires-python = ">={PYTHONS[0]}"' in PROJECT
    assert f"(3, {minors[0]}) <= sys.version_info < (3, {minors[-1] + 1})" in (TOP / "Makefile").read_text()
    for page in ("Makefile", "README.md", "CONTRIBUTING.md", "docs/getting-started.md"):
        said = re.findall(r"Python (3\.\d+) to (3\.\d+)", (TOP / page).read_text())
        assert set(said) == {(PYTHONS[0], PYTHONS[-1])}, page


def test_each_python_that_is_claimed_can_have_the_pins() -> None:
    """A pin that a Python cannot have makes `make` fail there. Looked at: the packages that are installed here."""
    lines = [line for line in (TOP / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    needed = {d.name: SpecifierSet(d.metadata["Requires-Python"] or "") for d in metadata.distributions()}
    needed = {canonicalize_name(name): versions for name, versions in needed.items()}
    for pin in map(Requirement, lines):
        assert re.fullmatch(r"==[\w.]+", str(pin.specifier)), f"{pin} is no exact version"
        if pin.marker and not pin.marker.evaluate():
            continue  # another version is installed here: its own Python looks at this one
        for python in PYTHONS:
            if not pin.marker or pin.marker.evaluate({"python_version": python}):
                newest = f"{python}.99"  # some packages want a late patch release
                assert newest in needed.get(canonicalize_name(pin.name), SpecifierSet()), f"{pin} on {python}"


def test_users_are_given_no_upper_bounds() -> None:
    """It lives beside transformers, vLLM and others in one environment."""
    ours = [Requirement(text) for text in metadata.requires("forgectl") or ()]
    theirs = [r for r in ours if not (r.marker and re.search("dev|docs", str(r.marker)))]
    assert len(theirs) > 8
    assert not [str(r) for r in theirs if any(s.operator not in {">=", "!="} for s in r.specifier)]

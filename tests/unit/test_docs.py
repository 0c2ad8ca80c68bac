"""The pages name only what exists: links, files, packages in their order, and decisions in their form."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import get_args

import pytest

from forgectl.model.event import EventName, Failure, Fell, HookName, RunEvent
from forgectl.model.status import FailureKind
from tests.unit.test_boundaries import BELOW_ALL, LAYERS

TOP = Path(__file__).parents[2]
DECISIONS = sorted((TOP / "docs/decisions").glob("[0-9]*.md"))
PAGES = [TOP / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")] + sorted((TOP / "docs").rglob("*.md"))
MAPS = [TOP / "CONTRIBUTING.md", TOP / "docs/architecture.md"]
"""Pages whose every module must exist, also one that is named without its folder."""
ROOTS = (TOP, TOP / "forgectl")
"""What a path in a page may be relative to."""


def name_of(page: Path) -> str:
    return page.relative_to(TOP).as_posix()


def quoted(page: Path) -> list[str]:
    """What stands between backticks, but for blocks of code."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"`([^`\n]+)`", text)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if link.startswith(("https://", "http://", "mailto:")):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_that_are_named_exist(page: Path) -> None:
    for text in quoted(page):
        for path in re.findall(r"(?<![\w/.~-])[\w.-]+(?:/[\w.-]+)*/[\w.-]+\.(?:py|md|sh|toml|yaml)\b", text):
            assert any((root / path).is_file() for root in ROOTS), path


@pytest.mark.parametrize("page", MAPS, ids=name_of)
def test_modules_and_packages_of_the_maps_exist(page: Path) -> None:
    for text in quoted(page):
        if re.fullmatch(r"\w+\.py", text):
            assert any(any((TOP / root).rglob(text)) for root in ("forgectl", "tests")), text
        elif re.fullmatch(r"(?:\w+/)+", text):
            assert any((root / text).is_dir() for root in ROOTS), text


def test_the_architecture_lists_the_packages_in_the_order_of_their_imports() -> None:
    text = (TOP / "docs/architecture.md").read_text()
    assert tuple(re.findall(r"^\| `(\w+)/` \|", text, flags=re.MULTILINE)) == LAYERS
    assert all(f"`{module}.py`" in text for module in BELOW_ALL)
    assert len(text.splitlines()) < 110


def test_the_index_of_decisions_has_each_page_with_its_title() -> None:
    index = (TOP / "docs/decisions/README.md").read_text()
    listed = re.findall(r"^(\d+)\. \[(.+)\]\((.+)\)$", index, flags=re.MULTILINE)
    found = [(page.read_text().partition("\n")[0], page.name) for page in DECISIONS]
    assert [(f"# {number}. {title}", file) for number, title, file in listed] == found


@pytest.mark.parametrize("page", DECISIONS, ids=name_of)
def test_a_decision_has_its_four_parts_on_a_short_page(page: Path) -> None:
    text = page.read_text()
    assert re.findall(r"^## (.+)$", text, flags=re.MULTILINE) == [
        "Context",
        "Decision",
        "Consequences",
        "What would overturn it",
    ]
    assert 15 <= len(text.splitlines()) <= 40


def test_the_page_of_events_has_every_event_and_key() -> None:
    text = (TOP / "docs/events.md").read_text()
    keys = {field.name for kind in (RunEvent, Failure, Fell) for field in dataclasses.fields(kind)}
    for name in (*get_args(EventName), *get_args(HookName), *get_args(FailureKind), *keys):
        assert f"`{name}`" in text, name

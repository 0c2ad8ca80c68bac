"""The recorder of the README's picture: what a terminal showed is in the SVG, from when to when it was there."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import record

TEXT = "{http://www.w3.org/2000/svg}text"


def lines_of(svg: str) -> dict[str, str]:
    """Text of each line → the class of its animation."""
    return {"".join(line.itertext()): line.attrib["class"] for line in ET.fromstring(svg).iter(TEXT)}


def test_what_a_shell_shows_is_recorded() -> None:
    svg = record.record(["printf '\\033[32mgreen\\033[0m & <b>\\n'", "clear", "echo last"])
    lines = lines_of(svg)
    assert {"$ echo last", "last"} <= lines.keys()
    assert 'class="green"' in svg and "green & <b>" in lines
    assert "$ ec" in lines, "typing is seen"
    rules = dict(re.findall(r"^\.(k\d+)\{(.*)\}$", svg, flags=re.MULTILINE))
    assert "visibility:hidden;" in rules[lines["green & <b>"]], "what was cleared is not on the last screen"
    assert "visibility:hidden;" not in rules[lines["last"]], "the last screen is what is seen without animations"


def test_the_readme_shows_a_launch_that_succeeded() -> None:
    lines = lines_of(record.TARGET.read_text())
    assert "$ forgectl launch forge.yaml" in lines and "forgectl: train succeeded" in lines

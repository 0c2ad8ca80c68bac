"""Commands for events in a spec and in a plan, and what is kept of their output."""

from __future__ import annotations

from pathlib import Path

import pytest

from forgectl.controller.hook import MOST_OUTPUT, Output
from forgectl.model.plan import HookPlan, HostFacts
from forgectl.plan.placement import place
from forgectl.spec.load import parse


def planned(tmp_path: Path, on: str) -> HookPlan | None:
    (tmp_path / "x.py").touch()
    text = f"on: {on}\nscripts: {{x: {{run: x.py}}}}\n".encode()
    spec = parse(text, source="s.yaml", folder=tmp_path, environ={"TO": "ada@example.org"})
    return place(spec, {"local": HostFacts("local", "m", 4)}, python="python3").on


def test_text_is_a_line_for_the_shell_and_a_list_a_program(tmp_path: Path) -> None:
    on = "{failed: 'mail ${TO} < $FILE', ended: [./notify.py, 'a b', 3], timeout: 1m}"
    assert planned(tmp_path, on) == HookPlan(
        {"failed": ("/bin/sh", "-c", "mail ada@example.org < $FILE"), "ended": ("./notify.py", "a b", "3")},
        str(tmp_path),
        60.0,
    )


@pytest.mark.parametrize("on", ["{}", "{timeout: 3s}", "{failed: }"])
def test_a_spec_may_have_none(tmp_path: Path, on: str) -> None:
    hooks = planned(tmp_path, on)
    assert hooks is not None
    assert hooks.commands == {}


@pytest.mark.parametrize("size", [0, 10, MOST_OUTPUT, 2 * MOST_OUTPUT, 9 * MOST_OUTPUT])
@pytest.mark.parametrize("piece", [1000, 1 << 16])
def test_the_beginning_and_the_end_of_the_output_are_kept(size: int, piece: int) -> None:
    printed = b"".join(b"%09d\n" % n for n in range(size // 10 + 1))[:size]
    output = Output()
    for start in range(0, size, piece):
        output.add(printed[start : start + piece])
    kept = bytes(output)
    whole = printed + b"\n" if printed and not printed.endswith(b"\n") else printed
    if size <= 2 * MOST_OUTPUT:
        assert kept == whole
    else:
        gap = b"\n[%d bytes left out]\n" % (size - 2 * MOST_OUTPUT)
        assert kept.startswith(printed[:MOST_OUTPUT] + gap + printed[-MOST_OUTPUT:])

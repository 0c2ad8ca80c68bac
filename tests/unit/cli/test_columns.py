"""Which columns a table has at a width, and how wide they are."""

from __future__ import annotations

import itertools

import pytest
from rich.cells import cell_len

from forgectl.cli.views.columns import ALIGNED, Column, fit, shortened, total
from forgectl.cli.views.status_view import MESH

SHORT = ("train-7f3a", "trainer", "actor", "running", "8/8", "gpu01 +3", "8", "1/3", "14:03:22", "-", "3h", "2s ago")
LONG = ("a-name-of-a-run-that-goes-on-and-on-7f3a", "a-mesh-that-has-a-long-name", *SHORT[2:])
PLAIN = ("train-7f3a", "trainer", "script", "running", "8/8", "local", "-", "-", "14:03:22", "-", "3h", "-")


def headings(width: int, *rows: tuple[str, ...]) -> list[str]:
    return [MESH[i].heading for i in fit(width, MESH, rows)]


@pytest.mark.parametrize(
    ("width", "expected"),
    [
        (40, ["RUN", "MESH", "STATE", "READY"]),
        (60, ["RUN", "MESH", "STATE", "READY", "STARTED", "ELAPSED"]),
        (80, ["RUN", "MESH", "KIND", "STATE", "READY", "HOSTS", "STARTED", "ELAPSED"]),
        (200, [c.heading for c in MESH]),
    ],
)
def test_the_least_important_columns_go_first(width: int, expected: list[str]) -> None:
    assert headings(width, SHORT) == expected


def test_columns_that_say_nothing_go_before_others() -> None:
    full = [c.heading for c in MESH]
    room = total(fit(1000, MESH, [PLAIN]))
    left = headings(room - 1, PLAIN)
    assert [h for h in full if h not in left] == ["PROGRESS"]
    left = headings(room - 20, PLAIN)
    assert {h for h in full if h not in left} == {"PROGRESS", "GPUS", "RESTARTS"}


def test_names_are_shortened_only_after_all_else_has_gone() -> None:
    columns = (Column("NAME", least=4), Column("STATE"), Column("MORE", drop=1))
    rows = [("abcdefghijklmnop", "up", "x" * 10)]
    assert fit(35, columns, rows) == {0: 16, 1: 5, 2: 10}
    assert fit(34, columns, rows) == {0: 16, 1: 5}
    assert fit(20, columns, rows) == {0: 13, 1: 5}


def test_names_share_what_is_left() -> None:
    widths = fit(40, MESH, [LONG, SHORT])
    assert [MESH[i].heading for i in widths][:3] == ["RUN", "MESH", "STATE"]
    assert total(widths) == 40
    assert abs(widths[0] - widths[1]) <= 1


def test_one_long_name_does_not_widen_the_column_of_all() -> None:
    rows = [SHORT] * 9 + [("x" * 130, *SHORT[1:])]
    assert fit(100_000, MESH, rows)[0] == ALIGNED


@pytest.mark.parametrize("rows", [[SHORT], [LONG], [PLAIN, LONG], [("x" * 68, "y" * 63, *SHORT[2:])]])
def test_a_table_is_never_wider_than_its_width(rows: list[tuple[str, ...]]) -> None:
    for width in range(34, 250):
        widths = fit(width, MESH, rows)
        assert total(widths) <= width
        assert {"RUN", "MESH", "STATE"} <= {MESH[i].heading for i in widths}


def test_with_more_room_no_column_goes() -> None:
    for rows in ([SHORT], [LONG, PLAIN]):
        counts = [len(fit(width, MESH, rows)) for width in range(34, 250)]
        assert all(a <= b for a, b in itertools.pairwise(counts))


def test_a_table_without_rows_has_its_headings() -> None:
    assert fit(200, MESH, []) == {i: len(c.heading) for i, c in enumerate(MESH)}


@pytest.mark.parametrize(
    ("text", "width", "expected"),
    [
        ("train-7f3a", 10, "train-7f3a"),
        ("training-7f3a", 10, "train…7f3a"),
        ("training-7f3a", 3, "t…a"),
        ("training-7f3a", 2, "t…"),
        ("training-7f3a", 1, "…"),
    ],
)
def test_a_name_is_shortened_in_its_middle(text: str, width: int, expected: str) -> None:
    assert shortened(text, width) == expected


@pytest.mark.parametrize("width", range(1, 14))
def test_wide_characters_take_two_cells(width: int) -> None:
    assert cell_len(shortened("训练模型的名字很长", width)) <= width

"""Digests of arguments: equal for what is equal, in any process."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch

from forgectl.actor.terms import digest, terms_of

WORD = "word"


@dataclass
class Config:
    lr: float
    layers: tuple[int, ...] = (1, 2)


class Stubborn:
    def __reduce__(self) -> Any:
        raise TypeError("no")


def cycle() -> list[Any]:
    found: list[Any] = [1]
    found.append(found)
    return found


EQUAL = [
    (lambda: {str(n) for n in range(100)}, lambda: {str(n) for n in reversed(range(100))}),
    (lambda: [WORD, WORD], lambda: [WORD, "".join(list(WORD))]),
    (lambda: {"a": Config(0.1), "f": len}, lambda: {"a": Config(0.1), "f": len}),
    (lambda: torch.arange(10.0), lambda: torch.arange(10.0)),
    (cycle, cycle),
    (Stubborn, Stubborn),
    (lambda: partial(sorted, reverse=True), lambda: partial(sorted, reverse=True)),
]
DIFFERENT = [
    (1, 2), (1, 1.5), ("1", 1), ([1, 2], [2, 1]), ({1}, {2}), ({1}, frozenset({1, 2})), (Config(0.1), Config(0.2)),
    (len, max), (Config, Stubborn), (torch.zeros(3), torch.ones(3)), (None, False), (Stubborn(), 1), (b"a", "a"),
    (partial(sorted, reverse=True), partial(sorted)),
]  # fmt: skip


@pytest.mark.parametrize(("one", "other"), EQUAL)
def test_equal_values_have_equal_digests(one: Any, other: Any) -> None:
    assert digest(one()) == digest(other())


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_different_values_have_different_digests(one: Any, other: Any) -> None:
    assert digest(one) != digest(other)


def test_arguments_have_names() -> None:
    assert list(terms_of((1, 2), {"lr": 3})) == ["argument 1", "argument 2", "argument lr"]
    assert terms_of((1,), {"lr": 3})["argument lr"] == digest(3)


def test_another_process_has_the_same_digests() -> None:
    code = (
        "from forgectl.actor.terms import digest; f = lambda: 0; "
        "print(digest([{str(n) for n in range(100)}, {'f': f, 'g': frozenset('abc')}]))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1

"""Classes that a spec names: what cannot work is refused at its line, and whatever may work is accepted."""

from __future__ import annotations

from pathlib import Path

import pytest

from forgectl.errors import SpecError
from forgectl.spec.classes import READY_MADE
from forgectl.spec.load import parse
from forgectl.spec.problems import show
from forgectl.spec.python_source import Elsewhere, Origin

ACTORS = """
import abc
from typing import Generic, TypeVar

import torch

import forgectl
from forgectl import ForgeActor, endpoint
from helpers import Base as Imported
T = TypeVar("T")


class Counter(ForgeActor):
    def __init__(self, start: int, step: int = 1, *, name: str = "") -> None:
        super().__init__()

    class Inner(ForgeActor): ...


class Heir(Counter, Generic[T]):
    @endpoint
    def value(self) -> int: ...


class Own(forgectl.ForgeActor):
    def __init__(self, *, path, **others): ...


class FromHelper(Imported): ...
class Helper: ...
class Net(torch.nn.Module): ...
class Abstract(ForgeActor, metaclass=abc.ABCMeta):
    @abc.abstractmethod
    def go(self): ...
class StillAbstract(Abstract):
    def other(self): ...
class Concrete(Abstract):
    def go(self): ...
def make(): ...
"""
HELPERS = "from forgectl import ForgeActor\nclass Base(ForgeActor):\n    def __init__(self, path): ...\n"


def nothing_else(python: str | None) -> Elsewhere:
    """An interpreter with no other modules than the standard library's and torch."""
    return lambda name: Origin() if name in ("os", "torch", "abc", "typing", "queue") else None


def problems(folder: Path, entry: str, actors: str = ACTORS, rest: str = "") -> list[str]:
    (folder / "actors.py").write_text(actors)
    (folder / "helpers.py").write_text(HELPERS)
    text = f"actors:\n  a: {{{entry}}}\n{rest}".encode()
    try:
        parse(text, source="s.yaml", folder=folder, environ={}, interpreters=nothing_else)
    except SpecError as e:
        return e.message.splitlines()
    return []


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("class: 'actors:Countr'", "2:14: actors.a.class: actors.py has no class 'Countr'; did you mean 'Counter'?"),
        (
            "class: 'actors:Wxyz'",
            "2:14: actors.a.class: actors.py has no class 'Wxyz'; "
            "its actors are Counter, Heir, Own, FromHelper, Abstract, StillAbstract, Concrete",
        ),
        ("class: 'actrs:Counter'", "2:14: actors.a.class: no module 'actrs' in 'FOLDER'; did you mean 'actors'?"),
        (
            "class: 'pkg.trainr:Counter'",
            "2:14: actors.a.class: no module 'pkg.trainr'; did you mean 'pkg.trainer'?",
        ),
        (
            "class: 'helpers.deep:Counter'",
            "2:14: actors.a.class: no module 'helpers.deep': helpers.py is not a package",
        ),
        (
            "class: 'actors:Helper'",
            "2:14: actors.a.class: Helper (actors.py:30) is not a ForgeActor; write class Helper(ForgeActor)",
        ),
        (
            "class: 'actors:Net'",
            "2:14: actors.a.class: Net (actors.py:31) is not a ForgeActor; write class Net(ForgeActor)",
        ),
        ("class: 'actors:make'", "2:14: actors.a.class: actors.py:39: 'make' is a function, not a class"),
        (
            "class: 'actors:StillAbstract'",
            "2:14: actors.a.class: StillAbstract (actors.py:35) is abstract: it does not define go",
        ),
        (
            "class: 'actors:Counter', args: {start: 1, stp: 2}",
            "2:49: actors.a.args.stp: Counter has no argument 'stp'; did you mean 'step'?",
        ),
        (
            "class: 'actors:Heir', args: {start: 1, wxyz: 2}",
            "2:46: actors.a.args.wxyz: Heir has no argument 'wxyz'; it takes start, step, name",
        ),
        ("class: 'actors:Counter'", "2:6: actors.a.args: Counter needs the argument 'start'"),
        ("class: 'actors:Own', args: {x: 1}", "2:34: actors.a.args: Own needs the argument 'path'"),
        ("class: 'actors:FromHelper', args: {}", "2:41: actors.a.args: FromHelper needs the argument 'path'"),
        ("class: 'broken:X'", "2:14: actors.a.class: broken.py:2 is not valid Python: invalid syntax"),
    ],
)
def test_what_cannot_work_is_refused_at_its_place(tmp_path: Path, entry: str, said: str) -> None:
    (tmp_path / "broken.py").write_text("x = 1\nclass X(:\n")
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg" / "trainer.py").write_text("")
    assert problems(tmp_path, entry) == [f"s.yaml:{said}".replace("'FOLDER'", show(str(tmp_path)))]


@pytest.mark.parametrize(
    "entry",
    [
        "class: 'actors:Counter', args: {start: 1, name: x}",
        "class: 'actors:Counter.Inner'",
        "class: 'actors:Heir', args: {start: 1, step: 2}",
        "class: 'actors:Own', args: {path: p, more: 1}",
        "class: 'actors:FromHelper', args: {path: p}",
        "class: 'actors:Imported', args: {path: p}",
        "class: 'actors:Concrete', args: {any: 1}",
        "class: 'os:NotKnown'",
    ],
)
def test_what_works_is_accepted(tmp_path: Path, entry: str) -> None:
    assert problems(tmp_path, entry) == []


@pytest.mark.parametrize(
    "source",
    [
        "from elsewhere import *",
        "def __getattr__(name): ...",
        "globals()['C'] = 1",
        "import sys\nsys.modules[__name__] = 1",
        "def f():\n    global C\n    C = 1",
        "exec('class C: ...')",
        "C = make()",
        "from unknown_package import C",
        "class C: ...\nC = type('C', (C,), {})",
        "try:\n    from fast import C\nexcept ImportError:\n    class C: ...",
        "import functools\n@functools.cache\ndef C(): ...",
        "import x\n@x.actor\nclass C: ...",
        "import x\nclass C(x.Base): ...",
        "import x\nclass C(x.make()): ...",
        "class C(f'x'.__class__): ...",
        "with x() as C: ...",
        "match 1:\n    case C: ...",
        "import x as C",
    ],
)
def test_what_the_source_does_not_show_is_accepted(tmp_path: Path, source: str) -> None:
    assert problems(tmp_path, "class: 'actors:C', args: {x: 1}", source) == []


@pytest.mark.parametrize(
    "body",
    [
        "    @classmethod\n    async def launch(cls, *args): ...\n    def __init__(self): ...",
        "    @decorated\n    def __init__(self): ...",
        "    __init__ = made",
        "    def __init__(*everything): ...",
        "    if x:\n        def __init__(self): ...\n    else:\n        def __init__(self, x): ...",
        "    def __init_subclass__(cls): ...\n    def __init__(self): ...",
        "    def __init__(self): ...\nC.__init__ = other",
        "    def __init__(self): ...\nsetattr(C, '__init__', other)",
    ],
)
def test_arguments_are_checked_only_where_the_constructor_is_certain(tmp_path: Path, body: str) -> None:
    source = f"from forgectl import ForgeActor\nclass C(ForgeActor):\n{body}\n"
    assert problems(tmp_path, "class: 'actors:C', args: {x: 1}", source) == []


def test_two_bases_may_hide_each_others_constructor(tmp_path: Path) -> None:
    source = """
from forgectl import ForgeActor
class Root(ForgeActor):
    def __init__(self): ...
class Left(Root): ...
class Right(Root):
    def __init__(self, x): ...
class C(Left, Right): ...
"""
    assert problems(tmp_path, "class: 'actors:C', args: {x: 1}", source) == []


def test_a_users_module_may_have_a_name_of_the_standard_library(tmp_path: Path) -> None:
    (tmp_path / "queue.py").write_text(HELPERS)
    assert problems(tmp_path, "class: 'actors:C', args: {path: 1}", "from queue import Base\nclass C(Base): ...") == []


def test_the_paths_of_the_spec_are_searched(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "far.py").write_text(HELPERS)
    entry = "class: 'far:Base', args: {path: 1}"
    assert len(problems(tmp_path, entry)) == 1
    for where in ("env:", "driver: {command: x, env:", "hosts: [{name: here, local: true, env:"):
        end = "}" * where.count("{") + "]" * where.count("[")
        assert problems(tmp_path, entry, rest=f"{where} {{PYTHONPATH: lib}}{end}\n") == []
    assert problems(tmp_path, entry, rest="workdir: lib\n") == []


def test_ready_made_actors_are_found_behind_all_others(tmp_path: Path) -> None:
    def look(target: str) -> list[str]:
        (tmp_path / "actors.py").unlink(missing_ok=True)
        text = f"actors: {{a: {{class: '{target}'}}}}".encode()
        try:
            parse(text, source="s.yaml", folder=tmp_path, environ={}, interpreters=nothing_else)
        except SpecError as e:
            return e.message.splitlines()
        return []

    assert (
        look("actors:Trainer")
        == look("actors.trainer:Trainer")
        == ["s.yaml:1:13: actors.a.args: Trainer needs the argument 'model'"]
    )
    shown = f"{READY_MADE}/__init__.py has no class 'Trainr'; did you mean 'Trainer'?"
    assert look("actors:Trainr") == [f"s.yaml:1:21: actors.a.class: {shown}"]
    assert look("actors.trainr:Trainer")[0].endswith("no module 'actors.trainr'; did you mean 'actors.trainer'?")
    hidden = f": {tmp_path}/actors.py hides forgectl's package actors; give that file another name"
    assert problems(tmp_path, "class: 'actors:Generator'")[0].endswith(f"has no class 'Generator'{hidden}")
    assert problems(tmp_path, "class: 'actors.trainer:Trainer'")[0].endswith(f"no module 'actors.trainer'{hidden}")


def test_other_problems_are_reported_beside_and_broken_values_are_left_alone(tmp_path: Path) -> None:
    found = problems(tmp_path, "class: 'actors:Countr', procz: 2, args: {x: '${NO}'}", rest="  b: {args: {}}\n")
    assert [line.split(": ")[1] for line in found] == [
        "actors.a.class",
        "actors.a.procz",
        "actors.a.args.x",
        "actors.b",
    ]


def test_another_interpreter_has_its_own_syntax(tmp_path: Path) -> None:
    assert (
        problems(tmp_path, "class: 'actors:C'", "class C(:", "hosts: [{name: here, local: true, python: py}]\n") == []
    )


def test_source_of_any_shape_is_read(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    deep = "x = " + "+".join(["1"] * 2_000) + "\ny = '\\d'\n"
    assert problems(tmp_path, "class: 'actors:Countr'", deep + ACTORS)[0].endswith("did you mean 'Counter'?")
    assert [str(w.message) for w in recwarn] == []
    for source in ("\0", "# coding: nonsense\n", "x" * (5 << 20), "(" * 1000, "\udcff"):
        (tmp_path / "odd.py").write_bytes(source.encode(errors="surrogateescape"))
        assert len(problems(tmp_path, "class: 'odd:C'")) <= 1


def test_nothing_of_the_users_runs(tmp_path: Path) -> None:
    marks = f"open({str(tmp_path / 'ran')!r}, 'w')\n"
    (tmp_path / "sitecustomize.py").write_text(marks)
    assert problems(tmp_path, "class: 'actors:Countr'", marks + ACTORS) != []
    assert not (tmp_path / "ran").exists()

"""What forgectl shows of itself: the names it exports, the settings of `options`, the endpoints of a handle."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import pydoc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import forgectl
from forgectl import ActorHandle, ForgeActor, Settings, endpoint, errors
from forgectl.actor.driver import declared
from forgectl.actor.endpoint import interface_of
from forgectl.actor.forge_actor import SHAPE

PACKAGE = Path(forgectl.__file__).parent


class Counter(ForgeActor):
    @endpoint
    def add(self, k: int) -> int:
        return k


def test_dir_has_the_public_names_alone_and_each_can_be_had() -> None:
    assert dir(forgectl) == sorted(forgectl.__all__)
    assert not {"TYPE_CHECKING", "annotations"} & set(dir(forgectl))
    for name in dir(forgectl):
        assert getattr(forgectl, name) is not None
    assert {"ActorHandle", "ServiceHandle", "Session", "Point", "Settings", "Router"} < set(dir(forgectl))


def test_every_error_is_exported() -> None:
    every = {name for name, value in vars(errors).items() if inspect.isclass(value) and issubclass(value, Exception)}
    assert every < set(dir(forgectl))


def test_checkers_know_the_same_names_from_the_same_modules() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    [block] = [node for node in tree.body if isinstance(node, ast.If) and isinstance(node.test, ast.Name)]
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    known = {alias.name: node.module for node in imports for alias in node.names if alias.name == alias.asname}
    assert known == {name: f"forgectl.{module}" for name, module in forgectl._PUBLIC.items()}


def overloaded(name: str) -> ast.FunctionDef:
    """The first overload of a method of ForgeActor."""
    tree = ast.parse((PACKAGE / "actor/forge_actor.py").read_text())
    return next(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == name)


def test_options_has_every_setting_with_its_type_and_default() -> None:
    shown = list(inspect.signature(ForgeActor.options).parameters.values())
    assert [p.name for p in shown] == [*SHAPE, *(f.name for f in dataclasses.fields(Settings))]
    typed = overloaded("options").args
    defaults = [ast.literal_eval(default) for default in typed.kw_defaults if default is not None]
    assert [p.default for p in shown] == defaults
    annotations = [ast.unparse(a.annotation) for a in typed.kwonlyargs if a.annotation is not None]
    assert [(p.name, p.annotation) for p in shown] == list(
        zip([a.arg for a in typed.kwonlyargs], annotations, strict=True)
    )


def test_help_shows_the_settings() -> None:
    text = pydoc.plain(pydoc.render_doc(ForgeActor.options))
    assert "procs: 'int' = 1" in text and "max_queue: 'int | None' = None" in text and "object at 0x" not in text


def test_a_handle_lists_its_endpoints() -> None:
    mesh: Any = SimpleNamespace(interface=interface_of(Counter), name="counter", procs=4)
    handle = ActorHandle(mesh)
    assert {"add", "slice", "shutdown"} < set(dir(handle))
    assert handle.size == len(handle) == 4 and handle.slice(procs=slice(1, 3)).size == 2


def test_get_checks_the_class_that_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(ForgeActor):
        pass

    handle: Any = object()
    monkeypatch.setattr(declared, "_declared", {"counter": (Counter, handle)})
    assert forgectl.get("counter") is forgectl.get("counter", Counter) is handle
    class_of_a_script: type[ForgeActor] = type("Counter", (ForgeActor,), {"__qualname__": "Counter"})
    assert forgectl.get("counter", class_of_a_script) is handle
    with pytest.raises(TypeError, match=r"'counter' as Counter, which is not a .*Other"):
        forgectl.get("counter", Other)

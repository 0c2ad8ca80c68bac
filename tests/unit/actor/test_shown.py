"""What help and completion show of endpoints, where the class is known and where it is not."""

import inspect
import pickle
from collections.abc import Callable
from typing import Any

import pytest

from forgectl.actor.endpoint import endpoint, interface_of, signature_of
from forgectl.actor.shown import Shown, signature_from


class Choice:
    """No literal."""


class Called(Shown):
    """As handles' endpoints are, to say that they are called otherwise."""

    def __call__(self) -> None: ...


class Many:
    @endpoint
    def add(self, k: int = 1) -> int:
        """Add it.

        And more.
        """
        return k

    @endpoint
    async def every(
        self, a: Any, /, b: "list[Choice]", *args: int, c: str = "x", d: dict[str, int], **rest: Any
    ) -> None:
        pass

    @endpoint
    def choose(self, of: Callable[..., Any] = len, key: Any = Choice) -> Any: ...

    @endpoint
    def bare(self): ...  # type: ignore[no-untyped-def]


@pytest.mark.parametrize("name", ["add", "every", "bare"])
def test_a_signature_is_the_methods(name: str) -> None:
    interface = pickle.loads(pickle.dumps(interface_of(Many)))  # noqa: S301
    shown = inspect.signature(Called(interface, name, f"many.{name}"))
    real = signature_of(Many, name)
    assert str(shown) == str(real)
    assert [(p.name, p.kind) for p in shown.parameters.values()] == [(p.name, p.kind) for p in real.parameters.values()]


def test_defaults_are_values_where_python_can_write_them() -> None:
    assert signature_from("(k: int = 1, name='x')").bind().kwargs == {}
    assert [p.default for p in signature_from("(k: int = 1, name='x')").parameters.values()] == [1, "x"]
    assert str(signature_from("(way=Way.up)")) == "(way=Way.up)"
    assert str(signature_from(str(signature_of(Many, "choose")))) == "(*args, **kwargs)"


def test_docstring_and_repr() -> None:
    shown = Shown(interface_of(Many), "add", "many.add")
    assert shown.__doc__ == "Add it.\n\nAnd more."
    assert repr(shown) == "<endpoint many.add(k: int = 1) -> int>"
    assert Shown(interface_of(Many), "bare", "many.bare").__doc__ is None
    with pytest.raises(AttributeError, match="no attribute 'cal'"):
        shown.cal  # noqa: B018

"""What help, completion and repr show of an endpoint of a handle, in processes without the class, too."""

from __future__ import annotations

import ast
import inspect
from typing import Any

from forgectl.actor.endpoint import Interface, Source

_Kinds = inspect.Parameter


class Shown:
    """An endpoint with its method's docstring and signature."""

    def __init__(self, interface: Interface, name: str, label: str) -> None:
        self._text = interface.endpoints.get(name, "")
        self._label = label
        self.name = name
        self.__doc__ = interface.docs.get(name)

    def __getattr__(self, name: str) -> Any:
        if name != "__signature__":  # read by inspect.signature
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return signature_from(self._text)

    def __repr__(self) -> str:
        return f"<endpoint {self._label}{self._text}>"


def signature_from(text: str) -> inspect.Signature:
    """The signature that `str` made the text of; any arguments, if a default's repr is no Python."""
    try:
        [made] = ast.parse(f"def _{text}: ...").body
    except SyntaxError:
        made = ast.parse("def _(*args, **kwargs): ...").body[0]
    assert isinstance(made, ast.FunctionDef)
    return inspect.Signature(_parameters(made.args), return_annotation=_value(made.returns))


def _parameters(of: ast.arguments) -> list[inspect.Parameter]:
    by_place = [*of.posonlyargs, *of.args]
    defaults = [None] * (len(by_place) - len(of.defaults)) + list(of.defaults)
    found = [
        _parameter(arg, _Kinds.POSITIONAL_ONLY if arg in of.posonlyargs else _Kinds.POSITIONAL_OR_KEYWORD, default)
        for arg, default in zip(by_place, defaults, strict=True)
    ]
    found += [_parameter(of.vararg, _Kinds.VAR_POSITIONAL)] if of.vararg else []
    found += [_parameter(a, _Kinds.KEYWORD_ONLY, d) for a, d in zip(of.kwonlyargs, of.kw_defaults, strict=True)]
    return found + ([_parameter(of.kwarg, _Kinds.VAR_KEYWORD)] if of.kwarg else [])


def _parameter(arg: ast.arg, kind: Any, default: ast.expr | None = None) -> inspect.Parameter:
    return inspect.Parameter(arg.arg, kind, default=_value(default), annotation=_value(arg.annotation))


def _value(node: ast.expr | None) -> Any:
    if node is None:
        return inspect.Signature.empty
    try:
        return ast.literal_eval(node)
    except ValueError:
        return Source(ast.unparse(node))

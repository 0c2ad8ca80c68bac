"""What a launch asks for, as digests: a driver that was restarted adopts a mesh only if it asks for the same again.

Equal values have equal digests in another process, where a pickle would differ: sets have another order there, and
handles name the generation that is up. Functions and classes count by their names.
"""

from __future__ import annotations

import hashlib
import types
from typing import Any

from forgectl.actor.called_mesh import CalledMesh
from forgectl.actor.called_service import CalledService
from forgectl.messages import pickling


def terms_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, str]:
    """Name → digest of each argument of a constructor."""
    named = {f"argument {number}": value for number, value in enumerate(args, 1)}
    named |= {f"argument {name}": value for name, value in kwargs.items()}
    return {name: digest(value) for name, value in named.items()}


def digest(value: Any) -> str:
    """The digest of a value; that of its type if it cannot be pickled."""
    for without_memo in (True, False):  # which shows what is equal, not what is the same; but it knows no cycles
        file = _Hashing()
        try:
            _Canonical(file, without_memo).dump(value)
        except Exception:  # of any type: the value's own code raises
            continue
        return file.hash.hexdigest()
    return f"a {type(value).__qualname__}"


class _Hashing:
    def __init__(self) -> None:
        self.hash = hashlib.blake2b(digest_size=16)

    def write(self, data: Any) -> None:
        self.hash.update(data)


class _Canonical(pickling.ByValue):
    def __init__(self, file: _Hashing, without_memo: bool) -> None:
        super().__init__(file)
        self.fast = without_memo

    def persistent_id(self, value: Any) -> Any:
        """What stands for a value whose pickle is not the same everywhere."""
        if isinstance(value, (set, frozenset)):
            return "set", *sorted(map(digest, value))
        if isinstance(value, (type, types.FunctionType)):
            return "named", value.__module__, value.__qualname__
        if isinstance(value, CalledMesh):
            return "mesh", value.name
        if isinstance(value, CalledService):
            return "service", value.form.name
        return None

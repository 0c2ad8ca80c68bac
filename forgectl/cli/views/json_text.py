"""Documents for programs, as JSON that every parser reads."""

from __future__ import annotations

import json
import math
from typing import Any


def json_text(document: Any, indent: int | None = 2) -> str:
    """The document as JSON, and a line break. Numbers that JSON does not have are texts: NaN, Infinity, -Infinity."""
    return json.dumps(_strict(document), indent=indent, allow_nan=False) + "\n"


def _strict(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else json.dumps(value)
    if isinstance(value, dict):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(item) for item in value]
    return value

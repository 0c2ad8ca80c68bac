"""Where the bytes of a workdir are: the few largest files or folders. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

MOST = 5
SHARE = 0.9
"""Of a folder's bytes: one child with so much of them is named in its place."""


def heaviest(sizes: Mapping[str, int]) -> list[tuple[str, int]]:
    """The largest entries of a workdir, given the size of each file; folders end in a slash."""
    children: dict[str, Counter[str]] = {}
    for path, size in sizes.items():
        parts = path.split("/")
        folder = ""
        for depth, part in enumerate(parts):
            child = f"{folder}{part}" + ("/" if depth < len(parts) - 1 else "")
            children.setdefault(folder, Counter())[child] += size
            folder = child
    return [_narrowed(children, path, size) for path, size in children.get("", Counter()).most_common(MOST)]


def _narrowed(children: Mapping[str, Counter[str]], path: str, size: int) -> tuple[str, int]:
    """The place where most of an entry's bytes are."""
    while path in children:
        inner, amount = children[path].most_common(1)[0]
        if amount < SHARE * size:
            break
        path, size = inner, amount
    return path, size

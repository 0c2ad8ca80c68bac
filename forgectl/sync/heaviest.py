"""Where the bytes of a workdir are: the few largest files or folders. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

MOST = 5
SHARE = 0.9
"""A child with this share of its folder's bytes is named instead of the folder."""


def heaviest(sizes: Mapping[str, int]) -> list[tuple[str, int]]:
    """(path, bytes) of the MOST largest entries of a workdir; folders end in a slash. `sizes` has all its files."""
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
    """The file or folder with most of an entry's bytes."""
    while path in children:
        inner, amount = children[path].most_common(1)[0]
        if amount < SHARE * size:
            break
        path, size = inner, amount
    return path, size

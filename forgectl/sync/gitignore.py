"""What .gitignore and .forgeignore leave out, by git's own rules; patterns match bytes, as in git.

Anybody who wrote to the repository may have written a pattern, so its cost must be bounded. What follows a star is
matched where it fits first, and nowhere else (`_once`). This is enough: an earlier place leaves more of the path to
the rest of the pattern. So a match takes at most (parts of the pattern) × (bytes of the path) steps. A pattern that is
longer than all names, or a line longer than MOST_LINE, is not even compiled.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

ALWAYS = frozenset({".git", "__pycache__"})
"""Names that are never sent."""

MOST_LINE = 16 * 1024
"""Longest line that is a pattern here, in bytes; it could name the longest path four times."""
LONGEST_NAME, LONGEST_PATH = 255, 4096
"""Most bytes of a name, and of a path, on Linux."""
_SPECIAL = frozenset(b"*?[\\")
_NEVER = b"(?!)"
_STAR = b"*"
_FOLDERS, _SOME_FOLDERS = b"**/", b"**\\/"
"""The wildcards among the parts of a pattern: within a name; any number of folders; one or more folders."""
_LAZY = {_FOLDERS: b"(?:[^/]*/)*?", _SOME_FOLDERS: b"(?:[^/]*/)+?"}
_WILD = frozenset({_STAR, b".*", *_LAZY})
"""The parts that may match nothing."""
_CLASSES: dict[bytes, Callable[[int], bool]] = {
    b"alnum": lambda c: bytes([c]).isalnum(),
    b"alpha": lambda c: bytes([c]).isalpha(),
    b"blank": lambda c: c in b" \t",
    b"cntrl": lambda c: c < 32 or c == 127,
    b"digit": lambda c: bytes([c]).isdigit(),
    b"graph": lambda c: 32 < c < 127,
    b"lower": lambda c: bytes([c]).islower(),
    b"print": lambda c: 32 <= c < 127,
    b"punct": lambda c: 32 < c < 127 and not bytes([c]).isalnum(),
    b"space": lambda c: c in b" \t\n\r",
    b"upper": lambda c: bytes([c]).isupper(),
    b"xdigit": lambda c: c in b"0123456789abcdefABCDEF",
}


@dataclass(frozen=True)
class Pattern:
    """One line of an ignore file. `regex` matches a name if `by_name`, else a path relative to the file's folder."""

    regex: bytes
    by_name: bool
    folders_only: bool
    includes: bool  # "!": includes again what an earlier line left out


class Rules:
    """The patterns of one ignore file: the last one that matches decides."""

    def __init__(self, text: bytes) -> None:
        self._patterns = patterns(text)

    def ignores(self, path: bytes, name: bytes, folder: bool) -> bool | None:
        """Whether a path, relative to the file's folder, is left out; None if no pattern matches."""
        last = max(self._by_name[folder](name), self._by_path[folder](path))
        return None if last < 0 else not self._patterns[last].includes

    @functools.cached_property
    def _by_name(self) -> tuple[Callable[[bytes], int], Callable[[bytes], int]]:
        return self._finder(True, False), self._finder(True, True)

    @functools.cached_property
    def _by_path(self) -> tuple[Callable[[bytes], int], Callable[[bytes], int]]:
        return self._finder(False, False), self._finder(False, True)

    def _finder(self, by_name: bool, folder: bool) -> Callable[[bytes], int]:
        """A function that finds the number of the last matching pattern (-1: none); one regex, last pattern first."""
        numbers = [
            number
            for number, p in enumerate(self._patterns)
            if p.by_name == by_name and (folder or not p.folders_only) and p.regex != _NEVER
        ][::-1]
        if not numbers:
            return lambda text: -1
        each = (b"(?P<line%d>%s)" % (n, self._patterns[n].regex) for n in numbers)
        whole = re.compile(b"(?s:" + b"|".join(each) + b")")
        number_of = {whole.groupindex[f"line{n}"]: n for n in numbers}

        def find(text: bytes) -> int:
            match = whole.fullmatch(text)
            return number_of[match.lastindex] if match and match.lastindex else -1

        return find


@dataclass(frozen=True)
class Level:
    """One ignore file and those of its kind in the folders above. `path[start:]` is relative to its folder."""

    above: Level | None
    start: int
    rules: Rules

    def ignores(self, path: bytes, name: bytes, folder: bool) -> bool | None:
        """Whether a path is left out: the deepest file with a matching pattern decides. None if no pattern matches."""
        verdict = self.rules.ignores(path[self.start :], name, folder)
        if verdict is None and self.above is not None:
            return self.above.ignores(path, name, folder)
        return verdict


@dataclass(frozen=True)
class Ignored:
    """The ignore files that apply in one folder. Paths are relative to the topmost folder that has any."""

    git: Level | None = None
    forge: Level | None = None

    def below(self, folder: bytes, gitignore: bytes | None, forgeignore: bytes | None) -> Ignored:
        """The rules for a folder below, with its ignore files; `folder` is its path, "" or with a slash at its end."""
        git = self.git if gitignore is None else Level(self.git, len(folder), Rules(gitignore))
        forge = self.forge if forgeignore is None else Level(self.forge, len(folder), Rules(forgeignore))
        return Ignored(git, forge)

    def ignores(self, path: bytes, folder: bool) -> bool:
        """Whether a path is left out, given that its folders are not: a .forgeignore beats every .gitignore."""
        name = path[path.rfind(b"/") + 1 :]
        for level in (self.forge, self.git):
            verdict = level.ignores(path, name, folder) if level is not None else None
            if verdict is not None:
                return verdict
        return False


def patterns(text: bytes) -> list[Pattern]:
    """The patterns of an ignore file."""
    found = []
    numbers = itertools.count()
    for line in text.removeprefix(b"\xef\xbb\xbf").split(b"\n"):
        if line.startswith(b"#") or len(line) > MOST_LINE:
            continue
        stripped = _without_trailing_spaces(line.removesuffix(b"\r").partition(b"\0")[0])
        if pattern := _pattern(stripped, numbers):
            found.append(pattern)
    return found


def _without_trailing_spaces(line: bytes) -> bytes:
    """The line without trailing spaces, except one after a backslash; a line that ends in a backslash stays."""
    end, i = None, 0
    while i < len(line):
        if line[i : i + 1] == b" ":
            end = i if end is None else end
        elif line[i : i + 1] == b"\\":
            i += 1
            if i == len(line):
                return line
            end = None
        else:
            end = None
        i += 1
    return line if end is None else line[:end]


def _pattern(line: bytes, numbers: Iterator[int]) -> Pattern | None:
    includes = line.startswith(b"!")
    text = line[1:] if includes else line
    folders_only = text.endswith(b"/")
    text = text[:-1] if folders_only else text
    if not text:
        return None
    if b"/" not in text:
        return Pattern(_translate(text, numbers, LONGEST_NAME), True, folders_only, includes)
    text = text.removeprefix(b"/")
    literal = next((i for i, c in enumerate(text) if c in _SPECIAL), len(text))
    # git compares the part without wildcards first, and treats the rest as a separate pattern.
    rest = _translate(text[literal:], numbers, LONGEST_PATH)
    return Pattern(rest if rest == _NEVER else re.escape(text[:literal]) + rest, False, folders_only, includes)


def _translate(glob: bytes, numbers: Iterator[int], longest: int) -> bytes:
    """A glob as a regular expression that matches the same names or paths: git's wildmatch().

    It matches none of more than `longest` bytes.
    """
    parts = _parts(glob)
    if parts is None or sum(part not in _WILD for part in parts) > longest:
        return _NEVER
    out = b""
    group: list[bytes] = []  # the parts between two wildcards for folders
    before = b""
    for part in parts:
        if part in _LAZY:
            # All of the group ends at a slash, and the next one begins with any number of folders.
            body = before + _group(group, numbers, last=False)
            out += _once(body, numbers) if before else body
            group, before = [], _LAZY[part]
        else:
            group.append(part)
    return out + before + _group(group, numbers, last=True)


def _group(parts: list[bytes], numbers: Iterator[int], *, last: bool) -> bytes:
    """The regular expression of parts without wildcards for folders; the `last` group must match the path's end."""
    pieces = [b""]
    for part in parts:
        if part == _STAR:
            pieces.append(b"")
        else:
            pieces[-1] += part
    begin, *after_stars = pieces
    end = b"[^/]*" + after_stars.pop() if last and after_stars else b""
    return begin + b"".join(_once(b"[^/]*?" + piece, numbers) for piece in after_stars) + end


def _once(regex: bytes, numbers: Iterator[int]) -> bytes:
    """The first match of `regex`, without backtracking to a later one: (?>…), which Python 3.10 does not have."""
    name = b"once%d" % next(numbers)
    return b"(?=(?P<%s>%s))(?P=%s)" % (name, regex, name)


def _parts(glob: bytes) -> list[bytes] | None:
    """The parts of a glob: wildcards, and regular expressions of fixed length; None for a broken glob."""
    parts = []
    i = 0
    while i < len(glob):
        c = glob[i : i + 1]
        if c == b"*":
            part, i = _stars(glob, i)
        elif c == b"?":
            part, i = b"[^/]", i + 1
        elif c == b"[":
            found = _bracket(glob, i + 1)
            if found is None:
                return None
            part, i = found
        elif c == b"\\":
            if i + 1 == len(glob):
                return None
            part, i = re.escape(glob[i + 1 : i + 2]), i + 2
        else:
            part, i = re.escape(c), i + 1
        parts.append(part)
    return parts


def _stars(glob: bytes, start: int) -> tuple[bytes, int]:
    """One or more asterisks, and their end; two or more between slashes, or at an end, match any number of folders."""
    end = start
    while glob[end : end + 1] == b"*":
        end += 1
    rest = glob[end:]
    apart = start == 0 or glob[start - 1 : start] == b"/"
    if end - start > 1 and apart:
        if rest == b"":
            return b".*", end
        if rest.startswith(b"/"):
            return _FOLDERS, end + 1
        if rest.startswith(b"\\/"):
            return _SOME_FOLDERS, end + 2
    return _STAR, end


def _bracket(glob: bytes, i: int) -> tuple[bytes, int] | None:
    """The character set that begins after a bracket, and its end; None if it is broken by git's rules."""
    negated = glob[i : i + 1] in (b"!", b"^")
    i += negated
    members: set[int] = set()
    before: int | None = None
    first = True
    while first or glob[i : i + 1] != b"]":
        first = False
        step = _member(glob, i, before, members)
        if step is None:
            return None
        i, before = step
    chosen = (set(range(1, 256)) - members if negated else members) - {ord("/")}
    return (b"[" + b"".join(b"\\x%02x" % c for c in sorted(chosen)) + b"]" if chosen else _NEVER), i + 1


def _member(glob: bytes, i: int, before: int | None, members: set[int]) -> tuple[int, int | None] | None:
    """Add one character, range or class to a set.

    Returns where the next one begins, and the character with which a range there would begin; None for a broken set.
    """
    c = glob[i : i + 1]
    if c == b"":
        return None
    if c == b"\\":
        if i + 1 == len(glob):
            return None
        members.add(glob[i + 1])
        return i + 2, glob[i + 1]
    if c == b"-" and before is not None and glob[i + 1 : i + 2] not in (b"", b"]"):
        i += 1
        if glob[i : i + 1] == b"\\":
            i += 1
            if i == len(glob):
                return None
        members.update(range(before, glob[i] + 1))
        return i + 1, None
    if c == b"[" and glob[i + 1 : i + 2] == b":":
        end = glob.find(b"]", i + 2)
        if end < 0:
            return None
        if end - 1 > i + 1 and glob[end - 1 : end] == b":":
            test = _CLASSES.get(glob[i + 2 : end - 1])
            if test is None:
                return None
            members.update(filter(test, range(256)))
            return end + 1, None
    members.add(glob[i])
    return i + 1, glob[i]

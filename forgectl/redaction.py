"""Removes secrets from text that leaves a run: failure reports, and answers to `forgectl call`."""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Iterable, Iterator

from forgectl.names import SECRETS

MARK = "***"
LEAST = 4
"""Length of the shortest line of a secret that is removed by itself: a lone bracket of a JSON document is no secret."""


class Redaction:
    """Replaces secrets in text by exact value: whole, line by line as in logs, and as repr and JSON show them."""

    def __init__(self, secrets: Iterable[str]) -> None:
        self._forms: set[str] = set()
        self._pattern: re.Pattern[str] | None = None
        self.add(secrets)

    def add(self, secrets: Iterable[str]) -> None:
        """Replace these, too."""
        new = {form for secret in secrets for form in _forms(secret)} - self._forms
        if new:
            self._forms |= new
            longest_first = sorted(self._forms, key=len, reverse=True)
            self._pattern = re.compile("|".join(map(re.escape, longest_first)))

    def __call__(self, text: str) -> str:
        """The text without secrets."""
        return self._pattern.sub(MARK, text) if self._pattern else text


def _forms(secret: str) -> Iterator[str]:
    if not secret:
        return
    lines = re.split(r"[\r\n]+", secret)
    parts = [secret, *(line for line in lines if len(line.strip()) >= LEAST)] if len(lines) > 1 else [secret]
    for part in parts:
        yield part
        yield repr(part)[1:-1]
        yield json.dumps(part)[1:-1]


@functools.cache
def of_process() -> Redaction:
    """The redaction of the secrets in this process's environment.

    Call it early: the user's code may remove them from the environment later.
    """
    names = os.environ.get(SECRETS, "").split(",")
    return Redaction(os.environ[name] for name in names if name in os.environ)

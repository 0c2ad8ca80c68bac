"""Removes secrets from text that leaves a run: failure reports, and answers to `forgectl call`."""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping

from forgectl.names import SECRETS

MARK = "***"
LEAST = 4
"""Length of the shortest line of a secret that is removed by itself: a lone bracket of a JSON document is no secret."""


class Redaction:
    """Replaces secrets in text by exact value: whole, line by line as in logs, and as repr and JSON show them.

    `tokens`: also what has the form of a token of a well-known service.
    """

    def __init__(self, secrets: Iterable[str], *, tokens: bool = False) -> None:
        self._tokens = tokens
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
        text = self._pattern.sub(MARK, text) if self._pattern else text
        return _TOKEN.sub(MARK, text) if self._tokens else text


def _forms(secret: str) -> Iterator[str]:
    if not secret:
        return
    lines = re.split(r"[\r\n]+", secret)
    parts = [secret, *(line for line in lines if len(line.strip()) >= LEAST)] if len(lines) > 1 else [secret]
    for part in parts:
        yield part
        yield repr(part)[1:-1]
        yield json.dumps(part)[1:-1]


_SECRET_NAME = re.compile(
    r"TOKEN(?!IZ)|SECRET|PASSW|PASSPHRASE|CREDENTIAL|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY", re.IGNORECASE
)
_TOKEN = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{20,}|sk-[\w-]{20,}"
    r"|AKIA[0-9A-Z]{16}|xox[abprs]-[\w-]{10,}|AIza[\w-]{35}|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]{10,})"
)
"""Tokens that show what they are by their form: of Hugging Face, GitHub, GitLab, OpenAI, AWS, Slack, Google; JWTs."""
LEAST_LIKELY = 8
"""Length of the shortest value that is taken for a secret because of its variable's name."""


def likely_secrets(environ: Mapping[str, str]) -> Iterator[str]:
    """The values of variables whose names say that they are secrets, such as HF_TOKEN or AWS_SECRET_ACCESS_KEY."""
    for name, value in environ.items():
        if _SECRET_NAME.search(name) and len(value) >= LEAST_LIKELY and not value.startswith(("/", "~")):
            yield value


def of_run(secrets: Iterable[str], *environments: Mapping[str, str]) -> Redaction:
    """The redaction of what may be shared about a run: its secrets, what looks like one in the environments, tokens."""
    return Redaction([*secrets, *(value for e in environments for value in likely_secrets(e))], tokens=True)


@functools.cache
def of_process() -> Redaction:
    """The redaction of the secrets in this process's environment.

    Call it early: the user's code may remove them from the environment later.
    """
    names = os.environ.get(SECRETS, "").split(",")
    return Redaction(os.environ[name] for name in names if name in os.environ)

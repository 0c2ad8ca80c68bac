"""What ssh says, and what a user is told of it: recorded outputs of OpenSSH 9."""

from __future__ import annotations

from pathlib import Path

import pytest

from forgectl.errors import ForgeError, SshRefusedError, UnreachableError
from forgectl.transport.destination import Destination
from forgectl.transport.ssh import dial
from forgectl.transport.ssh_errors import StageReply, TryAgain, explain, unfit

TO = Destination("gpu01", "ubuntu@gpu01", "/opt/bin/python")

CASES = [
    (255, ["Host key verification failed."], SshRefusedError, "its key is not known", "compare the key"),
    (
        255,
        [
            "@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @",
            "Host key for gpu01 has changed and you have requested strict checking.",
            "Host key verification failed.",
        ],
        SshRefusedError,
        "its key is not the one that was known",
        "ssh-keygen -R",
    ),
    (255, ["ubuntu@gpu01: Permission denied (publickey)."], SshRefusedError, "Permission denied", "BatchMode=yes"),
    (255, ["Received disconnect: Too many authentication failures"], SshRefusedError, "Too many", "by a key"),
    (
        255,
        ["ssh: Could not resolve hostname gpu01: Name not known"],
        UnreachableError,
        "resolve",
        "is it up",
    ),
    (255, ["ssh: connect to host gpu01 port 22: Connection refused"], UnreachableError, "refused", "is it up"),
    (255, [], UnreachableError, "the connection was lost", "is it up"),
    (255, ["Connection timed out during banner exchange"], UnreachableError, "banner exchange", "is it up"),
    (None, [], UnreachableError, "no answer in time", "is it up"),
    (127, ["sh: 1: exec: /opt/bin/python: not found"], UnreachableError, "no such python: /opt/bin/python", "python:"),
    (126, ["sh: 1: exec: /opt/bin/python: Permission denied"], UnreachableError, "cannot run its python", "python:"),
    (1, ["Traceback", "ValueError: x"], UnreachableError, "relay could not start there", "-c pass"),
]


@pytest.mark.parametrize(("code", "said", "kind", "words", "hint"), CASES)
def test_each_failure_has_its_words(
    code: int | None, said: list[str], kind: type[ForgeError], words: str, hint: str
) -> None:
    error = explain(TO, code, said, [])
    assert type(error) is kind
    assert error.message.startswith("host gpu01: ")
    assert words in error.message
    assert error.hint
    assert hint in error.hint


@pytest.mark.parametrize(
    "said", ["kex_exchange_identification: read: Connection reset by peer", "Connection closed by 10.0.0.1 port 22"]
)
def test_an_sshd_that_was_too_busy_is_tried_again(said: str) -> None:
    again = explain(TO, 255, [said], [])
    assert isinstance(again, TryAgain)
    assert type(again.error) is UnreachableError


def test_what_a_login_script_prints_is_shown_where_ssh_says_nothing() -> None:
    error = explain(TO, 1, [], ["This account is disabled."])
    assert isinstance(error, UnreachableError)
    assert "This account is disabled." in error.message


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (StageReply(wrong="old", python="/usr/bin/python3", version=(3, 6, 9)), "is Python 3.6.9; forgectl needs 3.10"),
        (StageReply(wrong="psutil", python="/usr/bin/python3", version=(3, 11, 2)), "/usr/bin/python3 lacks psutil"),
        (StageReply(wrong="root", why="no space left"), "cannot keep files there: no space left"),
        (StageReply(), "cannot keep files there: it does not say why"),
    ],
)
def test_what_the_stage_finds_wrong(reply: StageReply, words: str) -> None:
    assert words in unfit(TO, reply).message


def test_what_a_hint_has_one_type_is_safe_to_type() -> None:
    error = explain(Destination("a", "gpu01;reboot", "python3"), 255, ["hostname contains invalid characters"], [])
    assert isinstance(error, UnreachableError)
    assert "ssh 'gpu01;reboot' true" in (error.hint or "")


@pytest.mark.parametrize(
    "word",
    [
        '{"wrong": "old", "python": "/usr/bin/python3", "version": 3}',
        '{"wrong": "root", "why": ["no", "text"]}',
        '{"have": 1}',
        '{"have": null, "more": 1}',
        '["have"]',
        "7",
        "[" * 100_000,
    ],
)
def test_a_host_whose_first_word_makes_no_sense_is_named(
    word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a program in place of ssh, as a hostile host would answer."""
    (tmp_path / "word").write_text(f"\nforgectl-relay {word}\n")
    ssh = tmp_path / "ssh"
    ssh.write_text(f"#!/bin/sh\ncat {tmp_path}/word\nexit 1\n")
    ssh.chmod(0o755)
    monkeypatch.setenv("FORGECTL_SSH", str(ssh))
    with pytest.raises(UnreachableError, match=r"^host a: forgectl's relay could not start there: "):
        dial(Destination("a", "gpu01", "python3"))

"""What counts as a secret in what may be shared: by its variable's name, or by its form."""

from __future__ import annotations

import pytest

from forgectl.redaction import likely_secrets, of_run


@pytest.mark.parametrize("name", ["HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD", "pgpassword"])
def test_values_of_variables_that_are_named_like_secrets(name: str) -> None:
    redact = of_run((), {name: 'a "long" one'})
    assert redact('said: a "long" one') == "said: ***"
    assert redact(r'{"x": "a \"long\" one"}') == '{"x": "***"}'


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TOKENIZERS_PARALLELISM", "disabled-here"),
        ("MAX_TOKENS", "4096"),
        ("HF_TOKEN_PATH", "/home/ada/token"),
        ("PATH", "a long value"),
        ("DB_PASSWORD", "short"),
    ],
)
def test_values_that_are_none(name: str, value: str) -> None:
    assert list(likely_secrets({name: value})) == []


@pytest.mark.parametrize(
    "token",
    ["hf_" + "a1B2" * 8, "ghp_" + "x" * 36, "sk-proj-" + "a1B2" * 6, "AKIA" + "A1B2" * 4, "xoxb-1234567890-abc"],
)
def test_tokens_by_their_form(token: str) -> None:
    assert of_run(())(f"Authorization: Bearer {token}, and more") == "Authorization: Bearer ***, and more"


def test_ordinary_text_stays() -> None:
    text = "hf_hub_download of task-sk-learn in rank 3: AKIARA"
    assert of_run(())(text) == text

"""Rewards: what functions get, what becomes of what they return, and which function and row an error names."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from actors.rewards import (
    Format,
    Overlong,
    RewardActor,
    RewardError,
    RewardFunctions,
    Rewards,
    exact_match,
    last_number,
    name_of,
    number_match,
)
from tests.conftest import Forge

PROMPTS = ["1 + 1", "2 + 2", "3 + 3"]
COMPLETIONS = ["2", "5", "6"]
COLUMNS: dict[str, Any] = {"answer": [2, 4, 6], "level": ["a", "b", "c"]}


def score(*functions: Any, weights: Sequence[float] | None = None, timeout: float = 30.0, **columns: Any) -> Rewards:
    scoring = RewardFunctions(functions, weights, timeout)
    return asyncio.run(scoring(PROMPTS, COMPLETIONS, **(columns or COLUMNS)))


def failure(*functions: Any, timeout: float = 30.0) -> str:
    with pytest.raises(RewardError) as caught:
        score(*functions, timeout=timeout)
    return str(caught.value)


def lengths(completions: Sequence[str], **columns: Any) -> list[int]:
    assert columns.keys() == {"prompts", "answer", "level"}
    return [len(text) for text in completions]


async def easy_ones(prompts: Sequence[str], completions: Sequence[str], level: Sequence[str]) -> list[float | None]:
    await asyncio.sleep(0)
    return [1.0 if value == "a" else None for value in level]


def test_the_total_is_the_weighted_sum_of_the_parts_that_apply() -> None:
    rewards = score(exact_match, lengths, easy_ones, weights=[2, 0.5, 10])
    assert rewards.parts == {"exact_match": [1, 0, 1], "lengths": [1, 1, 1], "easy_ones": [1, None, None]}
    assert rewards.total == [12.5, 0.5, 2.5]


def test_functions_may_be_named_by_their_address() -> None:
    assert score("actors.rewards:exact_match").total == [1, 0, 1]
    with pytest.raises(ValueError, match=r"'actors\.rewards:exact' cannot be imported: AttributeError"):
        RewardFunctions(["actors.rewards:exact"])
    with pytest.raises(ValueError, match="'no_such_module:f' cannot be imported: ModuleNotFoundError"):
        RewardFunctions(["no_such_module:f"])
    with pytest.raises(ValueError, match="not 7"):
        RewardFunctions([7])  # type: ignore[list-item]


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="at least one"):
        RewardFunctions([])
    with pytest.raises(ValueError, match="several reward functions are named lengths"):
        RewardFunctions([lengths, lengths])
    with pytest.raises(ValueError, match=r"2 reward functions \(lengths, exact_match\) and 1 weights"):
        RewardFunctions([lengths, exact_match], [1])
    with pytest.raises(ValueError, match="3 completions, but answer has 2 values"):
        score(exact_match, answer=[1, 2])


def test_arrays_and_numbers_of_any_kind_are_scores() -> None:
    import torch

    assert score(lambda completions: torch.tensor([1, 0, 1])).total == [1, 0, 1]
    assert score(lambda completions: [torch.tensor(0.5), True, 2]).total == [0.5, 1, 2]
    assert score(functools.partial(lengths, level=["x"])).total == [1, 1, 1]
    assert name_of(functools.partial(lengths)) == "lengths"


def divide(completions: Sequence[str], answer: Sequence[int]) -> list[float]:
    return [1 / (int(text) - 5) for text in completions]


def test_an_exception_names_function_and_row() -> None:
    text = failure(exact_match, divide)
    assert text == (
        "reward function 'divide' raised ZeroDivisionError: division by zero for row 1: prompt '2 + 2', completion '5'"
    )

    async def later(completions: Sequence[str]) -> list[float]:
        return divide(completions, [])

    assert "'later' raised ZeroDivisionError: division by zero for row 1" in failure(later)
    with pytest.raises(RewardError) as caught:
        score(divide)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert caught.value.__cause__.__traceback__


def test_an_exception_for_the_batch_alone_says_so() -> None:
    def in_sum(completions: Sequence[str]) -> list[float]:
        if len(completions) > 1:
            raise KeyError("total")
        return [1.0]

    assert failure(in_sum) == (
        "reward function 'in_sum' raised KeyError: 'total' for a batch of 3 rows, and for none of them alone"
    )


def test_what_is_no_exception_does_not_hang_the_caller() -> None:
    def leave(completions: Sequence[str]) -> list[float]:
        raise SystemExit(3)

    def stop(completions: Sequence[str]) -> list[float]:
        return [next(iter(()))]

    assert "'leave' raised RuntimeError: SystemExit: 3" in failure(leave)
    assert "'stop' raised RuntimeError: StopIteration" in failure(stop)


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ([1, 2], "returned 2 values for 3 completions"),
        ([1, float("nan"), 1], "returned nan for row 1: prompt '2 + 2', completion '5'; a finite number or None"),
        ([1, 1, float("-inf")], "returned -inf for row 2"),
        (["1", 1, 1], "returned '1' for row 0"),
        (1.0, "must return a list of 3 numbers, not 1.0"),
        ({"a": 1}, "must return a list of 3 numbers, not {'a': 1}"),
        ("abc", "must return a list of 3 numbers, not 'abc'"),
        (None, "must return a list of 3 numbers, not None"),
    ],
)
def test_what_is_no_score_is_named(answer: Any, text: str) -> None:
    def broken(completions: Sequence[str]) -> Any:
        return answer

    assert f"reward function 'broken' {text}" in failure(broken)


def test_a_row_to_which_nothing_applies_is_an_error() -> None:
    assert "no reward function applies to row 1: easy_ones returned None" in failure(easy_ones)


def test_a_missing_column_is_named() -> None:
    def needs(completions: Sequence[str], solution: Sequence[str]) -> list[float]:
        return [0.0 for _ in completions]

    assert failure(needs) == (
        "reward function 'needs' needs solution, which the rows lack; they have prompts, completions, answer, level"
    )


def test_long_texts_are_shortened() -> None:
    def fails(completions: Sequence[str]) -> list[float]:
        raise ValueError

    with pytest.raises(RewardError) as caught:
        asyncio.run(RewardFunctions([fails])(["p" * 10_000], ["c" * 10_000]))
    assert len(str(caught.value)) < 600


def test_a_slow_function_is_named_and_ends_the_call() -> None:
    never = threading.Event()

    def waits(completions: Sequence[str]) -> list[float]:
        never.wait()
        return []

    async def waits_too(completions: Sequence[str]) -> list[float]:
        await asyncio.Event().wait()
        return []

    for function in (waits, waits_too):
        text = f"reward function {function.__name__!r} took longer than 0.01 s for 3 completions"
        assert text in failure(function, timeout=0.01)
    never.set()


def test_a_timeout_of_the_functions_own_is_its_exception() -> None:
    async def asks(completions: Sequence[str]) -> list[float]:
        raise asyncio.TimeoutError("no answer from the judge")

    assert "'asks' raised TimeoutError: no answer from the judge for row 0" in failure(asks)


def test_a_slow_function_does_not_block_others() -> None:
    first, second = threading.Event(), threading.Event()

    def one(completions: Sequence[str]) -> list[float]:
        first.set()
        assert second.wait(60)  # both run at a time, or neither ends
        return [1.0] * len(completions)

    def two(completions: Sequence[str]) -> list[float]:
        second.set()
        assert first.wait(60)
        return [1.0] * len(completions)

    assert score(one, two).total == [2, 2, 2]


def test_an_error_cancels_the_other_functions() -> None:
    cancelled = []

    async def waits(completions: Sequence[str]) -> list[float]:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.append(True)
        return []

    assert "'divide' raised" in failure(waits, divide)
    assert cancelled == [True]


def test_the_actor_is_a_shell() -> None:
    async def main() -> None:
        actor = RewardActor([exact_match, Format(r"\d")], weights=[1, 0.1])
        rewards = await actor.reward(PROMPTS, COMPLETIONS, **COLUMNS)
        assert rewards.total == [1.1, 0.1, 1.1]
        assert list(rewards.parts) == ["exact_match", "format"]

    asyncio.run(main())


# ------------------------------------------------------------ ready rewards


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("so it is $1,234.50.", 1234.5),
        ("3 + 4 = 7", 7),
        ("-3", -3),
        ("−3", -3),
        ("5 - 3", 3),
        ("1.5e3 apples", 1500),
        (".5", 0.5),
        ("12,34", 34),
        ("none", None),
        ("", None),
        ("#### 42\n", 42),
    ],
)
def test_the_last_number_of_a_text(text: str, number: float | None) -> None:
    assert last_number(text) == number


def test_numbers_are_compared_by_value() -> None:
    assert number_match(["It is 7.0", "8", "no", "1,000"], [7, "#### 9", 3, 1000]) == [1, 0, 0, 1]
    assert number_match(["7"], ["unknown"]) == [None]
    assert number_match(["0.1"], [0.1]) == [1]


def test_messages_are_completions_too() -> None:
    message = [{"role": "assistant", "content": " 4 "}]
    assert exact_match([message, []], ["4", "4"]) == [1, 0]


def test_the_whole_completion_must_have_the_format() -> None:
    form = Format(r"<think>.*</think>\s*<answer>.*</answer>")
    assert form(["<think>a\nb</think>\n<answer>1</answer>\n", "well <think></think><answer></answer>", ""]) == [1, 0, 0]


def test_long_completions_lose_up_to_one() -> None:
    overlong = Overlong(max_tokens=10, buffer=4)
    assert overlong([[0] * n for n in (0, 6, 7, 8, 10, 20)]) == [0, 0, -0.25, -0.5, -1, -1]
    with pytest.raises(ValueError, match="buffer must be from 1 to max_tokens"):
        Overlong(10, 0)


SCRIPT = """
import asyncio
from actors import RewardActor, Format

def length(completions):
    return [len(text) / (5 - len(text)) for text in completions]

async def main():
    rewards = await RewardActor.options(preload=[]).as_actor(["actors.rewards:exact_match", length, Format("[0-9]+")])
    answer = await rewards.reward.call_one(["1 + 1"], ["2"], answer=["2"])
    print(answer.total, answer.parts)
    await rewards.reward.call_one(["a", "b"], ["fine", "wrong"], answer=["", ""])

asyncio.run(main())
"""


def test_an_error_in_a_rank_ends_the_script_and_names_function_and_row(forge: Forge) -> None:
    process = forge.python(forge.write("script.py", SCRIPT))
    out, err = process.communicate(timeout=90)
    assert out == "[2.25] {'exact_match': [1.0], 'length': [0.25], 'format': [1.0]}\n", err
    assert process.returncode != 0
    assert "reward function 'length' raised ZeroDivisionError: division by zero for row 1: prompt 'b'" in err

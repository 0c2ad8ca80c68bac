"""Scores completions with functions of a few lines; an error names the function and the row that caused it."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import inspect
import math
import re
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, TypeVar

from actors.waiting import TooSlow, within
from forgectl import ForgeActor, endpoint

RewardFunction = Callable[..., Any]
"""`f(prompts, completions, **columns) -> [float | None]`, plain or async, as in TRL.

Each argument is a list of N values; columns are those of the dataset. None: the function does not apply to that row.
"""
Rows = Mapping[str, Sequence[Any]]
T = TypeVar("T")


class RewardError(RuntimeError):
    """A reward function failed; the text names it and, where it is one row's fault, the row."""


@dataclass(frozen=True)
class Rewards:
    """The scores of N completions."""

    total: list[float]
    """[N]: the weighted sum of the parts that apply."""
    parts: dict[str, list[float | None]]
    """By function, [N], without weights; None where it does not apply."""


class RewardFunctions:
    """Several reward functions and their weights.

    A function is a callable or its address, "module:function". A function gets the columns that it has parameters for;
    with `**columns` it gets all. Plain functions run in a thread each. `timeout` is in seconds, for one function and
    one batch. Raises ValueError for what is wrong with the arguments.
    """

    def __init__(
        self, functions: Sequence[RewardFunction | str], weights: Sequence[float] | None = None, timeout: float = 30.0
    ) -> None:
        found = [resolve(function) for function in functions]
        names = [name_of(function) for function in found]
        if not found:
            raise ValueError("functions is empty: give at least one reward function")
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"several reward functions are named {', '.join(sorted(twice))}; each needs its own name")
        if weights is not None and len(weights) != len(found):
            raise ValueError(f"there are {len(found)} reward functions ({', '.join(names)}) and {len(weights)} weights")
        self.functions = dict(zip(names, found, strict=True))
        self.weights = dict(zip(names, weights or [1.0] * len(found), strict=True))
        self.timeout = timeout

    async def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Sequence[Any]) -> Rewards:
        """Score N completions; all functions run at the same time.

        Raises RewardError for a function that raises, takes too long, or returns anything but N finite numbers or
        None, and where no function applies to a row. Raises ValueError for a column that has not N values.
        """
        rows: Rows = {"prompts": prompts, "completions": completions, **columns}
        count = len(completions)
        if wrong := [f"{name} has {len(values)}" for name, values in rows.items() if len(values) != count]:
            raise ValueError(f"there are {count} completions, but {', '.join(wrong)} values")
        scoring = [asyncio.ensure_future(self._score(name, rows)) for name in self.functions]
        try:
            parts = dict(zip(self.functions, await asyncio.gather(*scoring), strict=True))
        finally:
            for task in scoring:
                task.cancel()
        return Rewards([self._total(parts, row) for row in range(count)], parts)

    def _total(self, parts: Mapping[str, Sequence[float | None]], row: int) -> float:
        scores = [self.weights[name] * score for name, part in parts.items() if (score := part[row]) is not None]
        if not scores:
            raise RewardError(
                f"no reward function applies to row {row}: {', '.join(parts)} returned None for it. Without a reward "
                "it cannot be learned from; leave such rows out of the dataset, or add a function for them."
            )
        return math.fsum(scores)

    async def _score(self, name: str, rows: Rows) -> list[float | None]:
        """The scores that one function gives; raises RewardError."""
        function, count = self.functions[name], len(rows["completions"])
        arguments = arguments_of(name, function, rows)
        try:
            answer = await within(self.timeout, call(function, arguments))
        except TooSlow:
            raise RewardError(
                f"reward function {name!r} took longer than {self.timeout:g} s for {count} completions; make it "
                "faster, or set a longer timeout"
            ) from None
        except Exception as e:
            row, cause = await self._culprit(function, arguments, count, e)
            raise RewardError(f"reward function {name!r} raised {describe(cause)} {place(row, rows)}") from cause
        return checked(name, answer, rows)

    async def _culprit(
        self, function: RewardFunction, arguments: Rows, count: int, error: Exception
    ) -> tuple[int | None, Exception]:
        """The row that makes the function raise, found by a call for each row alone, and what it raises."""
        if count == 1:
            return 0, error
        try:
            return await within(self.timeout, first_to_raise(function, arguments, count, error))
        except TooSlow:
            return None, error


async def first_to_raise(
    function: RewardFunction, arguments: Rows, count: int, error: Exception
) -> tuple[int | None, Exception]:
    """The first row for which the function raises when it is called for this row alone."""
    for row in range(count):
        try:
            await call(function, {name: values[row : row + 1] for name, values in arguments.items()})
        except Exception as e:
            return row, e
    return None, error


async def call(function: RewardFunction, arguments: Rows) -> Any:
    """What the function returns. A plain one runs in a thread, which a cancelled call leaves to itself."""
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None)):  # noqa: B004
        return await function(**arguments)
    answer = await in_thread(lambda: function(**arguments))
    return await answer if inspect.isawaitable(answer) else answer


def in_thread(work: Callable[[], Any]) -> Awaitable[Any]:
    """Run it in a daemon thread: one that never returns must not keep its process from ending."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()

    def settle(answer: Any, error: BaseException | None) -> None:
        if future.done():  # cancelled
            return
        if error is None:
            future.set_result(answer)
        else:
            future.set_exception(error)

    def run() -> None:
        answer: Any = None
        error: BaseException | None = None
        try:
            answer = work()
        except StopIteration as e:
            error = RuntimeError(f"StopIteration: {e}")  # a future refuses it
        except BaseException as e:
            error = e if isinstance(e, Exception) else RuntimeError(describe(e))
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle, answer, error)

    threading.Thread(target=run, name="reward function", daemon=True).start()
    return future


def resolve(function: RewardFunction | str) -> RewardFunction:
    """The function itself; one that is given as "module:function" is imported."""
    if not isinstance(function, str):
        if not callable(function):
            raise ValueError(f"a reward function is a callable or 'module:function', not {function!r}")
        return function
    module, _, name = function.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as e:
        raise ValueError(f"reward function {function!r} cannot be imported: {describe(e)}") from e
    return resolve(found) if not isinstance(found, type) else resolve(found())


def name_of(function: RewardFunction) -> str:
    """The name under which its scores appear: `name` of an object, or the function's own."""
    inner = getattr(function, "func", function)  # of functools.partial
    return str(getattr(inner, "name", None) or getattr(inner, "__name__", None) or type(inner).__name__)


def arguments_of(name: str, function: RewardFunction, rows: Rows) -> Rows:
    """The columns that the function has parameters for; raises RewardError where one that it needs is missing."""
    parameters = inspect.signature(function).parameters.values()
    missing = [p.name for p in parameters if p.default is p.empty and p.kind not in {p.VAR_KEYWORD, p.VAR_POSITIONAL}]
    if missing := [parameter for parameter in missing if parameter not in rows]:
        raise RewardError(
            f"reward function {name!r} needs {', '.join(missing)}, which the rows lack; they have {', '.join(rows)}"
        )
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return rows
    accepted = {p.name for p in parameters}
    return {column: values for column, values in rows.items() if column in accepted}


def checked(name: str, answer: Any, rows: Rows) -> list[float | None]:
    """The answer of a function as numbers or None; raises RewardError for anything else."""
    count = len(rows["completions"])
    if hasattr(answer, "tolist"):  # a tensor or an array
        answer = answer.tolist()
    if isinstance(answer, (str, bytes, Mapping)) or not isinstance(answer, Sequence):
        raise RewardError(f"reward function {name!r} must return a list of {count} numbers, not {brief(answer)}")
    if len(answer) != count:
        raise RewardError(f"reward function {name!r} returned {len(answer)} values for {count} completions")
    return [number(name, value, row, rows) for row, value in enumerate(answer)]


def number(name: str, value: Any, row: int, rows: Rows) -> float | None:
    """One score; raises RewardError unless it is a finite number or None."""
    score = value.item() if hasattr(value, "item") else value
    if score is None:
        return None
    if not isinstance(score, (int, float)) or not math.isfinite(score):
        raise RewardError(
            f"reward function {name!r} returned {brief(value)} {place(row, rows)}; a finite number or None is needed"
        )
    return float(score)


def place(row: int | None, rows: Rows) -> str:
    """A row as errors name it."""
    if row is None:
        return f"for a batch of {len(rows['completions'])} rows, and for none of them alone"
    return f"for row {row}: prompt {brief(rows['prompts'][row])}, completion {brief(rows['completions'][row])}"


def describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def brief(value: Any) -> str:
    """Its repr, shortened in the middle."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:120]} … {text[-60:]}"


# ------------------------------------------------------------ ready rewards


def text_of(completion: Any) -> str:
    """The text of a completion: itself, or the content of the last message of a conversation."""
    if isinstance(completion, str):
        return completion
    return str(completion[-1]["content"]) if completion else ""


def exact_match(completions: Sequence[Any], answer: Sequence[Any]) -> list[float]:
    """1 where the completion is the column `answer`, apart from space around it; else 0."""
    return [float(text_of(text).strip() == str(right).strip()) for text, right in zip(completions, answer, strict=True)]


NUMBER = re.compile(r"[-+−]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?|[-+−]?\.\d+")


def last_number(text: str) -> Decimal | None:
    """The last number in a text: "so it is $1,234.50." gives 1234.5. None where there is no number."""
    found = NUMBER.findall(text)
    try:
        return Decimal(found[-1].replace(",", "").replace("−", "-")) if found else None
    except InvalidOperation:
        return None


def number_match(completions: Sequence[Any], answer: Sequence[Any]) -> list[float | None]:
    """1 where the last number of the completion equals that of the column `answer`; else 0. None: `answer` has none."""
    right = [last_number(str(value)) for value in answer]
    return [
        None if value is None else float(last_number(text_of(text)) == value)
        for text, value in zip(completions, right, strict=True)
    ]


@dataclass(frozen=True)
class Format:
    r"""1 where the whole completion, apart from space around it, matches a regular expression; else 0.

    `.` matches line ends, too: `Format(r"<think>.*</think>\s*<answer>.*</answer>")`.
    """

    pattern: str
    name: str = "format"

    def __post_init__(self) -> None:
        """Raise re.error for a pattern that is none."""
        re.compile(self.pattern)

    def __call__(self, completions: Sequence[Any]) -> list[float]:
        """The scores [N]."""
        return [float(bool(re.fullmatch(self.pattern, text_of(text).strip(), re.DOTALL))) for text in completions]


@dataclass(frozen=True)
class Overlong:
    """0 for a completion of up to `max_tokens - buffer` tokens, from there falling to -1 at `max_tokens`.

    It reads the column `completion_ids`. The soft overlong punishment of DAPO (arXiv 2503.14476, equation 13).
    """

    max_tokens: int
    buffer: int
    name: str = "overlong"

    def __post_init__(self) -> None:
        """Raise ValueError for a buffer that is empty or longer than `max_tokens`."""
        if not 0 < self.buffer <= self.max_tokens:
            raise ValueError(f"buffer must be from 1 to max_tokens ({self.max_tokens}), not {self.buffer}")

    def __call__(self, completion_ids: Sequence[Sequence[int]]) -> list[float]:
        """The scores [N]."""
        free = self.max_tokens - self.buffer
        return [-min(1.0, max(0.0, (len(ids) - free) / self.buffer)) for ids in completion_ids]


class RewardActor(ForgeActor):
    """Scores completions with reward functions; see `RewardFunctions` for its arguments."""

    max_concurrent_requests = 256

    def __init__(
        self, functions: Sequence[RewardFunction | str], weights: Sequence[float] | None = None, timeout: float = 30.0
    ) -> None:
        super().__init__()
        self.functions = RewardFunctions(functions, weights, timeout)

    @endpoint(concurrent=True, idempotent=True)
    async def reward(self, /, prompts: Sequence[Any], completions: Sequence[Any], **columns: Sequence[Any]) -> Rewards:
        """Score N completions; see `RewardFunctions`. A service may ask again where its replica has died."""
        return await self.functions(prompts, completions, **columns)

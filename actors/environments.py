"""Conversations of a model with an environment: its tools, what the model asks of them, and the episode they make.

An environment is an object of any class, after TRL's `environment_factory`. Each episode has its own.

    class Adder:
        def reset(self, **row):            # the row of the dataset; may return a text that the prompt ends with
            self.answer = row["answer"]

        def add(self, a: int, b: int) -> int:       # public methods are tools; their docstrings describe them
            '''Add two numbers.'''
            return a + b

        def get_reward(self) -> float: ...          # optional, as close() is, which runs however the episode ends

Methods may be async; the others run in a thread, never two of an environment at a time. An attribute `done` that is
true ends the episode after a tool. ToolError and ValueError of a tool are for the model, which gets their text as its
answer; any other exception is a bug in the environment and ends the run.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import math
import re
import types
import typing
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from actors.rewards import brief, call, describe
from actors.types import Completion, Episode, Message, SamplingParams
from actors.waiting import TooSlow, within

OWN_METHODS = {"reset", "get_reward", "close"}


class ToolError(Exception):
    """Raised by a tool for the model to read: what was wrong with its call."""


class EnvironmentFailure(RuntimeError):
    """A bug in an environment; the text names the method."""


@dataclass(frozen=True)
class ToolCall:
    """What a model asks of a tool."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    positional: tuple[Any, ...] = ()


Parser = Callable[[str], Sequence[ToolCall]]
"""Finds the tool calls in a response; none: the model has given its answer. Raises ToolError for one that is broken."""


class Generate(Protocol):
    """Samples completions, as `generator.generate.route` does."""

    def __call__(
        self, prompt: Sequence[int], sampling_params: SamplingParams, *, request_id: str
    ) -> Awaitable[Sequence[Completion]]:
        """The completions of a prompt of token ids."""
        ...


# ------------------------------------------------------------ tools


def tools_of(environment: object) -> dict[str, Callable[..., Any]]:
    """The environment's tools by name. Raises TypeError for one without a docstring."""
    names = [name for name in dir(environment) if not name.startswith("_") and name not in OWN_METHODS]
    static = {name: inspect.getattr_static(environment, name) for name in names}
    tools = {n: getattr(environment, n) for n, member in static.items() if callable(member) or is_method(member)}
    tools = {name: tool for name, tool in tools.items() if callable(tool)}
    if missing := [name for name, tool in tools.items() if not inspect.getdoc(tool)]:
        raise TypeError(
            f"{type(environment).__name__}.{missing[0]} is a tool, and needs a docstring that says what it does; "
            "a method that is not for the model begins with an underscore"
        )
    return tools


def is_method(member: object) -> bool:
    return isinstance(member, (staticmethod, classmethod))


def schema_of(tool: Callable[..., Any]) -> dict[str, Any]:
    """A tool as chat templates take it (`tools=`): name, description, and parameters as a JSON schema.

    Descriptions of parameters come from the section "Args:" of the docstring. Raises TypeError, which names tool and
    parameter, for a parameter without a type, or with one that JSON has not.
    """
    description, described = docstring_of(tool)
    properties, required = {}, []
    for name, parameter in parameters_of(tool).items():
        where = f"parameter {name!r} of the tool {tool.__name__!r}"
        properties[name] = json_type(parameter.annotation, where)
        if name in described:
            properties[name]["description"] = described[name]
        if parameter.default is parameter.empty:
            required.append(name)
    parameters = {"type": "object", "properties": properties, "required": required}
    return {
        "type": "function",
        "function": {"name": tool.__name__, "description": description, "parameters": parameters},
    }


def parameters_of(tool: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """The parameters of a tool, with evaluated annotations."""
    parameters = inspect.signature(tool, eval_str=True).parameters
    if starred := [p.name for p in parameters.values() if p.kind in {p.VAR_KEYWORD, p.VAR_POSITIONAL}]:
        raise TypeError(f"the tool {tool.__name__!r} takes *{starred[0]}; parameters of tools need names and types")
    return parameters


NAMES = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}


def json_type(annotation: Any, where: str) -> dict[str, Any]:
    """The JSON schema of a Python type: str, int, float, bool, None, list, dict, Literal, Union and Any."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation in NAMES or annotation is None:
        return {"type": NAMES[annotation or type(None)]}
    if annotation is Any:
        return {}
    if origin is typing.Annotated:
        return json_type(inner[0], where)
    if origin is typing.Literal:
        kinds = {type(value) for value in inner}
        return {"enum": [*inner]} | ({"type": NAMES[kinds.pop()]} if len(kinds) == 1 else {})
    if origin in {typing.Union, types.UnionType}:
        return {"anyOf": [json_type(one, where) for one in inner]}
    if annotation in {list, tuple} or origin in {list, tuple, Sequence}:
        return {"type": "array"} | ({"items": json_type(inner[0], where)} if inner else {})
    if annotation is dict or origin in {dict, Mapping}:
        return {"type": "object"} | ({"additionalProperties": json_type(inner[1], where)} if inner else {})
    if annotation is inspect.Parameter.empty:
        raise TypeError(f"{where} needs a type, such as `int`")
    raise TypeError(f"{where} has the type {annotation!r}, which JSON has not")


def docstring_of(tool: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """The description in a docstring, and those of the parameters in its section "Args:"."""
    text, _, rest = (inspect.getdoc(tool) or "").partition("\nArgs:\n")
    section = re.split(r"\n(?=\S)", rest, maxsplit=1)[0]
    entries = re.findall(r"^\s+(\w+)(?: *\([^)]*\))?: *(.*(?:\n(?!\s+\w+(?: *\([^)]*\))?:).*)*)", section, re.MULTILINE)
    description = re.split(r"\n(?:Returns|Raises|Yields|Examples?):\n", text, maxsplit=1)[0]
    return " ".join(description.split()), {name: " ".join(words.split()) for name, words in entries}


def bind(tool: Callable[..., Any], request: ToolCall) -> dict[str, Any]:
    """The arguments of a call by name. Raises ToolError where they do not fit the tool."""
    parameters = parameters_of(tool)
    try:
        arguments = inspect.signature(tool).bind(*request.positional, **request.arguments).arguments
    except TypeError as e:
        raise ToolError(f"{request.name}: {e}; its parameters are {', '.join(parameters) or 'none'}") from None
    for name, value in arguments.items():
        schema = json_type(parameters[name].annotation, name)
        if not fits(value, schema):
            raise ToolError(f"{request.name}: {name} must be {json.dumps(schema)}, not {brief(value)}")
    return arguments


FITTING: dict[str, Any] = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
    "array": (list, tuple),
    "object": dict,
}


def fits(value: Any, schema: Mapping[str, Any]) -> bool:
    """Whether a JSON value has a schema's type."""
    if "anyOf" in schema:
        return any(fits(value, one) for one in schema["anyOf"])
    if "enum" in schema:
        return value in schema["enum"]
    kind = schema.get("type")
    if kind is None:
        return True
    if not isinstance(value, FITTING[kind]) or (isinstance(value, bool) and kind != "boolean"):
        return False
    return kind != "array" or all(fits(one, schema.get("items", {})) for one in value)


# ------------------------------------------------------------ what a model asks


def parse_hermes(text: str) -> list[ToolCall]:
    """Calls as Hermes and Qwen models write them: `<tool_call>{"name": …, "arguments": {…}}</tool_call>`."""
    calls = []
    for part in text.split("<tool_call>")[1:]:
        inner, end, _ = part.partition("</tool_call>")
        if not end:
            raise ToolError("a <tool_call> has no </tool_call>")
        try:
            value = json.loads(inner)
        except json.JSONDecodeError as e:
            raise ToolError(f"a <tool_call> is no JSON: {e}") from None
        arguments = value.get("arguments", {}) if isinstance(value, dict) else None
        if not isinstance(arguments, dict) or not isinstance(value.get("name"), str):
            raise ToolError('a <tool_call> needs the form {"name": "…", "arguments": {…}}')
        calls.append(ToolCall(value["name"], arguments))
    return calls


CALL = re.compile(r"[A-Za-z_]\w*\(.*\)", re.DOTALL)


def parse_text(text: str) -> list[ToolCall]:
    """For small models: a response whose last line ends with `add(2, b=3)`, say, with plain values, calls `add`."""
    last = text.strip().rpartition("\n")[2]
    found = CALL.search(last)
    if not found or found.end() != len(last):
        return []
    try:
        node = ast.parse(found.group(), mode="eval").body
        assert isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        named = {str(word.arg): ast.literal_eval(word.value) for word in node.keywords}
        return [ToolCall(node.func.id, named, tuple(ast.literal_eval(value) for value in node.args))]
    except (SyntaxError, ValueError, AssertionError, MemoryError, RecursionError):
        raise ToolError(f"{brief(found.group())} cannot be read as a call with plain values") from None


# ------------------------------------------------------------ text and tokens


class Chat(Protocol):
    """How a conversation becomes tokens. What the model sampled is never tokenized again."""

    def begin(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> list[int]:
        """The tokens of the prompt, up to where the model's response begins."""
        ...

    def answer(self, answers: Sequence[str], sampled: Sequence[int]) -> list[int]:
        """The tokens between a response, of which these were sampled, and the next: what the tools answered."""
        ...


class TemplateChat:
    """By the chat template of a transformers tokenizer. Where it ignores tools, the system message describes them."""

    MARK = "⁂"

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def begin(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> list[int]:
        """See Chat."""
        text = self._render(messages, tools)
        if tools and text == self._render(messages, ()):
            text = self._render(with_tools(messages, tools), ())
        return self._encode(text)

    def answer(self, answers: Sequence[str], sampled: Sequence[int]) -> list[int]:
        """See Chat. The template is asked with another response in place of the sampled one."""
        messages: list[Message] = [{"role": "user", "content": "-"}, {"role": "assistant", "content": self.MARK}]
        messages += [{"role": "tool", "content": text} for text in answers]
        after = self._render(messages, ()).partition(self.MARK)[2]
        if sampled and sampled[-1] in self.tokenizer.all_special_ids:  # the model has written the end of its message
            after = after.removeprefix(self.tokenizer.decode([sampled[-1]]))
        return self._encode(after)

    def _render(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> str:
        text: str = self.tokenizer.apply_chat_template(
            [*messages], tools=[*tools] or None, tokenize=False, add_generation_prompt=True
        )
        return text

    def _encode(self, text: str) -> list[int]:
        return [*self.tokenizer.encode(text, add_special_tokens=False)]


def with_tools(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> list[Message]:
    """The messages with a system message that describes the tools, and how to call them."""
    lines = "\n".join(json.dumps(tool) for tool in tools)
    text = (
        f"You can call these functions:\n<tools>\n{lines}\n</tools>\n"
        'To call one, write <tool_call>{"name": "its name", "arguments": {…}}</tool_call> and wait for its answer.'
    )
    if messages and messages[0]["role"] == "system":
        return [{**messages[0], "content": f"{messages[0]['content']}\n\n{text}"}, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


class PlainChat:
    """For small models without roles: the contents of the messages, and answers of tools in `form`, one by one."""

    def __init__(self, encode: Callable[[str], list[int]], form: str = "\n{}\n") -> None:
        self.encode = encode
        self.form = form

    def begin(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> list[int]:
        """See Chat. Tools are not described."""
        del tools
        return self.encode("".join(str(message["content"]) for message in messages))

    def answer(self, answers: Sequence[str], sampled: Sequence[int]) -> list[int]:
        """See Chat."""
        del sampled
        return self.encode("".join(self.form.format(text) for text in answers))


# ------------------------------------------------------------ an episode


@dataclass
class Transcript:
    """The tokens of an episode as it grows."""

    token_ids: list[int] = field(default_factory=list)
    loss_mask: list[bool] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    version: int | None = None

    def add_sampled(self, completion: Completion) -> None:
        """Append what the model said."""
        self.token_ids += completion.token_ids.tolist()
        self.logprobs += completion.logprobs.tolist()
        self.loss_mask += [True] * len(completion.token_ids)
        self.version = completion.version if self.version is None else min(self.version, completion.version)

    def add_given(self, token_ids: Sequence[int]) -> None:
        """Append what tools said."""
        self.token_ids += token_ids
        self.logprobs += [0.0] * len(token_ids)
        self.loss_mask += [False] * len(token_ids)


async def rollout(
    generate: Generate,
    environment: Any,
    row: Mapping[str, Any],
    chat: Chat,
    *,
    sampling_params: SamplingParams | None = None,
    parse: Parser = parse_hermes,
    max_turns: int = 8,
    max_tokens: int = 2048,
    timeout: float = 300.0,
    group_id: str | None = None,
    episode_id: str | None = None,
) -> Episode:
    """Let the model answer `row["prompt"]` (a text, or messages) with the help of the environment's tools.

    The episode's tokens are all that came after the prompt. The mask is False, and the log-probability 0, for what
    tools said. It is truncated if the model had not finished after `max_turns` responses, or after `max_tokens` tokens
    of both; what a tool said last is then left out. `timeout` is in seconds, for one method of the environment.
    `metadata` has the row's other columns, and `messages`, `turns`, `tool_calls` and `tool_errors`.

    Raises EnvironmentFailure, which names the method, where the environment fails. `close()` runs in any case.
    """
    import torch

    episode_id = episode_id or uuid.uuid4().hex
    params = dataclasses.replace(sampling_params or SamplingParams(), n=1)
    tools = Tools(environment, timeout)
    transcript, truncated, turns = Transcript(), True, 0
    try:
        messages = await opening(tools, row)
        prompt_ids = chat.begin(messages, tools.schemas)
        while turns < max_turns and (room := max_tokens - len(transcript.token_ids)) > 0:
            [completion] = await generate(
                [*prompt_ids, *transcript.token_ids],
                dataclasses.replace(params, max_tokens=min(room, params.max_tokens)),
                request_id=f"{episode_id}-{turns}",
            )
            transcript.add_sampled(completion)
            messages.append({"role": "assistant", "content": completion.text})
            turns += 1
            if completion.stop_reason != "stop":
                break
            answers = await tools.answers(completion.text, parse)
            messages += [{"role": "tool", "content": text} for text in answers]
            if not answers or getattr(environment, "done", False):
                truncated = False
                break
            given = chat.answer(answers, completion.token_ids.tolist())
            if turns == max_turns or len(transcript.token_ids) + len(given) >= max_tokens:
                break
            transcript.add_given(given)
        reward = await tools.reward()
    finally:
        await tools.close()
    return Episode(
        episode_id=episode_id,
        group_id=group_id or episode_id,
        prompt_ids=torch.tensor(prompt_ids, dtype=torch.int64),
        token_ids=torch.tensor(transcript.token_ids, dtype=torch.int64),
        loss_mask=torch.tensor(transcript.loss_mask, dtype=torch.bool),
        logprobs=torch.tensor(transcript.logprobs, dtype=torch.float32),
        reward=reward,
        policy_version=transcript.version or 0,
        truncated=truncated,
        metadata={
            **{name: value for name, value in row.items() if name != "prompt"},
            "messages": messages,
            "turns": turns,
            "tool_calls": tools.calls,
            "tool_errors": tools.errors,
        },
    )


async def opening(tools: Tools, row: Mapping[str, Any]) -> list[Message]:
    """Reset the environment: the messages of the prompt, the last with what `reset` returned at its end."""
    prompt = row["prompt"]
    messages: list[Message] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [*prompt]
    observation = await tools.method("reset", **row)
    if observation is not None:
        messages[-1] = {**messages[-1], "content": f"{messages[-1]['content']}{observation}"}
    return messages


class Tools:
    """The methods of an environment, called for one episode."""

    def __init__(self, environment: Any, timeout: float) -> None:
        self.environment = environment
        self.timeout = timeout
        self.tools = tools_of(environment)
        self.schemas = [schema_of(tool) for tool in self.tools.values()]
        self.calls = self.errors = 0

    async def answers(self, text: str, parse: Parser) -> list[str]:
        """What the tools answer to a response; errors of the model are answers, too."""
        try:
            requests = parse(text)
        except ToolError as e:
            self.errors += 1
            return [f"Error: {e}"]
        return [await self._answer(request) for request in requests]

    async def _answer(self, request: ToolCall) -> str:
        self.calls += 1
        try:
            tool = self.tools.get(request.name)
            if tool is None:
                raise ToolError(f"there is no tool {request.name!r}; there are {', '.join(self.tools) or 'none'}")
            answer = await self._call(request.name, tool, bind(tool, request))
        except (ToolError, ValueError) as e:
            self.errors += 1
            return f"Error: {e}"
        return answer if isinstance(answer, str) else json.dumps(answer, default=str, ensure_ascii=False)

    async def method(self, name: str, **arguments: Any) -> Any:
        """Call one of the environment's own methods, if it has it."""
        method = getattr(self.environment, name, None)
        try:
            return None if method is None else await self._call(name, method, arguments)
        except (ToolError, ValueError) as e:
            raise self._failure(name, f"raised {describe(e)}") from e

    async def reward(self) -> float:
        """What `get_reward` returns; 0 without it, for reward functions to decide."""
        reward = await self.method("get_reward")
        if hasattr(reward, "item"):
            reward = reward.item()
        if reward is None and not hasattr(self.environment, "get_reward"):
            return 0.0
        if not isinstance(reward, (int, float)) or not math.isfinite(reward):
            raise self._failure("get_reward", f"returned {brief(reward)}; a finite number is needed")
        return float(reward)

    async def close(self) -> None:
        """Close the environment."""
        await self.method("close")

    async def _call(self, name: str, method: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
        try:
            return await within(self.timeout, call(method, arguments))
        except (ToolError, ValueError):
            raise
        except TooSlow:
            raise self._failure(name, f"took longer than {self.timeout:g} s") from None
        except Exception as e:
            raise self._failure(name, f"raised {describe(e)}") from e

    def _failure(self, name: str, what: str) -> EnvironmentFailure:
        return EnvironmentFailure(f"{type(self.environment).__name__}.{name} {what}")


class OpenEnv:
    """An environment for `rollout` from a client of OpenEnv: `reset()` and `step(action)`, plain or async.

    Its one tool, `step`, has the parameters of `action`, a class of actions, and its docstring. Both methods return an
    object with `observation`, `reward` (or None) and `done`; `show` makes a text of an observation. The reward of an
    episode is the sum of the steps'. Columns of the dataset that `reset` has parameters for are passed to it.
    """

    def __init__(self, client: Any, action: Callable[..., Any], show: Callable[[Any], str] = str) -> None:
        self._client, self._action, self._show = client, action, show
        self.done = False
        self._total = 0.0

        async def step(**arguments: Any) -> str:
            if self.done:
                raise ToolError("the episode has ended")
            return self._seen(await call(client.step, {"action": action(**arguments)}))

        signature = inspect.signature(action, eval_str=True)
        fields = [p for name, p in signature.parameters.items() if name != "metadata"]  # of OpenEnv itself
        vars(step)["__signature__"] = signature.replace(parameters=fields, return_annotation=str)
        step.__doc__ = inspect.getdoc(action)
        self.step = step

    async def reset(self, **row: Any) -> str:
        """Begin an episode: the first observation as text."""
        known = inspect.signature(self._client.reset).parameters
        return self._seen(await call(self._client.reset, {name: value for name, value in row.items() if name in known}))

    def get_reward(self) -> float:
        """The sum of the rewards so far."""
        return self._total

    async def close(self) -> None:
        """Close the client, if it can be closed."""
        if hasattr(self._client, "close"):
            await call(self._client.close, {})

    def _seen(self, result: Any) -> str:
        self.done = bool(result.done)
        self._total += float(result.reward or 0.0)
        return self._show(result.observation)

"""Environments: schemas of tools, what a model asks, the tokens of an episode, and who is to blame for an error."""

from __future__ import annotations

import asyncio
import runpy
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from actors.environments import (
    EnvironmentFailure,
    OpenEnv,
    Parser,
    PlainChat,
    TemplateChat,
    ToolCall,
    ToolError,
    bind,
    parse_hermes,
    parse_text,
    rollout,
    schema_of,
    tools_of,
    with_tools,
)
from actors.sandbox import Result, Sandbox
from actors.types import Completion, Episode, SamplingParams

END = 0


def encode(text: str) -> list[int]:
    return [ord(character) for character in text]


class Model:
    """Says given texts, one a turn, each with an end token; a response longer than its limit is cut."""

    def __init__(self, *texts: str, versions: Sequence[int] = (7,)) -> None:
        self.texts, self.versions = texts, versions
        self.prompts: list[list[int]] = []
        self.requests: list[str] = []

    async def __call__(
        self, prompt: Sequence[int], sampling_params: SamplingParams, *, request_id: str
    ) -> list[Completion]:
        turn = len(self.prompts)
        self.prompts.append([*prompt])
        self.requests.append(request_id)
        ids = [*encode(self.texts[turn]), END]
        cut = ids[: sampling_params.max_tokens]
        version = self.versions[turn % len(self.versions)]
        return [
            Completion(
                prompt_ids=torch.tensor(prompt),
                token_ids=torch.tensor(cut),
                logprobs=torch.full((len(cut),), -0.5 - turn),
                text="".join(chr(i) for i in cut if i != END),
                stop_reason="stop" if cut == ids else "length",
                version=version,
                max_version=version,
                request_id=request_id,
            )
        ]


class Adder:
    """Sums, and a reward for the right one."""

    def __init__(self) -> None:
        self.said: int | None = None
        self.closed = 0

    def reset(self, prompt: str, answer: int, **others: Any) -> str | None:
        self.answer = answer
        return others.get("hint")

    def add(self, a: int, b: int) -> int:
        """Add two numbers."""
        return a + b

    async def submit(self, value: int) -> str:
        """Give the answer.

        Args:
            value: what you think it is,
                as a number
        """
        if value < 0:
            raise ToolError("no negative numbers")
        self.said = value
        return "thanks"

    def lookup(self, word: str) -> str:
        """Look up a word."""
        return {"two": "2"}[word]

    def get_reward(self) -> float:
        return float(self.said == self.answer)

    def close(self) -> None:
        self.closed += 1


ROW: dict[str, Any] = {"prompt": "2+2=?", "answer": 4, "level": "easy"}


def play(model: Model, environment: Any = None, parse: Parser = parse_text, **options: Any) -> Episode:
    row = options.pop("row", ROW)
    return asyncio.run(rollout(model, environment or Adder(), row, PlainChat(encode, "[{}]"), parse=parse, **options))


# ------------------------------------------------------------ the tokens


def test_an_episode_has_exactly_what_was_sampled_and_what_tools_said() -> None:
    model, environment = Model("add(2, 2)", "submit(4)", "done", versions=(7, 5, 9)), Adder()
    episode = play(model, environment, episode_id="e", group_id="g")
    said = [*encode("add(2, 2)"), END], [*encode("submit(4)"), END], [*encode("done"), END]
    four, thanks = encode("[4]"), encode("[thanks]")
    assert episode.prompt_ids.tolist() == encode("2+2=?")
    assert episode.token_ids.tolist() == [*said[0], *four, *said[1], *thanks, *said[2]]
    mask = [True] * 10 + [False] * 3 + [True] * 10 + [False] * 8 + [True] * 5
    assert episode.loss_mask.tolist() == mask
    logprobs = [-0.5] * 10 + [0.0] * 3 + [-1.5] * 10 + [0.0] * 8 + [-2.5] * 5
    assert episode.logprobs.tolist() == logprobs
    assert (episode.loss_mask.dtype, episode.logprobs.dtype) == (torch.bool, torch.float32)
    assert (episode.reward, episode.policy_version, episode.truncated) == (1.0, 5, False)
    assert (episode.episode_id, episode.group_id) == ("e", "g")
    assert model.prompts[1] == encode("2+2=?") + episode.token_ids[:13].tolist()
    assert model.prompts[2] == encode("2+2=?") + episode.token_ids[:31].tolist()
    assert model.requests == ["e-0", "e-1", "e-2"]
    assert episode.metadata["level"] == "easy" and "prompt" not in episode.metadata
    counts = {name: episode.metadata[name] for name in ("turns", "tool_calls", "tool_errors")}
    assert counts == {"turns": 3, "tool_calls": 2, "tool_errors": 0}
    roles = [message["role"] for message in episode.metadata["messages"]]
    assert roles == ["user", "assistant", "tool", "assistant", "tool", "assistant"]
    assert environment.closed == 1


def test_what_reset_returns_ends_the_prompt() -> None:
    model = Model("4")
    episode = play(model, row=ROW | {"hint": " (even)"})
    assert episode.prompt_ids.tolist() == encode("2+2=? (even)")
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    assert play(Model("4"), row=ROW | {"prompt": messages, "hint": "!"}).prompt_ids.tolist() == encode("su!")


def test_the_limit_of_turns_truncates() -> None:
    episode = play(Model("add(1, 1)", "submit(4)"), max_turns=2)
    assert episode.truncated and episode.metadata["turns"] == 2
    assert episode.token_ids.tolist() == [*encode("add(1, 1)"), END, *encode("[2]"), *encode("submit(4)"), END]
    assert episode.reward == 1.0  # the tool was called


def test_the_limit_of_tokens_truncates() -> None:
    cut = play(Model("add(1, 1)", "a long answer"), max_tokens=17)
    assert cut.truncated and cut.token_ids.tolist() == [*encode("add(1, 1)"), END, *encode("[2]"), *encode("a lo")]
    no_room = play(Model("add(1, 1)", "never said"), max_tokens=13)
    assert no_room.truncated and no_room.token_ids.tolist() == [*encode("add(1, 1)"), END]
    longest = play(Model("a long answer"), sampling_params=SamplingParams(max_tokens=3, n=4))
    assert longest.truncated and longest.token_ids.tolist() == encode("a l")
    fits = play(Model("four"), max_tokens=5)
    assert not fits.truncated and len(fits.token_ids) == 5


# ------------------------------------------------------------ whose fault


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        ("submit(-1)", "Error: no negative numbers"),
        ("subtract(1, 2)", "Error: there is no tool 'subtract'; there are add, lookup, submit"),
        ("get_reward()", "Error: there is no tool 'get_reward'; there are add, lookup, submit"),
        ("add(1)", "Error: add: missing a required argument: 'b'; its parameters are a, b"),
        ("add(1, 2, c=3)", "Error: add: got an unexpected keyword argument 'c'; its parameters are a, b"),
        ("add('1', 2)", """Error: add: a must be {"type": "integer"}, not '1'"""),
        ("add(True, 2)", """Error: add: a must be {"type": "integer"}, not True"""),
        ("add(1 + 1, 2)", "Error: 'add(1 + 1, 2)' cannot be read as a call with plain values"),
        ("add(__import__('os'), 2)", "Error: \"add(__import__('os'), 2)\" cannot be read as a call with plain values"),
    ],
)
def test_an_error_of_the_model_is_shown_to_it(asked: str, answer: str) -> None:
    episode = play(Model(asked, "done"))
    assert episode.metadata["messages"][2] == {"role": "tool", "content": answer}
    assert episode.metadata["tool_errors"] == 1 and not episode.truncated
    given = episode.token_ids[~episode.loss_mask].tolist()
    assert given == encode(f"[{answer}]")


def test_a_bug_of_the_environment_ends_the_run_and_names_the_method() -> None:
    environment = Adder()
    with pytest.raises(EnvironmentFailure, match=r"^Adder\.lookup raised KeyError: 'three'$") as caught:
        play(Model("lookup('three')"), environment)
    assert isinstance(caught.value.__cause__, KeyError) and environment.closed == 1
    with pytest.raises(EnvironmentFailure, match=r"^Adder\.reset raised TypeError: .*answer"):
        play(Model("4"), environment, row={"prompt": "?"})
    assert environment.closed == 2


def test_a_wrong_reward_names_the_method() -> None:
    class Broken(Adder):
        def get_reward(self) -> float:
            return float("nan")

    with pytest.raises(EnvironmentFailure, match=r"^Broken\.get_reward returned nan; a finite number is needed"):
        play(Model("4"), Broken())

    class Raising(Adder):
        def get_reward(self) -> float:
            raise ValueError("no answer")  # of a tool it would be for the model

    with pytest.raises(EnvironmentFailure, match=r"^Raising\.get_reward raised ValueError: no answer"):
        play(Model("4"), Raising())


def test_a_tool_that_hangs_is_named() -> None:
    never = threading.Event()

    class Slow(Adder):
        def lookup(self, word: str) -> str:
            """Look up a word."""
            never.wait()
            return word

    with pytest.raises(EnvironmentFailure, match=r"^Slow\.lookup took longer than 0\.05 s"):
        play(Model("lookup('a')"), Slow(), timeout=0.05)
    never.set()


def test_the_environment_is_closed_when_generating_fails() -> None:
    environment = Adder()

    async def broken(prompt: Sequence[int], sampling_params: SamplingParams, *, request_id: str) -> list[Completion]:
        raise RuntimeError("the generator died")

    with pytest.raises(RuntimeError, match="the generator died"):
        asyncio.run(rollout(broken, environment, ROW, PlainChat(encode)))
    assert environment.closed == 1


def test_an_environment_may_need_no_optional_method() -> None:
    class Bare:
        def reset(self, **row: Any) -> None: ...

    assert play(Model("hello"), Bare()).reward == 0.0


# ------------------------------------------------------------ tools


class Documented:
    limit = 3

    def __init__(self) -> None:
        self.calls: list[str] = []

    def reset(self, **row: Any) -> None: ...

    def search(self, query: str, limit: int = 5, mode: Literal["fast", "deep"] = "fast") -> list[str]:
        """Search the notes.

        For a text,
        that is.

        Args:
            query (str): What to look for:
                words, or a phrase.
            limit: The most results.
            mode: How.

        Returns:
            The notes.
        """
        return [query] * limit

    def sort(self, values: list[float], options: dict[str, bool] | None = None, other: Any = None) -> None:
        """Sort."""

    def _private(self) -> None: ...


def test_schemas_come_from_signatures_and_docstrings() -> None:
    tools = tools_of(Documented())
    assert [*tools] == ["search", "sort"]
    assert schema_of(tools["search"]) == {
        "type": "function",
        "function": {
            "name": "search",
            "description": "Search the notes. For a text, that is.",
            "parameters": {
                "type": "object",
                "properties": {
                    "query": {"type": "string", "description": "What to look for: words, or a phrase."},
                    "limit": {"type": "integer", "description": "The most results."},
                    "mode": {"enum": ["fast", "deep"], "type": "string", "description": "How."},
                },
                "required": ["query"],
            },
        },
    }
    assert schema_of(tools["sort"])["function"]["parameters"]["properties"] == {
        "values": {"type": "array", "items": {"type": "number"}},
        "options": {"anyOf": [{"type": "object", "additionalProperties": {"type": "boolean"}}, {"type": "null"}]},
        "other": {},
    }


def test_arguments_are_checked_against_the_schema() -> None:
    tools = tools_of(Documented())
    good = {"values": [1, 2.5], "options": None}
    assert bind(tools["sort"], ToolCall("sort", good)) == good
    assert bind(tools["search"], ToolCall("search", {"mode": "deep"}, ("x",))) == {"query": "x", "mode": "deep"}
    for wrong in ({"values": ["1"]}, {"values": 1}, {"values": [], "options": [1]}):
        with pytest.raises(ToolError, match="must be"):
            bind(tools["sort"], ToolCall("sort", wrong))
    with pytest.raises(ToolError, match="mode must be"):
        bind(tools["search"], ToolCall("search", {"query": "x", "mode": "slow"}))


def test_a_tool_without_docstring_or_type_is_named() -> None:
    class Silent(Documented):
        def mystery(self) -> None: ...

    with pytest.raises(TypeError, match=r"Silent\.mystery is a tool, and needs a docstring"):
        tools_of(Silent())

    def untyped(value) -> None:  # type: ignore[no-untyped-def]
        """Do it."""

    def odd(value: set[int]) -> None:
        """Do it."""

    def any_number(*values: int) -> None:
        """Do it."""

    with pytest.raises(TypeError, match="parameter 'value' of the tool 'untyped' needs a type"):
        schema_of(untyped)
    with pytest.raises(TypeError, match=r"parameter 'value' of the tool 'odd' has the type set\[int\]"):
        schema_of(odd)
    with pytest.raises(TypeError, match=r"the tool 'any_number' takes \*values"):
        schema_of(any_number)


# ------------------------------------------------------------ what a model asks


def test_calls_of_hermes_and_qwen() -> None:
    text = (
        'Hm.\n<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>\n<tool_call>{"name": "x"}</tool_call>'
    )
    assert parse_hermes(text) == [ToolCall("add", {"a": 1}), ToolCall("x")]
    assert parse_hermes("The answer is 4.") == []
    for broken, why in (
        ('<tool_call>{"name": "add"}', "has no </tool_call>"),
        ("<tool_call>{name: add}</tool_call>", "is no JSON"),
        ('<tool_call>["add"]</tool_call>', "needs the form"),
        ('<tool_call>{"name": "add", "arguments": "1"}</tool_call>', "needs the form"),
        ('<tool_call>{"arguments": {}}</tool_call>', "needs the form"),
    ):
        with pytest.raises(ToolError, match=why):
            parse_hermes(broken)


def test_calls_of_small_models() -> None:
    assert parse_text("first\nadd(2, b=[3, 'x)'])\n") == [ToolCall("add", {"b": [3, "x)"]}, (2,))]
    assert parse_text("so add()") == [ToolCall("add")]
    for text in ("4", "", "f(1) is one", "(1)"):
        assert parse_text(text) == []
    with pytest.raises(ToolError, match="cannot be read"):
        parse_text("f(*[1])")


# ------------------------------------------------------------ chat templates


class Tokenizer:
    """A character per token with a chat template of Qwen's kind; <E> ends a message."""

    all_special_ids = (END,)

    def __init__(self, knows_tools: bool = True) -> None:
        self.knows_tools = knows_tools

    def apply_chat_template(
        self, messages: Sequence[Mapping[str, Any]], tools: Any, tokenize: bool, add_generation_prompt: bool
    ) -> str:
        assert not tokenize and add_generation_prompt
        head = f"<tools {len(tools)}>" if tools and self.knows_tools else ""
        return head + "".join(f"{m['role']}:{m['content']}\0\n" for m in messages) + "assistant:"

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        return encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(map(chr, ids))


def test_a_template_writes_what_is_between_two_responses() -> None:
    chat = TemplateChat(Tokenizer())
    assert chat.answer(["4"], [*encode("add"), END]) == encode("\ntool:4\0\nassistant:")
    assert chat.answer(["4"], encode("add")) == encode("\0\ntool:4\0\nassistant:")  # it ended by a stop text
    model = Model('<tool_call>{"name": "add", "arguments": {"a": 2, "b": 2}}</tool_call>', "4")
    episode = asyncio.run(rollout(model, Adder(), ROW, chat))
    whole = "".join(map(chr, [*episode.prompt_ids.tolist(), *episode.token_ids.tolist()]))
    messages = episode.metadata["messages"]
    assert whole == Tokenizer().apply_chat_template(messages, [1, 2, 3], False, True).removesuffix("\nassistant:")


def test_a_template_that_ignores_tools_gets_them_in_the_system_message() -> None:
    chat = TemplateChat(Tokenizer(knows_tools=False))
    tools = [schema_of(tools_of(Adder())["add"])]
    text = "".join(map(chr, chat.begin([{"role": "user", "content": "hi"}], tools)))
    assert text.startswith("system:You can call these functions") and '"name": "add"' in text
    [system, user] = with_tools([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "x"}], tools)
    assert system["content"].startswith("Be brief.\n\nYou can") and user["content"] == "x"


QWEN = """{%- if tools %}<s>system
{% for tool in tools %}{{ tool | tojson }}{% endfor %}<e>
{% endif %}{%- for m in messages %}
{%- if m.role == 'tool' %}<s>user
<tool_response>{{ m.content }}</tool_response><e>
{% else %}<s>{{ m.role }}
{{ m.content }}<e>
{% endif %}{%- endfor %}{%- if add_generation_prompt %}<s>assistant
{% endif %}"""


def test_a_tokenizer_of_transformers_gives_the_tokens_that_it_would_have_given() -> None:
    transformers, tokenizers = pytest.importorskip("transformers"), pytest.importorskip("tokenizers")
    characters = sorted({chr(i) for i in range(32, 127)} | {"\n", "…", "⁂"})
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel({c: i for i, c in enumerate(characters)}, unk_token=" "))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
    inner.decoder = tokenizers.decoders.Fuse()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<e>", bos_token="<s>")
    tokenizer.chat_template = QWEN
    texts = ['<tool_call>{"name": "add", "arguments": {"a": 2, "b": 2}}</tool_call>', "4"]

    async def generate(prompt: Sequence[int], sampling_params: SamplingParams, *, request_id: str) -> list[Completion]:
        text = texts[int(request_id[-1])]
        ids = torch.tensor([*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id])
        zeros = torch.zeros(len(ids))
        return [Completion(torch.tensor(prompt), ids, zeros, text, "stop", 0, 0, request_id)]

    episode = asyncio.run(rollout(generate, Adder(), ROW, TemplateChat(tokenizer), max_tokens=1000))
    schemas = [schema_of(tool) for tool in tools_of(Adder()).values()]
    text = tokenizer.apply_chat_template(episode.metadata["messages"], tools=schemas, tokenize=False)
    ids = [*episode.prompt_ids.tolist(), *episode.token_ids.tolist()]
    assert ids == tokenizer.encode(text.removesuffix("\n"), add_special_tokens=False)
    assert "<tool_response>4</tool_response>" in text


# ------------------------------------------------------------ the sample


class Handle:
    """A sandbox in this process, as the handle of a service."""

    def __init__(self) -> None:
        self.execute = self
        self.sandbox = Sandbox()

    async def route(self, code: str) -> Result:
        await self.sandbox.start()
        return await self.sandbox.execute(code)


def test_the_sample_has_the_sandbox_as_a_tool() -> None:
    sample = runpy.run_path(str(Path(__file__).parents[2] / "sample_configs" / "tools.py"))
    model = Model("So:\n```python\nprint(2\n```", "```python\nprint(2+2)\n```\nprints it.", "It is 4.")
    environment, row = sample["PythonProblems"](Handle()), {"prompt": "2+2=?", "answer": 4}
    episode = play(model, environment, sample["programs"], row=row)
    roles_and_texts = [(message["role"], message["content"]) for message in episode.metadata["messages"]]
    assert "SyntaxError" in roles_and_texts[2][1] and roles_and_texts[4] == ("tool", "4\n")
    assert episode.reward == 1.0 and not episode.truncated


# ------------------------------------------------------------ OpenEnv


@dataclass
class Guess:
    """Guess the number."""

    number: int
    metadata: dict[str, Any] | None = None


@dataclass
class Step:
    observation: str
    reward: float | None
    done: bool


class Client:
    """As a client of OpenEnv."""

    def __init__(self) -> None:
        self.seed, self.closed = -1, False

    def reset(self, seed: int = 0) -> Step:
        self.seed = seed
        return Step(" Guess!", None, False)

    async def step(self, action: Guess) -> Step:
        return Step("right" if action.number == 3 else "wrong", action.number / 10, action.number == 3)

    async def close(self) -> None:
        self.closed = True


def test_a_client_of_openenv_is_an_environment() -> None:
    client = Client()
    environment = OpenEnv(client, Guess)
    assert schema_of(environment.step)["function"] == {
        "name": "step",
        "description": "Guess the number.",
        "parameters": {"type": "object", "properties": {"number": {"type": "integer"}}, "required": ["number"]},
    }
    episode = play(Model("step(1)", "step(3)"), environment, row={"prompt": "Play.", "seed": 5})
    assert "".join(map(chr, episode.prompt_ids.tolist())) == "Play. Guess!"
    assert episode.reward == pytest.approx(0.4) and not episode.truncated
    assert episode.metadata["messages"][-1]["content"] == "right"
    assert client.seed == 5 and client.closed

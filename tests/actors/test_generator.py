"""Generator: requests that come together, new weights amid them, and failures that reach everybody."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import torch

from actors.decode import DecodeLoop
from actors.generator import REMEMBERED, Generator, TorchBackend
from actors.models import LoadedModel, load_model
from actors.types import Completion, SamplingParams
from actors.weights import WeightStore
from forgectl import NotFoundError
from tests.conftest import Forge, eventually
from tests.process.actor_scripts import bring, play

TINY: dict[str, Any] = {
    "characters": "0123456789+=.",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
}
LONG = {"max_tokens": 1500, "temperature": 9.0, "seed": 3}


def plain(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """A test that runs in an event loop of its own."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(asyncio.wait_for(test(*args, **kwargs), 100))

    return run


class Steps:
    """Lets the decode loop of a generator make one step at a time."""

    def __init__(self, generator: Generator) -> None:
        assert isinstance(generator._backend, TorchBackend)
        self.backend = generator._backend
        self.loop: DecodeLoop = self.backend._loop
        self._step = self.loop.step
        self._allowed, self._made = threading.Semaphore(0), threading.Semaphore(0)
        self.loop.step = self._one
        self.loop.tokenizer.end_ids = frozenset()  # texts end when the test says so

    def _one(self, *, admit: bool = True) -> dict[str, list[Completion]]:
        if self.loop.idle:
            return {}
        self._allowed.acquire()
        done = self._step(admit=admit)
        self._made.release()
        return done

    async def make(self, count: int = 1) -> None:
        for _ in range(count):
            self._allowed.release()
            await asyncio.to_thread(self._made.acquire)

    async def has(self, call: asyncio.Future[Any]) -> None:
        """Wait until a call has reached the decode thread, which may be held at a step."""
        await eventually(
            lambda: not self.backend._calls.empty() or self.backend._loads or call.done(),
            "the call in the decode thread",
        )

    def all(self) -> None:
        for _ in range(10_000):
            self._allowed.release()


async def new(**options: Any) -> Generator:
    generator = Generator(options.pop("model", TINY), **options)
    await generator.setup()
    return generator


# ------------------------------------------------------------------ requests


@plain
async def test_a_prompt_may_be_text_tokens_or_messages() -> None:
    generator = await new(sampling_params={"max_tokens": 5, "seed": 1})
    texts = [
        (await generator.generate(prompt))[0].text
        for prompt in ("1+2=", [1, 10, 2, 11], torch.tensor([1, 10, 2, 11]), [{"role": "user", "content": "1+2="}])
    ]
    assert len(set(texts)) == 1
    await generator.__cleanup__(None)


@plain
async def test_requests_are_sampled_together() -> None:
    generator = await new(max_batch=8)
    steps = Steps(generator)
    tasks = [asyncio.ensure_future(generator.generate("1", {"max_tokens": 40, "n": 2})) for _ in range(4)]
    await steps.make(3)
    stats = asyncio.ensure_future(generator.stats())
    steps.all()
    assert (await stats)["mean_batch"] > 2
    for completions in await asyncio.gather(*tasks):
        assert [len(completion.token_ids) for completion in completions] == [40, 40]
    await generator.__cleanup__(None)


@plain
async def test_each_request_has_random_numbers_of_its_own_unless_it_has_a_seed() -> None:
    generator = await new()
    Steps(generator).all()
    params = SamplingParams(max_tokens=30, temperature=3.0)
    free = {(await generator.generate("1", params))[0].text for _ in range(4)}
    seeded = {(await generator.generate("1", {"max_tokens": 30, "temperature": 3.0, "seed": 5}))[0].text for _ in "abc"}
    assert len(free) == 4 and len(seeded) == 1
    await generator.__cleanup__(None)


@plain
async def test_a_request_id_is_sampled_once_and_the_same_on_every_replica() -> None:
    one, other = await new(), await new()
    first, again = await asyncio.gather(*(one.generate("1+", {"max_tokens": 20}, request_id="a") for _ in range(2)))
    later = await one.generate("1+", {"max_tokens": 20}, request_id="a")
    assert first[0] is again[0] is later[0]
    assert (await one.stats())["tokens"] == len(first[0].token_ids)
    elsewhere = await other.generate("1+", {"max_tokens": 20}, request_id="a")
    assert elsewhere[0].token_ids.tolist() == first[0].token_ids.tolist()
    with pytest.raises(ValueError, match="'a' belongs to a request with another prompt"):
        await one.generate("2+", {"max_tokens": 20}, request_id="a")
    await one.__cleanup__(None)
    await other.__cleanup__(None)


@plain
async def test_only_the_latest_requests_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    assert REMEMBERED >= 100
    monkeypatch.setattr("actors.generator.REMEMBERED", 3)
    generator = await new()
    for i in range(8):
        await generator.generate("1", {"max_tokens": 1}, request_id=str(i))
    assert list(generator._ended) == ["5", "6", "7"]
    await generator.__cleanup__(None)


@plain
async def test_who_gives_up_takes_the_request_out_unless_others_wait_for_it() -> None:
    generator = await new()
    steps = Steps(generator)
    alone = asyncio.ensure_future(generator.generate("1", LONG, request_id="alone"))
    shared = [asyncio.ensure_future(generator.generate("2", LONG, request_id="shared")) for _ in range(2)]
    await steps.make(3)
    for task in (alone, shared[0]):
        task.cancel()
    for task in (alone, shared[0]):
        with pytest.raises(asyncio.CancelledError):
            await task
    steps.all()
    assert len((await shared[1])[0].token_ids) == 1500
    assert (await generator.stats())["tokens"] < 1500 + 20
    await generator.__cleanup__(None)


@plain
async def test_an_abort_returns_what_there_is_to_the_caller() -> None:
    generator = await new()
    steps = Steps(generator)
    task = asyncio.ensure_future(generator.generate("1", {**LONG, "n": 2}, request_id="a"))
    await steps.make(5)
    aborted = asyncio.ensure_future(generator.abort("a"))
    await steps.has(aborted)
    steps.all()
    assert await aborted
    assert {completion.stop_reason for completion in await task} == {"aborted"}
    assert not await generator.abort("a")
    await generator.__cleanup__(None)


@plain
async def test_a_wrong_request_fails_alone() -> None:
    generator = await new()
    good = asyncio.ensure_future(generator.generate("1", {"max_tokens": 5}))
    for prompt, error in (
        ("", "empty prompt"),
        ("x", "no token for 'x'"),
        ([99], "outside 0"),
        ("1" * 3000, "prompt of"),
    ):
        with pytest.raises(ValueError, match=error):
            await generator.generate(prompt)
    with pytest.raises(TypeError, match="max_token"):
        await generator.generate("1", {"max_token": 3})
    assert await good and await generator.generate("1", {"max_tokens": 2})
    with pytest.raises(ValueError, match="empty prompt"):
        await generator.generate("", request_id="again")
    assert await generator.generate("1", {"max_tokens": 2}, request_id="again")  # it may be made right
    await generator.__cleanup__(None)


@plain
async def test_when_the_loop_fails_everybody_gets_its_exception() -> None:
    generator = await new()
    steps = Steps(generator)
    tasks = [asyncio.ensure_future(generator.generate("1", LONG)) for _ in range(3)]
    await steps.make(2)

    def broken(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("the accelerator is gone")

    steps.loop.module.register_forward_pre_hook(broken)
    steps.all()
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(outcome, RuntimeError) and str(outcome) == "the accelerator is gone"
    for later in (generator.generate("1"), generator.stats(), generator.abort("a")):
        with pytest.raises(RuntimeError, match="the accelerator is gone"):
            await later
    await generator.__cleanup__(None)  # which does not wait for anything


@plain
async def test_the_end_of_the_actor_ends_its_requests_and_its_thread() -> None:
    generator = await new()
    Steps(generator).all()
    task = asyncio.ensure_future(generator.generate("1", {**LONG, "n": 64}))
    await asyncio.sleep(0)
    assert isinstance(generator._backend, TorchBackend)
    thread = generator._backend._thread
    await generator.__cleanup__(None)
    assert not thread.is_alive()
    with pytest.raises(RuntimeError, match="has ended"):
        await task


@plain
async def test_the_event_loop_runs_while_the_model_computes() -> None:
    generator = await new()
    steps = Steps(generator)
    inside, go_on = threading.Event(), threading.Event()

    def slow(*_: Any) -> None:
        inside.set()
        assert go_on.wait(50)

    steps.loop.module.register_forward_pre_hook(slow)
    steps.all()
    task = asyncio.ensure_future(generator.generate("1", {"max_tokens": 3}))
    await asyncio.to_thread(inside.wait, 50)
    await asyncio.sleep(0)  # it would not return from this, were the model in this thread
    assert not task.done() and await generator.get_version() == 0
    go_on.set()
    assert await task
    await generator.__cleanup__(None)


# ------------------------------------------------------------------ weights


def publish(store: WeightStore, version: int, seed: int) -> LoadedModel:
    loaded = load_model({**TINY, "seed": seed})
    store.publish(version, dict(loaded.module.named_parameters()))
    return loaded


def forward_logprobs(model: LoadedModel, completion: Completion) -> torch.Tensor:
    ids = torch.cat((completion.prompt_ids, completion.token_ids))
    with torch.no_grad():
        logits = model.module(ids[None]).logits[0, len(completion.prompt_ids) - 1 : -1] / 9.0
    return logits.log_softmax(-1).gather(1, completion.token_ids[:, None])[:, 0]


@plain
async def test_new_weights_come_in_while_requests_go_on(tmp_path: Path) -> None:
    store = WeightStore("policy", tmp_path)
    generator = await new(weights=store, recompute=True)
    steps = Steps(generator)
    task = asyncio.ensure_future(generator.generate("1", {**LONG, "max_tokens": 20}))
    await steps.make(8)
    other = publish(store, 3, seed=7)
    update = asyncio.ensure_future(generator.update_weights())
    await steps.has(update)
    steps.all()
    assert await update == 3 == await generator.get_version()
    (completion,) = await task
    assert (completion.version, completion.max_version) == (0, 3)
    old, new_ = (forward_logprobs(model, completion) for model in (load_model(TINY), other))
    is_old = (completion.logprobs - old).abs() < 1e-4
    is_new = (completion.logprobs - new_).abs() < 1e-4
    assert is_old[:8].all() and is_new[-8:].all() and (is_old | is_new).all()
    assert (await generator.stats())["load_seconds"] > 0
    await generator.__cleanup__(None)


@plain
async def test_draining_ends_what_is_in_the_batch_first(tmp_path: Path) -> None:
    store = WeightStore("policy", tmp_path)
    generator = await new(weights=store, max_batch=2)
    steps = Steps(generator)
    params = {**LONG, "max_tokens": 10}
    tasks = [asyncio.ensure_future(generator.generate("1", params, request_id=str(i))) for i in range(3)]
    await steps.make(3)
    publish(store, 3, seed=7)
    update = asyncio.ensure_future(generator.update_weights(drain=True))
    await steps.has(update)
    steps.all()
    assert await update == 3
    versions = [(c.version, c.max_version) for (c,) in await asyncio.gather(*tasks)]
    assert versions == [(0, 0), (0, 0), (3, 3)]
    await generator.__cleanup__(None)


@plain
async def test_a_replica_that_starts_has_the_latest_weights(tmp_path: Path) -> None:
    store = WeightStore("policy", tmp_path)
    model = publish(store, 5, seed=7)
    generator = await new(weights=store)
    (completion,) = await generator.generate("1", {**LONG, "max_tokens": 20})
    assert completion.version == await generator.get_version() == 5
    assert torch.allclose(completion.logprobs, forward_logprobs(model, completion), atol=1e-4)
    await generator.__cleanup__(None)


@plain
async def test_a_chosen_version_and_what_may_be_wrong_with_it(tmp_path: Path) -> None:
    store = WeightStore("policy", tmp_path)
    generator = await new(weights=store)
    for version in (1, 2, 3):
        publish(store, version, seed=version)
    assert await generator.update_weights(2) == 2
    with pytest.raises(NotFoundError, match="version 1 was dropped"):
        await generator.update_weights(1)
    store.publish(4, {"x": torch.ones(1)})
    with pytest.raises(ValueError, match="version 4 of the weights does not fit"):
        await generator.update_weights()
    assert await generator.get_version() == 2 and await generator.generate("1", {"max_tokens": 2})
    await generator.__cleanup__(None)
    lonely = await new()
    with pytest.raises(ValueError, match="no store of weights; give its constructor `weights`"):
        await lonely.update_weights()
    await lonely.__cleanup__(None)


@plain
async def test_what_a_generator_may_not_be() -> None:
    with pytest.raises(ValueError, match="backend is"):
        Generator(TINY, backend="tensorflow")  # type: ignore[arg-type]
    generator = Generator(TINY)
    generator.size = 2
    with pytest.raises(ValueError, match="num_replicas=2"):
        await generator.setup()


# ------------------------------------------------------------------ real ranks


def play_generators(forge: Forge, scene: str, *, code: int = 0) -> str:
    forge.env["OMP_NUM_THREADS"] = "1"
    bring(forge)
    return play(forge, f"generate.py {scene}", code=code).stderr


def test_weights_come_in_while_actors_ask(forge: Forge) -> None:
    play_generators(forge, "weights_come_in_while_actors_ask")


def test_a_killed_replica_loses_nothing(forge: Forge) -> None:
    play_generators(forge, "a_killed_replica_loses_nothing")


def test_a_failure_ends_the_launch(forge: Forge) -> None:
    assert "the model is broken" in play_generators(forge, "a_failure_ends_the_launch", code=1)


def test_several_processes_are_refused(forge: Forge) -> None:
    play_generators(forge, "several_processes_are_refused")

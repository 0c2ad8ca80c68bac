"""The backend over vLLM, against a stand-in of the part of vLLM's API that it uses.

The stand-in samples with our own decode loop, so what comes back is known. Where vLLM is, its names are checked.
"""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from actors.decode import DecodeLoop, Request
from actors.generator import Generator
from actors.models import Decoder, load_model, load_weights, save_model
from actors.types import SamplingParams
from actors.weights import WeightStore
from tests.actors.test_generator import TINY, plain
from tests.conftest import eventually

HAS_VLLM = importlib.util.find_spec("vllm") is not None


class Engine:
    """vLLM's AsyncLLMEngine: as many of its methods as are used, with its names, arguments and results."""

    made: Engine

    def __init__(self, arguments: SimpleNamespace) -> None:
        Engine.made = self
        self.arguments = arguments
        self.calls: list[Any] = []
        self.ended = False
        self._free = asyncio.Event()  # cleared while paused
        self._free.set()
        self.go = asyncio.Event()  # cleared by tests that want requests to stay after their first token
        self.go.set()
        self._aborted: set[str] = set()
        model = load_model(arguments.model)
        assert isinstance(model.module, Decoder)
        self.loop = DecodeLoop(model, seed=arguments.seed)
        module, name = arguments.worker_extension_cls.rsplit(".", 1)
        self.worker = getattr(importlib.import_module(module), name)()
        self.worker.model_runner = SimpleNamespace(
            model=SimpleNamespace(load_weights=lambda weights: load_weights(model.module, dict(weights), "vLLM"))
        )

    @classmethod
    def from_engine_args(cls, engine_args: SimpleNamespace) -> Engine:
        return cls(engine_args)

    async def generate(
        self, prompt: dict[str, list[int]], sampling_params: SimpleNamespace, request_id: str, *, priority: int = 0
    ) -> AsyncIterator[Any]:
        p = sampling_params
        params = SamplingParams(
            n=p.n,
            max_tokens=p.max_tokens,
            temperature=p.temperature,
            stop=tuple(p.stop),
            stop_token_ids=tuple(p.stop_token_ids),
            seed=p.seed,
        )
        self.calls.append((request_id, p, priority))
        await self._free.wait()
        if request_id in self._aborted:
            return
        self.loop.add(Request(request_id, prompt["prompt_token_ids"], params))
        while not (done := self.loop.step()):
            await asyncio.sleep(0)
            await self.go.wait()
            await self._free.wait()
            if request_id in self._aborted:
                done = {request_id: self.loop.abort(request_id) or []}
                break
        for index, completion in enumerate(done[request_id]):
            tokens = completion.token_ids.tolist()
            logprobs = [
                {t: SimpleNamespace(logprob=lp)} for t, lp in zip(tokens, completion.logprobs.tolist(), strict=True)
            ]
            reason = {"aborted": "abort"}.get(completion.stop_reason, completion.stop_reason)
            for upto in sorted({len(tokens) // 2, len(tokens)}):  # it sends what there is so far, again and again
                part = SimpleNamespace(
                    index=index,
                    token_ids=tokens[:upto],
                    logprobs=logprobs[:upto],
                    text=completion.text,
                    finish_reason=reason if upto == len(tokens) else None,
                )
                yield SimpleNamespace(outputs=[part], finished=False)

    async def abort(self, request_id: str) -> None:
        self._aborted.add(request_id)

    async def pause_generation(self, *, mode: str = "abort", clear_cache: bool = True) -> None:
        self.calls.append(f"pause {mode}")
        if mode == "wait":
            await eventually(lambda: self.loop.idle, "the end of all requests")
        self._free.clear()

    async def resume_generation(self) -> None:
        self.calls.append("resume")
        self._free.set()

    async def collective_rpc(
        self, method: str, timeout: float | None = None, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> list[Any]:
        assert all(isinstance(arg, str | int) for arg in args)  # no more can be sent without pickles
        self.calls.append(method)
        return [getattr(self.worker, method)(*args)]

    def shutdown(self) -> None:
        self.ended = True


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of a model, and the stand-in in place of vLLM."""
    module: Any = ModuleType("vllm")
    module.AsyncLLMEngine = Engine
    module.AsyncEngineArgs = module.SamplingParams = SimpleNamespace
    monkeypatch.setitem(sys.modules, "vllm", module)
    save_model(*load_model(TINY), tmp_path / "model")
    return tmp_path / "model"


PARAMS = {"n": 2, "max_tokens": 9, "temperature": 3.0, "stop": ["="]}


@plain
async def test_completions_come_from_vllm(folder: Path) -> None:
    generator = Generator(str(folder), backend="vllm", max_batch=9, seed=4)
    await generator.setup()
    one, two = await generator.generate("1+", PARAMS, priority=3, request_id="a")
    for completion in (one, two):
        ids = torch.cat((completion.prompt_ids, completion.token_ids))
        logits = Engine.made.loop.module(ids[None]).logits[0, 1:-1].div(3.0).log_softmax(-1)
        assert torch.allclose(completion.logprobs, logits.gather(1, completion.token_ids[:, None])[:, 0], atol=1e-4)
        assert completion.stop_reason in {"stop", "length"} and completion.version == 0
    assert one.token_ids.tolist() != two.token_ids.tolist()
    ((request_id, params, priority),) = Engine.made.calls
    assert (request_id, params.logprobs, priority) == ("a", 0, 3) and 13 in params.stop_token_ids
    arguments = Engine.made.arguments
    assert (arguments.max_num_seqs, arguments.seed, arguments.logprobs_mode) == (9, 4, "processed_logprobs")
    assert (await generator.stats())["tokens"] == len(one.token_ids) + len(two.token_ids)
    await generator.__cleanup__(None)
    assert Engine.made.ended


@plain
async def test_seeds_depend_on_the_request(folder: Path) -> None:
    generator = Generator(str(folder), backend="vllm")
    await generator.setup()
    for name in ("a", "b"):
        await generator.generate("1", {"max_tokens": 1}, request_id=name)
    await generator.generate("1", {"max_tokens": 1, "seed": 1}, request_id="c")
    seeds = [params.seed for _, params, _ in Engine.made.calls]
    assert len(set(seeds)) == 3 and all(0 <= seed < 2**31 for seed in seeds)
    await generator.__cleanup__(None)


@pytest.mark.parametrize("drain", [False, True])
@plain
async def test_weights_are_read_by_the_workers_while_requests_are_held(folder: Path, drain: bool) -> None:
    store = WeightStore("policy", folder.parent / "weights")
    generator = Generator(str(folder), backend="vllm", weights=store)
    await generator.setup()
    engine = Engine.made
    generator._backend.tokenizer.end_ids = engine.loop.tokenizer.end_ids = frozenset()
    engine.go.clear()
    task = asyncio.ensure_future(generator.generate("1", {"max_tokens": 60}))
    await eventually(lambda: engine.loop.active, "the request")
    other = load_model({**TINY, "seed": 1}).module
    store.publish(5, dict(other.named_parameters()))
    update = asyncio.ensure_future(generator.update_weights(drain=drain))
    await eventually(lambda: len(engine.calls) > 1, "the pause")
    engine.go.set()
    assert await update == 5 == await generator.get_version()
    assert engine.calls[1:] == [f"pause {'wait' if drain else 'keep'}", "load_version", "resume"]
    assert torch.equal(engine.loop.module.model.embed_tokens.weight, other.model.embed_tokens.weight)
    (completion,) = await task
    assert (completion.version, completion.max_version) == (0, 0 if drain else 5)
    await generator.__cleanup__(None)


@plain
async def test_weights_that_cannot_be_loaded_leave_it_going(folder: Path) -> None:
    store = WeightStore("policy", folder.parent / "weights")
    generator = Generator(str(folder), backend="vllm", weights=store)
    await generator.setup()
    store.publish(5, {"x": torch.ones(1)})
    with pytest.raises(ValueError, match="another model"):
        await generator.update_weights()
    assert Engine.made.calls[-1] == "resume" and await generator.get_version() == 0
    await generator.__cleanup__(None)


@plain
async def test_an_abort(folder: Path) -> None:
    generator = Generator(str(folder), backend="vllm")
    await generator.setup()
    engine = Engine.made
    engine.go.clear()
    generator._backend.tokenizer.end_ids = engine.loop.tokenizer.end_ids = frozenset()
    task = asyncio.ensure_future(generator.generate("1", {"n": 2}, request_id="a"))
    await eventually(lambda: engine.loop.active, "the request")
    assert await generator.abort("a") and not await generator.abort("b")
    engine.go.set()
    assert [(len(c.token_ids), c.stop_reason) for c in await task] == [(1, "aborted"), (1, "aborted")]
    await Engine.made.pause_generation(mode="keep")
    early = asyncio.ensure_future(generator.generate("1", request_id="early"))
    await eventually(lambda: len(Engine.made.calls) == 3, "the request")
    assert await generator.abort("early")
    await Engine.made.resume_generation()
    (completion,) = await early
    assert completion.stop_reason == "aborted" and len(completion.token_ids) == 0
    await generator.__cleanup__(None)


@plain
async def test_what_vllm_cannot_do_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = Generator(str(folder), backend="vllm")
    await generator.setup()
    for params in ({"top_k": 3}, {"top_p": 0.5}):
        with pytest.raises(ValueError, match="no log-probabilities over the whole vocabulary"):
            await generator.generate("1", params)
    await generator.__cleanup__(None)
    with pytest.raises(ValueError, match="needs a folder"):
        await Generator(TINY, backend="vllm").setup()
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ImportError, match='needs vLLM: pip install vllm; backend="torch" needs nothing more'):
        await Generator(str(folder), backend="vllm").setup()


@pytest.mark.skipif(not HAS_VLLM, reason="vLLM is not installed: the stand-in alone was tested")
def test_vllm_has_what_the_stand_in_has() -> None:
    import vllm

    arguments = set(inspect.signature(vllm.AsyncEngineArgs).parameters)
    assert {"scheduling_policy", "logprobs_mode", "worker_extension_cls", "max_num_seqs"} <= arguments
    for name in ("generate", "abort", "pause_generation", "resume_generation", "collective_rpc", "shutdown"):
        theirs = set(inspect.signature(getattr(vllm.AsyncLLMEngine, name)).parameters)
        assert set(inspect.signature(getattr(Engine, name)).parameters) <= theirs, name

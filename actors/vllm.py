"""vLLM as a Generator's backend, over vLLM's public API alone: AsyncLLMEngine, and an extension of its workers.

Needs a vLLM whose `pause_generation` has `mode`. The tests run against a stand-in of that API, not against vLLM.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch

from actors.decode import Request, Weights, random_key
from actors.models import Model, load_tokenizer
from actors.types import Completion, SamplingParams, StopReason
from actors.weights import WeightStore

REASONS: Mapping[str | None, StopReason] = {"stop": "stop", "length": "length", "abort": "aborted"}


class WeightLoader:
    """A part of each of vLLM's workers, as its option `worker_extension_cls` has it."""

    model_runner: Any

    def load_version(self, store: str, folder: str, version: int) -> None:
        """Load a version of a store's weights. Raises NotFoundError where it was dropped meanwhile."""
        weights = WeightStore(store, folder).fetch(version)
        self.model_runner.model.load_weights(weights=weights.tensors.items())


class VllmBackend:
    """Samples with vLLM's engine, which runs in processes of its own.

    `version` of a completion is that of the weights when its request was made, which may be older than its first
    token. Random numbers are vLLM's: they depend on seed, request_id and index, but not on the batch.
    """

    def __init__(
        self,
        model: Model,
        *,
        dtype: str,
        max_batch: int,
        max_length: int | None,
        seed: int,
        store: WeightStore | None = None,
    ) -> None:
        """Raises ImportError without vLLM, ValueError for a model that is no folder."""
        if isinstance(model, Mapping):
            raise ValueError(
                'backend="vllm" needs a folder of Hugging Face; write the new decoder with save_model first'
            )
        try:
            import vllm
        except ImportError as e:
            raise ImportError('backend="vllm" needs vLLM: pip install vllm; backend="torch" needs nothing more') from e
        self._vllm, self._seed, self._store = vllm, seed, store
        self.tokenizer = load_tokenizer(model)
        self._version = 0
        arguments = vllm.AsyncEngineArgs(
            model=str(model),
            dtype=dtype,
            seed=seed,
            max_num_seqs=max_batch,
            max_model_len=max_length,
            scheduling_policy="priority",
            logprobs_mode="processed_logprobs",  # at the sampling temperature
            worker_extension_cls=f"{WeightLoader.__module__}.{WeightLoader.__qualname__}",
        )
        self._engine = vllm.AsyncLLMEngine.from_engine_args(arguments)
        self._running: set[str] = set()
        self._tokens, self._load_seconds = 0, 0.0

    @property
    def version(self) -> int:
        """Of the weights that sample now."""
        return self._version

    async def generate(self, request: Request) -> list[Completion]:
        """The completions of a request. Raises ValueError for top_k and top_p, with which vLLM has other logprobs."""
        version, params = self._version, request.params
        if params.top_k or params.top_p < 1:
            raise ValueError(
                "with top_k or top_p vLLM has no log-probabilities over the whole vocabulary, which losses need; "
                'use neither, or backend="torch"'
            )
        latest: dict[int, Any] = {}
        self._running.add(request.request_id)
        try:
            async for output in self._engine.generate(
                {"prompt_token_ids": list(request.prompt)},
                self._sampling_params(request),
                request.request_id,
                priority=request.priority,
            ):
                latest |= {one.index: one for one in output.outputs}  # each has all of its tokens so far
        finally:
            self._running.discard(request.request_id)
        completions = [self._completion(request, latest.get(i), version) for i in range(params.n)]
        self._tokens += sum(len(completion.token_ids) for completion in completions)
        return completions

    async def abort(self, request_id: str) -> bool:
        """End a request with what it has; False if there is no such request."""
        if request_id not in self._running:
            return False
        await self._engine.abort(request_id)
        return True

    async def load(self, weights: Weights, *, drain: bool) -> None:
        """Hold the requests between two tokens, or with `drain` let them end; then load, and go on.

        vLLM's workers are other processes, and read the version from the store themselves.
        """
        assert self._store is not None  # the weights are from it
        began = time.monotonic()
        await self._engine.pause_generation(mode="wait" if drain else "keep", clear_cache=True)
        try:
            await self._engine.collective_rpc(
                "load_version", args=(self._store.name, str(self._store.folder), weights.version)
            )
            self._version = weights.version
        finally:
            await self._engine.resume_generation()
        self._load_seconds = time.monotonic() - began

    async def stats(self) -> dict[str, float]:
        """Requests in the engine, tokens sampled by those that ended, and seconds that the last load took."""
        return {
            "batch": len(self._running),
            "tokens": self._tokens,
            "version": self._version,
            "load_seconds": self._load_seconds,
        }

    async def close(self) -> None:
        """End vLLM's processes."""
        self._engine.shutdown()

    def _sampling_params(self, request: Request) -> Any:
        params: SamplingParams = request.params
        seed = self._seed if params.seed is None else params.seed
        return self._vllm.SamplingParams(
            n=params.n,
            max_tokens=params.max_tokens,
            temperature=params.temperature,
            stop=list(params.stop),
            stop_token_ids=[*params.stop_token_ids, *self.tokenizer.end_ids],
            seed=random_key(seed, request.request_id, 0) & 0x7FFF_FFFF,
            logprobs=0,  # of the sampled tokens, and of no others
        )

    def _completion(self, request: Request, output: Any, version: int) -> Completion:
        """From vLLM's; None is one that was aborted before its first token."""
        tokens = list(output.token_ids) if output else []
        logprobs = [at[token].logprob for at, token in zip(output.logprobs, tokens, strict=True)] if output else []
        return Completion(
            prompt_ids=torch.tensor(request.prompt, dtype=torch.int64),
            token_ids=torch.tensor(tokens, dtype=torch.int64),
            logprobs=torch.tensor(logprobs, dtype=torch.float32),
            text=output.text if output else "",
            stop_reason=REASONS[output.finish_reason] if output else "aborted",
            version=version,
            max_version=self._version,
            request_id=request.request_id,
        )

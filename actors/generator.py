"""Generator: an actor that samples completions, many requests at a time, while new weights come in."""

from __future__ import annotations

import asyncio
import copy
import queue
import threading
import time
import uuid
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeVar, cast

from actors.decode import DecodeLoop, Request, Weights
from actors.models import Model, Tokenizer, load_model
from actors.types import Completion, Message, Prompt, SamplingParams
from forgectl import ForgeActor, endpoint

if TYPE_CHECKING:
    from actors.weights import WeightStore

REMEMBERED = 1024
"""Requests whose completions are kept, for callers who ask again."""
T = TypeVar("T")


class Backend(Protocol):
    """What samples for a Generator. All methods are called in its event loop."""

    tokenizer: Tokenizer

    @property
    def version(self) -> int:
        """Of the weights that sample now."""
        ...

    async def generate(self, request: Request) -> list[Completion]:
        """The completions of a request; a cancellation takes it out of the batch."""
        ...

    async def abort(self, request_id: str) -> bool:
        """End a request with what it has; False if there is no such request."""
        ...

    async def load(self, weights: Weights, *, drain: bool) -> None:
        """Sample with these weights from the next token on; with `drain` once what is in the batch has ended."""
        ...

    async def stats(self) -> dict[str, float]:
        """Figures of now."""
        ...

    async def close(self) -> None:
        """End. Requests that wait are cancelled."""
        ...


class TorchBackend:
    """A DecodeLoop in a thread of its own, so that no step of it holds the event loop up.

    When the loop raises, every request that waits raises the same, and so does all that comes later.
    """

    def __init__(self, loop: DecodeLoop, *, recompute: bool = False) -> None:
        """recompute: after new weights compute the keys and values of what is in the batch anew."""
        self.tokenizer = copy.deepcopy(loop.tokenizer)  # two threads must not use one
        self._loop, self._recompute = loop, recompute
        self._waiting: dict[str, Future[list[Completion]]] = {}
        self._loads: deque[tuple[Weights, bool, Future[None]]] = deque()
        self._load_seconds = 0.0
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="decode", daemon=True)
        self._thread.start()

    @property
    def version(self) -> int:
        """Of the weights that sample now."""
        return self._loop.version

    async def generate(self, request: Request) -> list[Completion]:
        """The completions of a request. Raises ValueError for one that the model cannot take."""
        done: Future[list[Completion]] = Future()
        try:
            await self._call(lambda: self._add(request, done))
            return await asyncio.wrap_future(done)
        except asyncio.CancelledError:
            with suppress(Exception):
                self._send(lambda: self._abort(request.request_id))
            raise

    async def abort(self, request_id: str) -> bool:
        """End a request with what it has; False if there is no such request."""
        return await self._call(lambda: self._abort(request_id))

    async def load(self, weights: Weights, *, drain: bool) -> None:
        """Sample with these weights from the next token on. Raises ValueError where they are of another model."""
        done: Future[None] = Future()
        await self._call(lambda: self._loads.append((weights, drain, done)))
        await asyncio.wrap_future(done)

    async def stats(self) -> dict[str, float]:
        """Those of the loop, and `load_seconds`, for which the last load of weights held it up."""
        return await self._call(lambda: {**self._loop.stats(), "load_seconds": self._load_seconds})

    async def close(self) -> None:
        """End the thread. Requests that wait raise RuntimeError."""
        with suppress(Exception):
            await self._call(self._end)
        await asyncio.to_thread(self._thread.join)

    async def _call(self, function: Callable[[], T]) -> T:
        """What a function returns or raises in the thread, between two steps."""
        return await asyncio.wrap_future(self._send(function))

    def _send(self, function: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()
        with self._lock:
            if self._failure is not None:
                raise self._failure
            self._calls.put((function, future))
        return future

    # -------------------------------------------------------------- in the thread

    def _run(self) -> None:
        try:
            while True:
                while not self._calls.empty() or (self._loop.idle and not self._loads):  # idle: wait for a call
                    self._answer(*self._calls.get())
                self._load()
                for request_id, completions in self._loop.step(admit=not self._loads).items():
                    _resolve(self._waiting.pop(request_id), completions)
        except BaseException as e:
            self._fail(e)

    def _answer(self, function: Callable[[], Any], future: Future[Any]) -> None:
        try:
            result = function()
        except Exception as e:
            _resolve(future, error=e)
        except SystemExit:
            _resolve(future, None)
            raise
        else:
            _resolve(future, result)

    def _add(self, request: Request, done: Future[list[Completion]]) -> None:
        self._loop.add(request)
        self._waiting[request.request_id] = done

    def _abort(self, request_id: str) -> bool:
        completions = self._loop.abort(request_id)
        if completions is not None:
            _resolve(self._waiting.pop(request_id), completions)
        return completions is not None

    def _load(self) -> None:
        """Load the weights that wait; those that are to drain the batch once it is empty."""
        while self._loads and not (self._loads[0][1] and self._loop.active):
            weights, _, done = self._loads.popleft()
            began = time.perf_counter()
            try:
                self._loop.load(weights, recompute=self._recompute)
            except ValueError as e:  # they are of another model, and nothing was copied
                _resolve(done, error=e)
            else:
                self._load_seconds = time.perf_counter() - began
                _resolve(done, None)

    def _end(self) -> None:
        raise SystemExit

    def _fail(self, error: BaseException) -> None:
        """Have all that waits raise the error, and all that comes later."""
        with self._lock:
            self._failure = RuntimeError("the generator has ended") if isinstance(error, SystemExit) else error
        waiting: list[Future[Any]] = [*self._waiting.values(), *(done for _, _, done in self._loads)]
        while not self._calls.empty():
            waiting.append(self._calls.get()[1])
        for future in waiting:
            _resolve(future, error=self._failure)


def _resolve(future: Future[Any], result: Any = None, *, error: BaseException | None = None) -> None:
    """Set the outcome, unless nobody waits for it any more."""
    if future.set_running_or_notify_cancel():
        future.set_exception(error) if error else future.set_result(result)


class Generator(ForgeActor):
    """Samples completions of prompts with a language model; requests come and go at any token.

    It is one process with one copy of the model: more of them are the replicas of a service. New weights are copied
    into the model between two tokens, and requests go on. An exception in sampling is raised by every call that waits,
    so it ends the launch unless it is caught.
    """

    max_concurrent_requests: ClassVar[int] = 4096

    def __init__(
        self,
        model: Model,
        sampling_params: SamplingParams | Mapping[str, Any] | None = None,
        weights: str | WeightStore | None = None,
        max_batch: int = 64,
        dtype: str = "auto",
        device: str = "auto",
        backend: Literal["torch", "vllm"] = "torch",
        seed: int = 0,
        *,
        max_length: int | None = None,
        recompute: bool = False,
    ) -> None:
        """What it samples with.

        Args:
            model: as for `load_model`; for vLLM a folder.
            sampling_params: for requests that bring none.
            weights: the store from which `update_weights` takes them, or its name. If it has a version, `setup` loads
                the latest: a replica that was started again has what the others have.
            max_batch: sequences that are decoded at once, at most.
            dtype: as for `load_model`.
            device: as for `load_model`; vLLM chooses its own.
            backend: "torch" is the decode loop of `actors.decode`; "vllm" needs vLLM, and a GPU.
            seed: for requests that bring none.
            max_length: tokens of prompt and response together; None: what the model was made for.
            recompute: after new weights compute the keys and values of what is in the batch anew. (torch)
        """
        super().__init__()
        if backend not in {"torch", "vllm"}:
            raise ValueError(f'backend is "torch" or "vllm", not {backend!r}')
        self._model, self._dtype, self._device, self._backend_kind = model, dtype, device, backend
        self._params = _sampling_params(sampling_params)
        self._weights = weights
        self._limits: dict[str, Any] = {"max_batch": max_batch, "max_length": max_length, "seed": seed}
        self._recompute = recompute
        self._calls: dict[str, _Call] = {}  # by request_id, while somebody waits
        self._ended: OrderedDict[str, _Call] = OrderedDict()  # the latest REMEMBERED others

    @endpoint
    async def setup(self) -> None:
        """Load the model, and the latest weights of the store."""
        if self.size != 1:
            raise ValueError(f"a Generator has one process, not {self.size}; use num_replicas={self.size} of a service")
        self._updating = asyncio.Lock()
        self._store = _store(self._weights)
        self._backend = await asyncio.to_thread(self._new_backend)
        if self._store is not None and self._store.latest() is not None:
            await self.update_weights()

    def _new_backend(self) -> Backend:
        if self._backend_kind == "vllm":
            from actors.vllm import VllmBackend

            return VllmBackend(self._model, dtype=self._dtype, store=self._store, **self._limits)
        loaded = load_model(self._model, dtype=self._dtype, device=self._device)
        return TorchBackend(DecodeLoop(loaded, **self._limits), recompute=self._recompute)

    async def __cleanup__(self, exc: BaseException | None) -> None:
        """End the thread that decodes."""
        if hasattr(self, "_backend"):
            await self._backend.close()

    @endpoint(concurrent=True, idempotent=True)
    async def generate(
        self,
        prompt: Prompt,
        sampling_params: SamplingParams | Mapping[str, Any] | None = None,
        priority: int = 0,
        request_id: str | None = None,
    ) -> list[Completion]:
        """The `n` completions of a prompt, in order.

        Args:
            prompt: text, token ids, or messages, to which the chat template is applied.
            sampling_params: how to sample; None: as the constructor has it.
            priority: lower goes first.
            request_id: a request of the same id is the same request: it is sampled once, however often it is made, and
                another replica samples the same tokens with the same weights. None: one of its own, which with a `seed`
                depends on prompt and parameters alone.

        Raises ValueError for a prompt that is empty or too long, and for an id that another prompt or other parameters
        have.
        """
        params = self._params if sampling_params is None else _sampling_params(sampling_params)
        ids = _token_ids(prompt, self._backend.tokenizer)
        if request_id is None:
            same = blake2b(repr((ids, params)).encode(), digest_size=16).hexdigest()
            request_id = uuid.uuid4().hex if params.seed is None else same
        return await self._once(Request(request_id, ids, params, priority))

    async def _once(self, request: Request) -> list[Completion]:
        """Make a request, or wait for the same one that is under way."""
        name = request.request_id
        if name in self._ended:
            self._calls[name] = self._ended.pop(name)
        call = self._calls.get(name)
        if call is None:
            call = self._calls[name] = _Call(request, asyncio.ensure_future(self._backend.generate(request)))
        elif (call.request.prompt, call.request.params) != (request.prompt, request.params):
            raise ValueError(f"request_id {name!r} belongs to a request with another prompt or other parameters")
        call.callers += 1
        try:
            return await asyncio.shield(call.task)
        finally:
            call.callers -= 1
            if not call.callers:
                self._forget(name, call)

    def _forget(self, name: str, call: _Call) -> None:
        """End a request that nobody waits for; keep the completions of one that has ended, for a while."""
        del self._calls[name]
        if not call.task.done() or call.task.cancelled() or call.task.exception():
            call.task.cancel()
            return
        self._ended[name] = call
        if len(self._ended) > REMEMBERED:
            self._ended.popitem(last=False)

    @endpoint(concurrent=True)
    async def update_weights(self, version: int | None = None, source: Any = None, drain: bool = False) -> int:
        """Sample with other weights of the store from the next token on; returns their version.

        Args:
            version: which; None: the latest. It must be published.
            source: the handle of one rank of an actor on another host, as for `WeightStore.receive`; None: the weights
                are on this host.
            drain: first finish what is in the batch, while new requests wait.

        Raises ValueError where the weights are of another model, or the constructor was given no store.
        """
        if self._store is None:
            raise ValueError("this Generator has no store of weights; give its constructor `weights`, the store's name")
        async with self._updating:
            if source is not None:
                fetched = await self._store.receive(source, version)
            else:
                fetched = await asyncio.to_thread(self._store.fetch, version)
            if fetched.version != self._backend.version:
                await self._backend.load(fetched, drain=drain)
            return fetched.version

    @endpoint(concurrent=True)
    async def get_version(self) -> int:
        """The version of the weights; 0 before the first update."""
        return self._backend.version

    @endpoint(concurrent=True)
    async def stats(self) -> dict[str, float]:
        """Sequences in the batch, requests in the queue, tokens so far, tokens/s, version, seconds of the last load."""
        return await self._backend.stats()

    @endpoint(concurrent=True)
    async def abort(self, request_id: str) -> bool:
        """End a request with the tokens it has, for whoever waits for it; False if this replica has no such request.

        Of a service, `fanout` reaches the replica that has it.
        """
        return await self._backend.abort(request_id)


@dataclass(eq=False)
class _Call:
    """A request and those who wait for it."""

    request: Request
    task: asyncio.Future[list[Completion]]
    callers: int = 0


def _sampling_params(given: SamplingParams | Mapping[str, Any] | None) -> SamplingParams:
    """They may come as a mapping, as from a spec."""
    return given if isinstance(given, SamplingParams) else SamplingParams(**(given or {}))


def _store(weights: str | WeightStore | None) -> WeightStore | None:
    if not isinstance(weights, str):
        return weights
    from actors.weights import WeightStore

    return WeightStore(weights)


def _token_ids(prompt: Prompt, tokenizer: Tokenizer) -> list[int]:
    if isinstance(prompt, str):
        return tokenizer.encode(prompt)
    if len(prompt) and isinstance(prompt[0], Mapping):
        return tokenizer.chat(cast("Sequence[Message]", prompt))
    return [int(i) for i in cast("Sequence[int]", prompt)]

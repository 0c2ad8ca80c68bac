"""The decode loop: samples many completions together, one token of each at a time. Without asyncio and forgectl.

Requests join and leave between any two tokens (continuous batching, Yu et al. 2022: Orca). B is the number of sequences
that are decoded, V the size of the vocabulary. Times are in seconds.
"""

from __future__ import annotations

import heapq
import itertools
import math
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, NamedTuple, Protocol

import torch

from actors.models import Decoder, LoadedModel, head_only_at
from actors.types import Completion, SamplingParams, StopReason

PREFILL_TOKENS = 2048
"""The most prompt tokens, padding included, between two tokens of the others; a longer prompt is taken alone."""
STEPS_AHEAD = 32
"""Steps for which random numbers are made at once."""
RECENT_STEPS = 200
"""Steps over which `stats` averages."""


@dataclass(frozen=True, eq=False)
class Request:
    """Asks for completions of one prompt."""

    request_id: str
    """With the seed it determines the random numbers."""
    prompt: Sequence[int]
    params: SamplingParams = field(default_factory=SamplingParams)
    priority: int = 0
    """Lower goes first, as in vLLM; equal ones in the order of their coming."""


class Weights(Protocol):
    """A version of a model's weights, as `WeightStore.fetch` returns it."""

    version: int

    def copy_to(self, targets: Mapping[str, torch.Tensor]) -> None:
        """Copy them into a model's parameters, by name, in place; raises ValueError where they do not fit."""
        ...


# ------------------------------------------------------------------ sampling


def random_key(seed: int, request_id: str, index: int) -> int:
    """A 64-bit key for the random numbers of a request's completion number `index`."""
    digest = blake2b(f"{seed} {index} {request_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def uniforms(keys: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Random numbers in [0, 1), float64, that depend on key and position alone, int64, which are broadcast.

    The generator is SplitMix64 (Steele, Lea and Flood 2014), started at the key and taken at the position.
    """
    z = keys + (positions + 1) * -0x61C8864680B583EB
    z = (z ^ _shifted(z, 30)) * -0x40A7B892E31B1A47
    z = (z ^ _shifted(z, 27)) * -0x6B2FB644ECCEEE15
    return _shifted(z ^ _shifted(z, 31), 16).double() * 2.0**-48


def _shifted(z: torch.Tensor, bits: int) -> torch.Tensor:
    """Shifted right, with zeros coming in, which torch has for unsigned numbers only."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def sample(
    logits: torch.Tensor,
    uniform: torch.Tensor,
    temperature: torch.Tensor,
    restricted: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One token for each row, and its log-probability over the whole vocabulary at the sampling temperature.

    logits: [B, V]. uniform: float64 [B]. temperature: [B]; at 0 the likeliest token is taken, and its log-probability
    is that at temperature 1. restricted: int64 [C], the rows with top_k or top_p; these are [C], and top_k 0 is all
    tokens. Returns int64 [B], float32 [B]; the log-probability is NaN where a logit is.
    """
    greedy = temperature == 0
    probabilities = torch.softmax(logits.float() / torch.where(greedy, 1.0, temperature)[:, None], -1)
    allowed = probabilities
    if len(restricted):
        allowed = probabilities.index_copy(0, restricted, restrict(probabilities[restricted], top_k, top_p))
    # The token at which the cumulated probability exceeds the random number; in float32 rare tokens would vanish.
    cumulated = allowed.cumsum(-1, dtype=torch.float64)
    tokens = torch.searchsorted(cumulated, (uniform * cumulated[:, -1])[:, None], right=True)[:, 0]
    tokens = torch.where(greedy, probabilities.argmax(-1), tokens).clamp(max=logits.shape[1] - 1)  # beyond it: of NaN
    return tokens, probabilities.gather(1, tokens[:, None])[:, 0].log()


def restrict(probabilities: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """The probabilities [B, V] with 0 for tokens that are not among the top_k, and then not within top_p of these."""
    size = probabilities.shape[1]
    limit = torch.where(top_k > 0, top_k, size)[:, None]
    width = 1024  # more than most rows need; to sort all of a large vocabulary costs more than the model
    while True:
        width = min(width, size)
        values, tokens = probabilities.topk(width)
        values = values.masked_fill(torch.arange(width, device=values.device) >= limit, 0.0)
        total = torch.where(limit > width, 1.0, values.sum(1, keepdim=True))
        before = values.cumsum(1) - values
        if width == size or bool(((limit <= width) | (before[:, -1:] >= top_p[:, None])).all()):
            kept = values.masked_fill(before >= top_p[:, None] * total, 0.0)
            return torch.zeros_like(probabilities).scatter_(1, tokens, kept)
        width *= 8


# ------------------------------------------------------------------ keys and values


class _Collected:
    """Keys and values of one forward pass over prompts: [N, K, T, D] for each layer."""

    def __init__(self) -> None:
        self.layers: list[tuple[torch.Tensor, torch.Tensor]] = []

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, *args: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.layers.append((keys, values))
        return keys, values

    def get_seq_length(self, layer: int = 0) -> int:
        return 0


class SlotCache:
    """Keys and values of the sequences that are decoded: a row each, and room that grows by need.

    A row holds what its sequence has, and behind that leftovers, which the attention mask hides.
    """

    def __init__(self, max_rows: int, max_length: int) -> None:
        self.max_rows, self.max_length = max_rows, max_length
        self._layers: list[list[torch.Tensor]] = []  # keys and values, [rows, length, K, D]
        self._rows = self._length = 0
        self._at = torch.empty(0)
        self._seen = 0

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return sum(tensor.nbytes for layer in self._layers for tensor in layer)

    def reserve(self, rows: int, length: int) -> None:
        """Make room for so many rows and so many tokens in each."""
        if rows <= self._rows and length <= self._length:
            return
        if rows > self._rows:
            self._rows = min(self.max_rows, max(rows, 2 * self._rows))
        if length > self._length:
            self._length = min(self.max_length, max(length, 2 * self._length, 64))
        for layer in self._layers:
            for i, old in enumerate(layer):
                layer[i] = old.new_zeros(self._rows, self._length, *old.shape[2:])
                layer[i][: old.shape[0], : old.shape[1]] = old

    def put(self, rows: int | slice, prompt: Sequence[tuple[torch.Tensor, torch.Tensor]], length: int) -> None:
        """Set rows to the first `length` tokens of a prompt's keys and values, [K, T, D] for each layer."""
        for layer, pair in enumerate(prompt):
            for mine, theirs in zip(self._layer(layer, *pair), pair, strict=True):
                mine[rows, :length] = theirs[:, :length].transpose(0, 1)

    def move(self, sources: list[int], targets: list[int], length: int) -> None:
        """Copy the first `length` tokens of rows to as many others."""
        for layer in self._layers:
            for tensor in layer:
                tensor[targets, :length] = tensor[sources, :length]

    def write_at(self, lengths: torch.Tensor, longest: int) -> None:
        """Have the next forward pass write one token into each row, at these positions: int64 [B], up to `longest`."""
        self._at = torch.arange(len(lengths), device=lengths.device) * self._length + lengths
        self._seen = longest + 1

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, *args: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the keys and values [B, K, 1, D] of a layer: all of the rows, [B, K, S, D]."""
        mine = self._layer(layer, keys, values)
        for tensor, new in zip(mine, (keys, values), strict=True):
            tensor.flatten(0, 1).index_copy_(0, self._at, new[:, :, 0])
        rows = keys.shape[0]
        return mine[0][:rows, : self._seen].transpose(1, 2), mine[1][:rows, : self._seen].transpose(1, 2)

    def get_seq_length(self, layer: int = 0) -> int:
        """Tokens of the longest row, as models of transformers ask."""
        return self._seen - 1

    def _layer(self, index: int, keys: torch.Tensor, values: torch.Tensor) -> list[torch.Tensor]:
        if index == len(self._layers):
            shapes = [(self._rows, self._length, t.shape[-3], t.shape[-1]) for t in (keys, values)]
            self._layers.append([keys.new_zeros(shape) for shape in shapes])
        return self._layers[index]


# ------------------------------------------------------------------ the loop


class _Prompt(NamedTuple):
    """What the model computed of a prompt."""

    layers: list[tuple[torch.Tensor, torch.Tensor]]
    """Keys and values, [K, T, D] for each layer."""
    logits: torch.Tensor
    """[V]: of the first token of a response."""


class _Running:
    """A request in the loop."""

    def __init__(self, request: Request, limit: int) -> None:
        self.request, self.limit = request, limit
        self.prompt_ids = torch.tensor(request.prompt, dtype=torch.int64)
        self.started = 0  # how many of its completions are or were in the batch
        self.computed: _Prompt | None = None  # while completions are to start
        self.completions: dict[int, Completion] = {}


@dataclass(eq=False)
class _Sequence:
    """A completion that is being sampled."""

    of: _Running
    index: int
    key: int
    ends: frozenset[int]
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    version: int = 0
    max_version: int = 0

    @property
    def cached(self) -> int:
        """Tokens whose keys and values are in the cache: all but the newest one that was sampled."""
        return len(self.of.request.prompt) + max(0, len(self.tokens) - 1)


@dataclass
class _Batch:
    """What the next step computes with, on the model's device; made anew when a sequence joins or leaves.

    B counts all sequences; those that have just joined are the last, and their first logits are there already.
    """

    tokens: torch.Tensor
    """[B, without those that have just joined], the newest of each sequence."""
    lengths: torch.Tensor
    """[B, the same], tokens in the cache."""
    longest: int
    uniforms: list[torch.Tensor]
    """[B] for each of the next steps."""
    temperature: torch.Tensor
    restricted: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    """These four as `sample` takes them."""


class DecodeLoop:
    """Samples completions with one model, whose weights may change between any two tokens.

    A completion's random numbers depend on seed, request_id, index and position, and so not on what else is in the
    batch. (The logits depend on it in their last bits, as matrix products of other sizes round otherwise.) Memory
    grows by need, up to max_batch sequences of max_length tokens.
    """

    def __init__(
        self,
        model: LoadedModel,
        *,
        max_batch: int = 64,
        max_length: int | None = None,
        seed: int = 0,
        version: int = 0,
    ) -> None:
        """max_length: tokens of prompt and response, at most; None: what the model was made for.

        Raises ValueError where a layer does not attend to all earlier tokens, as with sliding windows.
        """
        if max_batch < 1:
            raise ValueError(f"max_batch is {max_batch}; at least 1 is needed")
        kinds = set(getattr(model.config, "layer_types", None) or ()) - {"full_attention"}
        if kinds:
            raise ValueError(
                f"this model has layers of {', '.join(sorted(kinds))}, which the decode loop cannot compute"
            )
        self.module, self.tokenizer = model.module.eval(), model.tokenizer
        if isinstance(self.module, Decoder):
            self.module.join_weights()
        self.max_batch, self.seed, self.version = max_batch, seed, version
        self.max_length: int = max_length or model.config.max_position_embeddings
        self._vocabulary: int = model.config.vocab_size
        self._device = next(self.module.parameters()).device
        self._cache = SlotCache(max_batch, self.max_length)
        self._rows: list[_Sequence] = []
        self._batch: _Batch | None = None
        self._first: list[torch.Tensor] = []  # logits [n, V] of the rows that have joined since the last step
        self._queue: list[tuple[int, int, _Running]] = []
        self._order = itertools.count()
        self._requests: dict[str, _Running] = {}
        self._recent: deque[tuple[float, int]] = deque(maxlen=RECENT_STEPS)
        self._tokens = 0

    # -------------------------------------------------------------- requests

    def add(self, request: Request) -> None:
        """Queue a request.

        Raises ValueError for a prompt that is empty, too long or of unknown tokens, and for an id that is in the loop.
        """
        prompt = request.prompt
        if not prompt:
            raise ValueError(f"request {request.request_id!r} has an empty prompt; at least one token is needed")
        if len(prompt) >= self.max_length:
            raise ValueError(
                f"request {request.request_id!r} has a prompt of {len(prompt)} tokens; "
                f"prompt and response together may have {self.max_length}"
            )
        if min(prompt) < 0 or max(prompt) >= self._vocabulary:
            raise ValueError(f"request {request.request_id!r} has tokens outside 0 … {self._vocabulary - 1}")
        if request.request_id in self._requests:
            raise ValueError(f"request {request.request_id!r} is in the loop already")
        running = _Running(request, min(request.params.max_tokens, self.max_length - len(prompt)))
        self._requests[request.request_id] = running
        heapq.heappush(self._queue, (request.priority, next(self._order), running))

    @torch.inference_mode()
    def abort(self, request_id: str) -> list[Completion] | None:
        """Take a request out: its completions, cut where they are; None if it is not in the loop."""
        running = self._requests.pop(request_id, None)
        if running is None:
            return None
        self._queue = [entry for entry in self._queue if entry[2] is not running]
        heapq.heapify(self._queue)
        self._leave({row: "aborted" for row, sequence in enumerate(self._rows) if sequence.of is running})
        for index in range(running.started, running.request.params.n):
            running.completions[index] = self._completion(self._sequence(running, index), "aborted")
        return [running.completions[index] for index in sorted(running.completions)]

    @property
    def active(self) -> int:
        """Number of sequences in the batch."""
        return len(self._rows)

    @property
    def idle(self) -> bool:
        """Whether nothing is to be done."""
        return not self._requests

    def stats(self) -> dict[str, float]:
        """Sequences in the batch, requests that wait, tokens sampled so far, and tokens/s over the last 200 steps."""
        seconds, tokens = (sum(values) for values in zip(*self._recent, strict=True)) if self._recent else (0.0, 0)
        return {
            "batch": len(self._rows),
            "queue": len(self._queue),
            "tokens": self._tokens,
            "tokens_per_second": tokens / seconds if seconds else 0.0,
            "mean_batch": tokens / len(self._recent) if self._recent else 0.0,
            "cache_bytes": self._cache.nbytes,
            "version": self.version,
        }

    # -------------------------------------------------------------- weights

    @torch.inference_mode()
    def load(self, weights: Weights, *, recompute: bool = False) -> None:
        """Copy new weights into the model, in place. Sequences in the batch go on with them.

        Their keys and values stay as the old weights computed them; with `recompute` they are computed anew, as prompts
        whose first tokens are yet to be sampled always are. Raises ValueError where the weights are of another model.
        """
        weights.copy_to(dict(self.module.named_parameters()))
        self.version = weights.version
        for _, _, waiting in self._queue:
            waiting.computed = None
        if recompute:
            prompts = [[*s.of.request.prompt, *s.tokens][: s.cached] for s in self._rows]
            for row, computed in enumerate(self._prefill(prompts)):
                self._cache.put(row, computed.layers, len(prompts[row]))

    # -------------------------------------------------------------- a step

    @torch.inference_mode()
    def step(self, *, admit: bool = True) -> dict[str, list[Completion]]:
        """Sample one token of each sequence: the completions of requests that are done, by request_id.

        admit: let waiting requests join before. Raises FloatingPointError where the model computes NaN.
        """
        began = time.perf_counter()
        if admit:
            self._admit()
        if not self._rows:
            return {}
        tokens, logprobs = self._sample()
        for sequence, token, logprob in zip(self._rows, tokens, logprobs, strict=True):
            if math.isnan(logprob):
                raise FloatingPointError(
                    f"the model computed NaN for request {sequence.of.request.request_id!r} after "
                    f"{len(sequence.tokens)} tokens, with version {self.version} of the weights; look at the training"
                )
            if not sequence.tokens:
                sequence.version = self.version
            sequence.max_version = self.version
            sequence.tokens.append(token)
            sequence.logprobs.append(logprob)
        self._recent.append((time.perf_counter() - began, len(tokens)))
        self._tokens += len(tokens)
        reasons = {row: reason for row, sequence in enumerate(self._rows) if (reason := self._end_of(sequence))}
        touched = {self._rows[row].of.request.request_id: self._rows[row].of for row in reasons}
        self._leave(reasons)
        done = {name: r for name, r in touched.items() if len(r.completions) == r.request.params.n}
        for name in done:
            del self._requests[name]
        return {name: [r.completions[i] for i in sorted(r.completions)] for name, r in done.items()}

    def _sample(self) -> tuple[list[int], list[float]]:
        """Run the model for the newest token of each sequence, and sample the next."""
        if self._batch is None or not self._batch.uniforms:
            self._batch = self._new_batch()
        batch, logits = self._batch, self._first
        if len(batch.tokens):
            logits = [self._forward(batch), *logits]
        tokens, logprobs = sample(
            torch.cat(logits), batch.uniforms.pop(), batch.temperature, batch.restricted, batch.top_k, batch.top_p
        )
        if self._first:
            self._first, self._batch = [], None
        else:
            batch.tokens, batch.lengths, batch.longest = tokens, batch.lengths + 1, batch.longest + 1
        return tokens.tolist(), logprobs.tolist()

    def _forward(self, batch: _Batch) -> torch.Tensor:
        """Logits [B, V] of what follows the newest tokens, whose keys and values go into the cache."""
        self._cache.reserve(len(self._rows), batch.longest + 1)
        self._cache.write_at(batch.lengths, batch.longest)
        seen = torch.arange(batch.longest + 1, device=self._device) <= batch.lengths[:, None]
        logits: torch.Tensor = self.module(
            input_ids=batch.tokens[:, None],
            position_ids=batch.lengths[:, None],
            attention_mask=seen[:, None, None],
            past_key_values=self._cache,
        ).logits[:, -1]
        return logits

    def _new_batch(self) -> _Batch:
        def column(values: list[Any], dtype: torch.dtype = torch.int64) -> torch.Tensor:
            return torch.tensor(values, dtype=dtype).to(self._device)

        params = [sequence.of.request.params for sequence in self._rows]
        restricted = [row for row, p in enumerate(params) if p.top_k > 0 or p.top_p < 1]
        going_on = [sequence for sequence in self._rows if sequence.tokens]
        lengths = [sequence.cached for sequence in going_on]
        keys = column([sequence.key for sequence in self._rows])
        positions = column([len(sequence.tokens) for sequence in self._rows])
        steps = torch.arange(STEPS_AHEAD - 1, -1, -1, device=self._device)[:, None]  # they are taken from the end
        return _Batch(
            tokens=column([sequence.tokens[-1] for sequence in going_on]),
            lengths=column(lengths),
            longest=max(lengths, default=0),
            uniforms=list(uniforms(keys, positions + steps)),
            temperature=column([p.temperature for p in params], torch.float32),
            restricted=column(restricted),
            top_k=column([params[row].top_k for row in restricted]),
            top_p=column([params[row].top_p for row in restricted], torch.float32),
        )

    # -------------------------------------------------------------- joining

    def _admit(self) -> None:
        """Let sequences join while there is room, those of a request together; its prompt is computed once."""
        joining: list[_Running] = []
        room = self.max_batch - len(self._rows)
        while room and self._queue:
            running = self._queue[0][2]
            if running.computed is None:
                longest = max(len(running.request.prompt), *(len(r.request.prompt) for r in joining), 1)
                if joining and (len(joining) + 1) * longest > PREFILL_TOKENS:
                    break
            joining.append(running)
            taken = min(room, running.request.params.n - running.started)
            room -= taken
            if running.started + taken == running.request.params.n:
                heapq.heappop(self._queue)
        if not joining:
            return
        fresh = [running for running in joining if running.computed is None]
        prompts = self._prefill([running.request.prompt for running in fresh])
        for running, computed in zip(fresh, prompts, strict=True):
            running.computed = computed
        self._batch = None
        for running in joining:
            self._start(running)

    def _start(self, running: _Running) -> None:
        """Give rows to completions of a request."""
        n, length, computed = running.request.params.n, len(running.request.prompt), running.computed
        assert computed is not None
        rows = slice(len(self._rows), min(self.max_batch, len(self._rows) + n - running.started))
        self._cache.reserve(rows.stop, length + 1)
        self._cache.put(rows, computed.layers, length)
        self._first.append(computed.logits.expand(rows.stop - rows.start, -1))
        while len(self._rows) < rows.stop:
            self._rows.append(self._sequence(running, running.started))
            running.started += 1
        if running.started == n:
            running.computed = None

    def _sequence(self, running: _Running, index: int) -> _Sequence:
        params = running.request.params
        seed = self.seed if params.seed is None else params.seed
        ends = self.tokenizer.end_ids | set(params.stop_token_ids)
        return _Sequence(running, index, random_key(seed, running.request.request_id, index), ends)

    @torch.inference_mode()
    def _prefill(self, prompts: Sequence[Sequence[int]]) -> list[_Prompt]:
        """Compute prompts in a few padded passes. Padding comes behind, where nothing attends to it."""
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        found: dict[int, _Prompt] = {}
        while order:
            longest = len(prompts[order[-1]])
            fitting = [i for i in order if 4 * len(prompts[i]) >= 3 * longest]
            chosen = fitting[-max(1, PREFILL_TOKENS // longest) :]
            del order[-len(chosen) :]
            padded = torch.tensor([[*prompts[i], *[0] * (longest - len(prompts[i]))] for i in chosen])
            last = torch.tensor([len(prompts[i]) - 1 for i in chosen])
            positions = torch.arange(longest, device=self._device)
            collected = _Collected()
            with head_only_at(self.module, torch.arange(len(chosen)).to(self._device), last.to(self._device)):
                logits = self.module(
                    input_ids=padded.to(self._device),
                    position_ids=positions[None],
                    attention_mask=(positions <= positions[:, None])[None, None],
                    past_key_values=collected,
                ).logits[0]
            for row, i in enumerate(chosen):
                found[i] = _Prompt([(keys[row], values[row]) for keys, values in collected.layers], logits[row])
        return [found[i] for i in range(len(prompts))]

    # -------------------------------------------------------------- leaving

    def _end_of(self, sequence: _Sequence) -> StopReason | None:
        """Why a sequence has ended with its newest token; None: it goes on."""
        if sequence.tokens[-1] in sequence.ends:
            return "stop"
        if stop := sequence.of.request.params.stop:
            window = 4 * max(map(len, stop)) + 8  # a character may be four tokens, and the first of them broken
            text = self.tokenizer.decode(sequence.tokens[-window:])
            if any(s in text for s in stop):
                return "stop"
        return "length" if len(sequence.tokens) >= sequence.of.limit else None

    def _leave(self, reasons: Mapping[int, StopReason]) -> None:
        """Take rows out of the batch. The last of those that stay move into their places."""
        if not reasons:
            return
        source = list(range(len(self._rows)))  # where the sequence of a row comes from
        for row in sorted(reasons, reverse=True):
            sequence = self._rows[row]
            sequence.of.completions[sequence.index] = self._completion(sequence, reasons[row])
            last, place = self._rows.pop(), source.pop()
            if row < len(self._rows):
                self._rows[row], source[row] = last, place
        if moved := [row for row, place in enumerate(source) if place != row]:
            self._cache.move([source[row] for row in moved], moved, max(self._rows[row].cached for row in moved))
        self._batch = None

    def _completion(self, sequence: _Sequence, reason: StopReason) -> Completion:
        request, tokens = sequence.of.request, sequence.tokens
        text = self.tokenizer.decode(tokens[:-1] if tokens and tokens[-1] in sequence.ends else tokens)
        cuts = [at for stop in request.params.stop if (at := text.find(stop)) >= 0]
        with torch.inference_mode(False):  # else they could have no part in a backward pass
            return Completion(
                prompt_ids=sequence.of.prompt_ids,
                token_ids=torch.tensor(tokens, dtype=torch.int64),
                logprobs=torch.tensor(sequence.logprobs, dtype=torch.float32),
                text=text[: min(cuts, default=None)],
                stop_reason=reason,
                version=sequence.version if tokens else self.version,
                max_version=sequence.max_version if tokens else self.version,
                request_id=request.request_id,
            )

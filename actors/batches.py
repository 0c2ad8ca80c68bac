"""Episodes as padded micro-batches, and the log-probabilities that a model gives to their responses.

B is the number of sequences, T the tokens of the longest one, R those of the longest response, V the vocabulary.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from actors.losses import entropy, log_probs
from actors.models import Decoder
from actors.types import Episode

SHORT = 256
"""The most tokens of a row of SharedPrompts: with more, attention to what is masked costs more than what is saved."""
PAYS = 0.8
"""The most tokens that SharedPrompts may leave of a batch, padding included."""
Shares = Sequence[Sequence[Episode]]
"""Episodes by rank."""


@dataclass(frozen=True, eq=False)
class Sequences:
    """Prompts, each followed by its response and then by padding, whose token ids are 0."""

    input_ids: Tensor
    """[B, T] int64."""
    lengths: Tensor
    """[B] int64: tokens of prompt and response. Only these tell padding from tokens, whatever the ids."""
    response_start: Tensor
    """[B] int64: tokens of the prompt, at least 1."""

    def __post_init__(self) -> None:
        """Check the shapes; raises ValueError."""
        rows, longest = self.input_ids.shape
        if self.lengths.shape != (rows,) or self.response_start.shape != (rows,):
            raise ValueError(
                f"lengths {tuple(self.lengths.shape)} and response_start {tuple(self.response_start.shape)} "
                f"must both be [{rows}], for input_ids of [{rows}, {longest}]"
            )
        if rows and not bool(
            ((self.response_start >= 1) & (self.response_start <= self.lengths) & (self.lengths <= longest)).all()
        ):
            raise ValueError("each row needs 1 <= response_start <= length <= T: what a first token follows is needed")

    @classmethod
    def of(cls, episodes: Sequence[Episode]) -> Sequences:
        """Those of some episodes. Raises ValueError as `check_episodes` does."""
        check_episodes(episodes)
        rows = [torch.cat([e.prompt_ids, e.token_ids]).long() for e in episodes]
        return cls(
            nn.utils.rnn.pad_sequence(rows, batch_first=True),
            torch.tensor([len(row) for row in rows]),
            torch.tensor([len(e.prompt_ids) for e in episodes]),
        )

    def to(self, device: torch.device) -> Sequences:
        """The same on a device."""
        return Sequences(self.input_ids.to(device), self.lengths.to(device), self.response_start.to(device))

    def rows(self, chosen: Sequence[int]) -> Sequences:
        """Some of the rows, with no more padding than they need."""
        lengths = self.lengths[list(chosen)]
        ids = self.input_ids[list(chosen), : int(lengths.max())]
        return Sequences(ids, lengths, self.response_start[list(chosen)])


def check_episodes(episodes: Sequence[Episode]) -> None:
    """Raise ValueError for an episode without a prompt, or whose tensors have different lengths."""
    for episode in episodes:
        if not episode.prompt_ids.shape[0]:  # much faster than len(), of which a step would make thousands
            raise ValueError(f"episode {episode.episode_id} has an empty prompt; begin it with at least one token")
        length, mask, ref = episode.token_ids.shape[0], episode.loss_mask, episode.ref_logprobs
        if mask.shape[0] != length or episode.logprobs.shape[0] != length or (ref is not None and len(ref) != length):
            found = {name: getattr(episode, name) for name in ("loss_mask", "logprobs", "ref_logprobs")}
            wrong = {n: len(tensor) for n, tensor in found.items() if tensor is not None and len(tensor) != length}
            raise ValueError(f"episode {episode.episode_id} has {length} token_ids, but {wrong}")


def split_by_tokens(lengths: Sequence[int], budget: int | None) -> list[list[int]]:
    """Indices of sequences in micro-batches of at most `budget` tokens, padding included; the longest come first.

    Sequences of similar length share a micro-batch. One that is longer than the budget has a micro-batch of its own.
    Without a budget all are in one.
    """
    parts: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if parts and (budget is None or (len(parts[-1]) + 1) * lengths[parts[-1][0]] <= budget):
            parts[-1].append(i)
        else:
            parts.append([i])
    return parts


def shares_of(data: Shares | Sequence[Episode], ranks: int) -> list[list[Episode]]:
    """The episodes of each rank: `data` itself if it has them by rank, else dealt out so that ranks have equal work.

    Raises ValueError for another number of ranks.
    """
    if all(isinstance(item, Episode) for item in data):
        by_length = sorted(cast("Sequence[Episode]", data), key=lambda e: -(len(e.prompt_ids) + len(e.token_ids)))
        return [by_length[rank::ranks] for rank in range(ranks)]
    shares = [list(share) for share in cast("Shares", data)]
    if len(shares) != ranks:
        raise ValueError(f"the data is for {len(shares)} ranks, but the mesh has {ranks}; is dp_size right?")
    return shares


def shares_of_some(shares: Shares, chosen: Sequence[bool]) -> list[list[Episode]]:
    """The episodes of all shares, in their order, that are chosen; dealt out anew where ranks then have less to do."""
    flags = iter(chosen)
    kept = [[episode for episode in share if next(flags)] for share in shares]
    by_prompt: dict[tuple[int, ...], list[Episode]] = {}  # one that several responses share is computed once
    for episode in itertools.chain.from_iterable(kept):
        by_prompt.setdefault(tuple(episode.prompt_ids.tolist()), []).append(episode)
    dealt: list[list[Episode]] = [[] for _ in shares]
    for group in sorted(by_prompt.values(), key=_tokens, reverse=True):
        min(dealt, key=_tokens).extend(group)
    return min(kept, dealt, key=lambda parts: max(map(_tokens, parts)))


def _tokens(episodes: Sequence[Episode]) -> int:
    return sum(e.prompt_ids.shape[0] + e.token_ids.shape[0] for e in episodes)


def demonstration(prompt_ids: Tensor, token_ids: Tensor, **fields: Any) -> Episode:
    """An episode for supervised training: a prompt [P] and the response [R] to be learnt, its end token included.

    `fields` are further fields of the episode, such as a `loss_mask` [R].
    """
    fields = {
        "episode_id": "demonstration",
        "group_id": "demonstration",
        "loss_mask": torch.ones(len(token_ids), dtype=torch.bool),
        "logprobs": torch.zeros(len(token_ids)),
        "reward": 0.0,
        "policy_version": 0,
        **fields,
    }
    return Episode(prompt_ids=prompt_ids, token_ids=token_ids, **fields)


def padded(rows: Sequence[Tensor], width: int) -> Tensor:
    """[R] tensors of unequal lengths as [B, width], with zeros behind each."""
    filled = nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
    return nn.functional.pad(filled, (0, width - filled.shape[1]))


def response_logprobs(
    module: nn.Module, batch: Sequences, temperature: float = 1.0, *, with_entropy: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities of the response tokens [B, R], 0 behind each response; and the entropy at each, if asked for.

    Both are of log-softmax over the whole vocabulary at a temperature. Logits are computed at the positions of
    responses alone: [tokens of all responses, V].
    """
    offsets = torch.arange(int((batch.lengths - batch.response_start).max()), device=batch.lengths.device)
    inside = offsets < (batch.lengths - batch.response_start)[:, None]  # [B, R]
    sequences, at = inside.nonzero(as_tuple=True)
    shared = SharedPrompts.of(batch, inside) if isinstance(module, Decoder) else None
    if shared is None:  # the logits of a token are at the position before it
        rows, columns, inputs = sequences, at + batch.response_start[sequences] - 1, {"input_ids": batch.input_ids}
    else:
        rows, columns, inputs = shared.rows, shared.columns, shared.inputs
    with _head_only_at(module, rows, columns):
        logits = module(**inputs).logits[0]
    found = log_probs(logits, batch.input_ids[sequences, at + batch.response_start[sequences]], temperature)
    entropies = entropy(logits, temperature) if with_entropy else None
    return _spread(found, inside), None if entropies is None else _spread(entropies, inside)


@dataclass(frozen=True, eq=False)
class SharedPrompts:
    """Responses to the same prompt in one row behind it, so that it is computed once. None sees another response.

    G is the number of prompts, T the tokens of the longest row, N those of all responses.
    """

    inputs: dict[str, Tensor]
    """input_ids and position_ids [G, T], attention_mask [G, 1, T, T]."""
    rows: Tensor
    """[N]: where each response token's logits are, in the order of the batch."""
    columns: Tensor

    @classmethod
    def of(cls, batch: Sequences, inside: Tensor) -> SharedPrompts | None:
        """Those of a batch, whose response tokens are where `inside` [B, R] is True; None where it would not pay."""
        prompts, lengths = batch.response_start, batch.lengths - batch.response_start
        count, longest = batch.input_ids.shape
        places = torch.arange(longest, device=prompts.device)
        text = batch.input_ids.where(places < prompts[:, None], -1)
        _, group = text[:, : int(prompts.max())].unique(dim=0, return_inverse=True)
        order = group.argsort(stable=True)
        before = lengths[order].cumsum(0) - lengths[order]  # tokens of the responses before, in that order
        sizes = group.bincount()
        first = sizes.cumsum(0) - sizes  # the place in that order of each group's first
        start = prompts.clone()  # the column at which a response begins
        start[order] += before - before[first][group[order]]
        width = int((start + lengths).max())
        if width > SHORT or len(sizes) * width > PAYS * count * longest:
            return None
        owner = prompts.new_full((len(sizes), width), -1)  # the response of a token; -1: padding, -2: the prompt
        ids, positions = torch.zeros_like(owner), torch.zeros_like(owner)
        sequence, at = (text >= 0).nonzero(as_tuple=True)
        ids[group[sequence], at] = batch.input_ids[sequence, at]
        positions[group[sequence], at], owner[group[sequence], at] = at, -2
        sequence, at = inside.nonzero(as_tuple=True)
        row, column = group[sequence], start[sequence] + at
        ids[row, column] = batch.input_ids[sequence, prompts[sequence] + at]
        positions[row, column], owner[row, column] = prompts[sequence] + at, sequence
        sees = (owner[:, None] == owner[:, :, None]) | (owner == -2)[:, None]
        mask = sees & torch.ones(width, width, dtype=torch.bool, device=ids.device).tril()
        inputs = {"input_ids": ids, "position_ids": positions, "attention_mask": mask[:, None]}
        return cls(inputs, row, torch.where(at == 0, prompts[sequence], column) - 1)


def _spread(values: Tensor, inside: Tensor) -> Tensor:
    """Values of the positions where `inside` [B, R] is True, as [B, R] with zeros elsewhere."""
    return values.new_zeros(inside.shape).masked_scatter(inside, values)


@contextlib.contextmanager
def _head_only_at(module: nn.Module, rows: Tensor, columns: Tensor) -> Iterator[None]:
    """Let the head of a language model see these positions alone: [B, T, C] becomes [1, N, C].

    By a hook on the body, not by calls of the two: a sharded model must be called as a whole.
    """

    def choose(_body: nn.Module, _inputs: Any, output: Any) -> Any:
        if isinstance(output, Tensor):
            return output[rows, columns][None]
        output.last_hidden_state = output.last_hidden_state[rows, columns][None]  # of transformers
        return output

    body: nn.Module = getattr(module, "base_model", None) or module.model
    hook = body.register_forward_hook(choose)
    try:
        yield
    finally:
        hook.remove()

"""Episodes as padded micro-batches, and the log-probabilities that a model gives to their responses.

B is the number of sequences, T the tokens of the longest one, R those of the longest response, V the vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from actors.losses import entropy, log_probs
from actors.types import Episode

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
        if not len(episode.prompt_ids):
            raise ValueError(f"episode {episode.episode_id} has an empty prompt; begin it with at least one token")
        found = {name: getattr(episode, name) for name in ("loss_mask", "logprobs", "ref_logprobs")}
        lengths = {name: len(tensor) for name, tensor in found.items() if tensor is not None}
        if wrong := {name: length for name, length in lengths.items() if length != len(episode.token_ids)}:
            raise ValueError(f"episode {episode.episode_id} has {len(episode.token_ids)} token_ids, but {wrong}")


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
    filled = rows[0].new_zeros(len(rows), width)
    for i, row in enumerate(rows):
        filled[i, : len(row)] = row
    return filled


def response_logprobs(
    module: nn.Module, batch: Sequences, temperature: float = 1.0, *, with_entropy: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities of the response tokens [B, R], 0 behind each response; and the entropy at each, if asked for.

    Both are of log-softmax over the whole vocabulary at a temperature. Logits are computed at the positions of
    responses alone: [tokens of all responses, V].
    """
    offsets = torch.arange(int((batch.lengths - batch.response_start).max()), device=batch.lengths.device)
    inside = offsets < (batch.lengths - batch.response_start)[:, None]  # [B, R]
    rows, at = inside.nonzero(as_tuple=True)
    at = at + batch.response_start[rows]
    with _head_only_at(module, rows, at - 1):  # the logits of a token are at the position before it
        logits = module(input_ids=batch.input_ids).logits[0]
    found = log_probs(logits, batch.input_ids[rows, at], temperature)
    entropies = entropy(logits, temperature) if with_entropy else None
    return _spread(found, inside), None if entropies is None else _spread(entropies, inside)


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

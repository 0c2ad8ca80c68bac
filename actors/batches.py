"""Episodes as padded micro-batches, and the log-probabilities that a model gives to their responses.

B is the number of sequences, T the tokens of the longest one, R those of the longest response, V the vocabulary.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from actors.losses import entropy, log_probs
from actors.models import Decoder, head_only_at
from actors.types import Episode

SHORT = 256
"""The most tokens of a row of PrefixTrees: with more, attention to what is masked costs more than what is saved."""
PACKED = 128
"""About how many tokens such a row has: with fewer there is more padding, with more attention to what is masked."""
PAYS = 0.8
"""The most tokens that PrefixTrees may leave of a batch, padding included."""
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
        starts = torch.tensor([e.prompt_ids.shape[0] for e in episodes])
        lengths = starts + torch.tensor([e.token_ids.shape[0] for e in episodes])
        tokens = torch.cat([part for e in episodes for part in (e.prompt_ids, e.token_ids)]).long()
        return cls(_rows(tokens, lengths, int(lengths.max())), lengths, starts)

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
        mask, logprobs, ref = episode.loss_mask, episode.logprobs, episode.ref_logprobs
        length = episode.token_ids.shape[0]
        if mask.shape[0] != length or logprobs.shape[0] != length or (ref is not None and ref.shape[0] != length):
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
        by_length = sorted(cast("Sequence[Episode]", data), key=lambda e: -_tokens([e]))
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
    work = [0 for _ in shares]
    for group in sorted(by_prompt.values(), key=_tokens, reverse=True):
        rank = work.index(min(work))
        dealt[rank].extend(group)
        work[rank] += _tokens(group)
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
    return _rows(torch.cat(list(rows)), torch.tensor([row.shape[0] for row in rows]), width)


def _rows(values: Tensor, lengths: Tensor, width: int) -> Tensor:
    """Values one after the other, as rows [B, width] of these lengths; torch's pad_sequence takes ten times as long."""
    return _spread(values, torch.arange(width) < lengths[:, None])


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
    shared = PrefixTrees.of(batch) if isinstance(module, Decoder) else None
    if shared is None:  # the logits of a token are at the position before it
        rows, columns = sequences, at + batch.response_start[sequences] - 1
        inputs = {"input_ids": batch.input_ids[:, : max(1, batch.input_ids.shape[1] - 1)]}  # nothing follows the last
    else:
        rows, columns, inputs = shared.rows, shared.columns, shared.inputs
    with head_only_at(module, rows, columns):
        logits = module(**inputs).logits[0]
    found = log_probs(logits, batch.input_ids[sequences, at + batch.response_start[sequences]], temperature)
    entropies = entropy(logits, temperature) if with_entropy else None
    return _spread(found, inside), None if entropies is None else _spread(entropies, inside)


@dataclass(frozen=True, eq=False)
class PrefixTrees:
    """Responses to the same prompt as a tree behind it: what several of them begin with is computed once.

    None sees what only another one has. Several trees share a row, so there is little padding. G is the number of rows,
    T the tokens of the longest one, N those of all responses.
    """

    inputs: dict[str, Tensor]
    """input_ids and position_ids [G, T], attention_mask [G, 1, T, T]."""
    rows: Tensor
    """[N]: where each response token's logits are, in the order of the batch."""
    columns: Tensor

    @classmethod
    def of(cls, batch: Sequences) -> PrefixTrees | None:
        """Those of a batch; None where they would not pay."""
        count, longest = batch.input_ids.shape
        if longest > SHORT:
            return None
        trees: dict[tuple[int, ...], _Tree] = {}
        wanted = list[tuple[_Tree, int]]()  # tree and place of the token before each response token
        starts, ends = batch.response_start.tolist(), batch.lengths.tolist()
        for tokens, start, end in zip(batch.input_ids.tolist(), starts, ends, strict=True):
            prompt = tuple(tokens[:start])
            tree = trees[prompt] = trees.get(prompt) or _Tree(prompt)
            wanted.extend((tree, place) for place in tree.add(tokens[start:end]))
        width = _pack(list(trees.values()))
        rows = 1 + max(tree.row for tree in trees.values())
        if width > SHORT or rows * width > PAYS * count * longest:
            return None
        nodes = [
            (tree.row, tree.column + place, tree.column + parent, depth, token)
            for tree in trees.values()
            for place, (parent, depth, token) in enumerate(tree.nodes)
        ]
        row, column, parent, depth, token = torch.tensor(nodes).T
        ids, positions = torch.zeros(2, rows, width, dtype=torch.int64)
        ids[row, column], positions[row, column] = token, depth
        mask = torch.eye(width, dtype=torch.bool).repeat(rows, 1, 1)
        for level in (depth == d for d in range(1, int(depth.max()) + 1)):
            mask[row[level], column[level]] |= mask[row[level], parent[level]]
        inputs = {"input_ids": ids, "position_ids": positions, "attention_mask": mask[:, None]}
        device = batch.input_ids.device
        return cls(
            {name: tensor.to(device) for name, tensor in inputs.items()},
            torch.tensor([tree.row for tree, _ in wanted], device=device),
            torch.tensor([tree.column + place for tree, place in wanted], device=device),
        )


class _Tree:
    """A prompt and the responses to it, and where in a batch they are."""

    row = column = 0

    def __init__(self, prompt: Sequence[int]) -> None:
        self.nodes = [(max(0, i - 1), i, token) for i, token in enumerate(prompt)]  # place of the parent, depth, token
        self._prompt = len(prompt)
        self._children: dict[tuple[int, int], int] = {}

    def add(self, response: Sequence[int]) -> Iterator[int]:
        """Add a response; the place of the token before each of its tokens. Its last token is before none."""
        place = self._prompt - 1
        for i, token in enumerate(response):
            yield place
            if i < len(response) - 1:
                parent, place = place, self._children.setdefault((place, token), len(self.nodes))
                if place == len(self.nodes):
                    self.nodes.append((parent, self._prompt + i, token))


def _pack(trees: Sequence[_Tree]) -> int:
    """Place trees in rows of about PACKED tokens, as equal as may be; the tokens of the longest one."""
    sizes = [len(tree.nodes) for tree in trees]
    rows = math.ceil(sum(sizes) / max(PACKED, *sizes))
    free = [(0, row) for row in range(rows)]  # a heap: the row with the fewest tokens comes first
    for tree in sorted(trees, key=lambda tree: -len(tree.nodes)):
        tree.column, tree.row = free[0]
        heapq.heapreplace(free, (tree.column + len(tree.nodes), tree.row))
    return max(used for used, _ in free)


def _spread(values: Tensor, inside: Tensor) -> Tensor:
    """Values of the positions where `inside` [B, R] is True, as [B, R] with zeros elsewhere."""
    return values.new_zeros(inside.shape).masked_scatter(inside, values)

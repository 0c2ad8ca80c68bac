"""The reference model: log-probabilities under weights that stay as they are."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from actors.batches import Sequences, response_logprobs, split_by_tokens
from actors.checkpoint import checkpoints_around
from actors.models import Model, load_model
from actors.types import Episode
from forgectl import ForgeActor, endpoint


class ReferenceModel(ForgeActor):
    """Computes log-probabilities of responses for a KL term. As a service, its replicas share the work.

    It never follows the trainer: its model has a path of its own, and a folder of the trainer's checkpoints is refused.
    """

    def __init__(
        self, model: Model | None = None, dtype: str = "auto", micro_batch_tokens: int | None = 16_384
    ) -> None:
        """A reference of this model; without one, `load` names it.

        model, dtype: as of `load_model`. micro_batch_tokens: the most tokens of one pass, padding included. Raises
        ValueError for a model in a folder of checkpoints.
        """
        super().__init__()
        if model is not None:
            refuse_checkpoints(model)
        self._model, self._dtype, self._budget = model, dtype, micro_batch_tokens
        self._loaded: nn.Module | None = None

    @endpoint
    def setup(self) -> None:
        """Load the model."""
        if self._model is not None:
            self.load(self._model)

    @endpoint
    def load(self, model: Model) -> None:
        """Compute with this model from now on, such as the one that a warm-up has exported.

        A rank that starts again has the constructor's model, or none. Raises ValueError for a model in a folder of
        checkpoints, and what `load_model` raises.
        """
        refuse_checkpoints(model)
        self._loaded = load_model(model, dtype=self._dtype).module.eval().requires_grad_(False)

    @property
    def _module(self) -> nn.Module:
        if self._loaded is None:
            raise RuntimeError("this reference has no model yet: name one in its constructor, or call `load`")
        return self._loaded

    @endpoint(idempotent=True)
    def forward(self, input_ids: Tensor, lengths: Tensor, response_start: Tensor, temperature: float = 1.0) -> Tensor:
        """Log-probabilities [B, R] in float32 of response tokens at a temperature; 0 behind each response.

        input_ids: [B, T], padded on the right. lengths: [B], tokens of prompt and response. response_start: [B], tokens
        of the prompt. R is the longest response's. Raises ValueError for lengths that do not fit.
        """
        return logprobs_of(self._module, Sequences(input_ids, lengths, response_start), temperature, self._budget)

    @endpoint(idempotent=True)
    def logprobs(self, episodes: Sequence[Episode], temperature: float = 1.0) -> list[Tensor]:
        """Log-probabilities [R] in float32 of each episode's response, for its `ref_logprobs`."""
        if not episodes:
            return []
        found = logprobs_of(self._module, Sequences.of(episodes), temperature, self._budget)
        return [row[: len(episode.token_ids)].clone() for row, episode in zip(found, episodes, strict=True)]


@torch.no_grad()
def logprobs_of(module: nn.Module, sequences: Sequences, temperature: float, budget: int | None) -> Tensor:
    """Log-probabilities [B, R] on the CPU in float32, computed in micro-batches of similar lengths."""
    device = next(module.parameters()).device
    responses = sequences.lengths - sequences.response_start
    found = torch.zeros(len(responses), int(responses.max()))
    for rows in split_by_tokens(sequences.lengths.tolist(), budget):
        part, _ = response_logprobs(module, sequences.rows(rows).to(device), temperature)
        found[rows, : part.shape[1]] = part.float().cpu()
    return found


def refuse_checkpoints(model: Model) -> None:
    """Raise ValueError for a path in a trainer's folder of checkpoints: the reference would follow the policy."""
    if isinstance(model, Mapping):
        return
    if (folder := checkpoints_around(os.fspath(model))) is not None:
        raise ValueError(
            f"the reference model {os.fspath(model)} lies in {folder}, where a trainer keeps its checkpoints; name the "
            "model that training began with, or a folder that the trainer exported"
        )

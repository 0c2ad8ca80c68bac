"""What travels between the actors: requests for text, the text, episodes made of it, and the result of a step.

P is the number of a prompt's tokens and R that of a response's. Tensors are on the CPU.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

StopReason = Literal["stop", "length", "aborted"]
Message = Mapping[str, Any]
"""A message of a conversation: `role`, `content`, and what a chat template knows besides."""
Prompt = str | Sequence[int] | Sequence[Message]
"""A prompt as text, as token ids, or as messages, to which the model's chat template is applied."""


@dataclass(frozen=True)
class SamplingParams:
    """How completions are sampled. Raises ValueError for a value that is out of range."""

    n: int = 1
    """Completions of the prompt."""
    max_tokens: int = 256
    """The most tokens of a completion, its end token included."""
    temperature: float = 1.0
    """0: always the likeliest token."""
    top_p: float = 1.0
    """Sample among the fewest tokens whose probabilities add up to this."""
    top_k: int = 0
    """Sample among so many tokens; 0: among all."""
    stop: tuple[str, ...] = ()
    """Texts that end a completion. They stay in its tokens, and not in its text."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end a completion, besides the model's own end tokens."""
    seed: int | None = None
    """For the same completion whenever the same request is made; None: the generator's own seed."""

    def __post_init__(self) -> None:
        """Check the values; a text or a list is taken for a tuple."""
        stop: object = self.stop
        object.__setattr__(self, "stop", (stop,) if isinstance(stop, str) else tuple(self.stop))
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
        wrong = [
            f"{name} must be {what}, not {getattr(self, name)!r}"
            for name, fits, what in (
                ("n", self.n >= 1, "at least 1"),
                ("max_tokens", self.max_tokens >= 1, "at least 1"),
                ("temperature", self.temperature >= 0, "0 or more"),
                ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
                ("top_k", self.top_k >= 0, "0 or more"),
                ("stop", all(self.stop), "texts that are not empty"),
            )
            if not fits
        ]
        if wrong:
            raise ValueError("; ".join(wrong))


@dataclass(frozen=True, eq=False)
class Completion:
    """One sampled response to a prompt."""

    prompt_ids: torch.Tensor
    """[P] int64. All completions of a request have the same tensor."""
    token_ids: torch.Tensor
    """[R] int64: what was sampled, the end token included."""
    logprobs: torch.Tensor
    """[R] float32: of each sampled token, log-softmax over the whole vocabulary at the sampling temperature."""
    text: str
    """The response without end tokens and stop texts."""
    stop_reason: StopReason
    version: int
    """Of the weights that sampled the first token."""
    max_version: int
    """Of the weights that sampled the last token."""
    request_id: str


@dataclass(frozen=True, eq=False)
class Episode:
    """One response with its reward, as the trainer learns from it."""

    episode_id: str
    """The buffer takes an id once."""
    group_id: str
    """Of all responses to one prompt: their advantages depend on one another."""
    prompt_ids: torch.Tensor
    """[P] int64."""
    token_ids: torch.Tensor
    """[R] int64."""
    loss_mask: torch.Tensor
    """[R] bool: False for tokens that the policy did not sample, as a tool's answer."""
    logprobs: torch.Tensor
    """[R] float32: of the policy that sampled the tokens; 0 where the mask is False."""
    reward: float
    policy_version: int
    """The oldest version of weights that sampled a token of it."""
    ref_logprobs: torch.Tensor | None = None
    """[R] float32: of the reference model."""
    reward_parts: Mapping[str, float] = field(default_factory=dict)
    """The reward by function."""
    advantage: float = 0.0
    truncated: bool = False
    """Whether it was cut at a limit of tokens; losses mask it."""
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, completion: Completion, *, group_id: str, reward: float, **fields: Any) -> Episode:
        """An episode of one completion, all of whose tokens count. `fields` are further fields of the episode."""
        import torch

        if "episode_id" not in fields:
            fields["episode_id"] = uuid.uuid4().hex
        return cls(
            group_id=group_id,
            prompt_ids=completion.prompt_ids,
            token_ids=completion.token_ids,
            loss_mask=torch.ones(completion.token_ids.shape, dtype=torch.bool),
            logprobs=completion.logprobs,
            reward=reward,
            policy_version=completion.version,
            truncated=completion.stop_reason == "length",
            **fields,
        )

    def replaced(self, **changes: Any) -> Episode:
        """A copy with other values of some fields."""
        return dataclasses.replace(self, **changes)


class StaleBatch(Exception):
    """Data came for a version of the weights that the trainer no longer has, as after a restart of its ranks."""


@dataclass(frozen=True)
class StepResult:
    """What a training step did."""

    step: int
    """Optimizer steps since the beginning, this one included."""
    loss: float
    metrics: Mapping[str, float]
    """By name; the same on all ranks."""

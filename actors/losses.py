"""Losses for post-training, as sums over tokens that add up over micro-batches and ranks, and what they are made of.

B is the number of sequences of a micro-batch, R the tokens of its longest response. The maths is in float32, or in
float64 where the log-probabilities of the current policy are.

A trainer counts the valid tokens and sequences of a whole optimizer step over all ranks (`Totals`). The loss of a
micro-batch is its share of the step: a sum divided by these counts. So the shares of any split add up to the same loss
and the same gradients, whatever the lengths. Ranks must therefore *sum* their gradients (DDP and FSDP average them:
multiply the share by the number of ranks).
"""

from __future__ import annotations

import difflib
import math
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from actors.logprobs import entropy as entropy  # noqa: PLC0414  # part of what this module offers
from actors.logprobs import log_probs as log_probs  # noqa: PLC0414
from actors.logprobs import precise

Aggregation = Literal["token", "sequence", "constant"]
MAX_LOG_RATIO = 20.0
"""Log-ratios are clamped to ± this, where exp is still finite; beyond it they have no gradient."""


# ------------------------------------------------------------ primitives


def masked_mean(values: Tensor, mask: Tensor, dim: int | None = None, *, keepdim: bool = False) -> Tensor:
    """The mean of the values where the mask is True; 0 where it is True nowhere."""
    dims = tuple(range(values.dim())) if dim is None else dim
    kept = torch.where(mask, values, 0.0)
    return kept.sum(dims, keepdim=keepdim) / mask.expand_as(values).sum(dims, keepdim=keepdim).clamp(min=1)


def ratio(
    logprobs: Tensor, old_logprobs: Tensor, mask: Tensor, level: Literal["token", "sequence"] = "token"
) -> Tensor:
    """Importance ratios [B, R] of the current policy to an older one; 1 where the mask is False.

    By token: exp(logprobs - old_logprobs). By sequence: the geometric mean of these over the masked tokens of a
    sequence, at each of its tokens; its gradient reaches each token as in GSPO-token (arXiv 2507.18071, equation 14).
    """
    logs = torch.where(mask, logprobs - old_logprobs, 0.0)
    if level == "sequence":
        logs = torch.where(mask, masked_mean(logs, mask, 1, keepdim=True).detach() + logs - logs.detach(), 0.0)
    return logs.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def k1(delta: Tensor) -> Tensor:
    """An unbiased estimate of KL(policy, other), for delta = logprobs - other's, of tokens that the policy sampled.

    Useful in a reward. As a loss its gradient has expectation zero. All three are from joschu.net/blog/kl-approx.html.
    """
    return delta


def k2(delta: Tensor) -> Tensor:
    """A biased estimate with a low variance, delta² / 2, whose gradient is that of the KL on the policy's tokens."""
    return delta.square() / 2


def k3(delta: Tensor) -> Tensor:
    """An unbiased estimate that is never negative, exp(-delta) + delta - 1. The exponent is clamped to at most 20."""
    return torch.expm1((-delta).clamp(max=MAX_LOG_RATIO)) + delta


def clipped(
    ratios: Tensor, advantages: Tensor, epsilon_low: float, epsilon_high: float, dual_clip: float | None = None
) -> Tensor:
    """PPO's clipped loss of each token [B, R] (arXiv 1707.06347): -min(r A, clip(r, 1 - low, 1 + high) A).

    With `dual_clip` c the loss of a token with A < 0 is at most -c A (arXiv 1912.09729).
    """
    loss = -torch.minimum(ratios * advantages, ratios.clamp(1 - epsilon_low, 1 + epsilon_high) * advantages)
    if dual_clip is None:
        return loss
    return torch.where(advantages < 0, torch.minimum(loss, -dual_clip * advantages), loss)


def off_policy_weights(
    logprobs: Tensor,
    old_logprobs: Tensor,
    mask: Tensor,
    how: Literal["truncate", "token_mask", "sequence_mask"],
    limit: float = 2.0,
) -> Tensor:
    """Weights [B, R], without gradient, for tokens of a sampler that was another policy than the trainer's.

    truncate: importance ratios of at most `limit`. token_mask: 1, but 0 for tokens whose ratio is not within
    [1/limit, limit]. sequence_mask: the same for sequences, by the geometric mean of their tokens' ratios. Tokens of
    weight 0 still count in the totals.
    """
    ratios = ratio(logprobs.detach(), old_logprobs, mask, "sequence" if how == "sequence_mask" else "token")
    if how == "truncate":
        return ratios.clamp(max=limit)
    return ((ratios >= 1 / limit) & (ratios <= limit)).to(ratios.dtype)


def aggregate(
    terms: Tensor, mask: Tensor, totals: Totals, how: Aggregation = "token", max_tokens: int | None = None
) -> Tensor:
    """This micro-batch's share of the mean of `terms` [B, R] over an optimizer step.

    token: every token of the step counts the same. sequence: every sequence does, whatever its length. constant: the
    sum over (sequences · max_tokens), as in Dr. GRPO (arXiv 2503.20783).
    """
    kept = torch.where(mask, terms, 0.0)
    if how == "token":
        return kept.sum() / max(totals.tokens, 1)
    if how == "sequence":
        return masked_mean(kept, mask, 1).sum() / max(totals.sequences, 1)
    if max_tokens is None:
        raise ValueError("the aggregation 'constant' divides by max_tokens, the most tokens of a response: give it")
    return kept.sum() / (max(totals.sequences, 1) * max_tokens)


# ------------------------------------------------------------ what goes in and comes out


@dataclass(frozen=True, eq=False)
class Batch:
    """What a loss sees of a micro-batch. Raises ValueError for shapes that do not fit together."""

    logprobs: Tensor
    """[B, R]: of the current policy, with gradient."""
    old_logprobs: Tensor
    """[B, R]: of the policy that sampled the tokens. A token with a value that is not finite is left out."""
    advantages: Tensor
    """[B], or [B, R] for advantages by token."""
    mask: Tensor
    """[B, R] bool: False behind a response, and for tokens that the policy did not sample."""
    ref_logprobs: Tensor | None = None
    """[B, R]: of the reference model."""
    proximal_logprobs: Tensor | None = None
    """[B, R]: of the trainer's own weights before the first of several optimizer steps that use these sequences.

    Ratios are then relative to these, and off-policy weights correct from the sampler to these (arXiv 2505.24298).
    """
    entropy: Tensor | None = None
    """[B, R], for a metric."""
    truncated: Tensor | None = None
    """[B] bool: responses that were cut at a limit of tokens."""
    policy_age: Tensor | None = None
    """[B]: the trainer's version minus that of the weights that sampled the response, for a metric."""

    def __post_init__(self) -> None:
        """Check the shapes."""
        shape, rows = tuple(self.logprobs.shape), tuple(self.logprobs.shape[:1])
        for name, value in vars(self).items():
            by_row = name in ("truncated", "policy_age") or (name == "advantages" and value.dim() == 1)
            if value is not None and tuple(value.shape) != (rows if by_row else shape):
                wanted = f"[{rows[0]}]" if by_row else list(shape)
                raise ValueError(f"{name} has shape {list(value.shape)}, but {wanted} goes with logprobs {list(shape)}")


@dataclass(frozen=True)
class Totals:
    """Counts of a whole optimizer step: of all micro-batches on all ranks."""

    tokens: int
    """Valid tokens."""
    sequences: int
    """Sequences with at least one valid token."""

    @classmethod
    def of(cls, valid: Tensor) -> Totals:
        """Those of one mask [B, R]."""
        return cls(int(valid.sum()), int(valid.any(1).sum()))

    def __add__(self, other: Totals) -> Totals:
        """Those of both."""
        return Totals(self.tokens + other.tokens, self.sequences + other.sequences)


@dataclass(frozen=True, eq=False)
class Metric:
    """A mean, a sum or a maximum of part of the data, which can be merged with that of other parts."""

    kind: Literal["mean", "sum", "max"]
    value: Tensor
    """Scalar, without gradient: the maximum, or the sum."""
    count: Tensor
    """Scalar: how many values it is of."""

    @classmethod
    def of(cls, kind: Literal["mean", "sum", "max"], values: Tensor, mask: Tensor | None = None) -> Metric:
        """That of the values where the mask is True."""
        values = values.detach()
        mask = torch.ones_like(values, dtype=torch.bool) if mask is None else mask
        if kind == "max":
            lowest = values.new_full((1,), -math.inf, dtype=precise(values.dtype))
            return cls(kind, torch.cat([values.where(mask, -math.inf).flatten(), lowest]).max(), mask.sum())
        return cls(kind, values.where(mask, 0).sum(), mask.sum())

    def numbers(self) -> tuple[Literal["mean", "sum", "max"], float, int]:
        """What it is made of, for other processes: tensors take much longer to be sent. See `of_numbers`."""
        return self.kind, float(self.value), int(self.count)

    @classmethod
    def of_numbers(cls, kind: Literal["mean", "sum", "max"], value: float, count: int) -> Metric:
        """The same of what `numbers` returned."""
        return cls(kind, torch.tensor(value, dtype=torch.float64), torch.tensor(count))

    def __add__(self, other: Metric) -> Metric:
        """That of both parts."""
        value = torch.maximum(self.value, other.value) if self.kind == "max" else self.value + other.value
        return Metric(self.kind, value, self.count + other.count)

    def result(self) -> float | None:
        """The number; None for the mean or maximum of nothing."""
        if self.kind == "sum":
            return float(self.value)
        count = int(self.count)
        return float(self.value) / (count if self.kind == "mean" else 1) if count else None


def merge(parts: Iterable[Mapping[str, Metric]]) -> dict[str, Metric]:
    """The metrics of all micro-batches or ranks, by name. A part need not have all names."""
    merged: dict[str, Metric] = {}
    for part in parts:
        for name, metric in part.items():
            merged[name] = merged[name] + metric if name in merged else metric
    return merged


def results(metrics: Mapping[str, Metric]) -> dict[str, float]:
    """The numbers by name, without those of which there was nothing."""
    found = {name: metric.result() for name, metric in metrics.items()}
    return {name: value for name, value in found.items() if value is not None}


@dataclass(frozen=True, eq=False)
class LossOutput:
    """What a loss gives for a micro-batch."""

    loss: Tensor
    """Scalar, with gradient: the micro-batch's share of the step's loss."""
    metrics: dict[str, Metric]


Term = Callable[[Batch, "Totals"], "Tensor | LossOutput"]
"""A loss as a plain function: a micro-batch's share as a scalar, alone or with metrics."""


@dataclass(frozen=True)
class Loss:
    """A loss of micro-batches, with the metrics that all losses have."""

    name: str
    term: Term
    needs_reference: bool = False
    """Whether batches need `ref_logprobs`."""
    sampled: bool = True
    """Whether a policy sampled the tokens; then metrics compare it with the trainer's."""
    mask_truncated: bool = True
    """Whether responses that were cut at a limit are left out: what they would have come to is unknown."""
    by_advantage: bool = False
    """Whether all terms are multiples of advantages: then a response whose advantage is 0 adds nothing."""

    def teaches(self, valid: Tensor, advantages: Tensor) -> Tensor:
        """Which responses [B] can have a gradient, for their valid tokens [B, R] and advantages [B]."""
        return valid.any(1) & (advantages != 0) if self.by_advantage else torch.ones_like(valid[:, 0])

    def valid(self, mask: Tensor, old_logprobs: Tensor, truncated: Tensor | None = None) -> Tensor:
        """The mask [B, R] of the tokens that count, as `Totals` must count them."""
        valid = mask & old_logprobs.isfinite()
        return valid & ~truncated[:, None] if truncated is not None and self.mask_truncated else valid

    def __call__(self, batch: Batch, totals: Totals) -> LossOutput:
        """The share of a micro-batch. Raises ValueError where the loss needs what the batch does not have."""
        if self.needs_reference and batch.ref_logprobs is None:
            raise ValueError(f"the loss {self.name} has a KL term (beta), but the batch has no ref_logprobs")
        clean = self._cleaned(batch)
        with torch.no_grad():
            metrics = self._measured(batch, clean)
        given = self.term(clean, totals)
        output = given if isinstance(given, LossOutput) else LossOutput(given, {})
        if not isinstance(output.loss, Tensor) or output.loss.dim():
            raise TypeError(f"the loss {self.name} must return a scalar tensor or a LossOutput, not {output.loss!r}")
        return LossOutput(output.loss, metrics | output.metrics)

    def _cleaned(self, batch: Batch) -> Batch:
        """The batch in full precision with its valid tokens alone: 0 elsewhere, so that all maths stays finite."""
        valid, dtype = self.valid(batch.mask, batch.old_logprobs, batch.truncated), precise(batch.logprobs.dtype)

        def clean(values: Tensor | None) -> Any:
            return None if values is None else torch.where(valid, values.to(dtype), 0.0)

        by_token = batch.advantages if batch.advantages.dim() == 2 else batch.advantages[:, None].expand_as(valid)
        return replace(
            batch,
            logprobs=clean(batch.logprobs),
            old_logprobs=clean(batch.old_logprobs),
            advantages=clean(by_token),
            mask=valid,
            ref_logprobs=clean(batch.ref_logprobs),
            proximal_logprobs=clean(batch.proximal_logprobs),
        )

    def _measured(self, batch: Batch, clean: Batch) -> dict[str, Metric]:
        valid, found = clean.mask, {}
        if batch.entropy is not None:
            found["entropy"] = Metric.of("mean", batch.entropy, valid)
        if clean.ref_logprobs is not None:
            found["kl_reference"] = Metric.of("mean", k3(clean.logprobs - clean.ref_logprobs), valid)
        if self.sampled:
            # Tokens are the sampler's, so this is KL(sampler, trainer).
            kl = k3(clean.old_logprobs - clean.logprobs)
            found["ratio"] = Metric.of("mean", ratio(clean.logprobs, clean.old_logprobs, valid), valid)
            found["kl_sampler"] = Metric.of("mean", kl, valid)
            if batch.policy_age is not None:
                # At equal weights only numerics differ: between the sampler's kernels and the trainer's.
                found["mismatch_kl"] = Metric.of("mean", kl, valid & (batch.policy_age == 0)[:, None])
        return found


# ------------------------------------------------------------ the losses by name

_AGGREGATION = {"aggregation": "token", "max_tokens": None, "mask_truncated": True}
_POLICY = {**_AGGREGATION, "beta": 0.0, "kl": "k3", "off_policy": None, "off_policy_limit": 2.0}
_CLIPPED = {**_POLICY, "ratio": "token", "epsilon_low": 0.2, "epsilon_high": 0.2, "dual_clip": None}
LOSSES: Mapping[str, Mapping[str, Any]] = {
    "grpo": {**_CLIPPED, "aggregation": "sequence"},  # arXiv 2402.03300
    "dr_grpo": {**_CLIPPED, "aggregation": "constant"},  # arXiv 2503.20783
    "dapo": {**_CLIPPED, "epsilon_high": 0.28, "dual_clip": 3.0},  # arXiv 2503.14476
    "gspo": {  # arXiv 2507.18071; ratios of sequences vary far less than those of tokens
        **_CLIPPED,
        "ratio": "sequence",
        "aggregation": "sequence",
        "epsilon_low": 3e-4,
        "epsilon_high": 4e-4,
    },
    "cispo": {**_POLICY, "max_ratio": 5.0},  # arXiv 2506.13585
    "reinforce": _POLICY,
    "sft": {**_AGGREGATION, "mask_truncated": False},
}
"""The options of each loss with their defaults.

aggregation, max_tokens: as of `aggregate`. mask_truncated: as of `Loss`. beta, kl: the weight and the kind, "k2" or
"k3", of the KL to the reference. off_policy, off_policy_limit: as of `off_policy_weights`. ratio: as of `ratio`.
epsilon_low, epsilon_high, dual_clip: as of `clipped`. max_ratio: the most that a ratio weighs.
"""
_CHOICES: Mapping[str, tuple[Any, ...]] = {
    "aggregation": ("token", "sequence", "constant"),
    "ratio": ("token", "sequence"),
    "kl": ("k2", "k3"),
    "mask_truncated": (True, False),
    "off_policy": (None, "truncate", "token_mask", "sequence_mask"),
}
_LOWEST = {
    "beta": 0.0, "dual_clip": 1.0, "epsilon_high": 0.0, "epsilon_low": 0.0, "max_ratio": 0.0, "max_tokens": 1,
    "off_policy_limit": 1.0,
}  # fmt: skip


def make_loss(loss: str | Mapping[str, Any] | Term) -> Loss:
    """The loss of a name in `LOSSES`, of a mapping with its `kind` and options, or of one's own function.

    A function of one's own is given itself or as "module:function". It gets a Batch of which `mask` holds the valid
    tokens alone and `advantages` is [B, R], and the Totals, and returns its share of the step as a scalar: a sum over
    tokens divided by the totals. Options of a mapping are further arguments of it. Raises ValueError for a name, an
    option or a value that there is not.
    """
    if isinstance(loss, Loss):
        return loss
    if callable(loss):
        return Loss(getattr(loss, "__name__", type(loss).__name__), loss)
    given = {"kind": loss} if isinstance(loss, str) else dict(loss)
    if "kind" not in given:
        raise ValueError(f"the loss {given} needs a kind: one of {', '.join(LOSSES)}, or module:function")
    kind = str(given.pop("kind"))
    if ":" in kind:
        return Loss(kind, partial(pkgutil.resolve_name(kind), **given))
    if kind not in LOSSES:
        raise ValueError(f"there is no loss {kind!r}{_meant(kind, LOSSES)}")
    options = dict(LOSSES[kind])
    for name, value in given.items():
        options[name] = _option(kind, name, value)
    if options["aggregation"] == "constant" and options["max_tokens"] is None:
        raise ValueError(f"the loss {kind} divides by max_tokens: give that of the generator's sampling parameters")
    return Loss(
        kind,
        partial(_sft, options) if kind == "sft" else partial(_policy, kind, options),
        needs_reference=options.get("beta", 0.0) > 0,
        sampled=kind != "sft",
        mask_truncated=options["mask_truncated"],
        by_advantage=kind != "sft" and not options["beta"],
    )


def _option(kind: str, name: str, value: Any) -> Any:
    """A value of an option, checked."""
    known = LOSSES[kind]
    if name not in known:
        raise ValueError(f"the loss {kind} has no option {name!r}{_meant(name, sorted(known))}")
    if name == "kl" and value == "k1":
        raise ValueError(
            f"the loss {kind} cannot have the KL k1: as a loss its gradient has expectation zero, so it would only "
            "add noise; use k2 or k3, or subtract k1 from the reward"
        )
    if name in _CHOICES and value not in _CHOICES[name]:
        raise ValueError(f"{name} of the loss {kind} is one of {', '.join(map(str, _CHOICES[name]))}, not {value!r}")
    if name in _LOWEST and not (value is None and known[name] is None):
        hint = "; YAML takes 3e-4 for text, and 3.0e-4 for a number" if isinstance(value, str) else ""
        if isinstance(value, (str, bool)) or not isinstance(value, (int, float)) or not value >= _LOWEST[name]:
            raise ValueError(
                f"{name} of the loss {kind} must be a number of at least {_LOWEST[name]:g}, not {value!r}{hint}"
            )
    return value


def _meant(name: str, known: Iterable[str]) -> str:
    """The end of a message about a name that is not known: the one that was meant, or all."""
    close = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {close[0]!r}?" if close else f"; choose one of {', '.join(known)}"


def _sft(options: Mapping[str, Any], batch: Batch, totals: Totals) -> Tensor:
    return aggregate(-batch.logprobs, batch.mask, totals, options["aggregation"], options["max_tokens"])


def _policy(kind: str, options: Mapping[str, Any], batch: Batch, totals: Totals) -> LossOutput:
    """The losses that weigh log-probabilities by advantages."""
    logprobs, advantages, mask = batch.logprobs, batch.advantages, batch.mask
    near = batch.old_logprobs if batch.proximal_logprobs is None else batch.proximal_logprobs
    metrics = {}
    if kind == "reinforce":
        terms = -advantages * logprobs
    elif kind == "cispo":
        ratios = ratio(logprobs.detach(), near, mask)
        terms = -ratios.clamp(max=options["max_ratio"]) * advantages * logprobs
        metrics["clip_fraction_high"] = Metric.of("mean", (ratios > options["max_ratio"]), mask)
    else:
        low, high = options["epsilon_low"], options["epsilon_high"]
        ratios = ratio(logprobs, near, mask, options["ratio"])
        terms = clipped(ratios, advantages, low, high, options["dual_clip"])
        metrics["clip_fraction_low"] = Metric.of("mean", (advantages < 0) & (ratios < 1 - low), mask)
        metrics["clip_fraction_high"] = Metric.of("mean", (advantages > 0) & (ratios > 1 + high), mask)
    if options["off_policy"] is not None:
        if options["off_policy"] == "truncate" and kind != "reinforce" and batch.proximal_logprobs is None:
            raise ValueError(
                f"off_policy 'truncate' of the loss {kind} needs proximal_logprobs: without them its ratios are to the "
                "sampler already, and the correction would count twice"
            )
        anchor = logprobs if batch.proximal_logprobs is None else batch.proximal_logprobs
        weights = off_policy_weights(
            anchor, batch.old_logprobs, mask, options["off_policy"], options["off_policy_limit"]
        )
        metrics["off_policy_weight"] = Metric.of("mean", weights, mask)
        terms = terms * weights
    if options["beta"]:
        delta = logprobs - batch.ref_logprobs
        terms = terms + options["beta"] * (k3(delta) if options["kl"] == "k3" else k2(delta))
    return LossOutput(aggregate(terms, mask, totals, options["aggregation"], options["max_tokens"]), metrics)

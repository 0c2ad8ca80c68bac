"""Losses against references in plain Python: values and gradients; and what any split of a step must not change."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from actors import logprobs, losses
from actors.losses import Batch, Loss, LossOutput, Metric, Totals, make_loss

torch.set_num_threads(1)

# ------------------------------------------------------------ references, token by token


@dataclass
class Number:
    """A number and its derivative, so that a reference gives exact gradients by the rules of school."""

    value: float
    slope: float = 0.0

    def __add__(self, other: Number | float) -> Number:
        other = of(other)
        return Number(self.value + other.value, self.slope + other.slope)

    def __mul__(self, other: Number | float) -> Number:
        other = of(other)
        return Number(self.value * other.value, self.value * other.slope + self.slope * other.value)

    def __neg__(self) -> Number:
        return self * -1.0

    def __sub__(self, other: Number | float) -> Number:
        return self + -of(other)

    def __rsub__(self, other: float) -> Number:
        return -self + other

    def __truediv__(self, other: float) -> Number:
        return self * (1 / other)

    def __lt__(self, other: Number | float) -> bool:
        return self.value < of(other).value

    def __gt__(self, other: Number | float) -> bool:
        return self.value > of(other).value

    __radd__, __rmul__ = __add__, __mul__


def of(x: Number | float) -> Number:
    return x if isinstance(x, Number) else Number(x)


def exp(x: Number) -> Number:
    """Clamped to ± 20, beyond which it is constant."""
    value = math.exp(min(max(x.value, -20.0), 20.0))
    return Number(value, value * x.slope if abs(x.value) <= 20 else 0.0)


@dataclass
class Token:
    """A valid token."""

    lp: Number
    """Log-probability of the current policy: what gradients are with respect to."""
    fixed: Number
    """The same, behind a stop-gradient."""
    old: Number
    ref: Number
    advantage: float
    near: Number
    """What ratios are relative to: the proximal policy where there is one, else the sampler."""


Sequences = list[list[Token]]
Reference = Callable[[Sequences], Number]
Term = Callable[[Token], Number]


def ppo(r: Number, a: float, low: float, high: float, dual: float | None = None) -> Number:
    """The loss of one token, from equation 7 of arXiv 1707.06347 and equation 5 of arXiv 1912.09729."""
    objective = min(r * a, min(max(r, of(1 - low)), of(1 + high)) * a)
    return -max(objective, of(dual * a)) if dual is not None and a < 0 else -objective


def kl(t: Token, kind: str = "k3") -> Number:
    delta = t.lp - t.ref
    if kind == "k2":
        return delta * delta / 2
    inverse = math.exp(min(-delta.value, 20.0))
    return Number(inverse, -inverse * delta.slope if -delta.value <= 20 else 0.0) - 1 + delta


def mean(values: list[Number]) -> Number:
    return of(sum(values) / len(values) if values else 0.0)


def of_tokens(term: Term) -> Reference:
    return lambda sequences: mean([term(t) for s in sequences for t in s])


def of_sequences(term: Term) -> Reference:
    return lambda sequences: mean([mean([term(t) for t in s]) for s in sequences if s])


def of_constant(term: Term, max_tokens: int) -> Reference:
    return lambda sequences: mean([of(sum(term(t) for t in s)) / max_tokens for s in sequences if s])


def clip_term(low: float, high: float, dual: float | None = None, beta: float = 0.0, kind: str = "k3") -> Term:
    return lambda t: ppo(exp(t.lp - t.near), t.advantage, low, high, dual) + beta * kl(t, kind)


def gspo(low: float, high: float, beta: float = 0.0) -> Reference:
    """Equations 5 and 7 of arXiv 2507.18071, for advantages by sequence."""

    def of_sequence(s: list[Token]) -> Number:
        r = exp(mean([t.lp - t.near for t in s]))
        return ppo(r, s[0].advantage, low, high) + beta * mean([kl(t) for t in s])

    return lambda sequences: mean([of_sequence(s) for s in sequences if s])


def gspo_token(low: float, high: float) -> Reference:
    """Equations 13 and 14 of the same, for advantages by token."""

    def of_sequence(s: list[Token]) -> Number:
        frozen = mean([t.fixed - t.near for t in s])
        return mean([ppo(exp(frozen + t.lp - t.fixed), t.advantage, low, high) for t in s])

    return lambda sequences: mean([of_sequence(s) for s in sequences if s])


def within(r: Number, limit: float) -> bool:
    return 1 / limit <= r.value <= limit


def sequence_masked(sequences: Sequences) -> Number:
    """The clipped loss by token; that of sequences whose geometric mean ratio is beyond 1.2 counts as 0."""
    kept = [s for s in sequences if s and within(exp(mean([t.fixed - t.old for t in s])), 1.2)]
    return of(sum(clip_term(0.2, 0.2)(t) for s in kept for t in s)) / max(sum(len(s) for s in sequences), 1)


def token_masked(t: Token) -> Number:
    return clip_term(0.2, 0.2)(t) * within(exp(t.fixed - t.old), 2.0)


CASES: dict[str, tuple[Any, Reference]] = {
    "grpo": ("grpo", of_sequences(clip_term(0.2, 0.2))),
    "grpo, epsilons": (
        {"kind": "grpo", "epsilon_low": 0.1, "epsilon_high": 0.4},
        of_sequences(clip_term(0.1, 0.4)),
    ),
    "grpo, k3": ({"kind": "grpo", "beta": 0.3}, of_sequences(clip_term(0.2, 0.2, None, 0.3))),
    "grpo, k2": ({"kind": "grpo", "beta": 0.3, "kl": "k2"}, of_sequences(clip_term(0.2, 0.2, None, 0.3, "k2"))),
    "grpo by token": ({"kind": "grpo", "aggregation": "token"}, of_tokens(clip_term(0.2, 0.2))),
    "dr_grpo": ({"kind": "dr_grpo", "max_tokens": 9}, of_constant(clip_term(0.2, 0.2), 9)),
    "dapo": ("dapo", of_tokens(clip_term(0.2, 0.28, 3.0))),
    "dapo, k3": ({"kind": "dapo", "beta": 0.1}, of_tokens(clip_term(0.2, 0.28, 3.0, 0.1))),
    "dapo, dual clip": ({"kind": "dapo", "dual_clip": 1.1}, of_tokens(clip_term(0.2, 0.28, 1.1))),
    "gspo": ("gspo", gspo(3e-4, 4e-4)),
    "gspo, wide": ({"kind": "gspo", "epsilon_low": 0.3, "epsilon_high": 0.3}, gspo(0.3, 0.3)),
    "gspo, k3": ({"kind": "gspo", "beta": 0.1}, gspo(3e-4, 4e-4, 0.1)),
    "cispo": ("cispo", of_tokens(lambda t: -min(exp(t.fixed - t.near), of(5.0)) * t.advantage * t.lp)),
    "cispo, ratio": (
        {"kind": "cispo", "max_ratio": 1.1, "beta": 0.2},
        of_tokens(lambda t: -min(exp(t.fixed - t.near), of(1.1)) * t.advantage * t.lp + 0.2 * kl(t)),
    ),
    "reinforce": ("reinforce", of_tokens(lambda t: -t.advantage * t.lp)),
    "reinforce, truncated importance sampling": (
        {"kind": "reinforce", "off_policy": "truncate"},
        of_tokens(lambda t: -min(exp(t.fixed - t.old), of(2.0)) * t.advantage * t.lp),
    ),
    "grpo, token mask": ({"kind": "grpo", "off_policy": "token_mask"}, of_sequences(token_masked)),
    "grpo, sequence mask": (
        {"kind": "grpo", "aggregation": "token", "off_policy": "sequence_mask", "off_policy_limit": 1.2},
        sequence_masked,
    ),
    "sft": ("sft", of_tokens(lambda t: -t.lp)),
    "sft by sequence": ({"kind": "sft", "aggregation": "sequence"}, of_sequences(lambda t: -t.lp)),
}  # fmt: skip
SPECS = {name: spec for name, (spec, _) in CASES.items()}


# ------------------------------------------------------------ data


def batch_of(seed: int, rows: int, width: int, spread: float = 0.3, *, by_token: bool = False) -> Batch:
    """Random sequences of unequal lengths, some without a token, some truncated, with gaps in the mask."""
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    old = -normal(rows, width).abs() - 0.1
    lengths = torch.randint(0, width + 1, (rows, 1), generator=rng)
    mask = (torch.arange(width) < lengths) & (torch.rand(rows, width, generator=rng) < 0.9)
    return Batch(
        logprobs=(old + spread * normal(rows, width)).requires_grad_(),
        old_logprobs=old.where(torch.rand(rows, width, generator=rng) < 0.95, -math.inf),
        ref_logprobs=old + 0.3 * normal(rows, width),
        advantages=normal(rows, width) if by_token else normal(rows),
        mask=mask,
        entropy=normal(rows, width).abs(),
        truncated=torch.rand(rows, generator=rng) < 0.2,
        policy_age=torch.randint(0, 3, (rows,), generator=rng),
    )


def sequences_of(loss: Loss, batch: Batch) -> dict[int, dict[int, Token]]:
    """The valid tokens as plain numbers: row → position → token."""
    cut = batch.truncated
    assert batch.ref_logprobs is not None and cut is not None
    near = batch.old_logprobs if batch.proximal_logprobs is None else batch.proximal_logprobs
    advantages = batch.advantages if batch.advantages.dim() == 2 else batch.advantages[:, None].expand_as(near)
    columns = (batch.logprobs, batch.old_logprobs, batch.ref_logprobs, advantages, near)
    found: dict[int, dict[int, Token]] = {i: {} for i in range(len(cut))}
    for i, t in batch.mask.nonzero().tolist():
        lp, old, ref, advantage, other = (float(column[i, t].detach()) for column in columns)
        if math.isfinite(old) and not (cut[i] and loss.mask_truncated):
            found[i][t] = Token(Number(lp), Number(lp), Number(old), Number(ref), advantage, Number(other))
    return found


def totals_of(loss: Loss, batch: Batch) -> Totals:
    return Totals.of(loss.valid(batch.mask, batch.old_logprobs, batch.truncated))


def value_and_gradient(loss: Loss, batch: Batch, totals: Totals | None = None) -> tuple[Tensor, Tensor]:
    share = loss(batch, totals or totals_of(loss, batch)).loss
    (gradient,) = torch.autograd.grad(share, batch.logprobs)
    return share.detach(), gradient


def agrees(spec: Any, reference: Reference, batch: Batch) -> None:
    """Value and gradient are those of the reference."""
    loss = make_loss(spec)
    value, gradient = value_and_gradient(loss, batch)
    rows = sequences_of(loss, batch)
    sequences = [list(row.values()) for row in rows.values()]
    assert float(value) == pytest.approx(reference(sequences).value, rel=1e-10, abs=1e-12)
    expected = torch.zeros_like(gradient)
    for i, row in rows.items():
        for t, token in row.items():
            token.lp.slope = 1.0
            expected[i, t] = reference(sequences).slope
            token.lp.slope = 0.0
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-12)


# ------------------------------------------------------------ against the references


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("spread", [0.05, 0.5])
def test_values_and_gradients_are_those_of_the_paper(name: str, spread: float) -> None:
    agrees(*CASES[name], batch_of(1, 6, 5, spread))
    agrees(*CASES[name], batch_of(2, 3, 7, spread))


@pytest.mark.parametrize("name", CASES)
def test_extreme_ratios_stay_finite_and_clamped(name: str) -> None:
    batch = batch_of(3, 6, 5, spread=60.0)
    value, gradient = value_and_gradient(make_loss(SPECS[name]), batch)
    assert value.isfinite() and gradient.isfinite().all()
    agrees(*CASES[name], batch)


@pytest.mark.parametrize("name", [n for n in CASES if not n.startswith("gspo")])
def test_advantages_may_be_given_by_token(name: str) -> None:
    agrees(*CASES[name], batch_of(4, 5, 5, by_token=True))


@pytest.mark.parametrize("epsilon", [0.01, 0.3])
def test_gspo_with_advantages_by_token(epsilon: float) -> None:
    spec = {"kind": "gspo", "epsilon_low": epsilon, "epsilon_high": epsilon}
    agrees(spec, gspo_token(epsilon, epsilon), batch_of(4, 5, 5, by_token=True))


@pytest.mark.parametrize("limit", [1.05, 2.0])
def test_with_proximal_logprobs_weights_correct_from_the_sampler_to_them(limit: float) -> None:
    batch = batch_of(5, 6, 5)
    batch = replace(batch, proximal_logprobs=batch.logprobs.detach() + 0.2 * torch.randn(6, 5, dtype=torch.float64))

    def term(t: Token) -> Number:
        return min(exp(t.near - t.old), of(limit)) * ppo(exp(t.lp - t.near), t.advantage, 0.2, 0.2)

    agrees({"kind": "grpo", "off_policy": "truncate", "off_policy_limit": limit}, of_sequences(term), batch)


def test_the_defaults_of_float32_agree_with_float64() -> None:
    batch = batch_of(6, 6, 5)
    single = replace(batch, **{k: v.float() for k, v in vars(batch).items() if v is not None and v.is_floating_point()})
    single = replace(single, logprobs=single.logprobs.detach().requires_grad_())
    for spec in SPECS.values():
        loss = make_loss(spec)
        expected, gradient = value_and_gradient(loss, batch)
        value, found = value_and_gradient(loss, single)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.double(), gradient, rtol=1e-4, atol=1e-5)


def test_low_precision_is_computed_in_float32() -> None:
    batch = batch_of(7, 4, 4)
    half = replace(batch, logprobs=batch.logprobs.detach().bfloat16(), old_logprobs=batch.old_logprobs.bfloat16())
    assert make_loss("grpo")(half, totals_of(make_loss("grpo"), half)).loss.dtype == torch.float32


# ------------------------------------------------------------ what is left out


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("shape", [(3, 4), (0, 4), (3, 0)])
def test_without_a_valid_token_loss_and_gradients_are_zero(name: str, shape: tuple[int, int]) -> None:
    loss, batch = make_loss(SPECS[name]), batch_of(8, *shape)
    batch = replace(batch, mask=torch.zeros_like(batch.mask))
    assert totals_of(loss, batch) == Totals(0, 0)
    value, gradient = value_and_gradient(loss, batch)
    assert value == 0 and (gradient == 0).all()


@pytest.mark.parametrize("name", CASES)
def test_what_is_outside_the_mask_has_no_influence(name: str) -> None:
    loss, batch = make_loss(SPECS[name]), batch_of(9, 6, 5)
    expected, gradient = value_and_gradient(loss, batch)
    wild = torch.tensor([math.nan, math.inf, -math.inf, 1e30, -1e30]).double()
    assert not batch.mask.all()
    changed: dict[str, Any] = {
        k: torch.where(batch.mask, getattr(batch, k), wild) for k in ("logprobs", "old_logprobs", "ref_logprobs")
    }
    changed["logprobs"] = changed["logprobs"].detach().requires_grad_()
    value, found = value_and_gradient(loss, replace(batch, **changed))
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(found, gradient)


def test_a_sampler_value_that_is_not_finite_drops_its_token() -> None:
    loss, batch = make_loss("dapo"), replace(batch_of(10, 4, 4), truncated=None)
    old = batch.logprobs.detach().clone()
    old[0, 0], old[1, 2] = -math.inf, math.nan
    batch = replace(batch, old_logprobs=old, mask=torch.ones(4, 4, dtype=torch.bool))
    assert totals_of(loss, batch) == Totals(14, 4)
    _, gradient = value_and_gradient(loss, batch)
    assert gradient[0, 0] == gradient[1, 2] == 0 and (gradient != 0).sum() == 14


def test_truncated_responses_are_masked() -> None:
    batch = replace(
        batch_of(11, 3, 4), mask=torch.ones(3, 4, dtype=torch.bool), truncated=torch.tensor([0, 1, 0]).bool()
    )
    batch = replace(batch, old_logprobs=batch.logprobs.detach())
    for spec, tokens in (("grpo", 8), ({"kind": "grpo", "mask_truncated": False}, 12), ("sft", 12)):
        loss = make_loss(spec)
        assert totals_of(loss, batch).tokens == tokens
        _, gradient = value_and_gradient(loss, batch)
        assert (gradient != 0).sum() == tokens


# ------------------------------------------------------------ any split of a step


@st.composite
def splits(draw: st.DrawFn) -> tuple[int, int, list[list[list[int]]]]:
    """(seed, rows, rank → micro-batch → rows)."""
    rows, ranks = draw(st.integers(1, 9)), draw(st.sampled_from([1, 2, 4]))
    places = draw(st.lists(st.tuples(st.integers(0, ranks - 1), st.integers(0, 3)), min_size=rows, max_size=rows))
    split: list[list[list[int]]] = [[[] for _ in range(4)] for _ in range(ranks)]
    for row, (rank, part) in enumerate(places):
        split[rank][part].append(row)
    return draw(st.integers(0, 10**6)), rows, split


def part_of(batch: Batch, rows: list[int], logprobs: Tensor) -> Batch:
    """Some rows, as wide as the longest of them."""
    width = int((batch.mask[rows] * (torch.arange(batch.mask.shape[1]) + 1)).amax()) if rows else 0
    fields = {k: v[rows] for k, v in vars(replace(batch, logprobs=logprobs)).items() if v is not None}
    return Batch(**{k: v[:, :width] if v.dim() == 2 else v for k, v in fields.items()})


@settings(deadline=None, max_examples=30)
@given(splits(), st.sampled_from(sorted(CASES)))
def test_any_split_over_ranks_and_micro_batches_gives_the_same(
    split: tuple[int, int, list[list[list[int]]]], name: str
) -> None:
    seed, rows, ranks = split
    loss, batch = make_loss(SPECS[name]), batch_of(seed, rows, 6)
    whole = loss(batch, totals_of(loss, batch))
    (expected,) = torch.autograd.grad(whole.loss, batch.logprobs)

    logprobs = batch.logprobs.detach().requires_grad_()
    parts = [part_of(batch, micro, logprobs) for rank in ranks for micro in rank]
    totals = sum((totals_of(loss, part) for part in parts), Totals(0, 0))
    outputs = [loss(part, totals) for part in parts]
    shares = torch.stack([output.loss for output in outputs]).sum()
    (gradient,) = torch.autograd.grad(shares, logprobs)

    assert totals == totals_of(loss, batch)
    torch.testing.assert_close(shares, whole.loss, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-12)
    merged = losses.results(losses.merge(output.metrics for output in outputs))
    assert merged == pytest.approx(losses.results(whole.metrics), rel=1e-9, abs=1e-12)


# ------------------------------------------------------------ metrics


def measured(loss: Any, batch: Batch) -> dict[str, float]:
    made = make_loss(loss)
    return losses.results(made(batch, totals_of(made, batch)).metrics)


def test_metrics_are_means_over_valid_tokens() -> None:
    old = torch.zeros(2, 3, dtype=torch.float64)
    batch = Batch(
        logprobs=torch.tensor([[0.5, -0.5, 9.0], [-0.4, 0.1, 0.0]], dtype=torch.float64, requires_grad=True),
        old_logprobs=old,
        ref_logprobs=old - 0.1,
        advantages=torch.tensor([1.0, -1.0]).double(),
        mask=torch.tensor([[1, 1, 0], [1, 1, 1]]).bool(),
        entropy=torch.tensor([[1.0, 2.0, 50.0], [3.0, 4.0, 5.0]]),
        policy_age=torch.tensor([2, 0]),
    )
    found = measured("grpo", batch)
    deltas = [0.5, -0.5, -0.4, 0.1, 0.0]
    assert found["clip_fraction_high"] == pytest.approx(1 / 5)  # +0.5 with A > 0
    assert found["clip_fraction_low"] == pytest.approx(1 / 5)  # -0.4 with A < 0
    assert found["ratio"] == pytest.approx(fmean([math.exp(d) for d in deltas]))
    assert found["entropy"] == pytest.approx(3.0)
    assert found["kl_reference"] == pytest.approx(fmean([math.exp(-d - 0.1) - 1 + d + 0.1 for d in deltas]))
    assert found["kl_sampler"] == pytest.approx(fmean([math.exp(d) - 1 - d for d in deltas]))
    assert found["mismatch_kl"] == pytest.approx(fmean([math.exp(d) - 1 - d for d in deltas[2:]])), "age 0 alone"
    assert measured({"kind": "cispo", "max_ratio": 1.2}, batch)["clip_fraction_high"] == pytest.approx(1 / 5)
    masked = measured({"kind": "grpo", "off_policy": "token_mask", "off_policy_limit": 1.5}, batch)
    assert masked["off_policy_weight"] == pytest.approx(3 / 5), "exp(±0.5) are beyond the limit"


def test_supervised_losses_are_not_compared_with_a_sampler() -> None:
    assert not {"ratio", "kl_sampler", "mismatch_kl"} & set(measured("sft", batch_of(12, 3, 3)))


def test_there_is_no_result_where_nothing_was_measured() -> None:
    batch = replace(batch_of(13, 2, 3), policy_age=torch.tensor([1, 1]))
    assert "mismatch_kl" not in measured("grpo", batch)
    nothing = {kind: Metric.of(kind, torch.zeros(0)) for kind in ("max", "mean", "sum")}
    assert losses.results(nothing) == {"sum": 0}
    something = {"max": Metric.of("max", torch.tensor([-3, -2]))}
    assert losses.results(losses.merge([nothing, something])) == {"max": -2.0, "sum": 0}


def test_metrics_keep_no_graph() -> None:
    output = make_loss({"kind": "dapo", "beta": 0.1})(batch_of(14, 3, 3), Totals(9, 3))
    assert output.loss.requires_grad
    assert not any(m.value.requires_grad or m.count.requires_grad for m in output.metrics.values())


# ------------------------------------------------------------ make_loss


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("dapi", "no loss 'dapi'; did you mean 'dapo'?"),
        ({"epsilon_low": 0.1}, "needs a kind: one of grpo, dr_grpo"),
        ({"kind": "grpo", "epsilon": 0.1}, "no option 'epsilon'; did you mean 'epsilon_low'?"),
        ({"kind": "sft", "beta": 0.1}, "sft has no option 'beta'"),
        ({"kind": "grpo", "kl": "k1"}, "gradient has expectation zero"),
        ({"kind": "grpo", "kl": "k4"}, "one of k2, k3, not 'k4'"),
        ({"kind": "gspo", "epsilon_low": "3e-4"}, "a number of at least 0, not '3e-4'; YAML"),
        ({"kind": "grpo", "beta": -1}, "at least 0, not -1"),
        ({"kind": "grpo", "beta": math.nan}, "not nan"),
        ({"kind": "grpo", "off_policy_limit": 0.5}, "at least 1, not 0.5"),
        ("dr_grpo", "divides by max_tokens"),
        ({"kind": "dapo", "aggregation": "constant"}, "divides by max_tokens"),
    ],
)
def test_a_wrong_name_option_or_value_is_an_error(spec: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words.replace("?", r"\?")):
        make_loss(spec)


def test_a_loss_says_what_its_batch_lacks() -> None:
    batch = batch_of(15, 3, 3)
    loss = make_loss({"kind": "grpo", "beta": 0.1})
    assert loss.needs_reference and not make_loss("grpo").needs_reference
    with pytest.raises(ValueError, match="no ref_logprobs"):
        loss(replace(batch, ref_logprobs=None), Totals(9, 3))
    with pytest.raises(ValueError, match="would count twice"):
        make_loss({"kind": "grpo", "off_policy": "truncate"})(batch, Totals(9, 3))
    with pytest.raises(ValueError, match=r"advantages has shape \[2\], but \[3\]"):
        replace(batch, advantages=torch.zeros(2))
    with pytest.raises(ValueError, match=r"mask has shape \[3\], but \[3, 3\]"):
        replace(batch, mask=torch.ones(3, dtype=torch.bool))


def weighted(batch: Batch, totals: Totals, weight: float = 1.0) -> Tensor:
    """A loss of a user's own."""
    return -weight * (batch.advantages * batch.logprobs * batch.mask).sum() / totals.tokens


def test_a_function_of_ones_own() -> None:
    batch = batch_of(16, 5, 5)
    expected = value_and_gradient(make_loss("reinforce"), batch)
    for spec in (weighted, make_loss(weighted), f"{__name__}:weighted"):
        torch.testing.assert_close(value_and_gradient(make_loss(spec), batch), expected)
    doubled = {"kind": f"{__name__}:weighted", "weight": 2}
    torch.testing.assert_close(value_and_gradient(make_loss(doubled), batch)[0], 2 * expected[0])
    assert measured(weighted, batch).keys() >= {"entropy", "ratio", "kl_sampler"}


def test_a_function_of_ones_own_may_add_metrics_and_must_return_a_scalar() -> None:
    batch = batch_of(17, 3, 3)

    def with_metric(batch: Batch, totals: Totals) -> LossOutput:
        return LossOutput(batch.logprobs.sum(), {"mine": Metric.of("sum", totals.tokens + torch.zeros(1))})

    assert make_loss(with_metric)(batch, Totals(4, 2)).metrics.keys() >= {"mine", "entropy"}
    assert measured(with_metric, batch)["mine"] == totals_of(make_loss("grpo"), batch).tokens
    with pytest.raises(TypeError, match="the loss <lambda> must return a scalar tensor"):
        make_loss(lambda batch, _: batch.logprobs)(batch, Totals(9, 3))


# ------------------------------------------------------------ primitives


@pytest.mark.parametrize("temperature", [1.0, 0.7, 3.0])
@pytest.mark.parametrize("chunk", [1, 23, 1 << 22])
def test_log_probs_are_those_of_log_softmax(temperature: float, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logprobs, "CHUNK", chunk)
    logits = torch.randn(3, 4, 11, dtype=torch.float64, requires_grad=True)
    ids = torch.randint(11, (3, 4))
    weights = torch.randn(3, 4, dtype=torch.float64)
    expected = (logits / temperature).log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    found = losses.log_probs(logits, ids, temperature)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        *(torch.autograd.grad((weights * values).sum(), logits)[0] for values in (found, expected))
    )
    p = (logits / temperature).softmax(-1)
    torch.testing.assert_close(losses.entropy(logits, temperature), -(p * p.log()).sum(-1).detach())


def test_log_probs_of_low_precision_are_computed_in_float32() -> None:
    logits = (8 * torch.randn(64, 1000)).bfloat16().requires_grad_()
    ids = torch.randint(1000, (64,))
    found = losses.log_probs(logits, ids)
    exact = logits.double().log_softmax(-1).gather(-1, ids[:, None])[:, 0]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=1e-5)
    torch.autograd.backward(found.sum())
    assert logits.grad.dtype == torch.bfloat16
    assert losses.entropy(logits).dtype == torch.float32


def test_impossible_tokens_have_no_probability_and_no_gradient() -> None:
    logits = torch.tensor([[0.0, -math.inf, 1.0]], requires_grad=True)
    losses.log_probs(logits, torch.tensor([2])).sum().backward()
    assert logits.grad.isfinite().all() and logits.grad[0, 1] == 0
    assert losses.entropy(logits).isfinite().all()
    assert losses.log_probs(logits, torch.tensor([1])) == -math.inf


class Sizes(TorchDispatchMode):
    """Notes how many bytes the largest result of an operation has."""

    largest = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.largest = max(self.largest, result.numel() * result.element_size())
        return result


def test_log_probs_and_entropy_never_hold_all_logits_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logprobs, "CHUNK", 1000)
    logits = torch.randn(50, 100).bfloat16().requires_grad_()
    with Sizes() as sizes:
        found = losses.log_probs(logits, torch.zeros(50, dtype=torch.int64), 0.5)
        losses.entropy(logits, 0.5)
        found.sum().backward()
    assert sizes.largest == 50 * 100 * 2, "the logits, and their gradient, in their own type"


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_a_temperature_must_be_positive(temperature: float) -> None:
    with pytest.raises(ValueError, match="must be above 0"):
        losses.log_probs(torch.zeros(1, 2), torch.tensor([0]), temperature)
    with pytest.raises(ValueError, match="must be above 0"):
        losses.entropy(torch.zeros(1, 2), temperature)


def test_masked_mean() -> None:
    values = torch.tensor([[1.0, 3.0, math.nan], [5.0, math.inf, 7.0]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]]).bool()
    assert losses.masked_mean(values, mask) == 3
    assert losses.masked_mean(values, mask, 1).tolist() == [2, 5]
    assert losses.masked_mean(values, mask, 0, keepdim=True).tolist() == [[3, 3, 0]]


@settings(deadline=None)
@given(st.floats(-30, 30))
def test_the_estimates_of_a_kl(delta: float) -> None:
    x = torch.tensor(delta, dtype=torch.float64)
    assert losses.k1(x) == delta and losses.k2(x) == pytest.approx(delta**2 / 2)
    assert 0 <= losses.k3(x) == pytest.approx(math.exp(min(-delta, 20)) - 1 + delta, abs=1e-9) or delta < -20


def test_k1_and_k3_have_the_expectation_of_the_kl() -> None:
    p, q = torch.rand(7).double().softmax(0), torch.rand(7).double().softmax(0)
    delta = (p / q).log()
    expected = (p * delta).sum()
    assert (p * losses.k1(delta)).sum() == pytest.approx(expected)
    assert (p * losses.k3(delta)).sum() == pytest.approx(expected)


def test_a_policy_that_is_rewarded_for_one_action_learns_it() -> None:
    torch.manual_seed(0)
    for spec in ("grpo", {"kind": "dr_grpo", "max_tokens": 1}, "dapo", "gspo", "cispo", "reinforce"):
        loss, logits = make_loss(spec), torch.zeros(4, requires_grad=True)
        optimizer = torch.optim.SGD([logits], lr=1.0)
        for _ in range(60):
            actions = torch.multinomial(logits.detach().softmax(0), 16, replacement=True)[:, None]
            logprobs = losses.log_probs(logits.expand(16, 1, 4), actions)
            reward = (actions[:, 0] == 2).float()
            batch = Batch(logprobs, logprobs.detach(), reward - reward.mean(), torch.ones(16, 1, dtype=torch.bool))
            optimizer.zero_grad()
            loss(batch, Totals(16, 16)).loss.backward()
            optimizer.step()
        assert logits.softmax(0)[2] > 0.8, spec


def test_the_table_of_options_is_complete() -> None:
    for name, options in losses.LOSSES.items():
        values: Mapping[str, Any] = {**options, "max_tokens": 8, "kind": name}
        assert make_loss(values).name == name

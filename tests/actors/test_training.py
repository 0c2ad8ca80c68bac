"""One rank's training: gradients that no split changes, real clipping, and steps that go on from a checkpoint."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from actors.batches import demonstration, shares_of_some
from actors.checkpoint import Checkpoints
from actors.losses import make_loss
from actors.parallel import check_same_weights
from actors.training import Training, TrainingOptions, make_optimizer, zero_variance_groups
from actors.types import Episode
from actors.world import World
from tests.actors.episodes import VOCABULARY, episode, episodes, tiny

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
SGD = {"kind": "sgd", "lr": 1.0}


def training(dtype: torch.dtype = torch.float64, compute: torch.dtype | None = None, **options: Any) -> Training:
    return Training(tiny(dtype), TrainingOptions(**options), compute=compute)


def gradients(made: Training) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in made.module.named_parameters() if p.grad is not None}
    assert found
    return found


def weights(made: Training) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in made.tensors()}


# ------------------------------------------------------------ gradients


@pytest.mark.parametrize("loss", ["grpo", "dapo", {"kind": "grpo", "beta": 0.1}, "sft"])
@pytest.mark.parametrize("budget", [1, 13, 30])
def test_micro_batches_change_neither_loss_nor_gradients(loss: Any, budget: int) -> None:
    whole, split = training(loss=loss), training(loss=loss, micro_batch_tokens=budget)
    expected, metrics = whole.forward_backward(episodes())
    found, same = split.forward_backward(episodes())
    assert found == pytest.approx(expected, abs=1e-9)
    assert same == pytest.approx(metrics, abs=1e-6)
    for name, gradient in gradients(split).items():
        torch.testing.assert_close(gradient, gradients(whole)[name], atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    "loss", ["grpo", {"kind": "dr_grpo", "max_tokens": 7}, "dapo", "gspo", "cispo", "reinforce", "sft", {"beta": 0.1}]
)
def test_what_has_no_effect_is_not_computed(loss: Any) -> None:
    """The loss and the gradients are those of all responses; with a KL or by supervision each has an effect."""
    given = {"kind": "grpo", **loss} if isinstance(loss, dict) else loss
    effective = make_loss(given)
    few, all_ = training(loss=effective), training(loss=dataclasses.replace(effective, by_advantage=False))
    data = [one.replaced(advantage=0.0) if i % 4 in (1, 2) else one for i, one in enumerate(episodes())]
    data[7] = data[7].replaced(truncated=True)
    lengths = list[int]()
    few.module.register_forward_pre_hook(
        lambda *called: lengths.append(called[2]["input_ids"].numel()), with_kwargs=True
    )
    (value, metrics), (expected, same) = few.forward_backward(data), all_.forward_backward(data)
    assert value == pytest.approx(expected, abs=1e-12)
    for name, gradient in gradients(few).items():
        torch.testing.assert_close(gradient, gradients(all_)[name], atol=1e-12, rtol=0)
    computed = [0, 3, 4] if effective.by_advantage else range(8)
    assert effective.by_advantage == (loss not in ("sft", {"beta": 0.1}))
    assert sum(lengths) <= len(computed) * max(len(data[i].prompt_ids) + len(data[i].token_ids) for i in computed)
    for name in ("tokens", "sequences", "truncated", "reward", "policy_age_max", "zero_variance_groups"):
        assert metrics[name] == same[name]


def test_what_is_left_of_shares_is_dealt_out_anew_where_that_is_less_work() -> None:
    def group(number: int, size: int, length: int) -> list[Episode]:
        prompt = torch.tensor([1, number])
        return [episode(10 * number + i, 1, length, prompt_ids=prompt) for i in range(size)]

    a, b, c, d = (group(i, 2, 4 + i) for i in range(4))
    shares = shares_of_some([[*a, *b], [*c, *d]], [True] * 4 + [False] * 4)
    assert [[e.episode_id for e in share] for share in shares] == [[e.episode_id for e in g] for g in (b, a)]
    mixed = [[a[0], b[0]], [a[1], b[1]]]
    assert shares_of_some(mixed, [True, False, True, False]) == [[a[0]], [a[1]]], "one prompt, on both ranks"


def test_a_supervised_step_is_that_of_a_plain_loop() -> None:
    made, module, given = training(loss="sft", optimizer=SGD, max_norm=0.5), tiny(), episodes()
    loss = torch.zeros((), dtype=torch.float64)
    for one in given:
        ids = torch.cat([one.prompt_ids, one.token_ids])
        table = module(ids[None]).logits[0].log_softmax(-1)
        for i, counts in enumerate(one.loss_mask.tolist()):
            at = len(one.prompt_ids) + i
            loss = loss - counts * table[at - 1, ids[at]]
    loss = loss / sum(int(one.loss_mask.sum()) for one in given)
    loss.backward()
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in module.parameters()))
    assert norm > 0.5
    result = made.train_step(given)
    assert result.loss == pytest.approx(loss.item(), abs=1e-9)
    assert result.metrics["grad_norm"] == pytest.approx(norm, abs=1e-9)
    assert result.metrics["learning_rate"] == 1.0
    assert result.metrics["tokens"] == sum(int(one.loss_mask.sum()) for one in given)
    for name, parameter in module.named_parameters():
        expected = parameter.detach() - 0.5 / norm * parameter.grad
        torch.testing.assert_close(weights(made)[name], expected, atol=1e-5, rtol=0)


def test_gradients_of_several_calls_add_up_until_the_step() -> None:
    twice, once = training(optimizer=SGD), training(optimizer=SGD)
    once.forward_backward(episodes())
    twice.forward_backward(episodes())
    twice.forward_backward(episodes())
    for name, gradient in gradients(twice).items():
        torch.testing.assert_close(gradient, 2 * gradients(once)[name])
    twice.clear_gradients()
    assert all(p.grad is None for p in twice.module.parameters())
    assert twice.step == 0
    once.optim_step()
    assert once.step == 1
    assert all(p.grad is None for p in once.module.parameters())


def test_what_no_token_counts_in_has_no_gradient() -> None:
    made = training()
    value, metrics = made.forward_backward([one.replaced(truncated=True) for one in episodes()])
    assert value == 0
    assert metrics["tokens"] == 0
    assert metrics["truncated"] == 8
    assert all(not gradient.any() for gradient in gradients(made).values())


def test_a_gradient_that_is_not_finite_leaves_the_weights_alone() -> None:
    made = training()
    before = weights(made)
    made.forward_backward(episodes())
    next(made.module.parameters()).grad.fill_(math.nan)
    with pytest.raises(FloatingPointError, match="norm of the gradients is nan; weights are unchanged"):
        made.optim_step()
    assert made.step == 0
    for name, tensor in weights(made).items():
        torch.testing.assert_close(tensor, before[name])


# ------------------------------------------------------------ steps


def test_the_schedule_and_an_own_rate_set_the_learning_rate() -> None:
    made = training(optimizer={"kind": "AdamW", "lr": 0.01}, lr_scheduler={"warmup_steps": 2})
    rates = [made.train_step(episodes()).metrics["learning_rate"] for _ in range(2)]
    rates.append(made.train_step(episodes(), learning_rate=0.5).metrics["learning_rate"])
    rates.append(made.train_step(episodes()).metrics["learning_rate"])
    assert rates == pytest.approx([0.005, 0.01, 0.5, 0.01])


def test_it_learns_what_it_is_shown_and_then_by_rewards() -> None:
    made = training(torch.float32, optimizer={"lr": 0.01})
    shown = [demonstration(torch.tensor([i]), torch.tensor([(i + 1) % VOCABULARY, 0])) for i in range(VOCABULARY)]
    first = made.train_step(shown, loss="sft")
    for _ in range(60):
        last = made.train_step(shown, loss="sft")
    assert (last.step, first.loss > 2, last.loss < 0.2) == (61, True, True)
    assert "ratio" in made.train_step(episodes()).metrics


def test_metrics_say_what_happened() -> None:
    made = training()
    made.version = 3
    data = [one.replaced(policy_version=i % 3) for i, one in enumerate(episodes())]
    data[3] = data[3].replaced(logprobs=data[3].logprobs.fill_(math.nan), loss_mask=torch.ones(2, dtype=torch.bool))
    found = made.train_step(data)
    assert found.metrics.keys() >= {"entropy", "ratio", "kl_reference", "clip_fraction_low", "clip_fraction_high"}
    assert (found.metrics["policy_age_max"], found.metrics["sequences"]) == (3, 7)
    assert found.metrics["policy_age_mean"] == pytest.approx(17 / 8)
    assert found.metrics["nonfinite_tokens"] == 2
    assert found.metrics["reward"] == pytest.approx(7 / 8)


def test_groups_of_equal_rewards_are_counted() -> None:
    def of(group: str, *rewards: float) -> list[Episode]:
        return [episode(i, 1, 1, group_id=group, reward=reward) for i, reward in enumerate(rewards)]

    assert zero_variance_groups([*of("a", 1, 1), *of("b", 1, 0), *of("c", 1), *of("d", 0, 0, 0)]) == 2


def test_mixed_precision_leaves_weights_in_full_precision() -> None:
    full, mixed = training(torch.float32), training(torch.float32, torch.bfloat16)
    assert mixed.train_step(episodes()).loss == pytest.approx(full.train_step(episodes()).loss, abs=0.05)
    assert {p.dtype for p in mixed.module.parameters()} == {torch.float32}
    assert {tensor.dtype for _, tensor in mixed.tensors()} == {torch.bfloat16}


def test_random_numbers_depend_on_seed_and_step_alone() -> None:
    before = torch.random.get_rng_state()
    made = training(loss="sft")
    with made._arithmetic():
        first = torch.rand(3)
    with made._arithmetic():
        again = torch.rand(3)
    made.step = 1
    with made._arithmetic():
        later = torch.rand(3)
    assert torch.equal(first, again)
    assert not torch.equal(first, later)
    assert torch.equal(torch.random.get_rng_state(), before)


# ------------------------------------------------------------ checkpoints


def test_a_resumed_training_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    options: dict[str, Any] = {"optimizer": {"lr": 0.02}, "lr_scheduler": {"kind": "linear", "total_steps": 9}}
    straight, checkpoints = training(**options), Checkpoints(tmp_path)
    straight.train_step(episodes())
    straight.train_step(episodes())
    path = checkpoints.save(straight.step, 5, straight.state())
    expected = [straight.train_step(episodes()) for _ in range(2)]
    checkpoints.wait()
    resumed = training(**options)
    state = resumed.state()
    manifest, _ = checkpoints.load(path, state)
    resumed.load_state(state, manifest.step)
    assert [resumed.train_step(episodes()) for _ in range(2)] == expected
    for name, tensor in weights(resumed).items():
        assert torch.equal(tensor, weights(straight)[name])


# ------------------------------------------------------------ mistakes


def test_mistakes_are_named() -> None:
    made = training()
    with pytest.raises(ValueError, match="no episodes"):
        made.forward_backward([])
    with pytest.raises(ValueError, match=r"episode e3 has 2 token_ids, but {'logprobs': 1}"):
        made.forward_backward([episode(3, 1, 2, logprobs=torch.zeros(1))])
    with pytest.raises(ValueError, match="1 of 2 episodes have ref_logprobs"):
        made.forward_backward([episode(1, 1, 2), episode(2, 1, 2, ref_logprobs=None)])
    with pytest.raises(ValueError, match="no 'adamww'; did you mean 'adamw'"):
        make_optimizer(tiny(), {"kind": "adamww"})
    with pytest.raises(TypeError, match="rate"):
        make_optimizer(tiny(), {"rate": 3})


def test_ranks_must_begin_with_the_same_weights() -> None:
    class Two(World):
        def gather(self, value: Any) -> list[Any]:
            return [value, value + 1e-9]

    with pytest.raises(ValueError, match=r"ranks \[1\] have loaded other weights than rank 0 from here"):
        check_same_weights(tiny(), Two(), "here")
    check_same_weights(tiny(), World(), "here")

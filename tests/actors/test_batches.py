"""Micro-batches, and log-probabilities that no padding changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.batches import PrefixTrees, Sequences, demonstration, response_logprobs, shares_of, split_by_tokens
from actors.types import Episode
from tests.actors.episodes import VOCABULARY, episode, episodes, tiny


def alone(module: torch.nn.Module, one: Episode, temperature: float) -> torch.Tensor:
    """Log-probabilities of one response without any padding, by a plain forward pass."""
    ids = torch.cat([one.prompt_ids, one.token_ids])
    table = (module(ids[None]).logits[0] / temperature).log_softmax(-1)
    return torch.stack([table[i - 1, ids[i]] for i in range(len(one.prompt_ids), len(ids))])


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_padding_changes_no_log_probability(temperature: float) -> None:
    module, given = tiny(), episodes()
    found, entropies = response_logprobs(module, Sequences.of(given), temperature, with_entropy=True)
    assert found.shape == (8, 7)
    assert entropies is not None
    for row, at, one in zip(found, entropies, given, strict=True):
        length = len(one.token_ids)
        torch.testing.assert_close(row[:length], alone(module, one, temperature), atol=1e-12, rtol=0)
        assert bool((row[length:] == 0).all())
        ids = torch.cat([one.prompt_ids, one.token_ids])
        table = (module(ids[None]).logits[0, len(one.prompt_ids) - 1 : -1] / temperature).log_softmax(-1)
        torch.testing.assert_close(at[:length], -(table.exp() * table).sum(-1), atol=1e-12, rtol=0)


def test_tokens_with_the_id_of_padding_count() -> None:
    module = tiny()
    zeros = demonstration(torch.zeros(2, dtype=torch.long), torch.zeros(3, dtype=torch.long))
    longer = episode(1, 4, 6)
    found, _ = response_logprobs(module, Sequences.of([zeros, longer]))
    torch.testing.assert_close(found[0, :3], alone(module, zeros, 1.0), atol=1e-12, rtol=0)


def of_the_same_prompts() -> list[Episode]:
    """Responses of unequal lengths to prompts of which one begins another; the responses are in no order."""
    given = []
    for i in range(12):
        prompt = torch.tensor([5, 0, 7, 7, 0, 2][: 6 - i % 3])
        given.append(episode(i, 1, 1 + (5 * i) % 4, prompt_ids=prompt))
    return given


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_prompt_that_responses_share_is_computed_once(temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    def measured() -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        module = tiny()
        counted: list[int] = []
        module.model.register_forward_hook(lambda _, __, hidden: counted.append(hidden.shape[:2].numel()))
        found, entropies = response_logprobs(module, Sequences.of(given), temperature, with_entropy=True)
        assert entropies is not None
        (found * torch.arange(found.numel()).reshape(found.shape) + entropies).sum().backward()
        tokens.extend(counted)
        return found.detach(), entropies.detach(), [p.grad for p in module.parameters() if p.grad is not None]

    given, tokens = of_the_same_prompts(), list[int]()
    shared = measured()
    monkeypatch.setattr("actors.batches.SHORT", 0)
    torch.testing.assert_close(shared, measured(), atol=1e-11, rtol=1e-11)
    assert tokens[0] < 0.6 * tokens[1] == 0.6 * 12 * 9
    for row, one in zip(shared[0], given, strict=True):
        torch.testing.assert_close(row[: len(one.token_ids)], alone(tiny(), one, temperature), atol=1e-12, rtol=0)


def test_what_responses_begin_with_is_computed_once() -> None:
    prompt = torch.tensor([1, 2, 3])
    responses = [[4, 5, 6], [4, 5, 7], [4, 5], [8, 4, 5, 6]]
    given = [demonstration(prompt, torch.tensor(response)) for response in responses]
    trees = PrefixTrees.of(Sequences.of([*given, demonstration(prompt[:2], torch.tensor([3, 4, 5]))]))
    assert trees is not None
    # the prompt, then 4 5, then 8 4 5: nothing needs what follows a last token; and the other prompt, then 3 4
    assert sorted(trees.inputs["input_ids"].flatten().tolist()) == sorted([1, 2, 3, 4, 5, 8, 4, 5, 1, 2, 3, 4])
    assert sorted(trees.inputs["position_ids"].flatten().tolist()) == sorted([0, 1, 2, 3, 4, 3, 4, 5, 0, 1, 2, 3])
    assert len(trees.rows) == 3 + 3 + 2 + 4 + 3
    assert len({*zip(trees.rows.tolist(), trees.columns.tolist(), strict=True)}) == 1 + 2 + 3 + 3


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.lists(st.integers(0, 1), min_size=1, max_size=6)), max_size=24))
def test_each_token_sees_what_it_follows_and_nothing_else(drawn: list[tuple[int, list[int]]]) -> None:
    prompts = [[0], [0, 1, 0], [1, 1]]
    given = [demonstration(torch.tensor(prompts[i]), torch.tensor(response)) for i, response in drawn]
    trees = PrefixTrees.of(Sequences.of(given)) if given else None
    if trees is None:
        return
    ids, mask = trees.inputs["input_ids"], trees.inputs["attention_mask"][:, 0]
    at = iter(zip(trees.rows.tolist(), trees.columns.tolist(), strict=True))
    for i, response in drawn:
        for length in range(len(response)):
            row, column = next(at)
            assert ids[row, mask[row, column]].tolist() == [*prompts[i], *response[:length]]
            assert trees.inputs["position_ids"][row, column] == len(prompts[i]) + length - 1


def test_prompts_are_not_shared_where_attention_would_cost_more() -> None:
    long = [episode(i, 1, 100, prompt_ids=torch.zeros(200, dtype=torch.long)) for i in range(4)]
    for some in (long, [episode(0, 4, 2)]):
        assert PrefixTrees.of(Sequences.of(some)) is None


def test_models_of_transformers_give_the_same(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.Qwen2Config(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.3,
    )  # fmt: skip
    module = transformers.Qwen2ForCausalLM(config).double().eval()
    found, _ = response_logprobs(module, Sequences.of(episodes()))
    for row, one in zip(found, episodes(), strict=True):
        torch.testing.assert_close(row[: len(one.token_ids)], alone(module, one, 1.0), atol=1e-10, rtol=0)


@settings(deadline=None)
@given(st.lists(st.integers(1, 50)), st.integers(1, 120) | st.none())
def test_micro_batches_have_each_sequence_once_and_keep_the_budget(lengths: list[int], budget: int | None) -> None:
    parts = split_by_tokens(lengths, budget)
    assert sorted(i for part in parts for i in part) == list(range(len(lengths)))
    for part in parts:
        assert part
        if budget is not None and len(part) > 1:
            assert len(part) * max(lengths[i] for i in part) <= budget
    if budget is None:
        assert len(parts) <= 1


def test_a_list_is_dealt_out_by_length() -> None:
    given = [episode(i, 1, length) for i, length in enumerate((9, 1, 2, 8))]
    assert [[len(e.token_ids) for e in share] for share in shares_of(given, 2)] == [[9, 2], [8, 1]]
    assert shares_of([given, []], 2) == [given, []]
    with pytest.raises(ValueError, match="for 3 ranks, but the mesh has 2"):
        shares_of([given, [], []], 2)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="episode e5 has an empty prompt"):
        Sequences.of([episode(5, 0, 3)])
    ids = torch.zeros(2, 4, dtype=torch.long)
    with pytest.raises(ValueError, match=r"must both be \[2\]"):
        Sequences(ids, torch.tensor([4]), torch.tensor([1]))
    for lengths, start in (((5, 4), (1, 1)), ((4, 4), (0, 1)), ((2, 4), (3, 1))):
        with pytest.raises(ValueError, match="1 <= response_start <= length <= T"):
            Sequences(ids, torch.tensor(lengths), torch.tensor(start))

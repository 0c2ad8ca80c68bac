"""The decode loop: what is sampled depends on the request alone, and log-probabilities are those of the model."""

from __future__ import annotations

import functools
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.decode import DecodeLoop, Request, random_key, restrict, sample, uniforms
from actors.models import HuggingFaceTokenizer, LoadedModel, load_model, save_model
from actors.types import Completion, SamplingParams
from actors.weights import WeightStore

CHARACTERS = "0123456789+=."
END = len(CHARACTERS)
TINY: dict[str, Any] = {
    "characters": CHARACTERS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 300,
    "initializer_range": 0.3,  # far from uniform, so that a mistake shows
}


@functools.cache
def model(seed: int = 0) -> LoadedModel:
    return load_model({**TINY, "seed": seed})


def new_loop(**options: Any) -> DecodeLoop:
    return DecodeLoop(load_model(TINY), **options)


def finish(loop: DecodeLoop) -> dict[str, list[Completion]]:
    done: dict[str, list[Completion]] = {}
    while not loop.idle:
        done |= loop.step()
    return done


def run(*requests: Request, **options: Any) -> dict[str, list[Completion]]:
    loop = DecodeLoop(model(), **options)
    for request in requests:
        loop.add(request)
    return finish(loop)


def forward_logprobs(module: torch.nn.Module, completion: Completion, temperature: float = 1.0) -> torch.Tensor:
    """Of the response's tokens, by one plain forward pass over the whole text."""
    ids = torch.cat((completion.prompt_ids, completion.token_ids))
    with torch.no_grad():
        logits = module(ids[None]).logits[0, len(completion.prompt_ids) - 1 : -1]
    return (logits / temperature).log_softmax(-1).gather(1, completion.token_ids[:, None])[:, 0]


def params(**kwargs: Any) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 12, **kwargs})


prompts = st.lists(st.integers(0, END - 1), min_size=1, max_size=40)
wishes = st.builds(
    SamplingParams,
    n=st.integers(1, 3),
    max_tokens=st.integers(1, 20),
    temperature=st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    top_p=st.sampled_from([1.0, 0.5]),
    top_k=st.sampled_from([0, 3]),
)


# ------------------------------------------------------------------ log-probabilities, batches


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(prompts, wishes, st.integers(0, 6)), min_size=1, max_size=8), st.integers(1, 9))
def test_any_mix_of_requests_gives_the_log_probabilities_of_a_plain_forward_pass(
    mix: list[tuple[list[int], SamplingParams, int]], max_batch: int
) -> None:
    loop = DecodeLoop(model(), max_batch=max_batch)
    done: dict[str, list[Completion]] = {}
    for i, (prompt, wish, steps) in enumerate(mix):
        loop.add(Request(str(i), prompt, wish))
        for _ in range(steps):  # the next one joins a batch that is under way
            done |= loop.step()
            assert loop.active <= max_batch
    done |= finish(loop)
    for i, (prompt, wish, _) in enumerate(mix):
        assert len(done[str(i)]) == wish.n
        for completion in done[str(i)]:
            expected = forward_logprobs(model().module, completion, wish.temperature or 1.0)
            assert completion.prompt_ids.tolist() == prompt
            assert torch.allclose(completion.logprobs, expected, atol=1e-4)
            assert completion.stop_reason == ("stop" if completion.token_ids[-1] == END else "length")
            assert completion.stop_reason == "stop" or len(completion.token_ids) == wish.max_tokens
            assert END not in completion.token_ids[:-1]


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(prompts, wishes), min_size=2, max_size=8), st.integers(1, 9))
def test_a_completion_does_not_depend_on_its_batch(mix: list[tuple[list[int], SamplingParams]], rows: int) -> None:
    requests = [Request(str(i), prompt, wish) for i, (prompt, wish) in enumerate(mix)]
    together = run(*requests, max_batch=rows)
    for request in requests:
        alone = run(request)[request.request_id]
        for one, other in zip(alone, together[request.request_id], strict=True):
            assert one.token_ids.tolist() == other.token_ids.tolist()
            assert one.text == other.text and one.stop_reason == other.stop_reason


def test_seed_request_and_index_change_a_completion() -> None:
    def text(request_id: str = "a", index: int = 0, **kwargs: Any) -> str:
        loop_seed = kwargs.pop("loop_seed", 0)
        wish = params(n=2, max_tokens=30, stop_token_ids=(), **kwargs)
        return run(Request(request_id, [1, 2], wish), seed=loop_seed)[request_id][index].text

    assert text() == text() == text(seed=0)  # the loop's seed is 0
    assert len({text(), text("b"), text(index=1), text(seed=1), text(seed=2)}) == 5
    assert text(seed=1) == text(loop_seed=1) == text(seed=1, loop_seed=2)


def test_completions_of_a_request_share_one_prefill() -> None:
    loop = new_loop(max_batch=3)
    passes: list[tuple[int, ...]] = []
    loop.module.register_forward_pre_hook(
        lambda _, __, kwargs: passes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    loop.add(Request("a", [1, 2, 3, 4, 5], params(n=7, max_tokens=5, stop_token_ids=())))
    done = finish(loop)["a"]
    assert [shape for shape in passes if shape[1] > 1] == [(1, 5)]  # though they did not fit into the batch together
    assert len(done) == 7 and len({completion.text for completion in done}) > 1


def test_prompts_of_several_requests_are_computed_in_one_pass() -> None:
    loop = new_loop()
    passes: list[tuple[int, ...]] = []
    loop.module.register_forward_pre_hook(
        lambda _, __, kwargs: passes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    for i, length in enumerate((9, 8, 10)):
        loop.add(Request(str(i), [1] * length, params(max_tokens=1)))
    finish(loop)
    assert passes == [(3, 10)]  # the first tokens come from there


@pytest.mark.parametrize("architecture", ["Qwen2", "Llama"])
def test_models_of_transformers_decode_as_well(tmp_path: Path, architecture: str) -> None:
    import transformers

    shape: dict[str, Any] = {"vocab_size": 14, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2}
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3}
    config = getattr(transformers, f"{architecture}Config")(**shape)
    theirs = getattr(transformers, f"{architecture}ForCausalLM")(config).eval()
    loop = DecodeLoop(LoadedModel(theirs, model().tokenizer, config))
    for i, prompt in enumerate(([1], [1, 2, 3], [5] * 20)):
        loop.add(Request(str(i), prompt, params(n=2, max_tokens=30)))
    for completions in finish(loop).values():
        for completion in completions:
            assert torch.allclose(completion.logprobs, forward_logprobs(theirs, completion), atol=1e-4)


def test_greedy_is_what_transformers_generates(tmp_path: Path) -> None:
    import transformers

    save_model(*model(), tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    prompt = [1, 2, 3, 10, 4]
    generated = theirs.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=25, pad_token_id=END)
    ours = run(Request("a", prompt, params(temperature=0, max_tokens=25)))["a"][0]
    assert ours.token_ids.tolist() == generated[0, len(prompt) :].tolist()


def test_a_sequence_may_be_as_long_as_the_model() -> None:
    (completion,) = run(Request("a", [1] * 250, params(max_tokens=10**6, temperature=0)), max_length=256)["a"]
    assert len(completion.token_ids) == 6 or completion.stop_reason == "stop"
    request = Request("a", [1] * 20, params(n=5, max_tokens=10**6, temperature=5.0))
    long = run(request, Request("b", [2], params(max_tokens=10**6, temperature=5.0)), max_length=200)
    for c in (*long["a"], *long["b"]):
        assert len(c.prompt_ids) + len(c.token_ids) == 200 or c.stop_reason == "stop"
        assert torch.allclose(c.logprobs, forward_logprobs(model().module, c, 5.0), atol=1e-4)


def test_memory_grows_by_need_and_has_a_bound() -> None:
    loop = new_loop(max_batch=4, max_length=256)
    loop.add(Request("a", [1], params()))
    finish(loop)
    small = loop.stats()["cache_bytes"]
    per_token = 2 * 2 * 2 * 8 * 4  # keys and values, layers, heads, head_dim, bytes
    assert 0 < small <= 64 * per_token
    for i in range(9):
        loop.add(Request(str(i), [1] * 240, params(n=2, max_tokens=100)))
    finish(loop)
    assert loop.stats()["cache_bytes"] == 4 * 256 * per_token


def test_completions_may_be_learned_from() -> None:
    (completion,) = run(Request("a", [1, 2], params()))["a"]
    weight = torch.ones(len(completion.logprobs), requires_grad=True)
    (weight * completion.logprobs).sum().backward()  # an inference tensor would refuse
    assert weight.grad is not None


# ------------------------------------------------------------------ sampling


def test_random_numbers_depend_on_key_and_position_alone_and_are_uniform() -> None:
    keys = torch.tensor([random_key(0, str(i), i % 4) for i in range(200)])
    positions = torch.arange(500)
    table = uniforms(keys[:, None], positions[None])
    assert table[3, 7] == uniforms(keys[3:4], positions[7:8])[0]
    assert table.min() >= 0 and table.max() < 1
    assert abs(table.mean().item() - 0.5) < 5 / math.sqrt(12 * table.numel())
    counts = torch.histc(table.float(), 50, 0, 1)
    expected = table.numel() / 50
    assert ((counts - expected) ** 2 / expected).sum() < 100  # chi square, 49 degrees of freedom: p about 2e-5
    pairs = torch.corrcoef(torch.stack((table[:, :-1].flatten(), table[:, 1:].flatten())))
    assert abs(pairs[0, 1].item()) < 0.02
    assert len({random_key(*key) for key in ((0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1))}) == 4


def test_the_generator_is_splitmix64() -> None:
    """Beside its definition on unsigned numbers."""

    def reference(key: int, position: int) -> float:
        mask = 2**64 - 1
        z = (key + (position + 1) * 0x9E3779B97F4A7C15) & mask
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return ((z ^ (z >> 31)) >> 16) / 2**48

    for key in (0, 1, -1, 2**63 - 1, -(2**63), random_key(1, "x", 2)):
        for position in (0, 1, 1000):
            assert uniforms(torch.tensor([key]), torch.tensor([position])).item() == reference(key, position)


def rows(count: int, temperature: float = 1.0) -> dict[str, torch.Tensor]:
    """Of `count` rows without top_k and top_p."""
    none = torch.empty(0, dtype=torch.int64)
    return {"temperature": torch.full((count,), temperature), "restricted": none, "top_k": none, "top_p": none}


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_tokens_come_as_often_as_their_probability_says(temperature: float) -> None:
    count = 20_000
    logits = torch.tensor([[2.0, 0.0, -1.0, -math.inf, 1.0]]).expand(count, -1)
    uniform = uniforms(torch.full((count,), 17), torch.arange(count))
    tokens, logprobs = sample(logits, uniform, **rows(count, temperature=temperature))
    probabilities = (logits[0] / temperature).softmax(-1)
    for token, probability in enumerate(probabilities.tolist()):
        sigma = math.sqrt(probability * (1 - probability) / count)
        assert abs((tokens == token).float().mean().item() - probability) <= 4 * sigma
    assert torch.allclose(logprobs, probabilities.log()[tokens], atol=1e-6)


def test_rare_tokens_of_a_large_vocabulary_are_sampled() -> None:
    logits = torch.zeros(1, 50_000)
    logits[0, 0] = 25.0  # the others together: 7e-7, each 1e-11, which float32 could not add to 1
    token, logprob = sample(logits, torch.tensor([1 - 1e-9], dtype=torch.float64), **rows(1))
    assert token.item() > 0 and logprob.item() == pytest.approx(-25, abs=1e-3)
    assert sample(logits, torch.tensor([1 - 2.0**-48], dtype=torch.float64), **rows(1))[0].item() < 50_000


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(-50, 50), min_size=2, max_size=9, unique=True), st.integers(0, 9), st.floats(0.01, 1.0))
def test_top_k_and_top_p(tenths: list[int], top_k: int, top_p: float) -> None:
    probabilities = (torch.tensor([tenths], dtype=torch.float64) / 10).softmax(-1)
    best = sorted(enumerate(probabilities[0].tolist()), key=lambda pair: -pair[1])[: top_k or None]
    total, kept, mass = sum(p for _, p in best), set(), 0.0
    for token, probability in best:
        if abs(mass / total - top_p) < 1e-6:
            return  # either is right
        if mass / total < top_p:
            kept.add(token)
        mass += probability
    allowed = restrict(probabilities, torch.tensor([top_k]), torch.tensor([top_p]))
    assert set(allowed[0].nonzero()[:, 0].tolist()) == kept
    assert all(allowed[0, token] == probabilities[0, token] for token in kept)


def test_top_p_of_a_large_vocabulary_looks_further_where_it_must() -> None:
    flat = torch.full((2, 30_000), 1 / 30_000)
    allowed = restrict(flat, torch.tensor([0, 5000]), torch.tensor([0.5, 1.0]))
    assert abs((allowed[0] > 0).sum().item() - 15_000) <= 2 and (allowed[1] > 0).sum() == 5000


def test_rows_of_a_batch_are_sampled_each_in_its_way() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0, 2.0]]).expand(400, -1)
    settings = {
        "temperature": torch.tensor([0.0, 1.0, 1.0, 100.0]).repeat(100),
        "restricted": torch.arange(400)[torch.arange(400) % 4 % 3 > 0],
        "top_k": torch.tensor([2, 0]).repeat(100),
        "top_p": torch.tensor([1.0, 0.5]).repeat(100),
    }
    tokens, logprobs = sample(logits, uniforms(torch.full((400,), 3), torch.arange(400)), **settings)
    by_kind = [set(tokens[i::4].tolist()) for i in range(4)]
    assert by_kind == [{1}, {1, 3}, {1}, {0, 1, 2, 3}]
    full = logits[0].log_softmax(-1)
    for i in range(3):  # of the whole vocabulary, whatever was excluded
        assert torch.allclose(logprobs[i::4], full[tokens[i::4]], atol=1e-6)


# ------------------------------------------------------------------ ends


def test_a_stop_text_ends_a_completion_and_is_not_in_its_text() -> None:
    free = run(Request("a", [1, 2], params(max_tokens=40, seed=3)))["a"][0]
    stop = free.text[4:7]  # spans tokens: each is a character
    assert free.text.find(stop) >= 0
    cut = run(Request("a", [1, 2], params(max_tokens=40, seed=3, stop=("never", stop))))["a"][0]
    at = free.text.find(stop)
    assert cut.text == free.text[:at] and cut.stop_reason == "stop"
    assert cut.token_ids.tolist() == free.token_ids[: at + len(stop)].tolist()


def test_a_stop_text_may_begin_and_end_within_tokens() -> None:
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    words = {word: i for i, word in enumerate(["The", " end", "!\n", "\nB", "ye", "Ġ", "é", "<e>"])}
    raw = Tokenizer(models.WordLevel(words, unk_token="<e>"))
    raw.decoder = decoders.Fuse()
    tokenizer = HuggingFaceTokenizer(PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<e>"))
    loaded = load_model({**TINY, "characters": "abcdefg"})
    loop = DecodeLoop(LoadedModel(loaded.module, tokenizer, loaded.config))
    forced = iter([0, 1, 2, 3, 4])

    def force(_: Any, __: Any, output: Any) -> Any:
        logits = torch.full_like(output.logits, -50.0)
        logits[..., next(forced)] = 50.0
        return output._replace(logits=logits)

    loop.module.register_forward_hook(force)
    loop.add(Request("a", [1], params(stop=("!\n\n",))))
    (completion,) = finish(loop)["a"]
    assert (completion.text, completion.token_ids.tolist()) == ("The end", [0, 1, 2, 3])


def test_a_stop_token_ends_a_completion() -> None:
    free = run(Request("a", [1, 2], params(max_tokens=40, seed=3)))["a"][0].token_ids.tolist()
    stop = free[5]
    cut = run(Request("a", [1, 2], params(max_tokens=40, seed=3, stop_token_ids=(stop,))))["a"][0]
    assert cut.token_ids.tolist() == free[: free.index(stop) + 1] and cut.stop_reason == "stop"
    assert cut.text == model().tokenizer.decode(free[: free.index(stop)])


def test_the_end_token_is_sampled_kept_and_not_in_the_text() -> None:
    found = run(*(Request(str(i), [1], params(max_tokens=200)) for i in range(8)))
    stopped = [c for (c,) in found.values() if c.stop_reason == "stop"]
    assert stopped
    for completion in stopped:
        assert completion.token_ids[-1] == END and len(completion.text) == len(completion.token_ids) - 1


# ------------------------------------------------------------------ queue


def test_lower_priority_values_go_first_and_equal_ones_in_order() -> None:
    loop = new_loop(max_batch=1)
    for name, priority in (("a", 0), ("b", 1), ("c", -1), ("d", 0)):
        loop.add(Request(name, [1], params(max_tokens=2), priority))
    order = []
    while not loop.idle:
        order += loop.step()
    assert order == ["c", "a", "d", "b"]


def test_requests_join_and_leave_between_tokens() -> None:
    loop = new_loop(max_batch=2)
    loop.tokenizer.end_ids = frozenset()
    loop.add(Request("long", [1], params(max_tokens=50)))
    batches = Counter[int]()
    loop.step()
    for i in range(6):
        loop.add(Request(str(i), [1] * (i + 1), params(max_tokens=2)))
    order: list[str] = []
    while not loop.idle:
        batches[loop.active] += 1
        order += loop.step()
    assert order == ["0", "1", "2", "3", "4", "5", "long"] and batches[2] >= 5


def test_an_abort_gives_what_there_is_and_frees_the_row() -> None:
    loop = new_loop(max_batch=2)
    loop.add(Request("a", [1], params(n=3, max_tokens=50, temperature=9.0, seed=1)))
    loop.add(Request("b", [1, 2], params(max_tokens=20, temperature=9.0, seed=1)))
    for _ in range(3):
        loop.step()
    one, two, three = loop.abort("a") or []
    assert [len(c.token_ids) for c in (one, two, three)] == [3, 3, 0]
    assert {c.stop_reason for c in (one, two, three)} == {"aborted"} and loop.active == 0
    assert loop.abort("a") is None and loop.abort("unknown") is None
    (other,) = finish(loop)["b"]
    assert torch.allclose(other.logprobs, forward_logprobs(loop.module, other, 9.0), atol=1e-4)
    assert loop.abort("b") is None


def test_an_abort_amid_others_leaves_them_as_they_were() -> None:
    def requests() -> list[Request]:
        return [Request(str(i), [i + 1] * (i + 1), params(max_tokens=30, temperature=9.0)) for i in range(5)]

    alone = {r.request_id: run(r)[r.request_id][0].token_ids.tolist() for r in requests()}
    loop = new_loop()
    for request in requests():
        loop.add(request)
    done: dict[str, list[Completion]] = {}
    for gone in ("0", "3"):
        done |= loop.step()
        loop.abort(gone)
    done |= finish(loop)
    assert {name: c.token_ids.tolist() for name, (c,) in done.items()} == {n: alone[n] for n in ("1", "2", "4")}


def test_nothing_joins_while_admission_is_closed() -> None:
    loop = new_loop()
    loop.add(Request("a", [1], params()))
    assert loop.step(admit=False) == {} and loop.active == 0 and loop.stats()["queue"] == 1
    assert finish(loop)["a"]


def test_what_a_request_may_not_be() -> None:
    loop = new_loop(max_length=20)
    with pytest.raises(ValueError, match="'a' has an empty prompt"):
        loop.add(Request("a", []))
    with pytest.raises(ValueError, match="'a' has a prompt of 20 tokens; prompt and response together may have 20"):
        loop.add(Request("a", [1] * 20))
    with pytest.raises(ValueError, match="tokens outside 0 … 13"):
        loop.add(Request("a", [1, 14]))
    loop.add(Request("a", [1]))
    with pytest.raises(ValueError, match="'a' is in the loop already"):
        loop.add(Request("a", [1]))
    with pytest.raises(ValueError, match="max_batch is 0"):
        new_loop(max_batch=0)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_model_that_computes_nan_is_an_error(temperature: float) -> None:
    loop = new_loop(version=4)
    loop.add(Request("a", [1, 2], params(max_tokens=40, temperature=temperature)))
    loop.step()
    with torch.no_grad():
        next(loop.module.parameters()).fill_(math.nan)
    with pytest.raises(FloatingPointError, match="NaN for request 'a' after 1 tokens, with version 4 of the weights"):
        loop.step()


def test_sliding_windows_are_refused() -> None:
    from types import SimpleNamespace

    config = SimpleNamespace(layer_types=["full_attention", "sliding_attention"], max_position_embeddings=9)
    with pytest.raises(ValueError, match="layers of sliding_attention"):
        DecodeLoop(LoadedModel(model().module, model().tokenizer, config))


def test_stats() -> None:
    loop = new_loop(max_batch=2)
    assert loop.stats()["tokens_per_second"] == 0
    for i in range(4):
        loop.add(Request(str(i), [1], params(max_tokens=3, temperature=9.0, seed=1)))
    loop.step()
    stats = loop.stats()
    assert (stats["batch"], stats["queue"], stats["tokens"], stats["mean_batch"]) == (2, 2, 2, 2)
    assert stats["tokens_per_second"] > 0


# ------------------------------------------------------------------ weights


@pytest.fixture
def store(tmp_path: Path) -> WeightStore:
    """With other weights, as version 9."""
    store = WeightStore("policy", tmp_path)
    store.publish(9, dict(model(1).module.named_parameters()))
    return store


def test_new_weights_count_from_the_next_token_on(store: WeightStore) -> None:
    loop = new_loop(version=7)
    loop.add(Request("a", [1, 2, 3], params(max_tokens=20, temperature=3.0, seed=1)))
    for _ in range(8):
        loop.step()
    loop.load(store.fetch(), recompute=True)
    assert loop.version == loop.stats()["version"] == 9
    (completion,) = finish(loop)["a"]
    assert (completion.version, completion.max_version) == (7, 9)
    before, after = (forward_logprobs(model(seed).module, completion, 3.0) for seed in (0, 1))
    assert torch.allclose(completion.logprobs[:8], before[:8], atol=1e-4)
    assert torch.allclose(completion.logprobs[8:], after[8:], atol=1e-4)  # as if they had been there from the start


def test_keys_and_values_stay_unless_told_otherwise(store: WeightStore) -> None:
    loop = new_loop()
    loop.add(Request("a", [1, 2, 3], params(max_tokens=20, temperature=3.0, seed=1)))
    for _ in range(8):
        loop.step()
    loop.load(store.fetch())
    (completion,) = finish(loop)["a"]
    after = forward_logprobs(model(1).module, completion, 3.0)
    assert completion.logprobs[8:].isfinite().all()
    assert not torch.allclose(completion.logprobs[8:], after[8:], atol=1e-2)


@pytest.mark.parametrize("recompute", [True, False])
def test_a_prompt_that_waits_is_computed_anew_with_new_weights(store: WeightStore, recompute: bool) -> None:
    loop = new_loop(max_batch=1)
    loop.add(Request("a", [1, 2, 3, 4], params(n=2, max_tokens=3, temperature=3.0, seed=1)))
    loop.step()
    loop.load(store.fetch(), recompute=recompute)
    second = finish(loop)["a"][1]
    assert (second.version, second.max_version) == (9, 9)
    assert torch.allclose(second.logprobs, forward_logprobs(model(1).module, second, 3.0), atol=1e-4)


def test_weights_of_another_model_change_nothing(store: WeightStore) -> None:
    loop = new_loop(version=3)
    store.publish(10, {"x": torch.ones(1)})
    with pytest.raises(ValueError, match="version 10 of the weights does not fit"):
        loop.load(store.fetch())
    assert loop.version == 3
    assert torch.equal(next(loop.module.parameters()), next(model().module.parameters()))

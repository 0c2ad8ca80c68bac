"""Models: what is computed equals transformers', and folders go out and come in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from actors.models import (
    CharacterTokenizer,
    Decoder,
    DecoderConfig,
    HuggingFaceTokenizer,
    load_model,
    load_weights,
    save_model,
)

CHARACTERS = "0123456789+=.\n"
TINY: dict[str, Any] = {
    "characters": CHARACTERS,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"tie_word_embeddings": False, "rope_theta": 500.0, "rms_norm_eps": 1e-3},
    {"num_key_value_heads": 4, "attention_bias": True, "mlp_bias": True},
    {"head_dim": 16},
]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_transformers_loads_what_we_save_and_computes_equal_logits(tmp_path: Path, variant: dict[str, Any]) -> None:
    import transformers

    module, tokenizer, config = load_model(TINY | variant)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("bias") or parameter.ndim == 1:
                parameter.add_(torch.randn(parameter.shape) * 0.1)  # zeros and ones would hide a mistake
    save_model(module, tokenizer, config, tmp_path / "m")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    ids = torch.randint(0, config.vocab_size, (3, 20), generator=torch.Generator().manual_seed(1))
    assert torch.allclose(module(ids).logits, theirs(ids).logits, atol=1e-4)
    loaded = load_model(tmp_path / "m")
    assert isinstance(loaded.module, Decoder) and loaded.config == config
    assert torch.equal(loaded.module(ids).logits, module(ids).logits)


def test_a_llama_of_transformers_is_our_decoder(tmp_path: Path) -> None:
    import transformers

    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=15, hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4
        )
    )
    theirs.save_pretrained(tmp_path, max_shard_size="10KB")  # several files
    CharacterTokenizer(CHARACTERS).save(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    loaded = load_model(tmp_path)
    ids = torch.randint(0, 15, (2, 9))
    assert isinstance(loaded.module, Decoder)
    assert {n for n, _ in loaded.module.named_parameters()} == {n for n, _ in theirs.named_parameters()}
    assert torch.allclose(loaded.module(ids).logits, theirs(ids).logits, atol=1e-5)


@pytest.mark.parametrize("scaling", [None, {"rope_type": "llama3", "factor": 8.0}])
def test_another_architecture_goes_through_transformers_and_back(tmp_path: Path, scaling: Any) -> None:
    import transformers

    shape = {"vocab_size": 15, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2}
    shape |= {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}
    if scaling is None:
        theirs = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**shape))
    else:
        more = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
        rope = scaling | more | {"rope_theta": 1e4}
        theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape, rope_parameters=rope))
    theirs.save_pretrained(tmp_path / "in")
    CharacterTokenizer(CHARACTERS).save(tmp_path / "in")
    loaded = load_model(tmp_path / "in")
    assert type(loaded.module) is type(theirs)
    save_model(*loaded, tmp_path / "out")
    ids = torch.randint(0, 15, (2, 9))
    assert torch.allclose(load_model(tmp_path / "out").module(ids).logits, theirs(ids).logits, atol=1e-5)


def test_padding_on_either_side_changes_nothing() -> None:
    module = load_model(TINY).module
    ids = torch.randint(0, 14, (1, 7))
    alone = module(ids).logits
    pad = torch.zeros(1, 5, dtype=torch.int64)
    assert torch.allclose(module(torch.cat((ids, pad), 1)).logits[:, :7], alone, atol=1e-5)
    positions = (torch.arange(12) - 5).clamp(min=0)[None]
    mask = torch.ones(12, 12, dtype=torch.bool).tril()
    mask[5:, :5] = False
    left = module(torch.cat((pad, ids), 1), position_ids=positions, attention_mask=mask[None, None]).logits
    assert torch.allclose(left[:, 5:], alone, atol=1e-5)


def test_only_the_logits_that_are_asked_for() -> None:
    module = load_model(TINY).module
    ids = torch.randint(0, 14, (2, 7))
    every = module(ids).logits
    assert torch.allclose(module(ids, logits_to_keep=2).logits, every[:, -2:], atol=1e-6)
    assert torch.allclose(module(ids, logits_to_keep=torch.tensor([1, 4])).logits, every[:, [1, 4]], atol=1e-6)


def test_after_inference_it_trains() -> None:
    module = load_model(TINY | {"rope_theta": 123.0}).module
    ids = torch.randint(0, 14, (2, 7))
    with torch.inference_mode():
        module(ids)
    module(ids).logits.sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_joined_weights_compute_the_same_and_take_new_values(variant: dict[str, Any]) -> None:
    joined, plain, other = (load_model({**TINY, **variant, "seed": seed}).module for seed in (0, 0, 1))
    assert isinstance(joined, Decoder)
    joined.join_weights()
    ids = torch.randint(0, 14, (2, 7))
    assert torch.allclose(joined(ids).logits, plain(ids).logits, atol=1e-5)
    load_weights(joined, other.state_dict(), "other")
    assert torch.allclose(joined(ids).logits, other(ids).logits, atol=1e-5)
    assert joined.state_dict().keys() == other.state_dict().keys()


def test_random_weights_depend_on_the_seed_alone() -> None:
    def state(seed: int) -> dict[str, torch.Tensor]:
        torch.rand(1)
        return load_model({**TINY, "seed": seed}).module.state_dict()

    one, again, other = state(1), state(1), state(2)
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["model.embed_tokens.weight"], other["model.embed_tokens.weight"])
    assert state(1)["model.norm.weight"].eq(1).all()


def test_a_saved_model_replaces_an_older_one_and_leaves_nothing_else(tmp_path: Path) -> None:
    for seed in (1, 2):
        save_model(*(saved := load_model({**TINY, "seed": seed})), tmp_path / "m")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    for name, weight in load_model(tmp_path / "m").module.state_dict().items():
        assert torch.equal(weight, saved.module.state_dict()[name])


def test_weights_that_are_elsewhere_are_saved(tmp_path: Path) -> None:
    loaded = load_model(TINY)
    gathered = {name: weight + 1 for name, weight in loaded.module.state_dict().items()}
    save_model(*loaded, tmp_path / "m", tensors=gathered)
    read = load_model(tmp_path / "m").module.state_dict()
    assert all(torch.equal(read[name], gathered[name]) for name in gathered)


def test_a_failed_save_leaves_the_older_one(tmp_path: Path) -> None:
    loaded = load_model(TINY)
    save_model(*loaded, tmp_path / "m")
    with pytest.raises(AttributeError):
        save_model(loaded.module, object(), loaded.config, tmp_path / "m")  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    load_model(tmp_path / "m")


# ------------------------------------------------------------------ tokenizers


def test_characters_and_back(tmp_path: Path) -> None:
    tokenizer = CharacterTokenizer(CHARACTERS)
    ids = tokenizer.encode("12+3=\n")
    assert ids == [1, 2, 10, 3, 11, 13] and tokenizer.decode([*ids, tokenizer.pad_id]) == "12+3=\n"
    assert tokenizer.chat([{"role": "user", "content": "1+"}, {"role": "user", "content": "2"}]) == [1, 10, 2]
    with pytest.raises(ValueError, match="no token for 'x' in '1x'"):
        tokenizer.encode("1x")
    with pytest.raises(ValueError, match="different"):
        CharacterTokenizer("aa")


def test_transformers_reads_the_character_tokenizer(tmp_path: Path) -> None:
    import transformers

    loaded = load_model(TINY)
    save_model(*loaded, tmp_path)
    theirs = HuggingFaceTokenizer(transformers.AutoTokenizer.from_pretrained(tmp_path))
    ours = load_model(tmp_path).tokenizer
    text = "12+3=\n.9"
    assert isinstance(ours, CharacterTokenizer)
    assert theirs.encode(text) == ours.encode(text)
    assert theirs.decode([*theirs.encode(text), theirs.pad_id]) == text
    assert (theirs.end_ids, theirs.pad_id) == (ours.end_ids, ours.pad_id)
    messages = [{"role": "user", "content": "1+2="}]
    assert theirs.chat(messages) == ours.chat(messages)


def test_end_tokens_come_from_the_generation_config_as_well(tmp_path: Path) -> None:
    save_model(*load_model(TINY), tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    del settings["characters"]  # a folder of others
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 5]}))
    tokenizer = load_model(tmp_path).tokenizer
    assert isinstance(tokenizer, HuggingFaceTokenizer) and tokenizer.end_ids == {3, 5, 14}
    tokenizer.tokenizer.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        tokenizer.chat([{"role": "user", "content": "1"}])


# ------------------------------------------------------------------ errors


def test_a_wrong_mapping_says_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="no key 'hiden_size'; did you mean 'hidden_size'"):
        load_model({**TINY, "hiden_size": 3})
    with pytest.raises(ValueError, match="num_hidden_layers must be given"):
        load_model({**TINY, "num_hidden_layers": None})
    with pytest.raises(ValueError, match="`characters`"):
        load_model({**TINY, "characters": None})
    with pytest.raises(ValueError, match="too small"):
        load_model({**TINY, "vocab_size": 3})
    with pytest.raises(ValueError, match="multiple of num_key_value_heads"):
        load_model({**TINY, "num_key_value_heads": 3})
    with pytest.raises(ValueError, match="head_dim must be even"):
        load_model({**TINY, "head_dim": 3})
    with pytest.raises(ValueError, match="'float33' is none of torch's"):
        load_model(TINY, dtype="float33")


def test_a_wrong_folder_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        load_model(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        load_model(tmp_path)
    save_model(*load_model(TINY), tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no model\.safetensors"):
        load_model(tmp_path / "m")
    (tmp_path / "m" / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not JSON"):
        load_model(tmp_path / "m")


def test_another_architecture_without_transformers_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "transformers", None)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mamba"}))
    with pytest.raises(ImportError, match=r"model_type 'mamba' of .* needs transformers: pip install"):
        load_model(tmp_path)
    save_model(*load_model(TINY), tmp_path / "ours")
    load_model(tmp_path / "ours")  # which needs none


def test_weights_of_another_model_are_refused() -> None:
    module = load_model(TINY).module
    state = dict(module.state_dict())
    load_weights(module, state | {"lm_head.weight": state["model.embed_tokens.weight"]}, "x")  # tied: may be there
    with pytest.raises(ValueError, match=r"version 3 .* does not have model\.norm\.weight"):
        load_weights(module, {n: t for n, t in state.items() if n != "model.norm.weight"}, "version 3")
    with pytest.raises(ValueError, match="has also more"):
        load_weights(module, state | {"more": torch.ones(1)}, "version 3")
    with pytest.raises(ValueError, match=r"another shape model\.norm\.weight"):
        load_weights(module, state | {"model.norm.weight": torch.ones(1)}, "version 3")


def test_half_precision_computes_nearly_the_same() -> None:
    full, half = load_model(TINY), load_model(TINY, dtype="bfloat16")
    ids = torch.randint(0, 14, (2, 30), generator=torch.Generator().manual_seed(1))
    exact, rounded = full.module(ids).logits, half.module(ids).logits
    assert rounded.dtype == torch.bfloat16
    assert (rounded.float() - exact).pow(2).mean().sqrt() < 0.03 * exact.std()


def test_the_config_of_smollm2_is_read() -> None:
    keys = {
        "model_type": "llama",
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "rope_theta": 100000,
        "rope_scaling": None,
        "tie_word_embeddings": True,
    }
    config = DecoderConfig.of_hugging_face(keys)
    assert config is not None and (config.head_dim, config.rope_theta) == (64, 100000)

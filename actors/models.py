"""Language models and tokenizers: folders of Hugging Face in and out, and a small decoder of our own.

B is the number of sequences, T of tokens in each, S of tokens that they attend to. All models are called in one way:
`module(input_ids [B, T], position_ids=[B, T], attention_mask=…, past_key_values=…, logits_to_keep=…).logits`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import nn
from torch.nn import functional

from actors.types import Message

WEIGHTS = "model.safetensors"
Model = str | os.PathLike[str] | Mapping[str, Any]
"""A folder of Hugging Face; or the keys of a DecoderConfig, with `characters` and `seed`, for new random weights."""


# ------------------------------------------------------------------ tokenizers


class Tokenizer(Protocol):
    """What the actors need of a tokenizer."""

    end_ids: frozenset[int]
    """Tokens that end a response."""
    pad_id: int

    def encode(self, text: str, *, start: bool = True) -> list[int]:
        """The tokens of a text; with `start` after those that begin every text of the model, if it has any."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens, without end tokens and other special ones."""
        ...

    def chat(self, messages: Sequence[Message]) -> list[int]:
        """The tokens of a conversation, up to where the assistant's next message begins."""
        ...

    def save(self, folder: Path) -> None:
        """Write its files, which transformers' AutoTokenizer and `load_model` read."""
        ...


class CharacterTokenizer:
    """One token per character, and an end token, which comes last and pads as well."""

    END = "<end>"

    def __init__(self, characters: str) -> None:
        """Raises ValueError where there is no character, or one comes twice."""
        if not characters or len(set(characters)) < len(characters):
            raise ValueError(f"characters must be different ones, at least one: {characters!r}")
        self.characters = characters
        self.pad_id = len(characters)
        self.end_ids = frozenset({self.pad_id})
        self._ids = {character: i for i, character in enumerate(characters)}

    def encode(self, text: str, *, start: bool = True) -> list[int]:
        """The tokens of a text. Raises ValueError for a character that is not among `characters`."""
        del start  # nothing begins every text
        try:
            return [self._ids[character] for character in text]
        except KeyError as e:
            raise ValueError(f"the model has no token for {e.args[0]!r} in {text!r}; it has {self.characters!r}") from e

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens, without end tokens."""
        return "".join(self.characters[i] for i in ids if i < len(self.characters))

    def chat(self, messages: Sequence[Message]) -> list[int]:
        """The contents of the messages, one after the other: there are no characters for roles."""
        return [i for message in messages for i in self.encode(message["content"])]

    def save(self, folder: Path) -> None:
        """Write tokenizer.json, in the format of Hugging Face's tokenizers, and tokenizer_config.json."""
        end = {"id": self.pad_id, "content": self.END, "special": True}
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        tokenizer = {
            "version": "1.0",
            "added_tokens": [end | flags],
            "pre_tokenizer": {
                "type": "Split",
                "pattern": {"Regex": r"[\s\S]"},
                "behavior": "Isolated",
                "invert": False,
            },
            "decoder": {"type": "Fuse"},
            "model": {"type": "WordLevel", "vocab": self._ids | {self.END: self.pad_id}, "unk_token": "<unknown>"},
        }
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "characters": self.characters,
            "eos_token": self.END,
            "pad_token": self.END,
            "clean_up_tokenization_spaces": False,
            "chat_template": "{% for message in messages %}{{ message['content'] }}{% endfor %}",
        }
        _write_json(folder / "tokenizer.json", tokenizer)
        _write_json(folder / "tokenizer_config.json", settings)


class HuggingFaceTokenizer:
    """A tokenizer of transformers. `end_ids` adds what the model's own files name as end tokens."""

    def __init__(self, tokenizer: Any, end_ids: Collection[int] = ()) -> None:
        self.tokenizer = tokenizer
        own = tokenizer.eos_token_id
        self.end_ids = frozenset(end_ids) | (frozenset() if own is None else {own})
        pads = (tokenizer.pad_token_id, own, *sorted(self.end_ids), 0)
        self.pad_id: int = next(i for i in pads if i is not None)

    def encode(self, text: str, *, start: bool = True) -> list[int]:
        """The tokens of a text; with `start` as the tokenizer begins every text."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=start)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens, without special ones."""
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def chat(self, messages: Sequence[Message]) -> list[int]:
        """The tokens by the chat template. Raises ValueError where the model has none."""
        if not self.tokenizer.chat_template:
            raise ValueError(
                f"the tokenizer of {self.tokenizer.name_or_path} has no chat template; "
                "give the prompt as text, or set chat_template in its tokenizer_config.json"
            )
        text = self.tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        return self.encode(text, start=False)  # templates write what begins a text themselves

    def save(self, folder: Path) -> None:
        """Write the files of the tokenizer."""
        self.tokenizer.save_pretrained(folder)


# ------------------------------------------------------------------ the decoder


@dataclass(frozen=True)
class DecoderConfig:
    """The shape of a Decoder, with the names of Hugging Face's LlamaConfig."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int = 2048
    """The most tokens of a sequence, prompt and response together."""
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10_000.0
    tie_word_embeddings: bool = True
    attention_bias: bool = False
    mlp_bias: bool = False
    initializer_range: float = 0.02
    """Standard deviation of random weights."""
    eos_token_id: int | Sequence[int] | None = None

    NEEDED: ClassVar = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")

    @classmethod
    def of(cls, keys: Mapping[str, Any]) -> DecoderConfig:
        """From its keys; num_key_value_heads and head_dim have Hugging Face's defaults.

        Raises ValueError for a key that is unknown or missing, and for sizes that do not fit together.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        for key in keys:
            if key not in known:
                near = get_close_matches(key, known, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"its keys are {', '.join(known)}"
                raise ValueError(f"a decoder has no key {key!r}; {hint}")
        if missing := [key for key in cls.NEEDED if keys.get(key) is None]:
            raise ValueError(f"the decoder's {', '.join(missing)} must be given")
        heads = keys["num_attention_heads"]
        defaults = {"num_key_value_heads": heads, "head_dim": keys["hidden_size"] // heads}
        config = cls(**{**defaults, **{k: v for k, v in keys.items() if v is not None}})
        if config.num_attention_heads % config.num_key_value_heads:
            groups = config.num_key_value_heads
            raise ValueError(f"num_attention_heads ({heads}) must be a multiple of num_key_value_heads ({groups})")
        if config.head_dim % 2:
            raise ValueError(f"head_dim must be even for rotary embeddings, not {config.head_dim}")
        return config

    @classmethod
    def of_hugging_face(cls, keys: Mapping[str, Any]) -> DecoderConfig | None:
        """From the content of a config.json; None where the model is not one that Decoder computes."""
        rope = keys.get("rope_parameters") or keys.get("rope_scaling") or {}
        plain = rope.get("rope_type", rope.get("type", "default")) == "default"
        fits = keys.get("model_type") == "llama" and keys.get("hidden_act", "silu") == "silu" and plain
        if not fits or "quantization_config" in keys:
            return None
        llama = {"tie_word_embeddings": False, "rope_theta": rope.get("rope_theta", 10_000.0)}  # its defaults
        return cls.of(llama | {f.name: keys[f.name] for f in dataclasses.fields(cls) if f.name in keys})

    def to_hugging_face(self, dtype: torch.dtype) -> dict[str, Any]:
        """The content of a config.json, for transformers 4 and 5 and for vLLM."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            "torch_dtype": str(dtype).removeprefix("torch."),
            "bos_token_id": None,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta},
            **dataclasses.asdict(self),
        }


class KeyValueCache(Protocol):
    """Keys and values of earlier tokens, as the attention layers see them: part of transformers' Cache."""

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, *args: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add those of new tokens [B, K, T, D] to a layer: all that the queries may attend to, [B, K, S, D] each."""
        ...


class Output(NamedTuple):
    """What a Decoder computes."""

    logits: torch.Tensor
    """[B, T or logits_to_keep, V]."""


class Decoder(nn.Module):
    """A transformer of the Llama family (Touvron et al. 2023), with the names of Hugging Face's parameters.

    RMSNorm, rotary embeddings, SwiGLU, and grouped-query attention.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.model = _Body(config)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: KeyValueCache | None = None,
        logits_to_keep: int | torch.Tensor = 0,
    ) -> Output:
        """Logits of the next token.

        input_ids: [B, T]. position_ids: [B, T] or [1, T]; None: 0 to T - 1. attention_mask: bool [B, 1, T, S], True
        where a token attends; None: each token attends to itself and all before it, and T must be 1 or S.
        logits_to_keep: compute those of the last so many tokens, or of the tokens at these indices; 0: of all.
        """
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        hidden = self.model(input_ids, position_ids, attention_mask, past_key_values)
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        head = self.model.embed_tokens if self.config.tie_word_embeddings else self.lm_head
        return Output(functional.linear(hidden[:, keep], head.weight))

    @torch.no_grad()
    def join_weights(self) -> None:
        """Lay weights that multiply the same input side by side in memory: fewer and larger products, for inference.

        The parameters stay what they are, by name, shape and value, as views of the joint tensors.
        """
        for layer in self.model.layers:
            attention, mlp = layer.self_attn, layer.mlp
            if not self.config.attention_bias:
                attention.joint = _side_by_side(attention.q_proj, attention.k_proj, attention.v_proj)
            if not self.config.mlp_bias:
                mlp.joint = _side_by_side(mlp.gate_proj, mlp.up_proj)

    @torch.no_grad()
    def randomize(self, seed: int) -> None:
        """Set random weights, which depend on the seed alone and not on the device."""
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif parameter.ndim == 1:
                parameter.fill_(1.0)
            else:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * self.config.initializer_range)


class _Body(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(_Layer(config, i) for i in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        cache: KeyValueCache | None,
    ) -> torch.Tensor:
        hidden: torch.Tensor = self.embed_tokens(input_ids)
        rotation = _rotation(self.config, position_ids, hidden.dtype)
        if attention_mask is not None:  # as what is added to scores: else each layer would make that of it
            attention_mask = torch.zeros_like(attention_mask, dtype=hidden.dtype).masked_fill(
                ~attention_mask, -torch.inf
            )
        for layer in self.layers:
            hidden = layer(hidden, rotation, attention_mask, cache)
        return self.norm(hidden)


class _Layer(nn.Module):
    def __init__(self, config: DecoderConfig, index: int) -> None:
        super().__init__()
        self.self_attn = _Attention(config, index)
        self.mlp = _FeedForward(config)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        hidden: torch.Tensor,
        rotation: tuple[torch.Tensor, torch.Tensor],
        attention_mask: torch.Tensor | None,
        cache: KeyValueCache | None,
    ) -> torch.Tensor:
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), rotation, attention_mask, cache)
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


class _Attention(nn.Module):
    def __init__(self, config: DecoderConfig, index: int) -> None:
        super().__init__()
        self.index, self.head_dim = index, config.head_dim
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        hidden, bias = config.hidden_size, config.attention_bias
        self.q_proj = nn.Linear(hidden, self.heads * self.head_dim, bias=bias)
        self.k_proj = nn.Linear(hidden, self.kv_heads * self.head_dim, bias=bias)
        self.v_proj = nn.Linear(hidden, self.kv_heads * self.head_dim, bias=bias)
        self.o_proj = nn.Linear(self.heads * self.head_dim, hidden, bias=bias)
        self.joint: torch.Tensor | None = None  # see Decoder.join_weights

    def forward(
        self,
        hidden: torch.Tensor,
        rotation: tuple[torch.Tensor, torch.Tensor],
        mask: torch.Tensor | None,
        cache: KeyValueCache | None,
    ) -> torch.Tensor:
        batch, length, _ = hidden.shape
        if self.joint is not None:
            q_k_v = functional.linear(hidden, self.joint)
        else:
            q_k_v = torch.cat((self.q_proj(hidden), self.k_proj(hidden), self.v_proj(hidden)), -1)
        q_k_v = q_k_v.view(batch, length, -1, self.head_dim)
        rotated = _rotated(q_k_v[:, :, : self.heads + self.kv_heads], *rotation).transpose(1, 2)
        q, k = rotated[:, : self.heads], rotated[:, self.heads :]
        v = q_k_v[:, :, self.heads + self.kv_heads :].transpose(1, 2)
        if cache is not None:
            k, v = cache.update(k, v, self.index)
        attended = functional.scaled_dot_product_attention(
            q, k, v, mask, is_causal=mask is None and length > 1, enable_gqa=self.heads != self.kv_heads
        )
        return self.o_proj(attended.transpose(1, 2).reshape(batch, length, -1))


class _FeedForward(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)
        self.joint: torch.Tensor | None = None  # see Decoder.join_weights

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        if self.joint is not None:
            gate, up = functional.linear(hidden, self.joint).chunk(2, -1)
        else:
            gate, up = self.gate_proj(hidden), self.up_proj(hidden)
        return self.down_proj(functional.silu(gate) * up)


@contextlib.contextmanager
def head_only_at(module: nn.Module, rows: torch.Tensor, columns: torch.Tensor) -> Iterator[None]:
    """Let the head of a language model see these positions alone: [B, T, C] becomes [1, N, C].

    By a hook on the body, not by calls of the two: a sharded model must be called as a whole.
    """

    def choose(_body: nn.Module, _inputs: Any, output: Any) -> Any:
        if isinstance(output, torch.Tensor):
            return output[rows, columns][None]
        output.last_hidden_state = output.last_hidden_state[rows, columns][None]  # of transformers
        return output

    body: nn.Module = getattr(module, "base_model", None) or module.model
    hook = body.register_forward_hook(choose)
    try:
        yield
    finally:
        hook.remove()


def _side_by_side(*linears: nn.Linear) -> torch.Tensor:
    """Their weights as one tensor, which they then share."""
    joint = torch.cat([linear.weight.detach() for linear in linears])
    for linear, part in zip(linears, joint.split([linear.out_features for linear in linears]), strict=True):
        linear.weight.data = part
    return joint


@functools.lru_cache
def _frequencies(theta: float, head_dim: int, device: torch.device) -> torch.Tensor:
    """[head_dim], radians per position; each comes twice, as Hugging Face's weights pair the halves of a head."""
    with torch.inference_mode(False):  # else a later backward pass could not use it
        half = theta ** -(torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim)
        return torch.cat((half, half))


def _rotation(
    config: DecoderConfig, position_ids: torch.Tensor, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine [B, T, 1, D] of rotary embeddings (Su et al. 2021); the sine's first half is negative."""
    angles = position_ids[..., None, None] * _frequencies(config.rope_theta, config.head_dim, position_ids.device)
    sine = angles.sin()
    sine[..., : config.head_dim // 2].neg_()
    return angles.cos().to(dtype), sine.to(dtype)


def _rotated(heads: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    return torch.addcmul(heads * cosine, heads.roll(heads.shape[-1] // 2, -1), sine)


# ------------------------------------------------------------------ load and save


class LoadedModel(NamedTuple):
    """A model, ready to be called."""

    module: nn.Module
    """Its weights are in `module.state_dict()` by Hugging Face's names. In training mode."""
    tokenizer: Tokenizer
    config: Any
    """DecoderConfig, or a configuration of transformers; both have max_position_embeddings."""


def load_model(model: Model, *, dtype: str | torch.dtype = "auto", device: str | torch.device = "auto") -> LoadedModel:
    """Load a folder of Hugging Face, or make a new small decoder.

    model: a folder; or a mapping with the keys of DecoderConfig, `characters` (the vocabulary is these and an end
    token) and `seed`, whose random weights are the same for the same seed. Models that Decoder does not compute are
    transformers' AutoModelForCausalLM. dtype: "auto" is float32 on a CPU, else what the folder names, or bfloat16.
    device: "auto" is this process's accelerator, or the CPU.

    Raises FileNotFoundError without such a folder, config.json or weights; ValueError for keys that are unknown or
    missing; ImportError where the model needs transformers and it is not installed.
    """
    device = _device(device)
    if isinstance(model, Mapping):
        return _new_decoder(model, _dtype(dtype, None, device), device)
    folder = Path(model)
    keys = _read_json(_existing(folder, "config.json"))
    chosen = _dtype(dtype, keys.get("dtype", keys.get("torch_dtype")), device)
    config = DecoderConfig.of_hugging_face(keys)
    if config is None:
        module = _transformers(f"model_type {keys.get('model_type')!r} of {folder}").AutoModelForCausalLM
        module = module.from_pretrained(folder, dtype=chosen, local_files_only=True).to(device).train()
        return LoadedModel(module, load_tokenizer(folder), module.config)
    decoder = _empty_decoder(config, chosen, device)
    load_weights(decoder, dict(_tensors(folder)), str(folder))
    return LoadedModel(decoder, load_tokenizer(folder), config)


def load_tokenizer(folder: str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer of a folder. Raises what `load_model` raises."""
    folder = Path(folder)
    settings = _read_json(_existing(folder, "tokenizer_config.json"))
    if "characters" in settings:
        return CharacterTokenizer(settings["characters"])
    end: int | list[int] | None = None
    for file in ("generation_config.json", "config.json"):
        if end is None and (folder / file).exists():
            end = _read_json(folder / file).get("eos_token_id")
    tokenizer = _transformers(f"the tokenizer of {folder}").AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return HuggingFaceTokenizer(tokenizer, [] if end is None else [end] if isinstance(end, int) else end)


@torch.no_grad()
def load_weights(module: nn.Module, tensors: Mapping[str, torch.Tensor], source: str) -> None:
    """Copy weights by name into a module, in place, whatever their dtype and device.

    Raises ValueError where names or shapes do not match; `source` says in it where the weights are from.
    """
    own = dict(module.named_parameters())
    tied = {name for name, _ in module.named_parameters(remove_duplicate=False)} | {"lm_head.weight"}
    missing, unknown = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - tied)
    wrong = [n for n in own.keys() & tensors.keys() if own[n].shape != tensors[n].shape]
    for what, names in (("does not have", missing), ("has also", unknown), ("has with another shape", sorted(wrong))):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ValueError(f"{source} is of another model: it {what} {', '.join(names[:3])}{more}")
    for name, parameter in own.items():
        parameter.copy_(tensors[name])


def save_model(
    module: nn.Module,
    tokenizer: Tokenizer,
    config: Any,
    folder: str | os.PathLike[str],
    *,
    tensors: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Write a folder that `load_model`, transformers' `from_pretrained` and vLLM load; it replaces an older one.

    tensors: the weights by name, where the module holds a part of them only, as with FSDP. The folder is written under
    another name beside it and renamed, so it is never seen half-written.
    """
    folder = Path(folder).absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
        new, old = Path(temporary, "new"), Path(temporary, "old")
        new.mkdir()
        state = {name: t.detach().cpu().contiguous() for name, t in (tensors or module.state_dict()).items()}
        if isinstance(config, DecoderConfig):
            from safetensors.torch import save_file

            save_file(state, new / WEIGHTS, {"format": "pt"})
            _write_json(new / "config.json", config.to_hugging_face(next(iter(state.values())).dtype))
        else:
            module.save_pretrained(new, state_dict=state)
        tokenizer.save(new)
        _write_json(new / "generation_config.json", {"eos_token_id": sorted(tokenizer.end_ids)})
        if folder.exists():
            folder.rename(old)
        new.rename(folder)


def _new_decoder(model: Mapping[str, Any], dtype: torch.dtype, device: torch.device) -> LoadedModel:
    keys = dict(model)
    characters, seed = keys.pop("characters", None), keys.pop("seed", 0)
    if not isinstance(characters, str):
        raise ValueError('a new decoder needs `characters`, its vocabulary, such as "0123456789+="')
    tokenizer = CharacterTokenizer(characters)
    config = DecoderConfig.of({"vocab_size": len(characters) + 1, "eos_token_id": tokenizer.pad_id} | keys)
    if config.vocab_size <= len(characters):
        raise ValueError(f"vocab_size {config.vocab_size} is too small for {len(characters)} characters and an end")
    decoder = _empty_decoder(config, dtype, device)
    decoder.randomize(seed)
    return LoadedModel(decoder, tokenizer, config)


def _empty_decoder(config: DecoderConfig, dtype: torch.dtype, device: torch.device) -> Decoder:
    with torch.device("meta"):  # so that no time goes into random weights which are replaced
        decoder = Decoder(config)
    return decoder.to(dtype).to_empty(device=device)


def _tensors(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of a folder, in one file or many, mapped from the file."""
    from safetensors import safe_open

    index = folder / f"{WEIGHTS}.index.json"
    files = sorted(set(_read_json(index)["weight_map"].values())) if index.exists() else [WEIGHTS]
    for file in files:
        with safe_open(_existing(folder, file), "pt") as opened:
            for name in opened.keys():  # noqa: SIM118  # it is no mapping
                yield name, opened.get_tensor(name)


def _transformers(what: str) -> Any:
    try:
        import transformers
    except ImportError as e:
        raise ImportError(f"{what} needs transformers: pip install transformers") from e
    return transformers


def _existing(folder: Path, file: str) -> Path:
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}; a model is a folder of Hugging Face, or a mapping")
    if not (folder / file).is_file():
        raise FileNotFoundError(f"{folder} is no folder of Hugging Face: it has no {file}")
    return folder / file


def _device(device: str | torch.device) -> torch.device:
    if device != "auto":
        return torch.device(device)
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return torch.device("cpu") if accelerator is None else accelerator


def _dtype(dtype: str | torch.dtype, named: str | None, device: torch.device) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    name = dtype
    if dtype == "auto":
        name = "float32" if device.type == "cpu" else named or "bfloat16"
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"dtype {dtype!r} is none of torch's; use 'auto', 'float32' or 'bfloat16'")
    return found


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except ValueError as e:
        raise ValueError(f"{path} is not JSON: {e}") from e
    return content


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")

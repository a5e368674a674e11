#!/usr/bin/env python3
"""Makes the tiny random checkpoints of tests/data/tiny and the logits Hugging Face gives for them.

    python3 -m venv /tmp/venv && /tmp/venv/bin/pip install torch transformers numpy
    /tmp/venv/bin/python tools/make_tiny_model.py tests/data/tiny

Every checkpoint is a directory as it would come from the hub, plus expected.safetensors: `tokens`,
600 ids, and `logits` [600, vocab_size], computed in float32 with the weights as stored.
"""

import argparse
import json
import pathlib
import shutil
import zlib

import numpy as np
import torch
import transformers
from safetensors.torch import save_file

N_TOKENS = 600
VOCAB = 128

# What the checkpoints have in common; each below says what is its own.
BASE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCAB,
    "max_position_embeddings": 2048,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}

# name: (config.json, dtype of the weights, config.json as transformers 5 writes it?)
MODELS = {
    # No num_key_value_heads and no rope_theta, as the first exports had it.
    "llama2": (
        LLAMA | {"num_key_value_heads": None, "torch_dtype": "float16", "rope_scaling": None},
        torch.float16,
        False,
    ),
    # The original context is so short that long, middle and short wavelengths all occur.
    "llama31": (
        LLAMA
        | {
            "rope_theta": 10000.0,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 256,
            },
            "eos_token_id": [2, 5, 6],
            "torch_dtype": "bfloat16",
        },
        torch.bfloat16,
        False,
    ),
    "llama32": (
        LLAMA
        | {
            "head_dim": 16,
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 32.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 256,
            },
            "dtype": "bfloat16",
        },
        torch.bfloat16,
        True,
    ),
    "llama_yarn": (
        LLAMA
        | {
            "rope_theta": 10000.0,
            "rope_scaling": {
                "type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 512,
            },
            "torch_dtype": "bfloat16",
        },
        torch.bfloat16,
        False,
    ),
    "llama_linear": (
        LLAMA
        | {
            "rope_theta": 10000.0,
            "rope_scaling": {"type": "linear", "factor": 2.5},
            "torch_dtype": "bfloat16",
        },
        torch.bfloat16,
        False,
    ),
    # Names a window that is off.
    "qwen25": (
        {
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            "num_hidden_layers": 3,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1000000.0,
            "sliding_window": 32,
            "use_sliding_window": False,
            "max_window_layers": 1,
            "torch_dtype": "bfloat16",
        },
        torch.bfloat16,
        False,
    ),
    # Heads wider than hidden / heads; tied, yet with a head of its own that is not to be used.
    "qwen3": (
        {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "head_dim": 32,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1000000.0,
            "tie_word_embeddings": True,
            "attention_bias": False,
            "sliding_window": None,
            "use_sliding_window": False,
            "dtype": "bfloat16",
        },
        torch.bfloat16,
        True,
    ),
    "mistral": (
        {
            "architectures": ["MistralForCausalLM"],
            "model_type": "mistral",
            "head_dim": 8,
            "num_attention_heads": 6,
            "rope_theta": 1000000.0,
            "sliding_window": None,
            "dtype": "float32",
        },
        torch.float32,
        True,
    ),
    # Not a class of transformers: the same mathematics is Llama with attention biases.
    "openpangu": (
        {
            "architectures": ["PanguEmbeddedForCausalLM"],
            "model_type": "PanguEmbedded",
            "bias": True,
            "rope_theta": 16000000.0,
            "torch_dtype": "bfloat16",
        },
        torch.bfloat16,
        False,
    ),
}


def hugging_face_config(config: dict) -> transformers.PretrainedConfig:
    config = dict(config)
    if config["model_type"] == "PanguEmbedded":
        config |= LLAMA | {"attention_bias": config.pop("bias"), "mlp_bias": False}
    return transformers.AutoConfig.for_model(**config)


def random_weights(model: torch.nn.Module, tied: bool, dtype: torch.dtype, seed: int) -> dict:
    """Weights with which every part of the model matters: attention on some tokens more than on
    others, biases and norm weights far from 0 and 1, logits that differ clearly. The model gets
    them in float32, rounded to `dtype`; its buffers, such as RoPE's frequencies, stay exact."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, weight in model.named_parameters():
        values = rng.standard_normal(weight.shape)
        if name.endswith(".bias"):
            values *= 0.5
        elif weight.ndim == 1:
            values = 1 + 0.2 * values
        elif "embed_tokens" in name and not tied:
            pass  # of order one, as the stream is
        else:
            values /= weight.shape[1] ** 0.5
        if "q_proj.weight" in name or "k_proj.weight" in name or "q_norm" in name:
            values *= 1.4
        if "lm_head" in name or ("embed_tokens" in name and tied):
            # Some tokens are much likelier than others, so that the likeliest one stands out.
            values *= np.exp(1.0 * rng.standard_normal((weight.shape[0], 1)))
        tensors[name] = torch.from_numpy(values).to(dtype)
        weight.data = tensors[name].float()
    return tensors


def write_weights(path: pathlib.Path, name: str, tensors: dict, n_layers: int) -> None:
    if name != "openpangu":
        save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
        return
    # Two shards with a border inside a layer, and the stray tensors that the real one has.
    for layer in range(n_layers):
        tensors[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    shard_of = {n: shards["layers.1.mlp" in n or "lm_head" in n] for n in sorted(tensors)}
    for shard in shards:
        part = {n: t for n, t in tensors.items() if shard_of[n] == shard}
        save_file(part, path / shard, metadata={"format": "pt"})
    total = sum(t.numel() * t.element_size() for t in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": shard_of}
    (path / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")


def make(path: pathlib.Path, name: str) -> None:
    own, dtype, modern = MODELS[name]
    config = BASE | own
    if config["num_key_value_heads"] is None:
        del config["num_key_value_heads"]
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)

    hf_config = hugging_face_config(config)
    if modern:
        hf_config.save_pretrained(path)
    else:
        (path / "config.json").write_text(json.dumps(config, indent=2) + "\n")

    model = transformers.AutoModelForCausalLM.from_config(
        hf_config, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    seed = zlib.crc32(name.encode())
    tensors = random_weights(model, config["tie_word_embeddings"], dtype, seed)
    if name == "qwen3":
        tensors["lm_head.weight"] = torch.ones(VOCAB, config["hidden_size"], dtype=dtype)
    write_weights(path, name, tensors, config["num_hidden_layers"])

    tokens = torch.from_numpy(np.random.default_rng(seed + 1).integers(0, VOCAB, N_TOKENS))
    with torch.no_grad():
        logits = model(input_ids=tokens[None]).logits[0]
    expected = {"tokens": tokens.to(torch.int32), "logits": logits.contiguous()}
    save_file(expected, path / "expected.safetensors")
    best = logits.topk(2, dim=-1).values
    print(
        f"{name}: logits deviate by {logits.std():.2f}, best from second "
        f"{(best[:, 0] - best[:, 1]).median():.3f}, "
        f"{sum(f.stat().st_size for f in path.iterdir())} bytes"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("directory", type=pathlib.Path, help="where the checkpoints go")
    parser.add_argument("--only", choices=sorted(MODELS), help="make just this one")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name in [args.only] if args.only else MODELS:
        make(args.directory / name, name)


if __name__ == "__main__":
    main()

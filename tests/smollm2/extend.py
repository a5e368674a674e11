#!/usr/bin/env python3
"""Writes SmolLM2 with its context extended to 32,768 tokens as a Hugging Face directory: extend.py MODEL_DIR DELTA.safetensors OUT_DIR

MODEL_DIR is what convert.py made, DELTA is of tools/train_smollm2_32k.py: matrices B and A of low rank for each W that changes to
bf16(W + B A), and, as metadata, what changes in config.json."""

import json
import pathlib
import shutil
import sys

import numpy as np

import convert


def read_safetensors(path):
    """The metadata, and {name: float32} of tensors in bf16."""
    data = path.read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:begin])
    metadata, tensors = header.pop("__metadata__", {}), {}
    for name, entry in header.items():
        first, last = entry["data_offsets"]
        bits = np.frombuffer(data[begin + first:begin + last], "<u2").astype(np.uint32) << 16
        tensors[name] = bits.view(np.float32).reshape(entry["shape"])
    return metadata, tensors


def main():
    model, delta, target = map(pathlib.Path, sys.argv[1:])
    metadata, change = read_safetensors(delta)
    config = json.loads((model / "config.json").read_text())
    config["rope_theta"] = float(metadata["rope_theta"])
    config["max_position_embeddings"] = int(metadata["max_position_embeddings"])

    target.mkdir(parents=True, exist_ok=True)
    (target / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(model / name, target)

    tensors = {}
    for name, w in read_safetensors(model / "model.safetensors")[1].items():
        if f"{name}.A" in change:
            w = w + change.pop(f"{name}.B") @ change.pop(f"{name}.A")
        tensors[name] = (list(w.shape), convert.bf16(w))
    if change:
        sys.exit(f"{delta} changes tensors that {model} does not have: {', '.join(sorted(change))}")
    convert.write_safetensors(target / "model.safetensors", "BF16", tensors)


if __name__ == "__main__":
    main()

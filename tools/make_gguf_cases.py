#!/usr/bin/env python3
"""Writes tests/data/weight_blocks.safetensors: random blocks of every quantized format, and the
numbers that PyPI's gguf reads from them.

  python3 -m venv /tmp/venv && /tmp/venv/bin/pip install gguf safetensors
  /tmp/venv/bin/python tools/make_gguf_cases.py
"""
import pathlib

import gguf
import numpy as np
import safetensors.numpy
from gguf.quants import dequantize

OUT = pathlib.Path(__file__).resolve().parent.parent / 'tests/data/weight_blocks.safetensors'
# Where a block has its halves (float16).
HALVES = {'Q8_0': [0], 'Q4_0': [0], 'Q4_1': [0, 2], 'Q5_0': [0], 'Q5_1': [0, 2], 'Q2_K': [80, 82], 'Q3_K': [108],
          'Q4_K': [0, 2], 'Q5_K': [0, 2], 'Q6_K': [208], 'IQ4_NL': [0], 'IQ4_XS': [0]}
N_WEIGHTS = 1024


def main():
    random = np.random.default_rng(1)
    tensors = {}
    for name, halves in HALVES.items():
        kind = gguf.GGMLQuantizationType[name]
        weights, size = gguf.GGML_QUANT_SIZES[kind]
        blocks = random.integers(0, 256, (N_WEIGHTS // weights, size), dtype=np.uint8)
        for i, at in enumerate(halves):
            # Of every magnitude, subnormal ones and zeros of both signs among them.
            d = (random.normal(size=len(blocks)) * 2.0 ** random.integers(-24, 8, len(blocks))).astype(np.float16)
            d[i::7] = [0.0, -0.0][i]
            blocks[:, at:at + 2] = d[:, None].view(np.uint8)
        tensors[name] = blocks.reshape(-1)
        tensors[f'{name}.values'] = dequantize(blocks, kind).astype(np.float32).reshape(-1)
    safetensors.numpy.save_file(tensors, OUT)


if __name__ == '__main__':
    main()

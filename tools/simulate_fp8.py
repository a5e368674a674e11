#!/usr/bin/env python3
"""What a model of the Llama family loses by 8 bits, and what remedies gain, simulated in PyTorch on a CPU.

    entropyinfer tokenize MODEL --file TEXT --json >tokens.json
    tools/simulate_fp8.py MODEL tokens.json [--length 8192] [--only NAME,...]

MODEL is a Hugging Face directory. Printed for each case: KL divergence of the next token's distribution
from that of the same weights with nothing rounded, in nats, its mean over every eighth token with the
standard error, and the share of tokens with the same likeliest one. Sums are floats throughout. On a GPU
if there is one.
"""

import argparse
import json
import math
import pathlib
import struct

import torch
import torch.nn.functional as F

E4M3 = torch.float8_e4m3fn


def e4m3(x, top):
    """x in e4m3, its `top` (of a row, say) becoming 448."""
    scale = top.clamp_min(1e-30) / 448
    return (x / scale).to(E4M3).to(torch.float32) * scale


def int8(x, top):
    scale = top.clamp_min(1e-30) / 127
    return (x / scale).round() * scale


def value8(x, top):
    """As fp8 caches have values: the scale is a power of 16."""
    scale = 16.0 ** torch.ceil(torch.log2(top.clamp_min(1e-30) / 448) / 4)
    return (x / scale).to(E4M3).to(torch.float32) * scale


def key8(x, top):
    """As fp8 caches have keys: the scale is a power of 2."""
    scale = 2.0 ** torch.ceil(torch.log2(top.clamp_min(1e-30) / 127))
    return (x / scale).round() * scale


def by_row(kind, x):
    return kind(x, x.abs().amax(-1, keepdim=True))


def by_column(kind, x):
    return kind(x, x.abs().amax(-2, keepdim=True))


def by_block(kind, x, n=128):
    """Scales for every n neighbours of a row; what is left of a row is a block too."""
    return torch.cat([by_row(kind, part) for part in x.split(n, -1)], -1)


def hadamard(n):
    h = torch.ones(1, 1)
    while h.shape[0] < n:
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)])
    return h / math.sqrt(n)


def rotation(n):
    """Orthogonal: a Hadamard matrix, for an n that is no power of two times one of random directions."""
    power = n & -n
    torch.manual_seed(1)
    q = torch.linalg.qr(torch.randn(n // power, n // power))[0]
    return torch.kron(q.contiguous(), hadamard(power))


class Exact:
    """Nothing is rounded; cases below override what they round."""

    def factors(self, x, weight):
        return x, weight

    def keys(self, q, k):
        return q, k

    def values(self, v):
        return v

    def probs(self, p):
        """Relative to their row's largest."""
        return p


class Products(Exact):
    def __init__(self, x=lambda x: x, w=lambda w: w, rotated=False, smoothed=0.0):
        self.x, self.w, self.rotated, self.smoothed = x, w, rotated, smoothed

    def factors(self, x, weight):
        if self.smoothed:
            by = x.abs().amax(0).clamp_min(1e-5) ** self.smoothed / weight.abs().amax(0).clamp_min(1e-5) ** (1 - self.smoothed)
            x, weight = x / by, weight * by
        if self.rotated:
            r = rotation(x.shape[-1])
            x, weight = x @ r, weight @ r
        return self.x(x), self.w(weight)


class Cache(Exact):
    """Queries [heads, n, d], keys and values of a head [n, d]; centred: keys less their mean over the text."""

    def __init__(self, k=lambda k: k, v=lambda v: v, q=lambda q: q, p=lambda p: p, centred=False, rotated=False):
        self.k, self.v, self.q, self.p, self.centred, self.rotated = k, v, q, p, centred, rotated

    def keys(self, q, k):
        if self.centred:
            k = k - k.mean(-2, keepdim=True)
        if self.rotated:
            r = hadamard(k.shape[-1])
            q, k = q @ r, k @ r
        return self.q(q), self.k(k)

    def values(self, v):
        return self.v(v)

    def probs(self, p):
        return self.p(p)


class Both(Exact):
    def __init__(self, products, cache):
        self.factors = products.factors
        self.keys, self.values, self.probs = cache.keys, cache.values, cache.probs


def row(kind):
    return lambda x: by_row(kind, x)


def probs8(p):
    return (p * 256).to(E4M3).to(torch.float32) / 256


def cases():
    e8, i8, v8, k8 = row(e4m3), row(int8), row(value8), row(key8)
    products = Products(e8, e8)
    yield "products", products
    yield "products: weights", Products(w=e8)
    yield "products: activations", Products(x=e8)
    yield "products: scales of blocks of 128", Products(lambda x: by_block(e4m3, x), lambda w: by_block(e4m3, w))
    yield "products: smoothed", Products(e8, e8, smoothed=0.5)
    yield "products: rotated", Products(e8, e8, rotated=True)
    yield "products: int8", Products(i8, i8)
    yield "products: int8, smoothed", Products(i8, i8, smoothed=0.5)
    yield "products: int8, rotated", Products(i8, i8, rotated=True)
    yield "products: int8 weights", Products(w=i8)
    yield "products: int8 activations, rotated", Products(x=i8, rotated=True)
    yield "cache", Cache(k=k8, v=v8)
    yield "cache: keys", Cache(k=k8)
    yield "cache: keys, any scale", Cache(k=i8)
    yield "cache: keys less their mean", Cache(k=k8, centred=True)
    yield "cache: keys rotated", Cache(k=k8, rotated=True)
    yield "cache: keys in e4m3, scales powers of 16", Cache(k=v8)
    yield "cache: keys in e4m3, any scale", Cache(k=e8)
    yield "cache: keys in e4m3 less their mean", Cache(k=v8, centred=True)
    yield "cache: keys in e4m3, rotated", Cache(k=v8, rotated=True)
    yield "cache: values", Cache(v=v8)
    yield "cache: values by channel", Cache(v=lambda v: by_column(e4m3, v))
    yield "cache: int8 values", Cache(v=i8)
    yield "attention: queries", Cache(q=i8)
    yield "attention: queries in e4m3", Cache(q=e8)
    yield "attention: probabilities", Cache(p=probs8)
    attention = Cache(k=k8, v=v8, q=i8, p=probs8)
    yield "attention", attention
    yield "attention: keys and queries in e4m3", Cache(k=v8, v=v8, q=e8, p=probs8)
    yield "all", Both(products, attention)
    yield "all: products in int8, rotated", Both(Products(i8, i8, rotated=True), attention)


def load(folder):
    folder = pathlib.Path(folder)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = json.loads((folder / "config.json").read_text())
    data = bytearray((folder / "model.safetensors").read_bytes())
    (size,) = struct.unpack("<Q", data[:8])
    tensors = {}
    for name, entry in json.loads(data[8:8 + size]).items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            raw = torch.frombuffer(data, dtype=torch.bfloat16, count=(end - begin) // 2, offset=8 + size + begin)
            tensors[name.removeprefix("model.")] = raw.reshape(entry["shape"]).to(device, torch.float32)
    torch.set_default_device(device)
    return config, tensors


class Model:
    def __init__(self, folder):
        self.config, self.tensors = load(folder)
        c = self.config
        self.heads, self.kv_heads = c["num_attention_heads"], c["num_key_value_heads"]
        self.d = c.get("head_dim") or c["hidden_size"] // self.heads

    def norm(self, x, name):
        eps = self.config["rms_norm_eps"]
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * self.tensors[name + ".weight"]

    def rope(self, x):
        n, d = x.shape[-2:]
        angles = torch.outer(torch.arange(n), self.config["rope_theta"] ** (-torch.arange(0, d, 2) / d))
        cos, sin = torch.cat([angles.cos()] * 2, -1), torch.cat([angles.sin()] * 2, -1)
        a, b = x.chunk(2, -1)
        return x * cos + torch.cat([-b, a], -1) * sin

    def attend(self, q, k, v, rounding, block=512):
        """q [heads, n, d], k and v [kv_heads, n, d]: every head with its own, causal."""
        group, n = self.heads // self.kv_heads, q.shape[1]
        out = torch.empty_like(q)
        for h in range(self.kv_heads):
            qs, ks = rounding.keys(q[h * group:(h + 1) * group], k[h])
            vs = rounding.values(v[h])
            for i in range(0, n, block):
                end = min(n, i + block)
                s = qs[:, i:end] @ ks[:end].T / math.sqrt(self.d)
                s[:, :, i:] += torch.full((end - i, end - i), -math.inf).triu(1)
                p = (s - s.amax(-1, keepdim=True)).exp_()
                out[h * group:(h + 1) * group, i:end] = rounding.probs(p) @ vs[:end] / p.sum(-1, keepdim=True)
        return out

    @torch.inference_mode()
    def logits(self, tokens, rounding, step):
        def product(x, name):
            x, w = rounding.factors(x, self.tensors[name + ".weight"])
            return x @ w.T

        def heads(x):
            return x.unflatten(-1, (-1, self.d)).transpose(0, 1)

        x = self.tensors["embed_tokens.weight"][tokens]
        for i in range(self.config["num_hidden_layers"]):
            at = f"layers.{i}."
            h = self.norm(x, at + "input_layernorm")
            q, k, v = (heads(product(h, f"{at}self_attn.{name}_proj")) for name in "qkv")
            h = self.attend(self.rope(q), self.rope(k), v, rounding).transpose(0, 1).flatten(1)
            x = x + product(h, at + "self_attn.o_proj")
            h = self.norm(x, at + "post_attention_layernorm")
            h = F.silu(product(h, at + "mlp.gate_proj")) * product(h, at + "mlp.up_proj")
            x = x + product(h, at + "mlp.down_proj")
        x = self.norm(x[::step], "norm")
        head = "embed_tokens.weight" if self.config.get("tie_word_embeddings") else "lm_head.weight"
        return F.log_softmax(x @ self.tensors[head].T, -1)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("tokens")
    parser.add_argument("--length", type=int, default=8192)
    parser.add_argument("--only", help="cases whose names begin so, with commas between them")
    arguments = parser.parse_args()
    model = Model(arguments.model)
    tokens = torch.tensor(json.loads(pathlib.Path(arguments.tokens).read_text())["tokens"][:arguments.length])
    want = model.logits(tokens, Exact(), 8)
    print(f"| {len(tokens)} tokens | KL ± SE | same top |\n| --- | ---: | ---: |", flush=True)
    for name, rounding in cases():
        if arguments.only and not name.startswith(tuple(arguments.only.split(","))):
            continue
        got = model.logits(tokens, rounding, 8)
        kl = (want.exp() * (want - got)).sum(-1)
        same = (want.argmax(-1) == got.argmax(-1)).float().mean()
        print(f"| {name} | {kl.mean():.5f} ± {kl.std() / math.sqrt(len(kl)):.5f} | {same:.1%} |", flush=True)


if __name__ == "__main__":
    main()

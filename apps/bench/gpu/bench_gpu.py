#!/usr/bin/env python3
"""Times the CUDA backend beside PyTorch's attention (cuDNN and flash) on the same tensors.

    apps/bench/gpu/bench_gpu.py build/cuda/apps/libgpu_bench.so [attention] [entropy] [torch] [decode] [matmul] [layers]
                 [restore] [compress] [batch] [model] [million] [ranks] [large] [--math fp8] [--kv-type fp8] [--lengths N,...]

`torch` needs the Python package, built with CUDA, on the path; it is not among what runs if nothing is named.

Every figure is a median; rates are printed with the share of a ceiling measured in the same run: a
large bf16 product for arithmetic, a device-to-device copy for memory.
"""

import argparse
import concurrent.futures
import ctypes
import math
import statistics
import sys
import time

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

HEADS, KV_HEADS, DIM = 32, 8, 128  # one layer of Llama-3.1-8B
LAYERS = 32
# What a decode step of it reads: bytes once, numbers for every token cached.
WEIGHTS, KV_NUMBERS = 15.0e9, 65536


class PrefillResult(ctypes.Structure):
    _fields_ = [(name, ctypes.c_double) for name in ("append", "select", "attend", "estimate", "kept")]


class StepTimes(ctypes.Structure):
    _fields_ = [(name, ctypes.c_double) for name in ("step", "host", "plain")]


class ModelResult(ctypes.Structure):
    _fields_ = [(name, ctypes.c_double)
                for name in ("first_token", "compress", "full_step", "full_host", "full_plain", "step",
                             "host", "plain", "attended")]


class Library:
    def __init__(self, path, math="bf16", kv_type="bf16"):
        self.math, self.kv_type = math, kv_type
        # Of a number of the cache, with its share of a scale.
        self.kv_bytes = 2 if kv_type == "bf16" else 1 + 4 / DIM
        self.lib = ctypes.CDLL(path)
        self.lib.ei_error.restype = ctypes.c_char_p
        self.lib.ei_open.restype = ctypes.c_void_p
        self.handle = ctypes.c_void_p(self.lib.ei_open(ctypes.c_int(math == "fp8"), ctypes.c_int(kv_type == "fp8")))
        if not self.handle:
            sys.exit(self.lib.ei_error().decode())

    @classmethod
    def of(cls, lib, handle):
        """One that is open already."""
        self = cls.__new__(cls)
        self.lib, self.handle = lib, ctypes.c_void_p(handle)
        return self

    def close(self):
        self.lib.ei_close(self.handle)

    def call(self, name, *args):
        if getattr(self.lib, name)(self.handle, *args) != 0:
            sys.exit(f"{name}: {self.lib.ei_error().decode()}")


class Ranks:
    """GPUs that share a model: what is done is done with each, in threads of their own."""

    def __init__(self, path, n, fp8=False):
        lib = ctypes.CDLL(path)
        lib.ei_error.restype = ctypes.c_char_p
        handles = (ctypes.c_void_p * n)()
        if lib.ei_open_ranks(ctypes.c_int(fp8), ctypes.c_int(n), handles) != 0:
            sys.exit(lib.ei_error().decode())
        self.ranks = [Library.of(lib, handle) for handle in handles]
        self.pool = concurrent.futures.ThreadPoolExecutor(n)

    def do(self, work):
        """What the first makes of it."""
        return list(self.pool.map(work, self.ranks))[0]


def pointer(tensor):
    return ctypes.c_void_p(tensor.data_ptr())


def long(value):
    return ctypes.c_int64(value)


def time_ms(run, repeat):
    """Median of so many runs, by events."""
    run()
    torch.cuda.synchronize()
    times = []
    for _ in range(repeat):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


class Timed:
    """One run: ms between two events, and of the host until it had asked for all of it."""

    def __init__(self, run):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        begin.record()
        start = time.perf_counter()
        run()
        self.host_ms = (time.perf_counter() - start) * 1e3
        end.record()
        end.synchronize()
        self.ms = begin.elapsed_time(end)


def ceilings():
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    flops = 2 * 8192**3 / (time_ms(lambda: a @ b, 10) * 1e-3)
    x = torch.empty(2 << 30, device="cuda", dtype=torch.uint8)
    y = torch.empty_like(x)
    x.random_()
    memory = 2 * x.numel() / (time_ms(lambda: y.copy_(x), 10) * 1e-3)
    print(f"ceilings: {flops / 1e12:.0f} TFLOP/s bf16 8192^3, {memory / 1e12:.2f} TB/s copied")
    return flops, memory


def median_of(results):
    """Field by field."""
    return type(results[0])(*(statistics.median(getattr(r, name) for r in results)
                              for name, _ in results[0]._fields_))


def relative_error(got, want):
    got, want = got.double(), want.double()
    return (torch.linalg.norm(got - want) / torch.linalg.norm(want)).item()


def prompt_tensors(n, seed=1):
    """Queries and keys as of a trained model: keys drift slowly and a few stand out."""
    torch.manual_seed(seed)
    q = torch.randn(n, HEADS, DIM, device="cuda")
    k = torch.randn(n, KV_HEADS, DIM, device="cuda")
    topics = torch.randn(n // 256 + 1, KV_HEADS, DIM, device="cuda").repeat_interleave(256, 0)[:n]
    k = 0.7 * k + 0.7 * topics
    wanted = topics[torch.randint(0, n, (n // 512 + 1,), device="cuda")].repeat_interleave(512, 0)[:n]
    q = 0.8 * q + 0.6 * wanted.repeat_interleave(HEADS // KV_HEADS, 1)
    v = torch.randn(n, KV_HEADS, DIM, device="cuda")
    return [x.to(torch.bfloat16).contiguous() for x in (q, k, v)]


def sdpa(q, k, v, backend, causal=True):
    group = q.shape[1] // k.shape[1]
    heads_first = [x.transpose(0, 1).unsqueeze(0) for x in (q, k, v)]
    if backend == SDPBackend.FLASH_ATTENTION:
        heads_first[1:] = [x.repeat_interleave(group, 1) for x in heads_first[1:]]

    def run():
        with sdpa_kernel(backend):
            return torch.nn.functional.scaled_dot_product_attention(
                *heads_first, is_causal=causal, enable_gqa=backend != SDPBackend.FLASH_ATTENTION)

    return run


def prefill(lib, tensors, out, policy, alpha=0.0, base=2048.0):
    """A layer's attention over a prompt, chunk by chunk; the run whose attention takes the median."""
    n, runs = tensors[0].shape[0], []
    for _ in range(4 if n >= 65536 else 8):
        result = PrefillResult()
        lib.call("ei_prefill", long(n), long(0), long(8192), long(HEADS), long(KV_HEADS), long(DIM), policy.encode(),
                 ctypes.c_float(base), ctypes.c_float(alpha), *map(pointer, tensors), pointer(out),
                 ctypes.byref(result))
        runs.append(result)
    if not torch.isfinite(out.float()).all():
        sys.exit(f"{n} tokens, {policy}: not finite")
    return sorted(runs[1:], key=lambda r: r.attend)[len(runs[1:]) // 2]


def bench_entropy(lib, lengths=(8192, 32768, 65536, 131072)):
    print("\npolicy entropy, one layer, 32/8 heads d 128, keys of decaying spectrum: ms; attention's rate over the "
          "pairs attended, and of dense attention's\n"
          f"{'tokens':>8} {'estimate':>9} {'select':>7} {'attention':>20} {'append':>7} {'total':>8} {'pairs':>6}   "
          f"{'dense':>14} {'error':>7}")
    for n in lengths:
        q, k, v = prompt_tensors(n)
        # Most of what tells keys apart lies in few directions.
        decay = torch.exp(-torch.arange(DIM, device="cuda") / 16.0) * 4
        q, k = ((x * decay**0.5 * 1.5).to(torch.bfloat16).contiguous() for x in (q, k))
        want, out = torch.full_like(q, float("nan")), torch.full_like(q, float("nan"))
        torch.cuda.synchronize()
        dense = prefill(lib, (q, k, v), want, "dense")
        r = prefill(lib, (q, k, v), out, "entropy")
        work = 4.0 * HEADS * DIM * n * (n + 1) / 2 / 1e9
        rate, dense_rate = work * r.kept / r.attend, work / dense.attend
        print(f"{n:>8} {r.estimate:9.2f} {r.select - r.estimate:7.2f} {r.attend:8.2f} ({rate:4.0f}, {rate / dense_rate:3.0%}) "
              f"{r.append:7.2f} {r.append + r.select + r.attend:8.2f} {r.kept:6.1%}   {dense.attend:7.2f} ({dense_rate:4.0f}) "
              f"{relative_error(out, want):7.1e}", flush=True)
        del q, k, v, out, want
        torch.cuda.empty_cache()


def bench_attention(lib, flops, lengths=(8192, 32768, 65536, 131072)):
    print(f"\nprefill attention of one layer, 32/8 heads d 128, causal, products in {lib.math}, cache of "
          f"{lib.kv_type}, ms (TFLOP/s of the pairs attended)\n"
          "the policy paper, budgets of 2048: by entropy, grown by these keys; all at the base (alpha 0)")
    print(f"{'tokens':>8} {'cuDNN':>16} {'flash':>16} {'ours dense':>22} {'error':>8}   "
          f"{'budgets':<8} {'attention':>16} {'select':>7} {'append':>7} {'total':>7} {'pairs':>6}")
    for n in lengths:
        q, k, v = prompt_tensors(n)
        out = torch.full_like(q, float("nan"))
        work = 4.0 * HEADS * DIM * n * (n + 1) / 2
        row, want = f"{n:>8}", None
        for backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION):
            try:
                run = sdpa(q, k, v, backend)
                ms = time_ms(run, 3 if n >= 65536 else 7)
                if want is None:
                    want = run()[0].transpose(0, 1).contiguous()
                row += f" {ms:8.2f} ({work / ms / 1e9:5.0f})"
            except RuntimeError as error:
                row += f" {str(error)[:15]:>16}"

        dense = prefill(lib, (q, k, v), out, "dense")
        rate = work / dense.attend / 1e9
        error = relative_error(out, want) if want is not None else math.nan
        row += f" {dense.attend:8.2f} ({rate:5.0f}, {rate * 1e12 / flops:3.0%}) {error:8.1e}  "
        for name, alpha in (("paper", 0.5), ("base", 0.0)):
            r = prefill(lib, (q, k, v), out, "paper", alpha)
            print(f"{row} {name:<8} {r.attend:8.2f} ({work * r.kept / r.attend / 1e9:5.0f}) {r.select:7.3f} "
                  f"{r.append:7.3f} {r.append + r.select + r.attend:7.2f} {r.kept:6.1%}", flush=True)
            row = " " * len(row)
        del q, k, v, out, want
        torch.cuda.empty_cache()


def bench_torch(lib, lengths=(8192, 32768, 131072)):
    """One layer's attention by the Python package, on torch's tensors and stream, beside the same from C++."""
    from entropyinfer import ops

    layers = 4
    print("\nattention of a layer through torch's tensors, 32/8 heads d 128, causal, ms: medians, in turn with the library's append,\n"
          f"select and attend on the same tensors; of one call, of {layers} that follow each other, and of the host in one")
    print(f"{'tokens':>8} {'policy':<6} {'C++':>8} {'one':>8} {'ratio':>6} {'several':>8} {'ratio':>6} {'host':>7} {'cuDNN':>8}   {'density':>7}")
    for n in lengths:
        q, k, v = prompt_tensors(n)
        out = torch.empty_like(q)
        views = [x.transpose(0, 1) for x in (q, k, v)]
        full = sdpa(q, k, v, SDPBackend.CUDNN_ATTENTION)
        for name in "dense", "paper", "entropy":
            reader = ops.Reader({"paper": "paper:base-budget=2048:alpha=0.5:dense-layers=0", "entropy": "entropy:dense-layers=0"}.get(name, name),
                                1, HEADS, KV_HEADS, DIM, n, torch.bfloat16, "cuda")
            times, density = [], 1.0
            for i in range(8):
                torch.cuda.synchronize()  # the library's stream does not wait for torch's
                result = PrefillResult()
                lib.call("ei_prefill", long(n), long(0), long(8192), long(HEADS), long(KV_HEADS), long(DIM), name.encode(),
                         ctypes.c_float(2048.0), ctypes.c_float(0.5), pointer(q), pointer(k), pointer(v), pointer(out), ctypes.byref(result))
                if i == 0:  # the same kernels on the same numbers
                    got, selection = reader.read(0, *views)
                    if name != "entropy" and not torch.equal(got.transpose(0, 1), out):  # by directions of other keys
                        sys.exit(f"{n} tokens, {name}: torch's tensors gave another result")
                    density = selection.density
                    del got, selection
                one = Timed(lambda: reader.read(0, *views))
                several = Timed(lambda: [reader.read(0, *views) for _ in range(layers)])
                times.append((result.append + result.select + result.attend, one.ms, several.ms / layers, one.host_ms, Timed(full).ms))
            cpp, one, several, host, theirs = (statistics.median(values) for values in zip(*times[1:]))
            print(f"{n:>8} {name:<6} {cpp:8.3f} {one:8.3f} {one / cpp:6.3f} {several:8.3f} {several / cpp:6.3f} {host:7.3f} {theirs:8.2f}   "
                  f"{density:7.1%}", flush=True)


def bench_decode(lib, memory):
    print(f"\ndecode attention, 32/8 heads d 128, cache of {lib.kv_type}: us, TB/s and share of the copy "
          "ceiling; error against SDPA")
    for n, sequences in ((1024, 1), (8192, 1), (32768, 1), (131072, 1), (8192, 16)):
        k, v = (torch.randn(n, KV_HEADS, DIM, device="cuda", dtype=torch.bfloat16) for _ in range(2))
        q = torch.randn(sequences, HEADS, DIM, device="cuda", dtype=torch.bfloat16)
        out = torch.full_like(q, float("nan"))
        torch.cuda.synchronize()  # the library's stream does not wait for torch's
        ms = ctypes.c_double()
        lib.call("ei_decode", long(n), long(sequences), long(HEADS), long(KV_HEADS), long(DIM),
                 pointer(q), pointer(k), pointer(v), pointer(out), ctypes.c_int(50),
                 ctypes.byref(ms))
        keys, values = (x.transpose(0, 1).repeat_interleave(HEADS // KV_HEADS, 0).float() for x in (k, v))
        s = torch.einsum("ihd,hnd->ihn", q.float(), keys) / math.sqrt(DIM)
        want = torch.einsum("ihn,hnd->ihd", s.softmax(-1), values)
        rate = sequences * n * KV_HEADS * DIM * 2 * lib.kv_bytes / (ms.value * 1e-3)
        print(f"{sequences:>3} x {n:>7}: {ms.value * 1e3:8.1f} us {rate / 1e12:6.2f} TB/s "
              f"{rate / memory:5.0%}   {relative_error(out, want):.1e}", flush=True)


# Bits of a weight in each format.
FORMATS = {"BF16": 16, "FP8": 9, "Q8_0": 8.5, "Q6_K": 6.5625, "Q5_K": 5.5, "Q4_K": 4.5, "Q4_0": 4.5,
           "IQ4_XS": 4.25, "Q3_K": 3.4375, "Q2_K": 2.625}
# What is started together: Q, K and V; gate and up.
SHAPES = {"qkv": (4096, 6144), "o": (4096, 4096), "gate, up": (4096, 28672), "down": (14336, 4096)}


def matmul_us(lib, name, n, k, m):
    n_weights = 1 if n > 64 else max(2, int(4e8 / (k * m)) + 1)
    ms = ctypes.c_double()
    lib.call("ei_matmul", name.encode(), long(n), long(k), long(m), ctypes.c_int(n_weights),
             ctypes.c_int(10 if n > 64 else 60), ctypes.byref(ms))
    return ms.value * 1e3


def both_maths(library):
    return {math: Library(library, math) for math in ("bf16", "fp8")}


def bench_matmul(libs, flops, memory):
    print("\nproducts, Llama-3.1-8B's shapes: us, share of the copy's rate over the weights' bytes; by "
          "8192 rows of the bf16 product's")
    formats = {name: (libs["bf16"], name, bits) for name, bits in FORMATS.items()}
    formats["e4m3"] = libs["fp8"], "BF16", 8  # as --math fp8 has them
    for name, (lib, stored, bits) in formats.items():
        row = f"{name:>6}:"
        for shape, (k, m) in SHAPES.items():
            us = matmul_us(lib, stored, 1, k, m)
            row += f"  {shape} {us:6.1f} {k * m * bits / 8 / memory / us * 1e6:4.0%}"
        print(row, flush=True)
    k, m = SHAPES["gate, up"]
    for name in ("BF16", "e4m3", "FP8", "Q8_0", "Q4_K", "Q6_K"):
        lib, stored, bits = formats[name]
        row = f"{name:>6}, gate and up, rows:"
        for n in (2, 4, 8, 16, 32, 64, 8192):
            us = matmul_us(lib, stored, n, k, m)
            share = (2.0 * n * k * m / flops if n > 64 else k * m * bits / 8 / memory) / us
            row += f"  {n}: {us:7.1f} {share * 1e6:4.0%}"
        print(row, flush=True)


def bench_layers(libs):
    print("\nall layers for 131072 tokens, chunks of 8192, without attention: ms of norms, SwiGLU and products; "
          "less what norms and SwiGLU alone take in bf16: products, TFLOP/s")
    work = 2.0 * 131072 * LAYERS * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336)

    def layers_ms(lib, products):
        ms = ctypes.c_double()
        lib.call("ei_layer", long(8192), long(4096), long(1024), long(14336), ctypes.c_int(products),
                 ctypes.c_int(200), ctypes.byref(ms))
        return ms.value * LAYERS * 131072 / 8192

    for _ in range(2):
        alone = layers_ms(libs["bf16"], 0)
        for name, lib in libs.items():
            total = layers_ms(lib, 1)
            print(f"{name:>6}: {total:7.0f}; {total - alone:7.0f} {work / (total - alone) / 1e9:6.0f}",
                  flush=True)


def bench_restore(lib, shape="llama-3.1-8b"):
    print(f"\nprefix cache, {shape}: ms to remember a prefix and to restore it into another cache; the "
          "same where all of it goes to the host's memory and comes from there, with GB/s")
    for n in (8192, 32768, 131072):
        remember, restore, n_bytes = ctypes.c_double(), ctypes.c_double(), ctypes.c_double()
        for from_host in (0, 1):
            lib.call("ei_restore", shape.encode(), long(n), ctypes.c_int(from_host), ctypes.c_int(7),
                     ctypes.byref(remember), ctypes.byref(restore), ctypes.byref(n_bytes))
            rates = [n_bytes.value / ms.value / 1e6 for ms in (remember, restore)]
            print(f"{n:>8}: {remember.value:7.2f} {restore.value:7.2f}"
                  + (f"  ({rates[0]:.1f}, {rates[1]:.1f} GB/s)" if from_host else ""), flush=True)


def bench_compress(lib, memory, shape="llama-3.1-8b"):
    print(f"\ncompressing the cache to 1024 rows a head, all layers of {shape}: ms (host alone); two "
          "readings of the keys at the copy's rate")
    for n in (8192, 32768, 131072):
        q, k, _ = prompt_tensors(n)
        q = q[-32:].contiguous()
        torch.cuda.synchronize()
        host, ms = ctypes.c_double(), ctypes.c_double()
        lib.call("ei_compress", shape.encode(), long(n), long(1024), ctypes.c_int(7), pointer(q),
                 pointer(k), ctypes.byref(host), ctypes.byref(ms))
        print(f"{n:>8}: {ms.value:7.2f} ({host.value:.2f})   {2 * LAYERS * 2 * k.numel() / memory * 1e3:.2f}",
              flush=True)


def bench_batch(lib, memory, shape="llama-3.1-8b"):
    print(f"\n{shape}, random weights: ms of a step of several sequences together, as a graph (host "
          "alone; kernels one by one); share of the bandwidth bound")
    lib.call("ei_load", shape.encode())
    for n, sequences in ((8192, 16), (32768, 8), (32768, 16)):
        k = torch.randn(n, KV_HEADS * DIM, device="cuda").to(torch.bfloat16)
        torch.cuda.synchronize()
        times = StepTimes()
        lib.call("ei_decode_batch", long(n), long(sequences), ctypes.c_int(20), pointer(k),
                 ctypes.byref(times))
        bound = (WEIGHTS + sequences * n * KV_NUMBERS * lib.kv_bytes) / memory * 1e3
        print(f"{sequences:>3} x {n:>7}: {times.step:6.2f} ({times.host:.2f}; {times.plain:.2f}) "
              f"{bound / times.step:.0%}", flush=True)


def generate(lib, n, policy, budget, steps):
    """Reads a prompt and decodes, budget 0: from all of it."""
    result = ModelResult()
    lib.call("ei_generate", long(n), long(8192), policy.encode(), long(budget), ctypes.c_int(0),
             ctypes.c_int(steps), ctypes.byref(result))
    return result


def bench_model(lib, memory, lengths=(4096, 8192, 16384, 32768, 65536, 131072), shape="llama-3.1-8b"):
    print(f"\n{shape}, random weights: ms to the first token; decoding, ms a token; medians of three, in turn")
    lib.call("ei_load", shape.encode())

    generate(lib, 8192, "entropy", 0, 3)  # warms up
    empty = generate(lib, 512, "dense", 0, 40)
    print(f"     512: first token {empty.first_token:8.1f}, step {empty.step:6.2f} (host {empty.host:.2f}; "
          f"without a graph {empty.plain:.2f})",
          flush=True)
    for n in lengths:
        runs = [(generate(lib, n, "entropy", 1024, 20), generate(lib, n, "paper", 1024, 20)) for _ in range(3)]
        sparse, paper = (median_of(results) for results in zip(*runs))
        # Ten seconds of 131,072 tokens are no median.
        dense = median_of([generate(lib, n, "dense", 0, 20) for _ in range(3 if n < 131072 else 1)])
        by = [f"{name} {r.first_token:8.1f} ({dense.first_token / r.first_token:.2f}x, {r.attended:.1%} of pairs)"
              for name, r in (("entropy", sparse), ("paper", paper))]
        print(f"{n:>8}: dense {dense.first_token:8.1f}, {', '.join(by)}; step, full "
              f"cache {dense.step:6.2f} ({(WEIGHTS + n * KV_NUMBERS * lib.kv_bytes) / memory * 1e3 / dense.step:.0%} of the bound, host "
              f"{dense.host:.2f}, no graph {dense.plain:.2f}), 1024 kept {sparse.step:6.2f} "
              f"({sparse.step / empty.step - 1:+.0%} over empty); compressing {sparse.compress:.1f}",
              flush=True)


def all_reduce_us(lib, rows, cols, graph):
    us = ctypes.c_double()
    lib.call("ei_all_reduce", long(rows), long(cols), ctypes.c_int(graph), ctypes.c_int(64), ctypes.byref(us))
    return us.value


def bench_ranks(path, lengths=(32768, 131072), repeat=3, shape="llama-3.1-8b"):
    n_gpus = torch.cuda.device_count()
    print(f"\n{shape}, random weights, on one GPU and shared by {n_gpus}: ms to the first token (and how many times as "
          f"fast); ms a token from the full cache; medians of {repeat}, in turn")
    ranks = {n_gpus: Ranks(path, n_gpus), 1: Ranks(path, 1)}
    for rows, graph in ((8192, 0), (1, 0), (1, 1), (16, 1)):
        us = ranks[n_gpus].do(lambda lib: all_reduce_us(lib, rows, 4096, graph))
        print(f"  a sum of {rows} x 4096{' in a graph' if graph else ''}: {us:.1f} us", flush=True)
    policies = ("dense", "entropy", "paper")
    for r in ranks.values():
        r.do(lambda lib: lib.call("ei_load", shape.encode()))
        for policy in policies:
            r.do(lambda lib: generate(lib, 16384, policy, 0, 3))  # warms up
    for n in lengths:
        runs = {(size, beside, policy): [] for size, beside in ((1, 1), (n_gpus, 1), (n_gpus, 0)) for policy in policies}
        for _ in range(repeat):
            for (size, beside, policy), results in runs.items():
                ranks[size].do(lambda lib: lib.call("ei_use_beside", ctypes.c_int(beside)))
                results.append(ranks[size].do(lambda lib: generate(lib, n, policy, 0, 20)))
        medians = {key: median_of(results) for key, results in runs.items()}
        row = f"{n:>8}:"
        for policy in policies:
            one, all_gpus, alone = (medians[key].first_token
                                    for key in ((1, 1, policy), (n_gpus, 1, policy), (n_gpus, 0, policy)))
            row += f" {policy} {one:8.1f}, {all_gpus:8.1f} ({one / all_gpus:.2f}x; sums beside nothing {one / alone:.2f}x);"
        one, all_gpus = (medians[size, 1, "dense"] for size in (1, n_gpus))
        print(f"{row} step {one.step:6.2f}, {all_gpus.step:6.2f} ({one.step / all_gpus.step:.2f}x); host {one.host:.2f}, "
              f"{all_gpus.host:.2f}; no graph {one.plain:.2f}, {all_gpus.plain:.2f}", flush=True)
    for r in ranks.values():
        r.do(lambda lib: lib.close())


def bench_large(path, lengths=(131072,), shape="llama-3.3-70b"):
    n_gpus = torch.cuda.device_count()
    print(f"\n{shape}, random weights in fp8, shared by {n_gpus} GPUs: ms to the first token; ms a token from the full "
          "cache; one run each")
    ranks = Ranks(path, n_gpus, fp8=True)
    ranks.do(lambda lib: lib.call("ei_load", shape.encode()))
    for policy in ("entropy", "paper", "dense"):
        ranks.do(lambda lib: generate(lib, 8192, policy, 0, 3))  # warms up
    for n in lengths:
        for policy in ("paper", "entropy", "dense"):
            r = ranks.do(lambda lib: generate(lib, n, policy, 0, 20))
            print(f"{n:>8}: {policy:<7} {r.first_token:8.1f} ({r.attended:.1%} of pairs); step {r.step:6.2f} (host "
                  f"{r.host:.2f}, no graph {r.plain:.2f})", flush=True)
    ranks.do(lambda lib: lib.close())


def bench_million(lib, memory, n=1 << 20, policy="paper", shape="llama-3.1-8b"):
    """Where bf16 would not fit: --math fp8 --kv-type fp8. A prompt takes most of a minute."""
    print(f"\n{shape}, random weights, products in {lib.math}, cache of {lib.kv_type}: first token by {policy}; a "
          "token with the full cache, in brackets reading it at the copy's rate, and with 1024 kept", flush=True)
    lib.call("ei_load", shape.encode())
    for tokens in (8192, 131072, n):
        result = ModelResult()
        lib.call("ei_generate", long(tokens), long(8192), policy.encode(), long(1024), ctypes.c_int(10),
                 ctypes.c_int(10), ctypes.byref(result))
        bound = tokens * KV_NUMBERS * lib.kv_bytes / memory * 1e3
        print(f"{tokens:>8}: {result.first_token / 1e3:6.2f} s ({result.attended:.2%} of pairs); {result.full_step:.2f} ms "
              f"({bound:.2f}), {result.step:.2f} ms; compressing {result.compress:.1f} ms", flush=True)
    # Dense attention of a chunk in the middle takes the mean of all chunks' times.
    at, chunk = n // 2, 8192
    q, out = (torch.randn(at + chunk, HEADS * DIM, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    k = torch.randn(at + chunk, KV_HEADS * DIM, device="cuda", dtype=torch.bfloat16)
    torch.cuda.synchronize()
    dense = PrefillResult()
    lib.call("ei_prefill", long(at + chunk), long(at), long(chunk), long(HEADS), long(KV_HEADS), long(DIM),
             b"dense", ctypes.c_float(0), ctypes.c_float(0), pointer(q), pointer(k), pointer(k), pointer(out),
             ctypes.byref(dense))
    print(f"dense attention of {chunk} tokens behind {at}: {dense.attend:.1f} ms, of all layers and chunks "
          f"{dense.attend * n / chunk * LAYERS / 1e3:.0f} s", flush=True)


def main():
    parts = ["attention", "entropy", "decode", "matmul", "layers", "restore", "compress", "batch", "model"]
    parser = argparse.ArgumentParser()
    parser.add_argument("library")
    parser.add_argument("parts", nargs="*", choices=[*parts, "torch", "million", "ranks", "large", []])
    parser.add_argument("--math", choices=("bf16", "fp8"), default="bf16")
    parser.add_argument("--kv-type", choices=("bf16", "fp8"), default="bf16")
    parser.add_argument("--lengths", type=lambda text: [int(n) for n in text.split(",")],
                        help="of attention and model, in tokens")
    arguments = parser.parse_args()
    lengths = {"lengths": arguments.lengths} if arguments.lengths else {}
    wanted = arguments.parts or parts
    print(torch.cuda.get_device_name(), "torch", torch.__version__, "products in", arguments.math,
          "cache of", arguments.kv_type)
    # All GPUs are left to those that share a model.
    if "ranks" in wanted:
        bench_ranks(arguments.library)
    if "large" in wanted:
        bench_large(arguments.library)
    if not set(wanted) - {"ranks", "large"}:
        return
    flops, memory = ceilings()
    lib = Library(arguments.library, arguments.math, arguments.kv_type)
    if "attention" in wanted:
        bench_attention(lib, flops, **lengths)
    if "entropy" in wanted:
        bench_entropy(lib, **lengths)
    if "torch" in wanted:
        bench_torch(lib, **lengths)
    if "decode" in wanted:
        bench_decode(lib, memory)
    if "matmul" in wanted:
        bench_matmul(both_maths(arguments.library), flops, memory)
    if "layers" in wanted:
        bench_layers(both_maths(arguments.library))
    if "restore" in wanted:
        bench_restore(lib)
    if "compress" in wanted:
        bench_compress(lib, memory)
    if "batch" in wanted:
        bench_batch(lib, memory)
    if "model" in wanted:
        bench_model(lib, memory, **lengths)
    if "million" in wanted:
        bench_million(lib, memory)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""How long a large model takes to load, and the memory that it holds then.

    tools/bench_load.py PROGRAM TOKENIZER [--runs N]

Writes a GGUF file of Llama-3.1-8B's shape in Q4_K, random weights with the vocabulary of the GGUF file TOKENIZER
(build/smollm2/model.gguf), to a temporary directory (4.6 GB), loads it so often from the page cache, and deletes it.
Needs PyPI's gguf: `tests/smollm2/run` makes an environment that has it, build/smollm2/venv."""
import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile

import gguf
import numpy as np

LAYERS, WIDTH, INNER, KV_WIDTH, VOCABULARY = 32, 4096, 14336, 1024, 128256


def q4_k(rows, cols, seed=0):
    """Blocks of random numbers whose scales are small and finite."""
    blocks = np.random.default_rng(seed).integers(0, 256, (256, cols // 256, 144), dtype=np.uint8)
    blocks[..., 0:4] = np.array([1e-4, 1e-4], np.float16).view(np.uint8)
    return np.tile(blocks.reshape(256, -1), (rows // 256 + 1, 1))[:rows]


def vocabulary(path, writer):
    """Its tokenizer, with made-up tokens up to Llama's number."""
    fields = gguf.GGUFReader(path).fields
    strings = lambda name: [bytes(fields[name].parts[i]) for i in fields[name].data]
    tokens, types = strings('tokenizer.ggml.tokens'), fields['tokenizer.ggml.token_type']
    types = [int(types.parts[i][0]) for i in types.data]
    more = VOCABULARY - len(tokens)
    writer.add_tokenizer_model('gpt2')
    writer.add_tokenizer_pre(strings('tokenizer.ggml.pre')[0].decode())
    writer.add_token_list(tokens + [b'<unused %d>' % i for i in range(more)])
    writer.add_token_types(types + [5] * more)
    writer.add_token_merges([m.decode() for m in strings('tokenizer.ggml.merges')])
    for end in 'bos', 'eos':
        getattr(writer, f'add_{end}_token_id')(int(fields[f'tokenizer.ggml.{end}_token_id'].parts[-1][0]))


def write(path, tokenizer):
    writer = gguf.GGUFWriter(path, 'llama')
    writer.add_context_length(131072)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(32)
    writer.add_head_count_kv(8)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(500000.0)
    writer.add_vocab_size(VOCABULARY)
    vocabulary(tokenizer, writer)
    kind = gguf.GGMLQuantizationType.Q4_K
    def add(name, rows, cols):
        writer.add_tensor(f'{name}.weight', q4_k(rows, cols), raw_dtype=kind)
    def norm(name):
        writer.add_tensor(f'{name}.weight', np.ones(WIDTH, np.float32))
    add('token_embd', VOCABULARY, WIDTH)
    add('output', VOCABULARY, WIDTH)
    norm('output_norm')
    for layer in range(LAYERS):
        at = f'blk.{layer}.'
        for name, rows, cols in (('attn_q', WIDTH, WIDTH), ('attn_k', KV_WIDTH, WIDTH), ('attn_v', KV_WIDTH, WIDTH),
                                 ('attn_output', WIDTH, WIDTH), ('ffn_gate', INNER, WIDTH), ('ffn_up', INNER, WIDTH),
                                 ('ffn_down', WIDTH, INNER)):
            add(at + name, rows, cols)
        norm(at + 'attn_norm')
        norm(at + 'ffn_norm')
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def run(program, path):
    """Loads it and answers a token: what the program says, and the most memory that it held."""
    with tempfile.TemporaryFile('w+') as out:
        command = [program, 'run', path, '--raw', '--prompt', 'a b c', '-n', '1', '--prefill', 'dense', '--json']
        process = subprocess.Popen(command, stdout=out)
        _, status, usage = os.wait4(process.pid, 0)
        if status != 0:
            sys.exit(f'{program} failed')
        out.seek(0)
        return json.load(out), usage.ru_maxrss / 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('program')
    parser.add_argument('tokenizer')
    parser.add_argument('--runs', type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, 'model.gguf')
        writer = multiprocessing.Process(target=write, args=(path, options.tokenizer))
        writer.start()  # which holds all of it, and would be counted
        writer.join()
        if writer.exitcode != 0:
            sys.exit('the file could not be written')
        size = os.path.getsize(path) / 2**20
        run(options.program, path)  # from here on its pages are in memory
        results = [run(options.program, path) for _ in range(options.runs)]
    times = [answer['timings']['load_ms'] for answer, _ in results]
    cache = results[0][0]['kv']['bytes'] / 2**20
    print(f'{size:,.0f} MiB, loaded in {statistics.median(times):,.0f} ms ({min(times):,.0f} to {max(times):,.0f}); '
          f'at most {max(held for _, held in results):,.0f} MiB held, {cache:.0f} of them the KV cache')


if __name__ == '__main__':
    main()

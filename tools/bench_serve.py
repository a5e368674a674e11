#!/usr/bin/env python3
"""Measures `entropyinfer serve` under load and writes the table of docs/REPORT.md's section "Server".

    tools/bench_serve.py PROGRAM [--seconds S] [--write]
    tools/bench_serve.py PROGRAM --tiers [--repeat N]

Eight clients stream answers to short prompts, one after the other, with and without two clients beside them who send long
prompts; by entropy and dense. No prompt is sent twice. Times are the clients': time to the first token (TTFT) and between
tokens (ITL).

--tiers: what it costs to keep prompts, in memory and in files as well (--prefix-dir), that never come again. The same requests,
two long ones beside eight short ones at a time, to three servers in turns. Compared is the server's processor time, which its
neighbours change less than the clock; the last column is the ratio of the medians.
"""
import argparse
import http.client
import json
import math
import os
import pathlib
import random
import re
import statistics
import subprocess
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
MODEL = ROOT / 'models' / 'needle-8m'
N_SHORT, N_LONG = 8, 2
SHORT = {'prompt': 512, 'max_tokens': 64}
LONG = {'prompt': 8192, 'max_tokens': 16}
POLICIES = {'entropy, latent': {}, 'dense, full': {'prefill': 'dense', 'decode': 'full'}}


class Client(threading.Thread):
    def __init__(self, port, sizes, policy, seed, until=math.inf, n_requests=None):
        super().__init__()
        self.port, self.sizes, self.policy, self.until, self.n_requests = port, sizes, policy, until, n_requests
        self.draw = random.Random(seed)
        self.ttft, self.itl, self.n_tokens = [], [], 0

    def run(self):
        while time.monotonic() < self.until and self.n_requests != 0:
            self.n_requests = self.n_requests and self.n_requests - 1
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


def processor_seconds(process):
    """Of all its threads, those that have ended too."""
    fields = pathlib.Path(f'/proc/{process.pid}/stat').read_text().rpartition(')')[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


def start(program, *flags):
    server = subprocess.Popen([program, 'serve', MODEL, '--port', '0', '--quiet', *flags], stdout=subprocess.PIPE, text=True)
    return server, int(re.search(r':(\d+) ', server.stdout.readline())[1])


def compare_tiers(program, n_repeat):
    with tempfile.TemporaryDirectory() as pages:
        kinds = {'none': ['--prefix-memory', '0', '--prefix-ram', '0'], 'memory': ['--prefix-memory', '1GiB'], 'memory and files': ['--prefix-memory', '1GiB', '--prefix-dir', pages]}
        servers = {name: start(program, *flags) for name, flags in kinds.items()}
        took = {name: [] for name in kinds}
        try:
            for i in range(-1, n_repeat):  # the first is not counted
                for name, (process, port) in servers.items():
                    before = processor_seconds(process)
                    clients = [Client(port, SHORT, {}, 1000 * i + k, n_requests=4) for k in range(N_SHORT)]
                    clients += [Client(port, LONG, {}, 1000 * i + 100 + k, n_requests=1) for k in range(N_LONG)]
                    for client in clients:
                        client.start()
                    for client in clients:
                        client.join()
                    time.sleep(1)  # files are written
                    if i >= 0:
                        took[name].append(processor_seconds(process) - before)
        finally:
            for process, _ in servers.values():
                process.terminate()
                process.wait()
    print('| prefixes are kept in | processor time, s (median, least to most) | of none |\n| --- | ---: | ---: |')
    for name, seconds in took.items():
        median = statistics.median(seconds)
        print(f'| {name} | {median:.2f} ({min(seconds):.2f} to {max(seconds):.2f}) | {median / statistics.median(took["none"]):.3f} |')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('program')
    parser.add_argument('--seconds', type=float, default=15)
    parser.add_argument('--write', action='store_true', help='into docs/REPORT.md')
    parser.add_argument('--tiers', action='store_true', help='what keeping prompts costs')
    parser.add_argument('--repeat', type=int, default=7, help='measurements of each of these')
    arguments = parser.parse_args()
    if arguments.tiers:
        return compare_tiers(arguments.program, arguments.repeat)
    server, port = start(arguments.program, '--prefix-memory', '0', '--prefix-ram', '0')
    rows = []
    try:
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

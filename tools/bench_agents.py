#!/usr/bin/env python3
"""Measures an agent's conversation that grows turn by turn, and writes the tables of docs/REPORT.md's section "Agents".

    tools/bench_agents.py PROGRAM [--turns N] [--tokens N] [--write]

Each turn adds a tool's result and asks for an answer of 32 tokens. What a turn reads is compared with what is new in it (all
that stands behind the answer before), and its time to the first token with that of a prompt of which only so much is there.
Every fifth turn is compared with what it should take: the end of a reading of the whole conversation without the cache, the same
new tokens with the same attention to all that stands before them. Both are measured --repeat times in turns, each time with
another tool's result of that size, by servers of their own, and their medians compared: one reading alone says more of the
machine's other work. So does the clock where others compute: the servers' processor time is compared as well.
Once with one server, and once with a server that is killed before every turn and finds the conversation in --prefix-dir.
"""
import argparse
import http.client
import json
import pathlib
import random
import re
import statistics
import subprocess
import tempfile
import time
import typing

ROOT = pathlib.Path(__file__).resolve().parent.parent
MODEL = ROOT / 'models' / 'needle-8m'
WORDS = 'amber brook cedar delta ember fjord grove heron islet jetty knoll larch maple north ocean'.split()
N_ANSWER = 32


class Seconds(typing.NamedTuple):
    clock: float
    processor: float

    def __sub__(self, other):
        return Seconds(self.clock - other.clock, self.processor - other.processor)

    def __mul__(self, factor):
        return Seconds(self.clock * factor, self.processor * factor)


class Server:
    def __init__(self, program, *flags):
        self.process = subprocess.Popen([program, 'serve', MODEL, '--port', '0', '--quiet', *flags], stdout=subprocess.PIPE, text=True)
        self.port = int(re.search(r':(\d+) ', self.process.stdout.readline())[1])

    def seconds(self):
        """By the clock, and of the processor."""
        tasks = pathlib.Path(f'/proc/{self.process.pid}/task').iterdir()
        return Seconds(time.monotonic(), sum(int((task / 'schedstat').read_text().split()[0]) for task in tasks) / 1e9)

    def ask(self, messages, **fields):
        """The answer, its timings, the seconds to its first token, and how many tokens were read by when."""
        connection = http.client.HTTPConnection('127.0.0.1', self.port)
        start, first, text, progress = self.seconds(), None, '', []
        connection.request('POST', '/v1/chat/completions', json.dumps(
            {'messages': messages, 'max_tokens': N_ANSWER, 'temperature': 0, 'stream': True, 'stream_options': {'include_usage': True},
             'return_progress': True} | fields),
            {'Content-Type': 'application/json'})
        reply = connection.getresponse()
        assert reply.status == 200, reply.read()
        timings = {}
        for line in reply:
            if not line.startswith(b'data: {'):
                continue
            chunk = json.loads(line[6:])
            timings |= chunk.get('timings') or {}
            if 'prompt_progress' in chunk:
                progress.append((chunk['prompt_progress']['processed'], self.seconds() - start))
            piece = (chunk['choices'] or [{'delta': {}}])[0]['delta'].get('content') or ''
            if piece and first is None:
                first = self.seconds() - start
            text += piece
        return text, timings, first or self.seconds() - start, progress

    def end_of(self, messages, n):
        """Seconds from the n-th token of a prompt to the first of its answer where all is read at once."""
        _, _, first, progress = self.ask(messages, cache_prompt=False)
        for (n_before, before), (n_after, after) in zip(progress, progress[1:]):
            if n_before <= n < n_after:
                return first - before - (after - before) * ((n - n_before) / (n_after - n_before))
        raise SystemExit(f'no progress was reported around token {n}: {progress}')

    def disk_bytes(self):
        connection = http.client.HTTPConnection('127.0.0.1', self.port)
        connection.request('GET', '/metrics')
        return float(re.search(r'^entropyinfer:prefix_cache_bytes{.*"disk"} (\S+)$', connection.getresponse().read().decode(), re.MULTILINE)[1])

    def stop(self, kill=False):
        (self.process.kill if kill else self.process.terminate)()
        self.process.wait()


def result(draw, n_tokens):
    lines = [f'The {draw.choice(WORDS)} lay {draw.choice(WORDS)} of the old {draw.choice(WORDS)}.' for _ in range(n_tokens // 13)]
    return ' '.join(lines) + f' Which {draw.choice(WORDS)} is it?'


def compare(server, apart, messages, n_known, n_tokens, n_repeat, draw):
    """Milliseconds from a turn's request to its first token, what the same takes at the end of reading everything, and the ratio
    of their processor times: medians."""
    turns, at_once = [], []
    for _ in range(n_repeat):
        branch = messages[:-1] + [{'role': 'user', 'content': result(draw, n_tokens)}]
        turns.append(server.ask(branch)[2])
        at_once.append(apart.end_of(branch, n_known))
    clock = [round(1000 * statistics.median(t.clock for t in times)) for times in (turns, at_once)]
    turn, end = (statistics.median(t.processor for t in times) for times in (turns, at_once))
    return [*clock, round(turn / end, 2)]


def measure(program, n_turns, n_tokens, n_repeat, restarts):
    draw, other = random.Random(1), random.Random(2)
    rows, messages, n_known = [], [], 0
    with tempfile.TemporaryDirectory() as pages:
        flags = ('--prefix-dir', pages) if restarts else ()
        server, apart = Server(program, *flags), Server(program, '--prefix-memory', '0', '--prefix-ram', '0')
        for one in (server, apart):
            one.ask([{'role': 'user', 'content': 'Once upon a time'}])
        for turn in range(1, n_turns + 1):
            if restarts and turn > 1:
                settled = None
                while settled != (settled := server.disk_bytes()):
                    time.sleep(.5)  # what is not written yet is lost
                server.stop(kill=True)
                server = Server(program, *flags)
                server.ask([{'role': 'user', 'content': 'Once upon a time'}])
            messages.append({'role': 'user', 'content': result(draw, n_tokens)})
            text, timings, seconds, _ = server.ask(messages)
            compared = compare(server, apart, messages, n_known, n_tokens, n_repeat, other) if turn % 5 == 0 else ['', '', '']
            messages.append({'role': 'assistant', 'content': text})
            n_prompt = timings['cache_n'] + timings['prompt_n']
            new = n_prompt - n_known
            n_known = n_prompt + timings['predicted_n']
            _, fresh, fresh_seconds, _ = server.ask([{'role': 'user', 'content': result(other, n_tokens)}])
            rows.append([turn, n_prompt, new, timings['prompt_n'], timings['cache_disk_n'], round(1000 * seconds.clock), *compared, fresh['prompt_n'], round(1000 * fresh_seconds.clock)])
            print(*rows[-1], flush=True)
        server.stop()
        apart.stop()
    return rows


def table(rows):
    head = ['turn', 'prompt', 'new', 'read', 'from files', 'TTFT (ms)', 'median', 'of it read at once', 'by processor time', 'fresh prompt', 'its TTFT (ms)']
    later = rows[1:]
    new, read = sum(row[2] for row in later), sum(row[3] for row in later)
    lines = ['| ' + ' | '.join(head) + ' |', '|' + '--:|' * len(head)]
    lines += ['| ' + ' | '.join(f'{cell:,}' if cell != '' else '' for cell in row) + ' |' for row in rows]
    ratios = ', '.join(f'{row[6] / row[7]:.2f}' for row in rows if row[7])
    processor = ', '.join(f'{row[8]:.2f}' for row in rows if row[8])
    return '\n'.join(lines) + f'\n\nTurns 2 to {len(rows)}: {read:,} tokens read of {new:,} that are new, {100 * (read / new - 1):.1f}% more. TTFT over that of the same tokens read at once: {ratios}; processor time: {processor}.'


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('program')
    parser.add_argument('--turns', type=int, default=20)
    parser.add_argument('--tokens', type=int, default=3000, help='that a turn adds, about')
    parser.add_argument('--repeat', type=int, default=5, help='measurements of each side of a comparison')
    parser.add_argument('--write', action='store_true', help='into docs/REPORT.md')
    arguments = parser.parse_args()
    text = '\n\n'.join(f'{name}\n\n' + table(measure(arguments.program, arguments.turns, arguments.tokens, arguments.repeat, restarts))
                       for name, restarts in [('One server:', False), ('Killed before every turn, with `--prefix-dir`:', True)])
    print(text)
    if arguments.write:
        report = ROOT / 'docs' / 'REPORT.md'
        report.write_text(re.sub(r'(<!-- agents -->\n).*?(<!-- /agents -->)', lambda m: m[1] + text + '\n' + m[2], report.read_text(), flags=re.DOTALL))


if __name__ == '__main__':
    main()

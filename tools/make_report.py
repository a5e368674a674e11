#!/usr/bin/env python3
"""Runs the evaluations of docs/REPORT.md and puts their tables into it.

    tools/make_report.py PROGRAM [FLAG...]     flags for every run, as -t 1

Answers lie in build/report, one folder for each run; what is there already is not asked again. The
tables are written between the report's `<!-- table NAME -->` and `<!-- end -->`, the rest of it is
left as it is.
"""
import json
import math
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
OUT = ROOT / 'build' / 'report'
REPORT = ROOT / 'docs' / 'REPORT.md'
MODEL = 'models/needle-8m'

METHODS = ['latent', 'latent-adakv', 'snapkv', 'adakv']
BUDGETS = [64, 128, 256, 1024]
KERNELS = [5, 7, 21, 31]
GAPS = [0, 8, 28]
FACTS = ['--lengths', '4k', '--tasks', 'single,many-keys,several-keys', '--samples', '5']
RUNS = {
    'peers': ['--lengths', '4k,8k', '--samples', '5', '--policies',
              'dense+full,entropy+latent,criti+full,dense+snapkv,dense+adakv'],
    'budgets': FACTS + ['--policies', ','.join(f'dense+{m}@{b}' for b in BUDGETS for m in METHODS)],
} | {
    f'kernel-{k}': FACTS + ['--kernel', str(k), '--policies', 'dense+latent@256,dense+snapkv@256']
    for k in KERNELS
} | {
    f'gap-{g}': FACTS + ['--decode-gap', str(g), '--policies', 'dense+latent@256'] for g in GAPS
}


def results(run):
    lines = (OUT / run / 'answers.jsonl').read_text().splitlines()
    return [json.loads(line) for line in lines[1:]]


def mean(values):
    return sum(values) / len(values)


def cell(rows):
    """Mean score and 95% interval (Wilson), as `entropyinfer eval` computes them."""
    n, p, z = len(rows), mean([r['score'] for r in rows]), 1.959964
    center = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return f'{p:.2f} ({max(0, center - half):.2f} to {min(1, center + half):.2f})'


def unique(values):
    return list(dict.fromkeys(values))


def markdown(header, rows):
    return '\n'.join('| ' + ' | '.join(str(c) for c in row) + ' |'
                     for row in [header, ['---'] + ['---:'] * (len(header) - 1)] + rows) + '\n'


def peers():
    rows = results('peers')
    tasks = unique(r['task'] for r in rows)
    table = []
    for length in unique(r['length'] for r in rows):
        for policy in unique(r['policy'] for r in rows):
            own = [r for r in rows if r['length'] == length and r['policy'] == policy]
            table.append([policy, f'{length:,}']
                         + [f"{mean([r['score'] for r in own if r['task'] == t]):.2f}" for t in tasks]
                         + [cell(own), f"{mean([r['density'] for r in own]):.3f}",
                            f"{mean([r['kv_bytes'] / r['kv_bytes_full'] for r in own]):.0%}"])
    return markdown(['policy', 'tokens'] + tasks + ['all (95% interval)', 'density', 'KV entries'], table)


def of(run, policy):
    return cell([r for r in results(run) if r['policy'] == policy])


TABLES = {
    'peers': peers,
    'budgets': lambda: markdown(
        ['decode policy'] + [f'{b} entries' for b in BUDGETS],
        [[m] + [of('budgets', f'dense+{m}@{b}') for b in BUDGETS] for m in METHODS]),
    'kernels': lambda: markdown(
        ['decode policy'] + [f'kernel {k}' for k in KERNELS],
        [[m] + [of(f'kernel-{k}', f'dense+{m}@256') for k in KERNELS] for m in ['latent', 'snapkv']]),
    'gaps': lambda: markdown(
        ['decode policy'] + [f'gap {g}' for g in sorted(GAPS + [16])],
        [['latent'] + [of('budgets' if g == 16 else f'gap-{g}', 'dense+latent@256')
                       for g in sorted(GAPS + [16])]]),
}


def main():
    program, flags = sys.argv[1], sys.argv[2:]
    for name, arguments in RUNS.items():
        print(f'{name}:', flush=True)
        subprocess.run([program, 'eval', 'needle', MODEL, '--out', OUT / name, *arguments, *flags],
                       cwd=ROOT, check=True)
    text = REPORT.read_text()
    for name, table in TABLES.items():
        head, rest = text.split(f'<!-- table {name} -->\n')
        text = head + f'<!-- table {name} -->\n' + table() + rest[rest.index('<!-- end -->'):]
    REPORT.write_text(text)


main()

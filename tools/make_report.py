#!/usr/bin/env python3
"""Runs the evaluations of docs/REPORT.md and puts their tables into it.

    tools/make_report.py PROGRAM [--times N] [FLAG...]

--times: so many times the documents. Other flags go to every run, as -t 1. Answers lie in
build/report, one folder for each run; what is there already is not asked again. The tables are
written between the report's `<!-- table NAME -->` and `<!-- end -->`, the rest of it is left as it
is.
"""
import argparse
import functools
import json
import math
import pathlib
import subprocess

ROOT = pathlib.Path(__file__).resolve().parent.parent
REPORT = ROOT / 'docs' / 'REPORT.md'
MODEL = 'models/needle-8m'
SMOLLM2 = 'build/smollm2/model.gguf'
# Texts that are at hand everywhere: a licence, this project's documents, its code.
TEXTS = {'licence': ['/usr/share/common-licenses/GPL-3'], 'documents': ['docs/DESIGN.md', 'docs/HACKING.md', 'docs/METHOD.md'],
         'code': ['ei/prefill/plan.cc', 'ei/engine/context.cc', 'ei/engine/sequence.cc', 'ei/engine/batch.cc', 'ei/decode/compress.cc']}
READERS = ['entropy', 'paper', 'criti', 'xattention', 'flashprefill', 'dense']
EQUAL = {'equal-smollm2': (SMOLLM2, ['.31', '.38']), 'equal-needle': (MODEL, ['.2', '.31', '.38'])}

TASKS = ['many-keys', 'several-keys', 'many-values', 'chain', 'quote']
HOPS = ['many-values', 'chain']  # which need what lies between the facts and the question
FULL = 'dense+full'
PEERS = [FULL, 'entropy+full', 'paper+full', 'paper+full:dense-layers=0', 'criti+full', 'xattention+full', 'flashprefill+full', 'entropy+latent', 'dense+latent', 'dense+latent-adakv', 'dense+snapkv',
         'dense+adakv', 'dense+pyramidkv', 'dense+streaming']
METHODS = ['latent', 'latent-adakv', 'snapkv', 'adakv', 'pyramidkv', 'streaming']
BUDGETS = [64, 128, 256, 1024]
BASES = [256, 512, 1024, 2048]
KERNELS = [5, 7, 11, 21, 31]
GAPS = ['0', '8', '16', '24', '32', '48', 'auto']

# What stands beside what, and what is changed. Of reading where it costs something: eight blocks, from the second
# segment on.
SPARSE, COMPACT = 'paper@64+full:threshold=512', 'dense+latent@256'
CRITI = 'criti@64+full:threshold=512'
READING = {
    'the paper\'s': '',
    'ranked by probability (line 1)': ':rank=probability',
    'largest budget of all heads (line 2)': ':budgets=max-over-heads',
    'rigid by the whole prompt (line 3)': ':rigid=whole-prompt',
    'all three, as released': ':rank=probability:budgets=max-over-heads:rigid=whole-prompt:dense-tail=0',
    'one fixed budget (alpha 0)': ':alpha=0',
    'no dense layer': ':dense-layers=0',
    'first block always': ':sink=8',
    '4 blocks before the segment always': ':local=32',
    'layer fusion 0.25': ':fusion=0.25',
}
WRITING = {
    'ours, 256 entries': COMPACT,
    'entries per query head (line 5)': COMPACT + ':kv-scope=query',
    'ours at the same bytes, 1,024 entries': 'dense+latent@1024',
    'window one token off (line 6)': COMPACT + ':off-by-one',
    'average, kernel 5 (line 9)': COMPACT + ':pooling=avg:kernel=5',
    'all three, as released': COMPACT + ':kv-scope=query:off-by-one:pooling=avg:kernel=5:regrow=0',
    'average, kernel 21': COMPACT + ':pooling=avg',
    'maximum, kernel 21': COMPACT + ':kernel=21:pooling=max',
    'maximum over query heads': COMPACT + ':reduce=max',
}


def pooled(method, kernel):
    return f'dense+{method}@256:kernel={kernel}' + (':pooling=max' if method == 'latent' else '')


def after_gap(kernel, gap):
    return pooled('latent', kernel) + ('' if gap == '16' else f':decode-gap={gap}')  # the default


def of_base(method, base):
    return f'{method}+full' if base == 2048 else f'{method}@{base}+full'


def of_budget(method, budget):
    return f'dense+{method}' if budget == 1024 else f'dense+{method}@{budget}'


def unique(values):
    return list(dict.fromkeys(values))


BASE_POLICIES = [of_base(m, b) for m in ['paper', 'criti'] for b in BASES]
RUNS = {  # name: length, documents, tasks, policies
    '8k': ('8k', 3, TASKS, unique(PEERS + [of_budget(m, b) for b in BUDGETS for m in METHODS] + BASE_POLICIES + list(WRITING.values())
                           + [pooled(m, k) for k in KERNELS for m in ['latent', 'snapkv']]
                           + [after_gap(k, g) for k in [7, 21] for g in GAPS])),
    '16k': ('16k', 2, TASKS, unique(PEERS + BASE_POLICIES)),
    '32k': ('32k', 1, TASKS, unique(PEERS + [of_base('paper', b) for b in BASES])),
    'reading': ('8k', 3, HOPS, [SPARSE + change for change in READING.values()] + [CRITI]),
}
LENGTHS = ['8k', '16k', '32k']
TURNS = [FULL, 'dense+latent@256', 'dense+latent-adakv@256', 'dense+snapkv@256', 'dense+adakv@256',
         'dense+snapkv@256:kernel=21', 'dense+pyramidkv@256', 'dense+streaming@256',
         # Three tenths of the document.
         'dense+latent@614', 'dense+snapkv@614', 'dense+expected@614', 'dense+kvzip@614', 'dense+kvzip@614:pooling=none']


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


def of(run, policy):
    return [r for r in results(run) if r['policy'] == policy]


def against(rows, other):
    """On how many of the same prompts the first scores higher, and lower."""
    score = {(r['task'], r['sample']): r['score'] for r in other}
    change = [r['score'] - score[r['task'], r['sample']] for r in rows]
    return f'+{sum(c > 1e-9 for c in change)} -{sum(c < -1e-9 for c in change)}'


def density(rows):
    return f"{mean([r['density'] for r in rows]):.3f}"


def kv(rows):
    return f"{mean([r['kv_bytes'] / r['kv_bytes_full'] for r in rows]):.1%}"


def markdown(header, rows):
    return '\n'.join('| ' + ' | '.join(str(c) for c in row) + ' |'
                     for row in [header, ['---'] + ['---:'] * (len(header) - 1)] + rows) + '\n'


def peers():
    table = []
    for run in LENGTHS:
        for policy in PEERS:
            rows = of(run, policy)
            table.append([policy, run] + [f"{mean([r['score'] for r in rows if r['task'] == t]):.2f}" for t in TASKS]
                         + [cell(rows), against(rows, of(run, FULL)), density(rows), kv(rows)])
    return markdown(['policy', 'tokens'] + TASKS + ['all (95% interval)', 'against full', 'density', 'KV bytes'], table)


def budgets():
    return markdown(['decode policy'] + [f'{b} entries' for b in BUDGETS],
                    [[m] + [cell(of('8k', of_budget(m, b))) for b in BUDGETS] for m in METHODS]
                    + [['latent-adakv against latent']
                       + [against(of('8k', of_budget('latent-adakv', b)), of('8k', of_budget('latent', b))) for b in BUDGETS]])


def bases():
    table = []
    for run in LENGTHS:
        for method in ['paper', 'criti']:
            if of_base(method, BASES[0]) in RUNS[run][-1]:
                table.append([f'{method}, {run}'] + [f"{cell(of(run, of_base(method, b)))}, {density(of(run, of_base(method, b)))}"
                                                     for b in BASES])
        table.append([f'dense, {run}'] + [''] * (len(BASES) - 1) + [cell(of(run, FULL)) + ', 1.000'])
    return markdown(['reading'] + [f'base budget {b}' for b in BASES], table)


def reading():
    rows = {name: of('reading', SPARSE + change) for name, change in READING.items()} | {'CritiPrefill': of('reading', CRITI)}
    return markdown(['reading, base budget 64', 'score (95% interval)', 'against it', 'density'],
                    [[name, cell(r), against(r, rows['the paper\'s']), density(r)] for name, r in rows.items()])


def writing():
    ours = of('8k', COMPACT)
    return markdown(['cache', 'score (95% interval)', 'against ours', 'KV bytes'],
                    [[name, cell(of('8k', p)), against(of('8k', p), ours), kv(of('8k', p))] for name, p in WRITING.items()])


def kernels():
    return markdown(['votes'] + [f'kernel {k}' for k in KERNELS],
                    [[m] + [cell(of('8k', pooled(m, k))) for k in KERNELS] for m in ['latent', 'snapkv']])


def gaps():
    return markdown(['kernel'] + [f'gap {g}' for g in GAPS],
                    [[k] + [cell(of('8k', after_gap(k, g))) for g in GAPS] for k in [7, 21]]
                    + [['21, against gap 16'] + [against(of('8k', after_gap(21, g)), of('8k', after_gap(21, '16'))) for g in GAPS]]
                    + [['21, KV bytes'] + [kv(of('8k', after_gap(21, g))) for g in GAPS]])


def equal(name):
    """What entropyinfer eval equal-work measured."""
    found = json.loads((OUT / (name + '.json')).read_text())
    pair = lambda value, error: f'{value:.4f} ± {error:.4f}'
    table = []
    for r in found['rows']:
        setting = next(((k, r[k]) for k in ['mass', 'share', 'base_budget'] if k in r), None)
        table.append([r['policy'], r.get('wanted_density', ''), f'{setting[0]} {setting[1]:.4g}' if setting else '', f"{r['density']:.3f}",
                      pair(r['kl'], r['kl_se']), pair(r['echo']['kl'], r['echo']['kl_se']), f"{r['same_top']:.1%}",
                      pair(r['nll_delta'], r['nll_delta_se']), f"{r['prefill_ms'] / 1000:.2f}"])
    return markdown(['policy', 'wanted density', 'setting', 'density', 'KL ± SE', 'KL in echo', 'same top', 'NLL ± SE', 'prefill, s'], table)


TABLES = {name: functools.partial(equal, name) for name in EQUAL} | {'peers': peers, 'budgets': budgets, 'bases': bases, 'reading': reading, 'writing': writing, 'kernels': kernels,
          'gaps': gaps, 'turns': lambda: (OUT / 'turns.md').read_text()}


def run(program, times, flags):
    for name, (length, documents, tasks, policies) in RUNS.items():
        print(f'{name}:', flush=True)
        subprocess.run([program, 'eval', 'needle', MODEL, '--out', OUT / name, '--lengths', length, '--tasks', ','.join(tasks),
                        '--samples', str(times * documents), '--depths', '50,10,90,30,70', '--policies', ','.join(policies),
                        *flags], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    if not (OUT / 'turns.md').exists():
        print('turns:', flush=True)
        table = subprocess.run([program, 'eval', 'multi-turn', MODEL, '--length', '2k', '--samples', str(3 * times), '--policies',
                                ','.join(TURNS), *flags], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
        (OUT / 'turns.md').write_text(table)

    for name, (model, densities) in EQUAL.items():
        if (OUT / (name + '.json')).exists():
            continue
        print(f'{name}:', flush=True)
        if model == SMOLLM2:
            subprocess.run(['tests/smollm2/run', '', 'build/smollm2'], cwd=ROOT, check=True)
        for text, parts in TEXTS.items():
            (OUT / text).write_text(''.join((ROOT / part).read_text() for part in parts))
        found = subprocess.run([program, 'eval', 'equal-work', model, '--file', ','.join(str(OUT / text) for text in TEXTS), '--policies',
                                ','.join(READERS), '--densities', ','.join(densities), '--echo', '-o', 'json', *flags], cwd=ROOT,
                               check=True, stdout=subprocess.PIPE, text=True).stdout
        (OUT / (name + '.json')).write_text(found)


def main():
    text = REPORT.read_text()
    for name, table in TABLES.items():
        head, rest = text.split(f'<!-- table {name} -->\n')
        text = head + f'<!-- table {name} -->\n' + table() + rest[rest.index('<!-- end -->'):]
    REPORT.write_text(text)


parser = argparse.ArgumentParser(usage=__doc__)
parser.add_argument('program')
parser.add_argument('--times', type=int, default=1)
arguments, more = parser.parse_known_args()
OUT = ROOT / 'build' / ('report' if arguments.times == 1 else f'report-{arguments.times}')
run(arguments.program, arguments.times, more)
main()

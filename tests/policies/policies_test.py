"""Every rule by which a policy chooses what is attended to, as its authors state it, in plain PyTorch and in double; and the same
choices of the engine. They must be the same wherever scores differ by more than rounding: a block or row that only one side has
must score as much as those at the border, and most choices must not differ at all."""
import functools
import json
import math
import os
import subprocess

import numpy as np
import pytest
import torch

torch.set_num_threads(1)


class Tokens:
    """Queries and keys of a few layers: keys drift, some are sought by queries far behind them. q [layer, head, n, d]; k, v per KV head; what
    they are of, h [layer, n, hidden]; the output matrix's part of each head, o [layer, head, d, hidden]."""

    def __init__(self, n, heads, kv_heads, d, layers=2, seed=1):
        self.n, self.heads, self.kv_heads, self.d, self.layers = n, heads, kv_heads, d, layers
        random = torch.Generator().manual_seed(seed)
        normal = lambda *shape: torch.randn(*shape, generator=random, dtype=torch.float64)
        topics = normal(layers, kv_heads, 12, d)
        topic = torch.randint(12, (n // 24 + 1,), generator=random).repeat_interleave(24)[:n]
        # Few directions hold most of what tells keys apart, as in a model.
        self.k = topics[:, :, topic] + normal(layers, kv_heads, n, d) * torch.linspace(1.5, .2, d) + normal(layers, kv_heads, 1, d)
        sought = (torch.rand(n, generator=random, dtype=torch.float64) * torch.arange(n)).long()
        self.q = (1.2 * self.k[:, :, sought] - .4 * self.k.mean(2, keepdim=True)).repeat_interleave(heads // kv_heads, 1)
        self.q = self.q + normal(layers, heads, n, d)
        self.v = normal(layers, kv_heads, n, d)
        self.v[..., 0] = torch.arange(n)
        self.h = normal(layers, n, 48) * torch.linspace(.3, 3, n)[:, None]
        self.o = normal(layers, heads, d, 48) * torch.linspace(2, .5, heads)[:, None, None]
        self.o[:, :, 0] /= n  # that says where a value stands
        self.q, self.k, self.v, self.h, self.o = (x.float().double() for x in (self.q, self.k, self.v, self.h, self.o))

    def choices(self, policies, folder):
        rows = lambda x: x.transpose(0, 1).reshape(-1)  # of one layer: [n, heads * d]
        file = folder / 'tokens'
        of_layer = lambda l: [rows(x[l]) for x in (self.q, self.k, self.v)] + [self.h[l].flatten(), self.o[l].flatten()]
        torch.cat([x for l in range(self.layers) for x in of_layer(l)]).numpy().astype('<f4').tofile(file)
        numbers = [str(x) for x in (self.n, self.heads, self.kv_heads, self.d, self.layers, self.h.shape[-1])]
        done = subprocess.run([os.environ['CHOICES'], policies, *numbers, str(file)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


SIZES = [(700, 6, 2, 32), (1029, 4, 4, 64), (513, 7, 1, 80)]
sizes = pytest.mark.parametrize('size', SIZES, ids=str)


def segments_read_sparsely(n, segment, threshold, dense_tail):
    last = -(-n // segment) - 1
    return range(-(-threshold // segment), min(last, max(0, n - dense_tail) // segment))


def agree(got, kept, score, tolerance):
    """Whether both kept the same; what differs must be at the border: within `tolerance` of the least of those kept or the most of those left."""
    got = torch.zeros_like(kept).index_fill(0, torch.tensor(got, dtype=torch.long), True)
    differ = got ^ kept
    if not differ.any():
        return True
    borders = [f(score[side]) for f, side in ((torch.min, kept), (torch.max, ~kept)) if side.any()]
    away = torch.stack([(score[differ] - border).abs() for border in borders]).amin(0)
    assert away.max() <= tolerance, f'{differ.nonzero()[:, 0].tolist()} differ by {away.max():.3g} from {[b.item() for b in borders]}'
    return False


def compare(blocks, tokens, segment, block, sparse, rule, tolerance, dense_layers=0, same=.98):
    """rule(layer, KV head, segment) is what is kept, and the scores of the past blocks; what is always kept scores infinity."""
    results = []
    for layer in range(tokens.layers):
        for head in range(tokens.kv_heads):
            for s, got in enumerate(blocks[layer][head]):
                if layer < dense_layers or s not in sparse:
                    assert got is None, (layer, head, s)
                    continue
                assert got is not None, (layer, head, s)
                kept, score = rule(layer, head, s)
                results.append(agree(got, kept, score, tolerance))
    assert len(results) > 10 and np.mean(results) >= same, (len(results), np.mean(results))


def highest(score, count):
    kept = torch.zeros_like(score, dtype=torch.bool)
    kept[torch.argsort(score, descending=True, stable=True)[:count]] = True
    return kept


# The paper's reading, METHOD.md 1, and CritiPrefill's.

def bounds_scores(tokens, layer, segment, block):
    """[KV heads, segments, blocks]; those at or after the segment mean nothing."""
    n = tokens.n // segment * segment
    q = tokens.q[layer, :, :n].view(tokens.heads, -1, segment, tokens.d)
    k = tokens.k[layer, :, :n].view(tokens.kv_heads, -1, block, tokens.d)
    middle = ((q.amax(2) + q.amin(2)) / 2).view(tokens.kv_heads, -1, n // segment, tokens.d)
    products = [middle @ bound.transpose(1, 2)[:, None] for bound in (k.amax(2), k.amin(2))]
    return torch.maximum(*products).mean(1)


def budgets(entropy, base, e_t, delta, alpha):
    """Of one head, entropy [segments]; tokens."""
    out, rigid, now = [base], True, base
    for s in range(1, len(entropy)):
        rho = delta if s == 1 else min(max((entropy[s] - entropy[s - 1]) / (entropy[s - 1] + 1e-9), 0), 1 + delta)
        rigid = rigid and entropy[s] < e_t
        now = base if rigid else min(max(now + alpha * base * (rho - delta), base), 3 * base)
        out.append(now)
    return out


@sizes
@pytest.mark.parametrize('reference', [False, True])
def test_the_papers_reading(size, reference, tmp_path):
    tokens = Tokens(*size)
    segment, block, base = 32, 8, 48
    e_t, alpha = .6, 1.0  # entropies are around that: heads are rigid at first, and then budgets move
    wide = ':budgets=max-over-heads' if reference else ''
    blocks = tokens.choices(f'paper+full:segment=32:block=8:base-budget=48:threshold=64:dense-tail=40:e-t={e_t}:alpha={alpha}{wide}', tmp_path)['blocks']

    @functools.cache
    def of_layer(layer):
        score = bounds_scores(tokens, layer, segment, block)
        entropy = torch.zeros(score.shape[:2], dtype=torch.float64)
        for s in range(1, score.shape[1]):
            log_p = score[:, s, :s * segment // block].log_softmax(-1)
            entropy[:, s] = -(log_p.exp() * log_p).sum(-1)
        tokens_of = [budgets(e.tolist(), base, e_t, .4, alpha) for e in entropy]
        if reference:
            tokens_of = [[max(of) for of in zip(*tokens_of)]] * tokens.kv_heads
        return score, tokens_of

    def rule(layer, head, s):
        score, tokens_of = of_layer(layer)
        past = s * segment // block
        return highest(score[head, s, :past], min(int(tokens_of[head][s] / block + 1e-6), past)), score[head, s, :past]

    compare(blocks, tokens, segment, block, segments_read_sparsely(tokens.n, segment, 64, 40), rule, 1e-4, dense_layers=1)
    counts = {len(b) for head in blocks[1] for b in head if b}
    assert len(counts) > 1, counts  # budgets differ


@sizes
def test_critiprefill(size, tmp_path):
    tokens = Tokens(*size, layers=4)
    segment, block, base = 64, 32, 128
    blocks = tokens.choices('criti+full:segment=64:block=32:base-budget=128:threshold=64', tmp_path)['blocks']

    @functools.cache
    def fused(layer, s):
        p = bounds_scores(tokens, layer, segment, block)[:, s, :s * segment // block].softmax(-1)
        return p if layer < 2 else .25 * fused(layer - 1, s) + .75 * p

    def rule(layer, head, s):
        score = fused(layer, s)[head]
        return highest(score, min(base // block, len(score))), score

    compare(blocks, tokens, segment, block, segments_read_sparsely(tokens.n, segment, 64, 64), rule, 1e-6, dense_layers=1)


# Readings by shares of the attention. Each rule gives the shares of the blocks up to a segment's end.

def likeliest(shares, past, block, mass, sink, local, by_entropy=False):
    """The fewest likeliest past blocks that, with the segment and what is always kept, hold `mass`, or leave little enough out."""
    always = torch.zeros(past, dtype=torch.bool)
    always[:-(-sink // block)] = True
    always[max(0, past - -(-local // block)):] = True
    of_past, own = shares[:past], shares[past:].sum()
    kept = always.clone()

    def enough():
        held = own + of_past[kept].sum()
        if not by_entropy:
            return held >= mass
        variance = (of_past[~kept] ** 2).sum() + ((1 - held) / held) ** 2 * ((of_past[kept] ** 2).sum() + own ** 2 / (len(shares) - past))
        return 4 * variance.sqrt() <= 1 - mass
    for b in torch.argsort(of_past.masked_fill(always, -1), descending=True, stable=True).tolist():
        if always[b] or enough():
            break
        kept[b] = True
    return kept, of_past.masked_fill(always, math.inf)


def antidiagonals(tokens, layer, head, begin, segment, block, stride):
    group, d, end = tokens.heads // tokens.kv_heads, tokens.d, begin + segment
    k = tokens.k[layer, head, :end]
    keys = torch.cat([k[i::stride] for i in range(stride)], -1)  # a stride's rows side by side
    shares = torch.zeros(end // block, dtype=torch.float64)
    for h in range(head * group, (head + 1) * group):
        q = tokens.q[layer, h, begin:end]
        queries = torch.cat([q[stride - 1 - i::stride] for i in range(stride)], -1)  # the last first
        z = queries @ keys.T / (stride * math.sqrt(d))
        later = torch.arange(end // stride)[None] > torch.arange(begin // stride, end // stride)[:, None]
        p = z.masked_fill(later, -math.inf).softmax(-1)
        shares += p.view(len(q) // stride, -1, block // stride).sum((0, 2)) / (len(q) // stride * group)
    return shares


@sizes
@pytest.mark.parametrize('mass', [.5, .9])
def test_xattention(size, mass, tmp_path):
    tokens = Tokens(*size)
    blocks = tokens.choices(f'xattention+full:segment=64:block=32:stride=8:sink=32:mass={mass}', tmp_path)['blocks']

    def rule(layer, head, s):
        return likeliest(antidiagonals(tokens, layer, head, s * 64, 64, 32, 8), s * 2, 32, mass, 32, 0)

    compare(blocks, tokens, 64, 32, segments_read_sparsely(tokens.n, 64, 0, 0), rule, 1e-6)


@sizes
@pytest.mark.parametrize('share', [.02, .3])
def test_flashprefill(size, share, tmp_path):
    tokens = Tokens(*size)
    group, segment, block = tokens.heads // tokens.kv_heads, 32, 16
    blocks = tokens.choices(f'flashprefill+full:segment=32:block=16:sink=20:local=40:dense-tail=70:share={share}', tmp_path)['blocks']

    def rule(layer, head, s):
        end, past = (s + 1) * segment, s * segment // block
        means = tokens.k[layer, head, :end].view(-1, block, tokens.d).mean(1)
        x = tokens.q[layer, head * group:(head + 1) * group, s * segment:end] @ means.T / math.sqrt(tokens.d)
        score = (x - x.amax(-1, keepdim=True)).exp().sum((0, 1))[:past]
        if past == 0:
            return torch.zeros(0, dtype=torch.bool), score
        kept = score >= share * score.max()
        always = torch.zeros(past, dtype=torch.bool)
        always[:2] = True  # 20 tokens
        always[max(0, past - 3):] = True  # 40
        # The border is share * max: as a block of its own, whose score is that.
        others = score / score.max()
        return kept | always, torch.where(others >= share, others - others[kept].min(), others - share).masked_fill(always, math.inf)

    compare(blocks, tokens, segment, block, segments_read_sparsely(tokens.n, segment, 0, 70), rule, 1e-5)


def rounded(x, scale):
    return torch.where(scale > 0, torch.round(x / scale), torch.zeros_like(x))


def sketch(tokens, layer, head, begin, segment, block, group_of=8):
    w = min(max(4, tokens.d // 8 * 4), 96)
    k = tokens.k[layer, head]
    mean = k.mean(0)
    directions = torch.linalg.eigh((k - mean).T @ (k - mean))[1].flip(-1)[:, :w]
    end, group = begin + segment, tokens.heads // tokens.kv_heads
    keys = ((k[:end] - mean) @ directions).view(-1, block, w)
    key_scale = keys.abs().amax((1, 2), keepdim=True) / 63
    keys = rounded(keys, key_scale).view(-1, w)
    step = 2 ** math.ceil(math.log2(2 * math.ceil(w / 24)))  # sums of so many parts of 15 bits and a sign, in 16
    shares = torch.zeros(end // block, dtype=torch.float64)
    for h in range(head * group, (head + 1) * group):
        q = tokens.q[layer, h, begin:end] @ directions
        # Sums of 12 numbers in 16 bits must not overflow: pairs of fours, six fours at a time.
        pairs = torch.nn.functional.pad(q.abs().view(segment, -1, 2, 2).sum(-1), (0, 0, 0, -(w // 4) % 6))
        part = pairs.view(segment, -1, 6, 2).sum(2).amax((1, 2))
        scale = torch.maximum(q.abs().amax(-1) / 127, part / (32767 // 63 - 6))[:, None]
        products = torch.floor(rounded(q, scale) @ keys.T / step) * step * scale * key_scale.flatten().repeat_interleave(block)
        later = torch.arange(end)[None] > torch.arange(begin, end)[:, None]
        logit = (products / math.sqrt(tokens.d)).masked_fill(later, -math.inf).view(segment, -1, block).amax(-1)
        # Of every two queries one is asked: the longer if its square is a fifth more, else every second head the second.
        one, two = tokens.q[layer, h, begin:end].square().sum(-1).view(-1, 2).T
        second = torch.where(torch.maximum(one, two) > 1.2 * torch.minimum(one, two), two > one, torch.tensor(h % group % 2 == 1))
        x = (logit - logit.amax(-1, keepdim=True))[torch.arange(0, segment, 2) + second]
        for first in range(0, segment // 2, group_of):
            shares += x[first:first + group_of].amax(0).softmax(-1) / (segment // 2 // group_of * group)
    return shares


@sizes
@pytest.mark.parametrize('mass', [.6, .86])
@pytest.mark.parametrize('enough', ['mass', 'entropy'])
def test_sketch(size, mass, enough, tmp_path):
    tokens = Tokens(*size)
    blocks = tokens.choices(f'entropy+full:threshold=128:dense-tail=40:sink=16:local=48:mass={mass}:enough={enough}', tmp_path)['blocks']

    def rule(layer, head, s):
        return likeliest(sketch(tokens, layer, head, s * 32, 32, 16), s * 2, 16, mass, 16, 48, enough == 'entropy')

    # A projection that lies between two steps is rounded to either: a few shares move by a thousandth of theirs.
    compare(blocks, tokens, 32, 16, segments_read_sparsely(tokens.n, 32, 128, 40), rule, 1e-4, same=.95)


# Caches.

def pooled(votes, how, kernel):
    if how == 'both':  # the mean of 5, or half of the highest such mean of so many
        narrow = pooled(votes, 'avg', 5)
        return torch.maximum(narrow, pooled(narrow, 'max', kernel) / 2)
    pool = {'avg': torch.nn.functional.avg_pool1d, 'max': torch.nn.functional.max_pool1d}[how]
    return pool(votes[:, None], kernel, 1, kernel // 2)[:, 0]


def window_votes(tokens, layer, window):
    """[heads, queries, rows before them]"""
    n, group = tokens.n, tokens.heads // tokens.kv_heads
    x = tokens.q[layer, :, n - window:] @ tokens.k[layer].repeat_interleave(group, 0).transpose(1, 2) / math.sqrt(tokens.d)
    later = torch.arange(n)[None] > torch.arange(n - window, n)[:, None]
    return x.masked_fill(later, -math.inf).softmax(-1)[:, :, :n - window]


def compare_rows(rows, kept, score, tolerance, same=.98):
    results = [agree(got, k, s, tolerance) for of_layer, kl, sl in zip(rows, kept, score) for got, k, s in zip(of_layer, kl, sl)]
    assert np.mean(results) >= same or len(results) < 20 and sum(results) >= len(results) - 2, results


@sizes
@pytest.mark.parametrize('name, settings, how, kernel', [('snapkv', '', 'avg', 5), ('latent', '', 'both', 21), ('latent', ':pooling=max', 'max', 21)])
def test_votes_of_the_window(size, name, settings, how, kernel, tmp_path):
    tokens = Tokens(*size)
    rows = tokens.choices(f'dense+{name}@96{settings}:window=16:decode-gap=-1', tmp_path)['rows']
    kept, scores = [], []
    for layer in range(tokens.layers):
        votes = window_votes(tokens, layer, 16).mean(1).view(tokens.kv_heads, -1, tokens.n - 16).mean(1)
        score = torch.cat([pooled(votes, how, kernel), torch.full((tokens.kv_heads, 16), math.inf, dtype=torch.float64)], -1)
        kept.append([highest(s, 96) for s in score])
        scores.append(score)
    compare_rows(rows, kept, scores, 1e-7)


@sizes
@pytest.mark.parametrize('plus', [False, True])
def test_kvzip(size, plus, tmp_path):
    """The highest attention of any query that repeats the prompt; the lowest scores of all layers and heads go. kvpress' KVzipPress,
    and with kvzip_plus_normalization: attention times the norm of what a value becomes in the layer's output, over the query's input's."""
    tokens = Tokens(*size, layers=3)
    m, budget = 100, 60
    rows = tokens.choices(f'dense+kvzip{"-plus" if plus else ""}@{budget}:window={m}:pooling=none', tmp_path)['rows']
    votes = torch.stack([window_votes(tokens, layer, m) for layer in range(tokens.layers)])
    if plus:
        v = tokens.v.repeat_interleave(tokens.heads // tokens.kv_heads, 1)
        votes = votes * (v @ tokens.o).norm(dim=-1)[:, :, None, :tokens.n - m] / tokens.h.norm(dim=-1)[:, None, tokens.n - m:, None]
    score = votes.amax(2).view(tokens.layers, tokens.kv_heads, -1, tokens.n - m).amax(2)
    kept = highest(score.flatten(), budget * tokens.layers * tokens.kv_heads).view_as(score)
    assert kept.sum(-1).unique().numel() > 1  # heads share
    compare_rows(rows, kept, score, 1e-6)


@sizes
def test_expected_attention(size, tmp_path):
    """kvpress' ExpectedAttentionPress, over the window's queries."""
    tokens = Tokens(*size)
    n, d, group, window, sinks = tokens.n, tokens.d, tokens.heads // tokens.kv_heads, 300, 4
    rows = tokens.choices(f'dense+expected@80:window={window}', tmp_path)['rows']
    frequency = 10000.0**(-torch.arange(0, d, 2, dtype=torch.float64) / d)

    def rotation(position):
        """[d, d], Hugging Face's: the halves of a head are turned."""
        c, s = (f(position * frequency).diag() for f in (torch.cos, torch.sin))
        return torch.cat([torch.cat([c, -s], 1), torch.cat([s, c], 1)], 0)

    turn = torch.stack([rotation(p) for p in range(n, n + 512)]).mean(0)
    back = torch.stack([rotation(p).T for p in range(n - window, n)])
    kept, scores = [], []
    for layer in range(tokens.layers):
        score = []
        for head in range(tokens.kv_heads):
            k, v, p = tokens.k[layer, head, sinks:], tokens.v[layer, head, sinks:], 0
            for h in range(head * group, (head + 1) * group):
                q = torch.einsum('nij,nj->ni', back, tokens.q[layer, h, n - window:])
                mean, covariance = turn @ q.mean(0), turn @ torch.cov(q.T, correction=0) @ turn.T
                x = k @ mean / math.sqrt(d) + torch.einsum('ni,ij,nj->n', k, covariance, k) / (2 * d)
                p = p + x.softmax(0) / group
            p = p * v.norm(dim=-1)
            score.append(torch.cat([p.new_full((sinks,), math.inf), p]))
        scores.append(score)
        kept.append([highest(s, 80) for s in score])
    compare_rows(rows, kept, scores, 1e-4)

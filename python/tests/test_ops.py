"""The kernels on torch tensors against `entropyinfer.reference`, which states them in double."""
import itertools

import pytest

torch = pytest.importorskip('torch')

from entropyinfer import ops, reference  # noqa: E402

torch.set_num_threads(2)
# n around segments and pages; heads and groups; sizes of heads around vectors and of a GPU's tiles.
SIZES = [(1, 1, 1, 8), (33, 2, 1, 16), (512, 6, 2, 64), (701, 4, 4, 40), (1100, 4, 1, 128)]
sizes = pytest.mark.parametrize('size', SIZES, ids=str)


def tensors(n, heads, kv_heads, d, dtype=torch.float32, device='cpu', seed=1):
    """Queries that look for keys far behind them, in few directions."""
    random = torch.Generator().manual_seed(seed)
    topics = torch.randn(kv_heads, 10, d, generator=random)
    topic = torch.randint(10, (n // 16 + 1,), generator=random).repeat_interleave(16)[:n]
    k = topics[:, topic] + torch.randn(kv_heads, n, d, generator=random) * torch.linspace(1, .2, d)
    sought = (torch.rand(n, generator=random) * torch.arange(n)).long()
    q = 1.5 * k[:, sought].repeat_interleave(heads // kv_heads, 0) + torch.randn(heads, n, d, generator=random)
    v = torch.randn(kv_heads, n, d, generator=random)
    return [x.to(device, dtype) for x in (q, k, v)]


def random_selection(n, kv_heads, segment, block, device='cpu', seed=2):
    """From no block to all of the past, or dense."""
    random = torch.Generator().manual_seed(seed)
    n_segments = -(-n // segment)
    most = max(1, (n_segments - 1) * segment // block)
    count, index = torch.zeros(kv_heads, n_segments, dtype=torch.int32), torch.zeros(kv_heads, n_segments, most, dtype=torch.int32)
    for i, (head, s) in enumerate(itertools.product(range(kv_heads), range(n_segments))):
        past = s * segment // block
        count[head, s] = c = [past // 3, past, 0, min(1, past), -1][i % 5]
        if c > 0:
            index[head, s, :c] = torch.randperm(past, generator=random)[:c].sort()[0]
    return ops.Selection(count.to(device), index.to(device), segment, block)


def close(got, expected, tolerance):
    assert got.shape == expected.shape and got.device == expected.device
    assert ((got.double() - expected) ** 2).sum() <= tolerance * (expected ** 2).sum(), (got - expected).abs().max()


# Products and sums in float; of bf16 tensors the result is rounded to it, and in a tile unit also what goes in.
TYPES = {torch.float32: 1e-9, torch.bfloat16: 2e-5}
TYPE_OF = {'cpu': torch.float32, 'cuda': torch.bfloat16}


@sizes
def test_sparse_attention(size, place):
    q, k, v = tensors(*size, **place)
    tolerance = TYPES[place['dtype']]
    for segment, block in (None, None), (64, 8), (48, 48), (20, 4):
        selection = random_selection(size[0], size[2], segment, block, place['device']) if segment else None
        got = ops.sparse_attention(q, k, v, selection)
        assert got.dtype == place['dtype']
        close(got, reference.sparse_attention(q, k, v, selection), tolerance)
    for m in {1, size[0] // 2 + 1}:  # the last queries
        close(ops.sparse_attention(q[:, -m:], k, v, scale=.3), reference.sparse_attention(q[:, -m:], k, v, scale=.3), tolerance)


def test_a_scale_of_ones_own(place):
    q, k, v = tensors(300, 4, 2, 32, **place)
    out, selection = ops.Reader('dense', 1, 4, 2, 32, 300, **place).read(0, q, k, v, scale=.3)
    # bf16: queries are scaled before they are rounded.
    close(out, reference.sparse_attention(q, k, v, scale=.3), 1e-9 if place['dtype'] == torch.float32 else 1e-4)
    assert selection.density == 1


@pytest.mark.parametrize('d', [32, 64])
def test_strides_do_not_matter(d, place):
    q, k, v = tensors(300, 4, 2, d, **place)
    expected = ops.sparse_attention(q, k, v)
    wide = torch.randn(300, 8, 2 * d, **place)
    wide[:, 1:5, ::2] = q.transpose(0, 1)
    assert (ops.sparse_attention(wide[:, 1:5, ::2].transpose(0, 1), k.mT.contiguous().mT, v) == expected).all()

    def odd(x):  # begins in the middle of a vector
        rows = torch.empty(x.numel() + 1, **place)[1:].view(x.shape[1], x.shape[0], d)
        return rows.copy_(x.transpose(0, 1)).transpose(0, 1)
    assert (ops.sparse_attention(odd(q), k, v) == expected).all()
    assert (ops.sparse_attention(q, odd(k), odd(v)) == expected).all()


@sizes
def test_block_scores_and_entropies(size, place):
    q, k, _ = tensors(*size, **place)
    # A tile unit gets the middles of queries rounded to bf16.
    near = dict(rtol=1e-5, atol=1e-4) if place != {'device': 'cpu', 'dtype': torch.bfloat16} else dict(rtol=.02, atol=.3)
    for segment, block, scale in (64, 8, 1.), (32, 32, .25):
        score, entropy = ops.block_scores(q, k, segment, block, scale)
        expected, expected_entropy = reference.block_scores(q, k, segment, block, scale)
        assert (score.isinf() == expected.isinf()).all()
        torch.testing.assert_close(score.double(), expected, **near)
        torch.testing.assert_close(entropy.double(), expected_entropy, rtol=10 * near['rtol'], atol=near['atol'])
        assert (ops.entropy(q, k, segment, block, scale) == entropy).all()


def agree(got, expected, score, tolerance):
    """Whether two sets of blocks are the same; what differs must score like those at the border."""
    differ = got ^ expected
    if differ.any():
        borders = [f(score[side]) for f, side in ((torch.min, expected), (torch.max, ~expected)) if side.any()]
        assert torch.stack([(score[differ] - border).abs() for border in borders]).amin(0).max() <= tolerance
    return not differ.any()


def chosen(selection, head, s, past):
    blocks = selection.index[head, s, :selection.count[head, s]].long()
    return torch.zeros(past, dtype=torch.bool, device=blocks.device).index_fill(0, blocks, True)


@pytest.mark.parametrize('size', SIZES[2:], ids=str)
def test_the_papers_selection(size, device):
    q, k, _ = tensors(*size, dtype=TYPE_OF[device], device=device)
    selection = ops.select_blocks(q, k, 'paper:segment=32:block=8:base-budget=48:threshold=64:dense-tail=0:e-t=0.6:alpha=1')
    score, entropy = reference.block_scores(q, k, 32, 8)
    torch.testing.assert_close(selection.entropy.double(), entropy, rtol=1e-4, atol=1e-4)
    budgets = reference.budgets(entropy, 48, .6, .4, 1)
    past = torch.arange(entropy.shape[1], device=device) * 4
    count = torch.minimum((budgets / 8 + 1e-6).long(), past)
    count[:, :2] = count[:, -1] = -1
    assert (selection.count == count).all() and len(set(count.flatten().tolist())) > 2
    expected = reference.select_highest(score, count, 32, 8)
    same = [agree(chosen(selection, head, s, past[s]), chosen(expected, head, s, past[s]), score[head, s, :past[s]], 1e-4)
            for head, s in (count > 0).nonzero().tolist()]
    assert sum(same) >= .98 * len(same)
    attended, whole = selection.mask(size[0]).sum().item(), size[0] * (size[0] + 1) // 2 * size[2]
    assert selection.density == pytest.approx(attended / whole)


@pytest.mark.parametrize('size', SIZES[2:], ids=str)
def test_selection_by_entropy(size, device):
    """Projections that lie between two steps may be rounded to either: a few shares move by a thousandth of theirs."""
    q, k, _ = tensors(*size, dtype=TYPE_OF[device], device=device)
    n = size[0] // 32 * 32
    q, k = q[:, :n], k[:, :n]
    selection = ops.select_blocks(q, k, 'entropy:threshold=128:dense-tail=0:local=32:mass=0.7')
    shares = reference.block_shares(q, k)
    same = []
    for head, s in (selection.count >= 0).nonzero().tolist():
        past = s * 2
        expected = reference.likeliest(shares[head, s, :past + 2], past, local=32, mass=.7)
        always = torch.zeros(past, dtype=torch.bool, device=device)
        always[0] = always[-2:] = True
        same.append(agree(chosen(selection, head, s, past), expected, shares[head, s, :past].masked_fill(always, torch.inf), 1e-4))
    assert len(same) > 10 and sum(same) >= .95 * len(same) and selection.density < 1


@pytest.mark.parametrize('policy', ['xattention', 'flashprefill', 'criti', 'reference', 'dense'])
def test_every_policy_selects(policy, device):
    q, k, v = tensors(1200, 4, 2, 64, dtype=TYPE_OF[device], device=device)
    small = {'dense': '', 'reference': ':threshold=256:base-budget=128:segment=64', 'criti': ':threshold=256:base-budget=128:segment=64'}
    selection = ops.select_blocks(q, k, policy + small.get(policy, ':local=128:dense-tail=128:segment=32:block=16:sink=16'))
    assert selection.density == 1 if policy == 'dense' else 0 < selection.density < 1
    close(ops.sparse_attention(q, k, v, selection), reference.sparse_attention(q, k, v, selection), TYPES[TYPE_OF[device]])


def test_a_long_prompt_is_read_in_chunks(device):
    """What is chosen of chunk after chunk is what is attended to."""
    n = {'cpu': 4500, 'cuda': 17000}[device]
    q, k, v = tensors(n, 4, 2, 64, dtype=TYPE_OF[device], device=device)
    reader = ops.Reader('paper:threshold=512:base-budget=512:segment=256', 3, 4, 2, 64, n, TYPE_OF[device], device)
    assert torch.isnan(reader.read(0, q, k, v)[1].entropy).all()
    reader.read(1, k.repeat_interleave(2, 0), k, v)
    out, selection = reader.read(2, q, k, v, blocks=True)
    whole = ops.block_scores(q, k, 256, 8)[1]
    torch.testing.assert_close(selection.entropy, whole, rtol=1e-4, atol=1e-4)
    assert (out == ops.sparse_attention(q, k, v, selection)).all() and 0 < selection.density < .9
    again = reader.read(2, q, k, None)[1]
    assert (again.count == selection.count).all() and again.index.shape[2] == 0


@pytest.mark.parametrize('reduce', ['mean', 'max'])
def test_votes(reduce, place):
    for n, heads, kv_heads, d in SIZES[1:]:
        q, k, _ = tensors(n, heads, kv_heads, d, **place)
        for w in (1, 32):
            votes = ops.vote(q[:, -w:], k, reduce)
            torch.testing.assert_close(votes.double(), reference.vote(q[:, -w:], k, reduce), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('pooling, kernel', [('max', 21), ('max', 3), ('avg', 5), ('both', 9), ('none', 1)])
def test_pools_and_what_is_kept(pooling, kernel, device):
    votes = torch.rand(3, 200, generator=torch.Generator().manual_seed(3)).to(device)
    pooled = ops.pool_votes(votes, pooling, kernel)
    torch.testing.assert_close(pooled, reference.pool_votes(votes, pooling, kernel))
    for n_top, window in (0, 4), (17, 0), (200, 3), (500, 1):
        assert (ops.keep_top(pooled, n_top, window) == reference.keep_top(pooled, n_top, window)).all()


def test_threads_share_the_kernels(device):
    import threading
    q, k, v = tensors(700, 4, 2, 64, dtype=TYPE_OF[device], device=device)
    expected, got = ops.sparse_attention(q, k, v), [None] * 4

    def attend(i):
        got[i] = [ops.sparse_attention(q, k, v) for _ in range(5)]
    threads = [threading.Thread(target=attend, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all((out == expected).all() for outs in got for out in outs)


Q, K, V = tensors(96, 4, 2, 16)
SELECTION = random_selection(96, 2, 32, 8)


def changed(**fields):
    return ops.Selection(**{'count': SELECTION.count, 'index': SELECTION.index, 'segment': 32, 'block': 8, **fields})


@pytest.mark.parametrize('error, message, call', [
    (ValueError, r'k is \[96, 2, 15\]|q is \[96, 4, 16\]', lambda: ops.sparse_attention(Q, K[..., :15], V)),
    (ValueError, r'v is \[95, 2, 16\], expected \[96, 2, 16\]', lambda: ops.sparse_attention(Q, K, V[:, 1:])),
    (ValueError, r'whole number of heads', lambda: ops.sparse_attention(Q[:3], K, V)),
    (ValueError, r'no more queries than keys', lambda: ops.sparse_attention(Q, K[:, :9], V[:, :9])),
    (ValueError, r'q is \[4, 96\], expected \[heads, n, head_dim\]', lambda: ops.sparse_attention(Q[..., 0], K, V)),
    (TypeError, r'q is torch.float16, expected torch.float32 or torch.bfloat16', lambda: ops.sparse_attention(Q.half(), K, V)),
    (TypeError, r'expected the same type', lambda: ops.sparse_attention(Q, K.bfloat16(), V)),
    (TypeError, r'q is on meta, expected cpu or cuda', lambda: ops.sparse_attention(Q.to('meta'), K, V)),
    (TypeError, r'q is list', lambda: ops.sparse_attention([1], K, V)),
    (ValueError, r'count is \[2, 2\], expected \[2, 3\]', lambda: ops.sparse_attention(Q, K, V, changed(count=SELECTION.count[:, :2]))),
    (ValueError, r'count\[0, 0\] is 1, expected', lambda: ops.sparse_attention(Q, K, V, changed(count=torch.ones(2, 3)))),
    (ValueError, r'index\[1, 1, 0\] is 4, expected ascending blocks below 4',
     lambda: ops.sparse_attention(Q, K, V, changed(count=torch.tensor([[0, 0, 0], [0, 1, 0]]), index=torch.full((2, 3, 1), 4)))),
    (ValueError, r'index\[0, 2, 1\] is 5', lambda: ops.sparse_attention(Q, K, V, changed(count=torch.tensor([[0, 0, 2], [0, 0, 0]]), index=torch.full((2, 3, 2), 5)))),
    (ValueError, r'segment is 30, expected a multiple of block, 8', lambda: ops.sparse_attention(Q, K, V, changed(segment=30))),
    (ValueError, r'a multiple of 32', lambda: ops.sparse_attention(Q[:, 5:], K, V, SELECTION)),
    (ValueError, r'expected mean or max', lambda: ops.vote(Q, K, 'median')),
    (ValueError, r'expected more keys than queries', lambda: ops.vote(Q, K)),
    (TypeError, r'float64 \[2, 5\]', lambda: ops.keep_top(torch.zeros(2, 5, dtype=torch.float64), 1)),
    (ValueError, r'kernel', lambda: ops.pool_votes(torch.zeros(2, 5), 'max', 4)),
    (ValueError, r'k is \[96, 2, 16\], expected \[90, 2, 16\]', lambda: ops.select_blocks(Q[:, :90], K)),
])
def test_what_does_not_fit_is_said(error, message, call):
    with pytest.raises(error, match=message):
        call()

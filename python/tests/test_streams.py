"""Ops of a GPU run in torch's current stream: behind what was asked of it before, and nobody waits for them."""
import functools

import pytest
from conftest import need_cuda

torch = pytest.importorskip('torch')

from entropyinfer import ops  # noqa: E402
from test_ops import SELECTION, random_selection, tensors  # noqa: E402

SIZE = 1200, 8, 2, 128
PAPER = 'paper:threshold=256:base-budget=256:segment=128'


@pytest.fixture(autouse=True)
def cuda():
    need_cuda()


def on_gpu(seed=1):
    return tensors(*SIZE, dtype=torch.bfloat16, device='cuda', seed=seed)


def read(q, k, v):
    return ops.Reader(PAPER, 2, 8, 2, 128, SIZE[0], q.dtype, q.device).read(1, q, k, v, blocks=True)


@functools.cache
def selection():
    return random_selection(SIZE[0], 2, 64, 8, 'cuda')


CALLS = {
    'dense attention': lambda q, k, v: ops.sparse_attention(q, k, v),
    'sparse attention': lambda q, k, v: ops.sparse_attention(q, k, v, selection()),
    'a policy': lambda q, k, v: read(q, k, v)[0],
    'what a policy selects': lambda q, k, v: read(q, k, v)[1].index,
    'block scores': lambda q, k, v: ops.block_scores(q, k)[0],
    'entropies': lambda q, k, v: ops.entropy(q, k),
    'votes': lambda q, k, v: ops.vote(q[:, -32:], k),
    'kept': lambda q, k, v: ops.keep_top(ops.pool_votes(ops.vote(q[:, -32:], k)), 100, 32),
}


@pytest.mark.parametrize('stream', ['default', 'side'])
@pytest.mark.parametrize('call', CALLS)
def test_cuda_ops_neither_overtake_nor_wait(call, stream):
    """Tensors are written late by their stream and overwritten right after the op was asked for."""
    data = on_gpu()
    expected = CALLS[call](*data)  # and all memory is there
    late = [torch.full_like(x, float('nan')) for x in data]
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream() if stream == 'side' else torch.cuda.default_stream()):
        torch.cuda._sleep(1_000_000_000)  # half a second
        for x, y in zip(late, data):
            x.copy_(y)
        got = CALLS[call](*late)
        waited = torch.cuda.current_stream().query()
        for x in late:
            x.fill_(float('nan'))
    assert not waited
    torch.cuda.synchronize()
    assert (got == expected).all()


def test_cuda_streams_in_turn():
    """They share the kernels' scratch memory."""
    streams = [torch.cuda.Stream() for _ in range(3)]
    data = [on_gpu(seed) for seed in range(4)]
    expected = [read(*x)[0] for x in data]
    torch.cuda.synchronize()
    got = []
    for i in range(24):
        with torch.cuda.stream(streams[i % 3]):
            torch.cuda._sleep(1_000_000 * (i % 5))
            got.append(read(*data[i % 4])[0])
    torch.cuda.synchronize()
    assert all((out == expected[i % 4]).all() for i, out in enumerate(got))


def test_every_cuda_device():
    if torch.cuda.device_count() < 2:
        pytest.skip('cuda: one GPU alone')
    data = on_gpu()
    expected, selection = read(*data)
    there = [x.to('cuda:1') for x in data]
    out, other = read(*there)
    assert out.device == torch.device('cuda:1') and torch.cuda.current_device() == 0
    assert (out.cpu() == expected.cpu()).all() and (other.index.cpu() == selection.index.cpu()).all()
    assert (ops.vote(there[0][:, -5:], there[1]).cpu() == ops.vote(data[0][:, -5:], data[1]).cpu()).all()


@pytest.mark.parametrize('error, message, change', [
    (TypeError, r'q is torch.float32 on cuda:0, expected torch.bfloat16 on a GPU', lambda q, k, v: (q.float(), k.float(), v.float())),
    (TypeError, r"'q': device\(type='cuda', index=0\), 'k': device\(type='cpu'\).*expected the same device", lambda q, k, v: (q, k.cpu(), v)),
    (TypeError, r"the selection's count is on cpu, expected cuda:0", lambda q, k, v: (q[:, :96], k[:, :96], v[:, :96], SELECTION)),
    (ValueError, r'count is \[2, 3\], expected \[2, 4\]',
     lambda q, k, v: (q[:, :128], k[:, :128], v[:, :128], ops.Selection(SELECTION.count.cuda(), SELECTION.index.cuda(), 32, 8))),
    (ValueError, r'v is \[1200, 2, 64\], expected \[1200, 2, 128\]', lambda q, k, v: (q, k, v[..., :64])),
])
def test_what_cuda_does_not_take_is_said(error, message, change):
    with pytest.raises(error, match=message):
        ops.sparse_attention(*change(*on_gpu()))

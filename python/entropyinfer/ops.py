"""The engine's kernels on torch tensors, of any strides: of the CPU in float32 or bfloat16, of a Hopper GPU in bfloat16.

Shapes are those of torch's attention: q [heads, n, d], k and v [kv_heads, n, d], of one sequence, RoPE applied; heads is a
multiple of kv_heads. Sums are float. What does not fit raises ValueError with both values, TypeError for a wrong type or device.
`entropyinfer.reference` states the same in plain PyTorch.

On a GPU everything runs in torch's current stream and nothing waits for it, so that the numbers of a selection are not looked
at: those of blocks that are not there would be read from memory that is not. Two policies do wait: 'entropy' and 'criti'.
Tensors that lie in memory as [n, heads, d] are read where they are, others are copied once.
"""
from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from entropyinfer import _core
from entropyinfer._core import Policy


@dataclass(frozen=True)
class Selection:
    """The past blocks that each KV head and segment of a prompt attends to, beside the segment itself."""
    count: torch.Tensor               # int32 [kv_heads, segments]; -1: all
    index: torch.Tensor               # int32 [kv_heads, segments, the most]: the first `count` ascending
    segment: int                      # tokens
    block: int                        # tokens; divides segment
    entropy: torch.Tensor | None = None  # float32 [kv_heads, segments], nats; NaN where the layer is dense
    n: int | None = None              # tokens of the prompt

    @property
    def density(self) -> float | None:
        """Attended pairs of query and key over those of dense attention."""
        if self.n is None:
            return None
        past = torch.arange(self.count.shape[1], device=self.count.device, dtype=torch.float64) * self.segment
        size = (self.n - past).clamp(max=self.segment)
        own = size * (size + 1) / 2
        seen = torch.where(self.count < 0, past, self.count * self.block)
        return float((size * seen + own).sum() / (len(seen) * (size * past + own).sum()))

    def mask(self, n: int) -> torch.Tensor:
        """bool [kv_heads, n, n]: which keys each query of a prompt of n tokens sees."""
        position = torch.arange(n, device=self.count.device)
        past = position[None] < position[:, None] // self.segment * self.segment
        seen = torch.zeros(*self.count.shape, -(-n // self.block), dtype=torch.bool, device=self.count.device)
        for head, segment in (self.count != 0).nonzero().tolist():
            count = int(self.count[head, segment])
            seen[head, segment, slice(None) if count < 0 else self.index[head, segment, :count].long()] = True
        blocks = seen.repeat_interleave(self.block, 2)[:, :, :n].repeat_interleave(self.segment, 1)[:, :n]
        return blocks & past | ~past & (position[None] <= position[:, None])


@contextlib.contextmanager
def _place(**tensors: torch.Tensor) -> Iterator[_core.Place]:
    """Where an op's tensors are, all in one place and of one type; a GPU is the current one inside."""
    for name, x in tensors.items():
        if not isinstance(x, torch.Tensor):
            raise TypeError(f'{name} is {type(x).__name__}, expected a tensor')
        if x.dtype not in (torch.float32, torch.bfloat16):
            raise TypeError(f'{name} is {x.dtype}, expected torch.float32 or torch.bfloat16')
        if x.device.type not in ('cpu', 'cuda'):
            raise TypeError(f'{name} is on {x.device}, expected cpu or cuda')
    for what in 'dtype', 'device':
        found = {name: getattr(x, what) for name, x in tensors.items()}
        if len(set(found.values())) > 1:
            raise TypeError(f'{found}, expected the same {"type" if what == "dtype" else what}')
    name, first = next(iter(tensors.items()))
    if first.is_cuda and first.dtype != torch.bfloat16:
        raise TypeError(f'{name} is {first.dtype} on {first.device}, expected torch.bfloat16 on a GPU')
    with _on(first.device, first.dtype == torch.bfloat16) as place:
        yield place


@contextlib.contextmanager
def _on(device: torch.device, bf16: bool) -> Iterator[_core.Place]:
    if device.type == 'cpu':
        yield _core.Place(bf16)
    else:
        with torch.cuda.device(device):
            yield _core.Place(bf16, torch.cuda.current_device(), torch.cuda.current_stream().cuda_stream)


def _rows(name: str, x: torch.Tensor) -> torch.Tensor:
    """[heads, n, d] as the kernels take it: [n, heads, d] of float or, on a GPU, bf16, contiguous; a copy only if it has to be."""
    if x.ndim != 3:
        raise ValueError(f'{name} is {list(x.shape)}, expected [heads, n, head_dim]')
    rows = x.detach().transpose(0, 1)
    if not x.is_cuda:
        return rows.to(torch.float32).contiguous()
    rows = rows.contiguous()
    return rows if rows.data_ptr() % 16 == 0 else rows.clone()  # they are read 16 bytes at a time


def _of_selection(name: str, x: torch.Tensor, device: torch.device) -> torch.Tensor:
    if x.device != device:
        raise TypeError(f'the selection\'s {name} is on {x.device}, expected {device} as q')
    return x.to(torch.int32).contiguous()


def _scale(scale: float | None, q: torch.Tensor) -> float:
    return 1 / math.sqrt(max(1, q.shape[-1])) if scale is None else scale


def sparse_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, selection: Selection | None = None,
                     scale: float | None = None) -> torch.Tensor:
    """softmax(scale q k^T) v over the keys that `selection` has for each query and, causally, its own segment; None: over
    all, causally. q may be the last queries only, from the start of a segment if there is a selection. [heads, n, d], of
    q's type; scale: 1 / sqrt(d)."""
    with _place(q=q, k=k, v=v) as place:
        rows = [_rows(name, x) for name, x in (('q', q), ('k', k), ('v', v))]
        out = torch.empty_like(rows[0])
        count = index = None
        if selection is not None:
            count, index = (_of_selection(name, getattr(selection, name), q.device) for name in ('count', 'index'))
        _core.sparse_attention(place, *rows, out, count, index, selection.segment if selection else 512,
                               selection.block if selection else 8, _scale(scale, q))
        return out.transpose(0, 1).to(q.dtype)


class Reader:
    """Reads a prompt of n tokens under a policy, layer by layer: chooses blocks and attends to them, as the engine does.

    For one thread at a time: what layers need beside their results is asked of the system once. One difference: the policy
    'entropy' goes by the principal directions of the prompt's own keys (1,024 of them, spread over it) instead of those of a
    text that the engine has built in.
    """

    def __init__(self, policy: Policy | str, n_layers: int, heads: int, kv_heads: int, head_dim: int, n: int, dtype: torch.dtype,
                 device: torch.device | str = 'cpu'):
        policy = policy if isinstance(policy, Policy) else Policy(policy)
        with _place(q=torch.empty(0, dtype=dtype, device=device)) as place:  # one like those to come
            self._reader = _core.Reader(place, policy, n_layers, heads, kv_heads, head_dim, n)
        self._n_layers, self._n = n_layers, n
        self._memory: dict[str, torch.Tensor] = {}
        self._sketch: torch.Tensor | None = None  # of all layers, as far as they were read

    def read(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor | None, blocks: bool = False,
             scale: float | None = None) -> tuple[torch.Tensor | None, Selection]:
        """The layer's attention [heads, n, d], unless there is no v, and what was chosen; its `index` is empty without
        `blocks`."""
        reader = self._reader
        with _place(q=q, k=k, v=k if v is None else v) as place:
            rows_q, rows_k = self._rows('q', q), self._rows('k', k)
            rows_v = rows_k if v is None else self._rows('v', v)
            usual = _scale(None, q)
            if scale is not None and not math.isclose(scale, usual, rel_tol=1e-6):
                rows_q = rows_q * (scale / usual)
            if v is None:
                out = None
            elif q.dtype == rows_q.dtype:
                out = torch.empty_like(rows_q)
            else:
                out = self._kept('out', rows_q)
            kv_heads, segments, most = k.shape[0], sum(reader.chunks), reader.most_blocks if blocks else 0
            sparse, index = self._n_layers - reader.dense_layers, None
            if layer < reader.dense_layers:
                reader.read(place, layer, rows_q, rows_k, rows_v, out, None, None, None, None)
                count = torch.full((kv_heads, segments), -1, dtype=torch.int32, device=k.device)
                entropy = torch.full((kv_heads, segments), math.nan, device=k.device)
            else:
                count = torch.empty(kv_heads * segments, dtype=torch.int32, device=k.device)
                entropy = torch.empty(segments, sparse, kv_heads, device=k.device)
                if blocks:
                    index = torch.empty(kv_heads * segments * most, dtype=torch.int32, device=k.device)
                reader.read(place, layer, rows_q, rows_k, rows_v, out, count, index, entropy, self._directions(layer, k))
                count = self._joined(count.view(kv_heads * segments, 1), kv_heads)[..., 0]
                entropy = entropy[:, layer - reader.dense_layers].T.contiguous()
            if index is None:
                index = count.new_zeros(kv_heads, segments, 0)
            else:
                index = self._joined(index.view(kv_heads * segments, most), kv_heads)
                index.masked_fill_(torch.arange(most, device=k.device) >= count[..., None], 0)
                if not k.is_cuda:
                    index = index[..., :max(0, int(count.max()))].clone()
            selection = Selection(count, index, reader.segment, reader.block, entropy, self._n)
            return None if out is None else out.transpose(0, 1).to(q.dtype), selection

    def _rows(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """As those of one op, but that a CPU's copies lie where the last layer's did."""
        if x.is_cuda or x.ndim != 3 or x.dtype == torch.float32 and x.transpose(0, 1).is_contiguous():
            return _rows(name, x)
        rows = x.detach().transpose(0, 1)
        return self._kept(name, rows).copy_(rows)

    def _kept(self, name: str, like: torch.Tensor) -> torch.Tensor:
        if name not in self._memory or self._memory[name].shape != like.shape:
            self._memory[name] = torch.empty(like.shape, dtype=torch.float32)
        return self._memory[name]

    def _joined(self, x: torch.Tensor, kv_heads: int) -> torch.Tensor:
        """[kv_heads, segments, m] of chunks [kv_heads * segments, m], one behind the other."""
        chunks = self._reader.chunks
        return torch.cat([part.view(kv_heads, n, -1) for part, n in zip(x.split([kv_heads * n for n in chunks]), chunks)], 1)

    def _directions(self, layer: int, k: torch.Tensor) -> torch.Tensor | None:
        """Each layer's principal directions of keys [kv_heads, n_directions, d], and the projections of their mean on them
        [kv_heads, n_directions]: of no more keys than the engine takes of a text of its own, all over the prompt."""
        if self._reader.n_directions == 0:
            return None
        n = min(k.shape[1], 1024)
        keys = k.detach()[:, torch.arange(n, device=k.device) * k.shape[1] // n].double()
        mean = keys.mean(1, keepdim=True)
        eigenvectors = torch.linalg.eigh((keys - mean).mT @ (keys - mean))[1].flip(-1)
        directions = eigenvectors[..., torch.arange(self._reader.n_directions, device=k.device).clamp(max=k.shape[2] - 1)].mT
        values = torch.cat([directions.flatten(), (mean @ directions.mT).flatten()])
        if self._sketch is None:
            self._sketch = torch.zeros(self._n_layers, len(values), device=k.device)
        self._sketch[layer] = values
        return self._sketch.view(-1)


def select_blocks(q: torch.Tensor, k: torch.Tensor, policy: Policy | str = 'entropy') -> Selection:
    """What a policy has the segments of a prompt attend to, in a layer that it does not leave dense."""
    policy = policy if isinstance(policy, Policy) else Policy(policy)
    layer = policy.settings.get('dense_layers', 0)
    if q.ndim != 3 or k.ndim != 3:
        raise ValueError(f'q is {list(q.shape)} and k {list(k.shape)}, expected [heads, n, head_dim]')
    reader = Reader(policy, layer + 1, q.shape[0], k.shape[0], q.shape[2], q.shape[1], q.dtype, q.device)
    return reader.read(layer, q, k, None, blocks=True)[1]


def block_scores(q: torch.Tensor, k: torch.Tensor, segment: int = 512, block: int = 8,
                 scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """How much each segment of queries wants each block of keys before it by the paper's estimate, float32 [kv_heads,
    segments, blocks] with -inf for other blocks, and the entropies of their softmax, float32 [kv_heads, segments] in nats."""
    if segment < 1 or block < 1 or segment % block != 0:
        raise ValueError(f'segment is {segment}, expected a multiple of block, {block}')
    with _place(q=q, k=k) as place:
        rows_q, rows_k = _rows('q', q), _rows('k', k)
        kv_heads, segments = k.shape[0], -(-q.shape[1] // segment)
        score = torch.full((kv_heads, segments, max(1, (segments - 1) * segment // block)), -math.inf, device=k.device)
        entropy = torch.empty(segments, kv_heads, device=k.device)
        _core.block_scores(place, rows_q, rows_k, segment, block, scale, score, entropy)
        return score, entropy.T


def entropy(q: torch.Tensor, k: torch.Tensor, segment: int = 512, block: int = 8, scale: float = 1.0) -> torch.Tensor:
    """The entropies of `block_scores` alone."""
    return block_scores(q, k, segment, block, scale)[1]


def vote(q: torch.Tensor, k: torch.Tensor, reduce: str = 'mean', scale: float | None = None) -> torch.Tensor:
    """How much the newest queries q [heads, w, d] look at each key before them: the mean over the queries of their causal
    softmax over k [kv_heads, n, d], then the mean or maximum over the heads of a KV head. float32 [kv_heads, n - w]."""
    if reduce not in ('mean', 'max'):
        raise ValueError(f"reduce is '{reduce}', expected mean or max")
    with _place(q=q, k=k) as place:
        rows_q, rows_k = _rows('q', q), _rows('k', k)
        votes = torch.empty(k.shape[0], max(0, k.shape[1] - q.shape[1]), device=k.device)
        _core.vote(place, rows_q, rows_k, reduce == 'max', _scale(scale, q), votes)
        return votes


def pool_votes(votes: torch.Tensor, pooling: str = 'both', kernel: int = 21) -> torch.Tensor:
    """Votes smoothed along the keys: their maximum or mean ('avg', zeros beyond the ends) over `kernel`, odd; 'both': the mean
    of 5 or half of the highest such mean, whichever is more. [kv_heads, n]"""
    votes = _votes(votes)
    out = torch.empty_like(votes)
    with _on(votes.device, bf16=votes.is_cuda) as place:
        _core.pool_votes(place, votes, pooling, kernel, out)
    return out


def keep_top(votes: torch.Tensor, n_top: int, window: int = 0) -> torch.Tensor:
    """The keys that a compressed cache keeps: those of the n_top highest votes, ties to the earlier, and the `window` that
    follow the last vote. int32 [kv_heads, kept], ascending."""
    votes = _votes(votes)
    kept = max(0, min(n_top, votes.shape[1])) + max(0, window)
    rows = torch.empty(votes.shape[0], kept, dtype=torch.int32, device=votes.device)
    with _on(votes.device, bf16=votes.is_cuda) as place:
        _core.keep_top(place, votes, n_top, window, rows)
    return rows


def _votes(votes: torch.Tensor) -> torch.Tensor:
    if votes.ndim != 2 or votes.dtype != torch.float32:
        raise TypeError(f'votes are {votes.dtype} {list(votes.shape)}, expected torch.float32 [kv_heads, n]')
    if votes.device.type not in ('cpu', 'cuda'):
        raise TypeError(f'votes are on {votes.device}, expected cpu or cuda')
    return votes.detach().contiguous()

"""The engine's kernels on torch tensors of the CPU, float32 or bfloat16, of any strides.

Shapes are those of torch's attention: q [heads, n, d], k and v [kv_heads, n, d], of one sequence, RoPE applied; heads is a
multiple of kv_heads. Sums are float. What does not fit raises ValueError with both values, TypeError for a wrong type.
`entropyinfer.reference` states the same in plain PyTorch.
"""
from __future__ import annotations

import math
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
    density: float | None = None      # attended pairs of query and key over those of dense attention

    def mask(self, n: int) -> torch.Tensor:
        """bool [kv_heads, n, n]: which keys each query of a prompt of n tokens sees."""
        position = torch.arange(n)
        past = position[None] < position[:, None] // self.segment * self.segment
        seen = torch.zeros(*self.count.shape, -(-n // self.block), dtype=torch.bool)
        for head, segment in (self.count != 0).nonzero().tolist():
            count = int(self.count[head, segment])
            seen[head, segment, slice(None) if count < 0 else self.index[head, segment, :count].long()] = True
        blocks = seen.repeat_interleave(self.block, 2)[:, :, :n].repeat_interleave(self.segment, 1)[:, :n]
        return blocks & past | ~past & (position[None] <= position[:, None])


def _rows(name: str, x: torch.Tensor) -> torch.Tensor:
    """[heads, n, d] as the kernels take it: float [n, heads, d], contiguous; a copy only if it has to be."""
    if not isinstance(x, torch.Tensor):
        raise TypeError(f'{name} is {type(x).__name__}, expected a tensor')
    if x.dtype not in (torch.float32, torch.bfloat16):
        raise TypeError(f'{name} is {x.dtype}, expected torch.float32 or torch.bfloat16')
    if x.device.type != 'cpu':
        raise TypeError(f'{name} is on {x.device}, expected cpu')
    if x.ndim != 3:
        raise ValueError(f'{name} is {list(x.shape)}, expected [heads, n, head_dim]')
    return x.detach().transpose(0, 1).to(torch.float32).contiguous()


def _same_type(**tensors: torch.Tensor) -> bool:
    """Whether they are all bfloat16."""
    types = {name: x.dtype for name, x in tensors.items()}
    if len(set(types.values())) > 1:
        raise TypeError(f'{types}, expected the same type')
    return set(types.values()) == {torch.bfloat16}


def sparse_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, selection: Selection | None = None,
                     scale: float | None = None) -> torch.Tensor:
    """softmax(scale q k^T) v over the keys that `selection` has for each query and, causally, its own segment; None: over
    all, causally. q may be the last queries only, from the start of a segment if there is a selection. [heads, n, d], of
    q's type; scale: 1 / sqrt(d)."""
    rows = [_rows(name, x) for name, x in (('q', q), ('k', k), ('v', v))]
    out = torch.empty_like(rows[0])
    count = index = None
    if selection is not None:
        count, index = selection.count.to(torch.int32).contiguous(), selection.index.to(torch.int32).contiguous()
    _core.sparse_attention(*rows, out, count, index, selection.segment if selection else 512, selection.block if selection else 8,
                           1 / math.sqrt(max(1, q.shape[-1])) if scale is None else scale, _same_type(q=q, k=k, v=v))
    return out.transpose(0, 1).to(q.dtype)


class Reader:
    """Reads a prompt of n tokens under a policy, layer by layer: chooses blocks and attends to them, as the engine does.

    One difference: the policy 'entropy' goes by the principal directions of the prompt's own keys (1,024 of them, spread
    over it) instead of those of a text that the engine has built in.
    """

    def __init__(self, policy: Policy | str, n_layers: int, heads: int, kv_heads: int, head_dim: int, n: int, dtype: torch.dtype):
        policy = policy if isinstance(policy, Policy) else Policy(policy)
        self._reader = _core.Reader(policy, n_layers, heads, kv_heads, head_dim, n, dtype == torch.bfloat16)

    def read(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor | None, blocks: bool = False,
             scale: float | None = None) -> tuple[torch.Tensor | None, Selection]:
        """The layer's attention [heads, n, d], unless there is no v, and what was chosen; its `index` is empty without
        `blocks`."""
        rows_q, rows_k = _rows('q', q), _rows('k', k)
        _same_type(q=q, k=k, v=k if v is None else v)
        usual = 1 / math.sqrt(max(1, q.shape[-1]))
        if scale is not None and not math.isclose(scale, usual, rel_tol=1e-6):
            rows_q = rows_q * (scale / usual)
        out = None if v is None else torch.empty_like(rows_q)
        choice = self._reader.read(layer, rows_q, rows_k, rows_k if v is None else _rows('v', v), out, blocks)
        selection = Selection(torch.from_numpy(choice.count), torch.from_numpy(choice.index), choice.segment, choice.block,
                              torch.from_numpy(choice.entropy), choice.density)
        return None if out is None else out.transpose(0, 1).to(q.dtype), selection


def select_blocks(q: torch.Tensor, k: torch.Tensor, policy: Policy | str = 'entropy') -> Selection:
    """What a policy has the segments of a prompt attend to, in a layer that it does not leave dense."""
    policy = policy if isinstance(policy, Policy) else Policy(policy)
    layer = policy.settings.get('dense_layers', 0)
    if q.ndim != 3 or k.ndim != 3:
        raise ValueError(f'q is {list(q.shape)} and k {list(k.shape)}, expected [heads, n, head_dim]')
    reader = Reader(policy, layer + 1, q.shape[0], k.shape[0], q.shape[2], q.shape[1], q.dtype)
    return reader.read(layer, q, k, None, blocks=True)[1]


def block_scores(q: torch.Tensor, k: torch.Tensor, segment: int = 512, block: int = 8,
                 scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """How much each segment of queries wants each block of keys before it by the paper's estimate, float32 [kv_heads,
    segments, blocks] with -inf for other blocks, and the entropies of their softmax, float32 [kv_heads, segments] in nats."""
    score, entropy = _core.block_scores(_rows('q', q), _rows('k', k), segment, block, scale, _same_type(q=q, k=k))
    return torch.from_numpy(score), torch.from_numpy(entropy)


def entropy(q: torch.Tensor, k: torch.Tensor, segment: int = 512, block: int = 8, scale: float = 1.0) -> torch.Tensor:
    """The entropies of `block_scores` alone."""
    return block_scores(q, k, segment, block, scale)[1]


def vote(q: torch.Tensor, k: torch.Tensor, reduce: str = 'mean', scale: float | None = None) -> torch.Tensor:
    """How much the newest queries q [heads, w, d] look at each key before them: the mean over the queries of their causal
    softmax over k [kv_heads, n, d], then the mean or maximum over the heads of a KV head. float32 [kv_heads, n - w]."""
    if reduce not in ('mean', 'max'):
        raise ValueError(f"reduce is '{reduce}', expected mean or max")
    return torch.from_numpy(_core.vote(_rows('q', q), _rows('k', k), reduce == 'max',
                                       1 / math.sqrt(max(1, q.shape[-1])) if scale is None else scale, _same_type(q=q, k=k)))


def pool_votes(votes: torch.Tensor, pooling: str = 'max', kernel: int = 21) -> torch.Tensor:
    """Votes smoothed along the keys: their maximum or mean ('avg', zeros beyond the ends) over `kernel`, odd; 'both': the mean
    of 5 or 0.3 of the maximum, whichever is more. [kv_heads, n]"""
    return torch.from_numpy(_core.pool_votes(_votes(votes), pooling, kernel))


def keep_top(votes: torch.Tensor, n_top: int, window: int = 0) -> torch.Tensor:
    """The keys that a compressed cache keeps: those of the n_top highest votes, ties to the earlier, and the `window` that
    follow the last vote. int32 [kv_heads, kept], ascending."""
    return torch.from_numpy(_core.keep_top(_votes(votes), n_top, window))


def _votes(votes: torch.Tensor) -> torch.Tensor:
    if votes.ndim != 2 or votes.dtype != torch.float32:
        raise TypeError(f'votes are {votes.dtype} {list(votes.shape)}, expected torch.float32 [kv_heads, n]')
    return votes.detach().contiguous()

"""Our votes, and our reading, as presses of kvpress, beside those that its evaluations compare:

    from entropyinfer.kvpress import EntropyPress, LatentPress
    with LatentPress(compression_ratio=.7)(model): ...

kvpress compresses when the prompt has been read, so that the queries that vote are the prompt's last; the engine itself also
asks those of the first generated tokens.
"""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from kvpress import ScorerPress
from kvpress.utils import get_prerope_query_states
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import rotate_half

import entropyinfer.transformers  # registers the attention
from entropyinfer import Policy, Reading, ops


@dataclass
class LatentPress(ScorerPress):
    """The attention of the last `window` queries to each key, its mean over them and the heads of a KV head, smoothed along the
    keys by a pool. The window's own keys stay. compression_ratio: the share of keys that goes, in [0, 1)."""
    compression_ratio: float = 0.0
    window: int = 32
    pooling: str = 'both'  # or avg, max: ops.pool_votes
    kernel: int = 21

    def score(self, module: torch.nn.Module, hidden_states: torch.Tensor, keys: torch.Tensor, values: torch.Tensor,
              attentions: torch.Tensor | None, kwargs: dict[str, Any]) -> torch.Tensor:
        """[batch, kv_heads, n] float32: votes, those of the window above all others."""
        n = hidden_states.shape[1]
        if n <= self.window:
            raise ValueError(f'the prompt has {n} tokens, expected more than the window, {self.window}')
        queries = get_prerope_query_states(module, hidden_states[:, -self.window:])
        cos, sin = (x[:, None, -self.window:] for x in kwargs['position_embeddings'])
        queries = queries * cos + rotate_half(queries) * sin
        votes = torch.stack([ops.pool_votes(ops.vote(q, k, scale=module.scaling), self.pooling, self.kernel)
                             for q, k in zip(queries, keys)])
        return torch.nn.functional.pad(votes, (0, self.window), value=float(votes.max()) + 1)


@dataclass
class EntropyPress(LatentPress):
    """A LatentPress of a prompt that is read by `policy`, a name or a Policy: while the press is on, the model's attention is
    "entropyinfer". `reading` tells what it attended to; with a compression_ratio of 0 nothing else is done."""
    policy: Policy | str = 'entropy'
    reading: Reading | None = field(default=None, init=False)

    @contextmanager
    def __call__(self, model: PreTrainedModel) -> Iterator[None]:
        before = model.config._attn_implementation
        model.set_attn_implementation('entropyinfer')
        try:
            with entropyinfer.policy(self.policy) as self.reading, super().__call__(model):
                yield
        finally:
            model.set_attn_implementation(before)

"""A cache of transformers that shrinks to what the answer looks at."""
from __future__ import annotations

import functools
import threading
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

from entropyinfer import ops
from entropyinfer._core import Policy


class CompressedLayer(DynamicLayer):
    """Keys and values of one layer. `settings` are those of a `Policy`."""

    def __init__(self, settings: dict[str, Any]):
        super().__init__()
        self._settings = settings
        self._forget()

    def _forget(self) -> None:
        self._queries: torch.Tensor | None = None  # the newest, [heads, window, head_dim]
        self._n_prompt = self._n_tokens = 0
        self.compressed = False

    def reset(self) -> None:
        super().reset()
        self._forget()

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        if key_states.shape[0] != 1:
            raise ValueError(f'a compressed cache holds one sequence, found a batch of {key_states.shape[0]}')
        n = key_states.shape[2]
        if n == 1 and self._due():
            self._compress()
        self._n_tokens += n
        if n > 1:
            self._n_prompt = self._n_tokens
        keys, values = super().update(key_states, value_states)
        updated.layer = self
        return keys, values

    def saw(self, query: torch.Tensor) -> None:
        """Remembers the queries [1, heads, n, head_dim] of the tokens of the last update."""
        queries = query[0] if self._queries is None else torch.cat([self._queries, query[0]], 1)
        self._queries = queries[:, -self._settings['window']:].clone()

    def get_seq_length(self) -> int:
        return self._n_tokens

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._rows() + query_length, 0

    def _rows(self) -> int:
        return self.keys.shape[2] if self.is_initialized else 0

    def crop(self, tokens_to_remove: int) -> None:
        raise ValueError('a compressed cache cannot take tokens back')

    def _due(self) -> bool:
        budget, gap, regrow = (self._settings[name] for name in ('budget', 'decode_gap', 'regrow'))
        if not self.compressed and self._n_prompt > budget:
            return self._n_tokens - self._n_prompt >= max(0, gap)
        return 0 < regrow <= self._rows() - budget

    def _compress(self) -> None:
        budget, window = self._settings['budget'], self._settings['window']
        if self._queries is None:
            raise ValueError('a compressed cache has not seen the queries, expected a model with attn_implementation="entropyinfer"')
        votes = ops.vote(self._queries, self.keys[0], self._settings['reduce'])
        votes = ops.pool_votes(votes, self._settings['pooling'], self._settings['kernel'])
        rows = ops.keep_top(votes, budget - window, window).long()[None, :, :, None].expand(-1, -1, -1, self.keys.shape[3])
        self.keys, self.values = self.keys.gather(2, rows), self.values.gather(2, rows)
        self.compressed = True


class CompressedCache(Cache):
    """Keys and values of one sequence: all of the prompt's, and once the policy's gap is written `budget` rows a head, those
    that the answer's first tokens look at. Of the policies 'latent' and 'snapkv' and their settings; for models with the
    attention "entropyinfer".

        model.generate(**inputs, cache=CompressedCache('entropy+latent', budget=512))
    """

    def __init__(self, policy: Policy | str = 'entropy+latent', **settings: Any):
        policy = policy if isinstance(policy, Policy) else Policy(policy, **settings)
        settings = policy.settings
        for name, only in {'voter': 'window', 'split': 'even', 'kv_scope': 'kv', 'off_by_one': False}.items():
            if settings.get(name, only) != only:
                raise ValueError(f'{policy.name}: {name} is {settings[name]}, expected {only} in a cache of transformers')
        if settings.get('decode_gap') == 'auto' or 'budget' not in settings:
            raise ValueError(f'{policy.name}: expected a cache that is compressed after a fixed number of tokens, as latent and snapkv are')
        super().__init__(layer_class_to_replicate=functools.partial(CompressedLayer, settings))


class _Updated(threading.local):
    """The layer whose keys were asked for last: attention is computed right after."""
    layer: CompressedLayer | None = None

    def take(self, key: torch.Tensor) -> CompressedLayer | None:
        layer, self.layer = self.layer, None
        return layer if layer is not None and layer.keys is key else None


updated = _Updated()

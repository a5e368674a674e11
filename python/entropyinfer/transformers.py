"""Hugging Face's models read prompts by our selection and with our kernel:

    import entropyinfer.transformers
    model = AutoModelForCausalLM.from_pretrained(name, attn_implementation='entropyinfer')
    with torch.inference_mode(), entropyinfer.policy('entropy', mass=.9) as reading:
        model.generate(**inputs)
    reading.density, reading.layers[3][0].entropy

Importing this registers the attention. Any decoder model of transformers' attention interface, on the CPU in float32 or
bfloat16, on a Hopper GPU in bfloat16, any heads and groups of heads, padded batches; without `entropyinfer.policy` prompts are
read as the engine reads them, by 'entropy' or, on a GPU, 'paper'. What follows a prompt (a second turn, tokens that are
written) is attended to densely; `CompressedCache` keeps of it what an answer looks at. Refused, with what was found: training, attention that is not causal or leaves something out (encoders, windows
and chunks shorter than the text, sequences packed into a row, masks of one's own), caps of logits, padding between tokens, caches
of a fixed size.
"""
from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import causal_mask_function

from entropyinfer import ops
from entropyinfer._cache import CompressedCache, updated
from entropyinfer._core import default_policy
from entropyinfer._policy import Reading, current

__all__ = ['CompressedCache', 'attention']


class _Usual(threading.local):
    """Of models outside of a `with entropyinfer.policy(...)`."""

    def __init__(self):
        self.on_cpu, self.on_gpu = (Reading(default_policy(on_gpu)) for on_gpu in (False, True))


_usual = _Usual()


class _Spans(threading.local):
    """Where the tokens of each row are, of the mask that was seen last: all layers get the same, and to look at a GPU's is to
    wait for it."""
    mask: torch.Tensor | None = None
    spans: list[tuple[int, int]] = []

    def of(self, mask: torch.Tensor) -> list[tuple[int, int]]:
        if mask is not self.mask:
            self.spans, self.mask = [_span(row) for row in mask.bool().cpu()], mask
        return self.spans


_spans = _Spans()


def attention(module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: torch.Tensor | None,
              scaling: float | None = None, dropout: float = 0.0, **kwargs: Any) -> tuple[torch.Tensor, None]:
    """transformers' attention function: query [batch, heads, m, d], key and value [batch, kv_heads, n, d], of which the
    queries are the last; attention_mask None or bool [batch, n], False for padding. Returns [batch, m, heads, d]."""
    _check(module, query, key, value, attention_mask, dropout, kwargs)
    if (cache := updated.take(key)) is not None:
        if attention_mask is not None:
            raise ValueError('attention_mask has padding, expected none beside a compressed cache')
        cache.saw(query)
    batch, heads, m, d = query.shape
    n = key.shape[2]
    spans = [(0, n)] * batch if attention_mask is None else _spans.of(attention_mask)
    reading = current.get() or (_usual.on_gpu if query.is_cuda else _usual.on_cpu)
    layer = module.layer_idx
    if m > 1 and m == n:
        _begin_layer(reading, layer, query, key, spans)
    outs = []
    for i, (begin, end) in enumerate(spans):
        first = max(0, begin - (n - m))  # of the queries that are no padding
        q, k, v = query[i, :, first:m - (n - end)], key[i, :, begin:end], value[i, :, begin:end]
        if m == 1:
            out = torch.nn.functional.scaled_dot_product_attention(q[None], k[None], v[None], scale=scaling, enable_gqa=True)[0]
        elif m == n:
            out = _read(reading, module, i, q, k, v, scaling)
        else:
            out = ops.sparse_attention(q, k, v, scale=scaling)
        out = out.transpose(0, 1)
        if out.shape[0] < m:
            out = torch.nn.functional.pad(out, (0, 0, 0, 0, first, n - end))
        outs.append(out)
    if layer + 1 == module.config.num_hidden_layers:
        reading._here.readers = {}  # and their memory
    return (outs[0][None] if batch == 1 else torch.stack(outs)), None


def _begin_layer(reading: Reading, layer: int, query: torch.Tensor, key: torch.Tensor, spans: list[tuple[int, int]]) -> None:
    """A layer that does not come after the last one begins a new prompt. Between them may be some without attention."""
    here = reading._here
    shape = (query.shape[1], key.shape[1], query.shape[3], spans, query.dtype)
    if not here.layers or layer < len(here.layers) or here.shape != shape:
        here.layers, here.shape, here.readers = [], shape, {}
        reading.layers = here.layers
    here.layers.extend([] for _ in range(layer + 1 - len(here.layers)))


def _read(reading: Reading, module: torch.nn.Module, i: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor,
          scale: float | None) -> torch.Tensor:
    layer, here = module.layer_idx, reading._here
    if reading.select is not None:
        selection = dataclasses.replace(reading.select(q, k, layer), n=q.shape[1])
        out = ops.sparse_attention(q, k, v, selection, scale)
    else:
        if (i, q.device) not in here.readers:  # layers may be spread over GPUs
            here.readers[i, q.device] = ops.Reader(reading.policy, module.config.num_hidden_layers, q.shape[0], k.shape[0], q.shape[2],
                                                   q.shape[1], q.dtype, q.device)
        out, selection = here.readers[i, q.device].read(layer, q, k, v, blocks=reading.blocks, scale=scale)
    here.layers[layer].append(selection)
    return out


def _check(module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: torch.Tensor | None,
           dropout: float, kwargs: dict[str, Any]) -> None:
    if query.requires_grad and torch.is_grad_enabled():
        raise RuntimeError('the attention "entropyinfer" has no gradients: call the model under torch.inference_mode()')
    if dropout:
        raise ValueError(f'dropout is {dropout}, expected 0')
    if value.shape != key.shape:
        raise ValueError(f'values are {list(value.shape)}, expected {list(key.shape)} as the keys')
    causal = kwargs.get('is_causal')
    if not (getattr(module, 'is_causal', True) if causal is None else causal):
        raise ValueError(f'{type(module).__name__} {_NOT_CAUSAL}')
    if attention_mask is not None and attention_mask.ndim != 2:
        raise ValueError(f'attention_mask is {list(attention_mask.shape)}, expected [batch, tokens], 0 for padding')
    window = kwargs.get('sliding_window')
    if window is not None and window < key.shape[2]:
        raise ValueError(f'the model attends to a window of {window} tokens, expected none or at least the {key.shape[2]} of the text')
    for name in 'softcap', 's_aux', 'position_bias':
        if kwargs.get(name) is not None:
            raise ValueError(f'the model\'s attention has {name}, which "entropyinfer" does not compute')


_NOT_CAUSAL = ('lets tokens see later ones, expected causal attention; give the text model alone ours: '
               "attn_implementation={'text_config': 'entropyinfer'}")


def _span(row: torch.Tensor) -> tuple[int, int]:
    """Where the tokens of a padded row are."""
    tokens = row.nonzero()[:, 0]
    if len(tokens) == 0:
        return 0, len(row)
    begin, end = int(tokens[0]), int(tokens[-1]) + 1
    if end - begin != len(tokens):
        raise ValueError(f'attention_mask has {len(tokens)} tokens between {begin} and {end}, expected no padding between tokens')
    return begin, end


def _mask(*, kv_length: int, mask_function: Callable[..., torch.Tensor] = causal_mask_function,
          attention_mask: torch.Tensor | None = None, q_length: int = 0, q_offset: int = 0,
          cache_position: torch.Tensor | None = None, use_vmap: bool = False, batch_size: int = 1,
          device: torch.device | str | None = None, **kwargs: Any) -> torch.Tensor | None:
    """Which tokens are no padding, or None. cache_position: of the queries, where transformers before 5.3 says it so."""
    n = q_offset + q_length if cache_position is None else int(cache_position[-1]) + 1
    if use_vmap and mask_function is not causal_mask_function:
        raise ValueError('the model adds a rule of its own to the causal mask, expected none')
    if mask_function is not causal_mask_function:
        tokens = torch.ones(batch_size, n, dtype=torch.bool, device=device) if attention_mask is None else attention_mask[:, -n:].bool()
        _check_mask(mask_function, tokens)
    if kv_length > n:
        raise ValueError(f'the cache has room for {kv_length} tokens of which {n} are there, expected one that grows')
    if attention_mask is None or attention_mask[:, -kv_length:].all():
        return None
    return attention_mask[:, -kv_length:]


def _check_mask(mask_function: Callable[..., torch.Tensor], tokens: torch.Tensor) -> None:
    """tokens: bool [batch, n], False for padding. Of transformers' rules (windows, chunks, packed sequences, blocks that see all
    of themselves) none is the causal one if every token is blind to the next and the last one sees all."""
    (batch, n), device = tokens.shape, tokens.device
    row, at = torch.arange(batch, device=device)[:, None], torch.arange(n, device=device)[None]
    if torch.as_tensor(mask_function(row, 0, at[:, :-1], at[:, 1:])).any():
        raise ValueError(f'the model {_NOT_CAUSAL}')
    seen = mask_function(row, 0, at[:, -1:], at) | ~tokens
    if not seen.all():
        raise ValueError(f'the last of {n} tokens sees {int((seen & tokens).sum(1).min())} of them, expected all: no window or chunk '
                         'that is shorter than the text, no packed sequences')


AttentionInterface.register('entropyinfer', attention)
AttentionMaskInterface.register('entropyinfer', _mask)

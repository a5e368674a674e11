"""What the kernels of `entropyinfer.ops` compute, in plain PyTorch and in double: to read, to check them by, and to replace
one stage of a policy by one's own (`entropyinfer.policy(..., select=...)`).

q [heads, n, d], k and v [kv_heads, n, d], RoPE applied; G = heads / kv_heads query heads share a KV head. Segment s is
tokens [s S, (s + 1) S), block b tokens [b B, (b + 1) B); a segment's past are the blocks before it.
"""
from __future__ import annotations

import math

import torch

from entropyinfer.ops import Selection

INFINITY = float('inf')


def sparse_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, selection: Selection | None = None,
                     scale: float | None = None) -> torch.Tensor:
    """softmax(scale q k^T) v over the selected past blocks and, causally, the segment. [heads, n, d]"""
    m, n, group = q.shape[1], k.shape[1], q.shape[0] // k.shape[0]
    scale = 1 / math.sqrt(q.shape[2]) if scale is None else scale
    if selection is None:
        seen = torch.ones(n, n, dtype=torch.bool, device=q.device).tril()[n - m:]
    else:
        seen = selection.mask(n)[:, n - m:].repeat_interleave(group, 0)
    k, v = (x.double().repeat_interleave(group, 0) for x in (k, v))
    logits = (scale * q.double() @ k.transpose(1, 2)).masked_fill(~seen, -INFINITY)
    return logits.softmax(-1) @ v


def block_scores(q: torch.Tensor, k: torch.Tensor, segment: int = 512, block: int = 8,
                 scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """The paper's scores: of a query head, the larger of the products of the middle of a segment's queries with the bounds
    of a block's keys; the mean over the G heads. [kv_heads, segments, blocks], -inf where a block is not past; and the
    entropy of their softmax, [kv_heads, segments]."""
    n, group = q.shape[1], q.shape[0] // k.shape[0]
    n_segments = -(-n // segment)
    n_blocks = max(1, (n_segments - 1) * segment // block)
    keys = k[:, :(n_segments - 1) * segment].double().unflatten(1, (-1, block)) if n_segments > 1 else k.new_zeros(k.shape[0], 1, 1, k.shape[2]).double()
    score = torch.full((k.shape[0], n_segments, n_blocks), -INFINITY, dtype=torch.float64, device=k.device)
    for s in range(1, n_segments):
        queries = q[:, s * segment:(s + 1) * segment].double()
        middle = ((queries.amax(1) + queries.amin(1)) / 2).unflatten(0, (-1, group))
        past = s * segment // block
        products = [torch.einsum('kgd,kbd->kgb', middle, bound[:, :past]) for bound in (keys.amax(2), keys.amin(2))]
        score[:, s, :past] = scale * torch.maximum(*products).mean(1)
    return score, entropy(score)


def entropy(score: torch.Tensor) -> torch.Tensor:
    """-sum p log p of p = softmax(score), in nats; of no scores 0."""
    p = score.softmax(-1).nan_to_num(0)
    return -torch.special.xlogy(p, p).sum(-1)


def budgets(entropies: torch.Tensor, base: float = 2048, e_t: float = 1e-5, delta_t: float = .4, alpha: float = .5) -> torch.Tensor:
    """Tokens that each segment of a head may attend to, by how its entropy moves. [kv_heads, segments]"""
    out = torch.full_like(entropies, base)
    for head in range(entropies.shape[0]):
        rigid, now = True, base
        for s in range(1, entropies.shape[1]):
            before, e = entropies[head, s - 1].item(), entropies[head, s].item()
            rho = delta_t if s == 1 else min(max((e - before) / (before + 1e-9), 0), 1 + delta_t)
            rigid = rigid and e < e_t
            now = base if rigid else min(max(now + alpha * base * (rho - delta_t), base), 3 * base)
            out[head, s] = now
    return out


def block_shares(q: torch.Tensor, k: torch.Tensor, segment: int = 32, block: int = 16, group_size: int = 8) -> torch.Tensor:
    """Of each segment's attention, how much goes to each block up to its end, by logits of half of the queries in the few
    directions that keys lie in, found of 1,024 of them, and in steps of 8 bits. [kv_heads, segments, blocks], 0 for later ones; whole segments only."""
    kv_heads, n, d = k.shape
    n_segments, group, width = n // segment, q.shape[0] // kv_heads, min(max(4, d // 8 * 4), 96)
    shares = torch.zeros(kv_heads, n_segments, n_segments * segment // block, dtype=torch.float64, device=k.device)
    for head in range(kv_heads):
        keys = k[head].double()
        some = keys[torch.arange(min(n, 1024), device=k.device) * n // min(n, 1024)]  # all over the prompt
        mean = some.mean(0)
        directions = torch.linalg.eigh((some - mean).T @ (some - mean))[1].flip(-1)[:, :width]
        keys = ((keys - mean) @ directions).unflatten(0, (-1, block))
        keys = _in_steps(keys, keys.abs().amax((1, 2), keepdim=True) / 63).flatten(0, 1)
        queries = q[head * group:(head + 1) * group].double() @ directions
        # The kernel adds products of pairs of dimensions, of six fours at a time, in 16 bits, which must not overflow.
        fours = torch.nn.functional.pad(queries.abs().unflatten(-1, (-1, 2, 2)).sum(-1), (0, 0, 0, -(width // 4) % 6))
        part = fours.unflatten(-2, (-1, 6)).sum(-2).amax((-1, -2))
        queries = _in_steps(queries, torch.maximum(queries.abs().amax(-1) / 127, part / (32767 // 63 - 6))[..., None]) / math.sqrt(d)
        for s in range(n_segments):
            begin, end = s * segment, (s + 1) * segment
            x = queries[:, begin:end] @ keys[:end].T
            later = torch.arange(end, device=k.device)[None] > torch.arange(begin, end, device=k.device)[:, None]
            x = x.masked_fill(later, -INFINITY).unflatten(-1, (-1, block)).amax(-1)  # a block's: of its highest key
            x = x - x.amax(-1, keepdim=True)
            # Of every two queries one is asked: the longer if its square is a fifth more, else every second head the second.
            one, two = q[head * group:(head + 1) * group, begin:end].double().square().sum(-1).unflatten(1, (-1, 2)).unbind(-1)
            odd = torch.arange(group, device=k.device)[:, None] % 2 == 1
            second = torch.where(torch.maximum(one, two) > 1.2 * torch.minimum(one, two), two > one, odd)
            asked = torch.arange(0, segment, 2, device=k.device) + second  # [group, segment / 2]
            x = x.gather(1, asked[..., None].expand(-1, -1, x.shape[-1]))
            x = x.unflatten(1, (-1, group_size)).amax(2)  # those that follow each other
            shares[head, s, :end // block] = x.softmax(-1).mean((0, 1))
    return shares


def _in_steps(x: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    return torch.where(step > 0, (x / step).round(), 0) * step


def likeliest(shares: torch.Tensor, past: int, segment: int = 32, block: int = 16, mass: float = .86, by_entropy: bool = True,
              sink: int = 16, local: int = 128) -> torch.Tensor:
    """Of one head and segment, shares [blocks up to its end]: the fewest past blocks that leave little enough out, beside
    those of the first `sink` tokens and of the last `local`. bool [past]"""
    of_past, own = shares[:past], shares[past:].sum()
    kept = torch.zeros(past, dtype=torch.bool, device=shares.device)
    kept[:-(-sink // block)] = True
    kept[max(0, past - -(-local // block)):] = True
    for b in torch.argsort(of_past.masked_fill(kept, -1), descending=True, stable=True)[:int((~kept).sum())]:
        held = own + of_past[kept].sum()
        squares = (of_past[~kept] ** 2).sum() + ((1 - held) / held) ** 2 * ((of_past[kept] ** 2).sum() + own ** 2 * block / segment)
        if held >= mass if not by_entropy else 16 * squares <= (1 - mass) ** 2:
            break
        kept[b] = True
    return kept


def select_highest(score: torch.Tensor, count: torch.Tensor, segment: int, block: int) -> Selection:
    """The `count` [kv_heads, segments] highest scores of each segment, ties to the lower block; -1: all."""
    index = torch.zeros(*count.shape, max(0, int(count.max())), dtype=torch.int32, device=count.device)
    for head, s in (count > 0).nonzero().tolist():
        n = int(count[head, s])
        best = torch.argsort(score[head, s, :s * segment // block], descending=True, stable=True)[:n]
        index[head, s, :n] = best.sort()[0]
    return Selection(count.to(torch.int32), index, segment, block)


def vote(q: torch.Tensor, k: torch.Tensor, reduce: str = 'mean', scale: float | None = None) -> torch.Tensor:
    """The newest queries' softmax over the keys that each may see, the mean over the queries; mean or maximum over the G
    heads. [kv_heads, n - w]"""
    w, n, group = q.shape[1], k.shape[1], q.shape[0] // k.shape[0]
    scale = 1 / math.sqrt(q.shape[2]) if scale is None else scale
    logits = scale * q.double() @ k.double().repeat_interleave(group, 0).transpose(1, 2)
    later = torch.arange(n, device=k.device)[None] > torch.arange(n - w, n, device=k.device)[:, None]
    votes = logits.masked_fill(later, -INFINITY).softmax(-1).mean(1)[:, :n - w].unflatten(0, (-1, group))
    return votes.mean(1) if reduce == 'mean' else votes.amax(1)


def pool_votes(votes: torch.Tensor, pooling: str = 'both', kernel: int = 21) -> torch.Tensor:
    if pooling == 'none':
        return votes
    if pooling == 'both':
        narrow = pool_votes(votes, 'avg', 5)
        return torch.maximum(narrow, .5 * pool_votes(narrow, 'max', kernel))
    pool = torch.nn.functional.max_pool1d if pooling == 'max' else torch.nn.functional.avg_pool1d
    return pool(votes, kernel, stride=1, padding=kernel // 2)


def keep_top(votes: torch.Tensor, n_top: int, window: int = 0) -> torch.Tensor:
    """The keys of the highest votes, ties to the earlier, and the window behind them. int32 [kv_heads, kept]"""
    n = votes.shape[1]
    best = torch.argsort(votes, dim=1, descending=True, stable=True)[:, :n_top].sort(1)[0]
    return torch.cat([best, torch.arange(n, n + window, device=votes.device).expand(len(votes), -1)], 1).to(torch.int32)

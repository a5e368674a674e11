"""Which policy holds in a `with` block, and what was read under it."""
from __future__ import annotations

import contextlib
import contextvars
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from entropyinfer._core import Policy

if TYPE_CHECKING:
    import torch

    from entropyinfer.ops import Reader, Selection


class _Prompt(threading.local):
    """What each thread is about to read."""

    def __init__(self):
        self.layers: list[list[Selection]] = []
        self.readers: dict[tuple[int, torch.device], Reader] = {}  # of each sequence, where its layers are
        self.shape: tuple = ()


class Reading:
    """What models with our attention did with their latest prompt.

    `layers[l][i]` is the `Selection` of layer l for sequence i of the batch, with the blocks themselves if that was
    asked for (`policy(..., blocks=True)`).
    """

    def __init__(self, policy: Policy, blocks: bool = False,
                 select: Callable[[torch.Tensor, torch.Tensor, int], Selection] | None = None):
        self.policy, self.blocks, self.select = policy, blocks, select
        self.layers: list[list[Selection]] = []
        self._here = _Prompt()

    @property
    def density(self) -> float:
        """Attended pairs of query and key over those of dense attention, the mean over layers and sequences."""
        densities = [selection.density for layer in self.layers for selection in layer]
        return sum(densities) / len(densities) if densities else 1.0


current: contextvars.ContextVar[Reading | None] = contextvars.ContextVar('entropyinfer.policy', default=None)


@contextlib.contextmanager
def policy(name: str | Policy, *, blocks: bool = False,
           select: Callable[[torch.Tensor, torch.Tensor, int], Selection] | None = None, **settings: Any) -> Iterator[Reading]:
    """In the block, engines and models with our attention read and write by this policy.

    `name` and `settings` are those of `Policy`. select(q, k, layer), with q [heads, n, d] and k [kv_heads, n, d], replaces
    our choice of blocks by one's own. Yields what becomes known of the prompts that are read. Like torch.inference_mode, it
    holds for its own thread; `contextvars.copy_context().run` and `asyncio.to_thread` take it along to another.

        with entropyinfer.policy('paper', base_budget=1024) as reading:
            model.generate(**inputs)
        reading.layers[3][0].entropy
    """
    if isinstance(name, Policy) and settings:
        raise TypeError(f'policy: settings {sorted(settings)} beside a Policy, expected beside a name')
    reading = Reading(name if isinstance(name, Policy) else Policy(name, **settings), blocks, select)
    token = current.set(reading)
    try:
        yield reading
    finally:
        current.reset(token)

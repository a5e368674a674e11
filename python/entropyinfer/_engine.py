"""The engine: checkpoints in, text out."""
from __future__ import annotations

import atexit
import contextlib
import json
import math
import operator
import queue
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from entropyinfer import _core
from entropyinfer._core import Generation, ModelInfo, Policy
from entropyinfer._policy import current

if TYPE_CHECKING:
    import numpy as np

Prompt: TypeAlias = 'str | Sequence[Mapping[str, Any]] | Sequence[int] | np.ndarray'
"""A text as it is; a conversation, as OpenAI's API has it, which the chat template writes; or token ids."""


@dataclass(frozen=True)
class Score:
    """How likely a model held each token, given those before it."""
    logprobs: np.ndarray  # float32 [n], nats; the first has none: 0
    argmax: np.ndarray    # int32 [n]: the likeliest token in its place; the first has none: -1
    density: float        # attended pairs of query and key over those of dense attention

    @property
    def perplexity(self) -> float:
        return math.exp(-self.logprobs[1:].mean(dtype='float64'))


@dataclass(frozen=True)
class Profile:
    """What every head did while a prompt was read. Arrays are [layers, kv_heads, segments] unless they say otherwise."""
    segment: int                  # tokens that choose together
    block: int                    # tokens chosen together
    entropy: np.ndarray           # float32, nats, of what blocks are chosen by; NaN where a layer is dense
    budget: np.ndarray            # float32, tokens
    blocks: np.ndarray            # int64: past blocks attended to
    dense: np.ndarray             # bool: all of them, whatever the budget
    kept_by_distance: np.ndarray  # float64 [layers, kv_heads, segments back]: share of past blocks kept, 1 back first
    votes: np.ndarray             # float64 [layers, kv_heads, 128]: of the answer's first tokens, over the prompt
    generation: Generation        # how it went


class _Closed(Exception):
    pass


_streams: dict[threading.Thread, threading.Event] = {}  # those that write, and what tells each to stop


@atexit.register
def _end_streams() -> None:
    """Threads that still write when the interpreter goes would wait for it for ever."""
    for thread, closed in list(_streams.items()):
        closed.set()
        thread.join()


class Engine:
    """A checkpoint ready to run, and the conversation that it remembers: a prompt that begins like the last one is read
    from where they part, as long as the policy is the same and nothing of it was compressed away.

    Args:
        model: a directory of Hugging Face's format, a .gguf file, or a name on its hub (org/repo, org/repo:Q4_K_M),
            which is fetched if it is not there. Progress is told to the logger 'entropyinfer'.
        device: 'cpu', 'cuda' or 'auto'.
        threads: of the CPU; 0: one for each that the process may use, or of `pin`.
        pin: keep each thread on a CPU of its own while it computes: 'auto', or a list such as '0-3,8'. '': on none.
        kv_type: of the cache of keys and values: 'bf16', 'f32', on the CPU 'q8_0' or, on a GPU, 'fp8'.
        math: 'bf16', where the processor has a unit for it, or 'f32'.
        weights: convert them while loading: 'bf16', 'fp8', 'q8_0' or 'q4_k'.
        prefix_bytes: memory for what was read, kept beside a cache that gets compressed.

    What the engine refuses raises `Error`, a ValueError, with its message. Methods may be called from several threads;
    they take turns. Ctrl-C ends them within a chunk of the prompt or a token.
    """

    def __init__(self, model: str, *, device: str = 'auto', threads: int = 0, pin: str = '', kv_type: str = 'bf16',
                 math: str = 'bf16', weights: str | None = None, prefix_bytes: int = 0):
        self._model = _core.Model(str(model), device, threads, pin, kv_type, math, weights, prefix_bytes)
        self._lock, self._caller = threading.Lock(), 0

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """One caller after the other; those that wait can be interrupted."""
        self._check_caller()
        with self._lock:
            self._caller = threading.get_ident()
            try:
                yield
            finally:
                self._caller = 0

    def _check_caller(self) -> None:
        if self._caller == threading.get_ident():
            raise RuntimeError('an engine was called from a function that it called')

    @property
    def info(self) -> ModelInfo:
        return self._model.info()

    def tokenize(self, prompt: Prompt, *, template: Mapping[str, Any] | None = None) -> np.ndarray:
        """Token ids, int32 [n]. `template`: what the chat template sees beside the messages, such as
        {'enable_thinking': False} or {'tools': [...]}."""
        import numpy as np  # as late as it can be: it takes longer than all else of an import

        if isinstance(prompt, str):
            try:
                ids = self._model.encode(prompt)
            except TypeError:
                prompt.encode()  # says where it is no Unicode
                raise
        elif isinstance(prompt, Sequence) and len(prompt) > 0 and isinstance(prompt[0], Mapping):
            ids = self._model.encode_chat(json.dumps(list(prompt)), json.dumps(dict(template or {})))
        else:
            ids = prompt
        array = np.asarray(ids)
        if array.size == 0:
            array = array.astype(np.int32)
        if array.ndim != 1 or array.dtype.kind not in 'iu':
            raise TypeError(f'a prompt is {array.dtype} {list(array.shape)}, expected a text, messages, or whole numbers [n]')
        if array.size > 0 and (array.min() < -2**31 or array.max() >= 2**31):
            raise ValueError(f'token ids are {array.min()} to {array.max()}, expected 0 to {self.info.vocab_size - 1}')
        return np.ascontiguousarray(array, np.int32)

    def detokenize(self, tokens: Sequence[int] | np.ndarray) -> str:
        return self._model.decode(self.tokenize(tokens))

    def generate(self, prompt: Prompt, policy: Policy | str | None = None, *, max_tokens: int = 512, stop: str | Sequence[str] = (),
                 ignore_eos: bool = False, temperature: float | None = None, top_k: int | None = None, top_p: float | None = None,
                 min_p: float | None = None, repetition_penalty: float | None = None, presence_penalty: float | None = None,
                 frequency_penalty: float | None = None, seed: int | None = None, template: Mapping[str, Any] | None = None,
                 on_text: Callable[[str], object] | None = None, on_prefill: Callable[[int, int], object] | None = None) -> Generation:
        """Reads the prompt and writes the answer.

        Args:
            policy: by name, as in 'paper+snapkv:budget=512'; None: that of the `with entropyinfer.policy(...)` around, or the
                program's default. 'dense+full' turns the method off.
            stop: a string that ends the answer and is not part of it, or several.
            temperature: and the others: as the checkpoint's generation_config.json says, else greedy.
            on_text: gets the answer in pieces of whole characters.
            on_prefill: gets (tokens read, tokens of the prompt) after every chunk.

        An exception of theirs ends the answer and is raised here.
        """
        sampling = _core.Sampling()
        for name, value in {'temperature': temperature, 'top_k': top_k, 'top_p': top_p, 'min_p': min_p, 'repetition_penalty': repetition_penalty,
                            'presence_penalty': presence_penalty, 'frequency_penalty': frequency_penalty, 'seed': seed}.items():
            try:
                setattr(sampling, name, value)
            except TypeError:
                expected = {'top_k': 'a whole number', 'seed': 'a whole number from 0 on'}.get(name, 'a number')
                raise TypeError(f'{name} is {value!r}, expected {expected}') from None
        stops = [stop] if isinstance(stop, str) else list(stop)
        if not all(isinstance(text, str) for text in stops):
            raise TypeError(f'stop is {stop!r}, expected a string or several')
        tokens = self.tokenize(prompt, template=template)
        with self._turn():
            return self._model.generate(tokens, _policy(policy), _count('max_tokens', max_tokens), stops, ignore_eos, sampling, on_text,
                                        on_prefill)

    def stream(self, prompt: Prompt, policy: Policy | str | None = None, **options: Any) -> Generator[str, None, Generation]:
        """The answer in pieces, as they are written; `options` are those of `generate`. Leaving the loop ends it; the
        generator's value is the `Generation`."""
        pieces: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        outcome: list = []
        closed = threading.Event()
        self._check_caller()
        tokens, policy = self.tokenize(prompt, template=options.pop('template', None)), _policy(policy)

        def report(call, *values):
            if closed.is_set():
                raise _Closed
            if call is not None:
                call(*values)

        def run(on_text=options.pop('on_text', None), on_prefill=options.pop('on_prefill', None)):
            def text(piece):
                report(on_text, piece)
                pieces.put(piece)
            try:
                outcome.append(self.generate(tokens, policy, on_text=text, on_prefill=lambda *read: report(on_prefill, *read), **options))
            except BaseException as error:  # noqa: B902: raised where the pieces are read
                outcome.append(error)
            finally:
                pieces.put(None)

        thread = threading.Thread(target=run, daemon=True)
        _streams[thread] = closed
        thread.start()
        try:
            while (piece := pieces.get()) is not None:
                yield piece
        finally:
            closed.set()
            thread.join()
            _streams.pop(thread, None)
        if isinstance(outcome[0], BaseException):
            raise outcome[0]
        return outcome[0]

    def score(self, prompt: Prompt, policy: Policy | str | None = None, *, n_prefill: int = -1, template: Mapping[str, Any] | None = None,
              on_logits: Callable[[int, np.ndarray], object] | None = None,
              on_prefill: Callable[[int, int], object] | None = None) -> Score:
        """How likely the model holds each token of a text, the first n_prefill (-1: all) read as a prompt and the others
        written one by one. on_logits gets (position, float32 [vocab_size]): the model's logits for the token there."""
        tokens = self.tokenize(prompt, template=template)
        n_prefill = len(tokens) if n_prefill == -1 else _count('n_prefill', n_prefill)
        with self._turn():
            return Score(*self._model.score(tokens, _policy(policy), n_prefill, on_logits, on_prefill))

    def profile(self, prompt: Prompt, policy: Policy | str | None = None, *, template: Mapping[str, Any] | None = None,
                on_prefill: Callable[[int, int], object] | None = None) -> Profile:
        """What every layer, head and segment attended to while the prompt was read, and which parts of it the first tokens
        of an answer look at."""
        tokens = self.tokenize(prompt, template=template)
        with self._turn():
            arrays, generation = _core.profile(self._model, tokens, _policy(policy), on_prefill)
        arrays['dense'] = arrays['dense'].view(bool)
        return Profile(**arrays, generation=generation)

    def clear(self) -> None:
        """Forgets the conversation and frees its memory."""
        with self._turn():
            self._model.clear()


def _policy(policy: Policy | str | None) -> Policy | None:
    if policy is None:
        reading = current.get()
        return None if reading is None else reading.policy
    if not isinstance(policy, Policy | str):
        raise TypeError(f'policy is {policy!r}, expected a name or a Policy')
    return policy if isinstance(policy, Policy) else Policy(policy)


def _count(name: str, value: int) -> int:
    """A number that fits the engine's 64 bits."""
    try:
        count = operator.index(value)
    except TypeError:
        raise TypeError(f'{name} is {value!r}, expected a whole number') from None
    if count < 0:
        raise ValueError(f'{name} is {value}, expected 0 or more')
    return min(count, 2**62)

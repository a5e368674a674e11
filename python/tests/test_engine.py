"""The engine in Python: the same answers however they are asked for, and nothing that dangles, hangs or is lost."""
import ast
import gc
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading

import entropyinfer
import numpy as np
import pytest
from conftest import TOP
from entropyinfer import Engine, Policy

QUESTION = 'The code of the north gate is 4711. ' * 3 + 'What is the code of the north gate?'


@pytest.fixture(scope='module')
def engine(model_dir, device):
    return Engine(model_dir, device=device)


def tokens_of(n, seed=1):
    return np.random.default_rng(seed).integers(10, 4000, n, dtype=np.int32)


def test_import_is_light():
    heavy = 'torch', 'transformers', 'numpy'
    code = f'import sys, entropyinfer; sys.exit(" ".join(m for m in {heavy} if m in sys.modules) or None)'
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stderr == ''


def test_tokens_are_those_of_the_text(engine):
    text = 'A harbour, two boats\n and 3.5 knots.'
    assert engine.detokenize(engine.tokenize(text)) == text
    chat = engine.tokenize([{'role': 'user', 'content': text}])
    assert chat.dtype == np.int32 and text in engine.detokenize(chat)
    assert (engine.tokenize(list(chat)) == chat).all() and (engine.tokenize(chat.astype(np.int64)) == chat).all()


def test_greedy_answers_are_what_the_model_scores_highest(engine):
    prompt = engine.tokenize(QUESTION)
    answer = engine.generate(prompt, 'dense+full', max_tokens=12, ignore_eos=True, temperature=0)
    assert answer.finish_reason == 'length' and answer.prompt_tokens == len(prompt) and len(answer.tokens) == 12
    score = engine.score(np.concatenate([prompt, answer.tokens]), 'dense+full')
    assert (score.argmax[len(prompt):] == answer.tokens).all()
    assert score.density == 1 and answer.sparsity.density == 1 and not answer.kv.compressed


def test_devices_agree(engine, model_dir):
    """Where products are of bf16 a token's likelihood moves by hundredths, and few by more: a policy moves them by .2."""
    exact = Engine(model_dir, device='cpu', kv_type='f32', math='f32')
    tokens = exact.tokenize((TOP / 'LICENSE').read_text(encoding='utf-8'))[:2500]
    for policy in 'dense+full', 'paper:threshold=256:segment=64:block=8:base-budget=128':
        score, expected = engine.score(tokens, policy), exact.score(tokens, policy)
        assert np.median(np.abs(score.logprobs - expected.logprobs)) < .06
        assert score.density == pytest.approx(expected.density, rel=.02)


def test_pieces_add_up(engine):
    messages = [{'role': 'user', 'content': QUESTION}]
    pieces, read = [], []
    answer = engine.generate(messages, max_tokens=20, temperature=0, on_text=pieces.append, on_prefill=lambda *n: read.append(n))
    assert answer.text and ''.join(pieces) == answer.text
    assert read[-1] == (answer.prompt_tokens, answer.prompt_tokens)
    assert list(engine.stream(messages, max_tokens=20, temperature=0)) == pieces
    assert next(engine.stream(messages, max_tokens=100000, ignore_eos=True, temperature=0)) == pieces[0]  # and it is left
    assert engine.generate(messages, max_tokens=20, temperature=0).tokens == answer.tokens


def test_a_stop_may_be_one_string(engine):
    write = lambda **stop: engine.generate(QUESTION, max_tokens=40, temperature=1, seed=7, ignore_eos=True, **stop).text
    text = write()
    stop = text[20:24]
    assert text.index(stop) > text.index(stop[0])  # which is no stop of its own
    assert write(stop=stop) == write(stop=[stop]) == text[:text.index(stop)]


def test_seeds_repeat(engine):
    write = lambda seed: engine.generate(QUESTION, max_tokens=16, temperature=3, ignore_eos=True, seed=seed).tokens
    assert write(7) == write(7) != write(8)


def test_policies_come_by_name_by_object_and_from_around(engine):
    tokens = tokens_of(2500)
    read = lambda *policy: engine.score(tokens, *policy)
    named = read('paper:threshold=512:segment=128:base-budget=256')
    policy = Policy('paper', threshold=512, segment=128, base_budget=256)
    assert policy.settings['base_budget'] == 256 and policy.settings['budget'] == 1024
    with entropyinfer.policy(policy):
        around = read()
    assert 0 < named.density < 1
    for other in read(policy), around:
        assert other.density == named.density and (other.logprobs == named.logprobs).all()
    assert read('dense+full').density == 1


def test_what_a_call_back_raises_ends_the_answer(engine):
    def fail(*_):
        raise LookupError('enough')
    for calls in {'on_text': fail}, {'on_prefill': fail}:
        with pytest.raises(LookupError, match='enough'):
            engine.generate(QUESTION, max_tokens=8, **calls)
        with pytest.raises(LookupError, match='enough'):
            list(engine.stream(QUESTION, max_tokens=8, **calls))
    with pytest.raises(LookupError):
        engine.score(QUESTION, on_logits=fail)
    for again in engine.score, lambda _: list(engine.stream(QUESTION)), lambda _: engine.clear():
        with pytest.raises(RuntimeError, match='from a function that it called'):
            engine.generate(QUESTION, max_tokens=8, on_text=again)
    assert engine.generate(QUESTION, max_tokens=8).finish_reason in ('stop', 'length')


def kill():
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)


def interrupted(call):
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started this may ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            call()
    finally:
        signal.signal(signal.SIGINT, handler)


def test_ctrl_c_ends_a_prompt_within_a_chunk(model_dir):
    engine = Engine(model_dir, device='cpu')
    read, before = [], []

    def signal_it():  # when a busy machine has time for it
        before.append(len(read))
        kill()

    def interrupt(done, total):  # by another thread, while the engine has the lock released
        read.append((done, total))
        if len(read) == 1:
            threading.Thread(target=signal_it).start()
    interrupted(lambda: engine.generate(tokens_of(16 * 2048), 'dense+full', max_tokens=4, on_prefill=interrupt))
    assert len(read) <= before[0] + 1 and read[-1][0] < read[-1][1]


def test_ctrl_c_ends_what_is_scored_token_by_token(engine):
    seen = {}  # by a function of C, which itself looks for no signals
    interrupted(lambda: engine.score(tokens_of(2000), 'dense+full', n_prefill=8, on_logits=seen.setdefault,
                                     on_prefill=lambda *_: threading.Thread(target=kill).start()))
    assert len(seen) < 1000


def test_ctrl_c_ends_the_wait_for_ones_turn(engine):
    writes, waits = threading.Event(), threading.Event()

    def write(_):
        writes.set()
        waits.wait(60)
    other = threading.Thread(target=lambda: engine.generate(QUESTION, max_tokens=2, ignore_eos=True, on_text=write))
    other.start()
    assert writes.wait(60)
    threading.Timer(.1, kill).start()  # whether it waits yet or not
    interrupted(lambda: engine.generate(QUESTION, max_tokens=2))
    assert other.is_alive()
    waits.set()
    other.join()


def test_engines_do_not_know_each_other(engine, model_dir):
    other = Engine(model_dir, device='cpu')
    assert engine.generate(QUESTION, max_tokens=2, ignore_eos=True, on_text=lambda _: other.generate(QUESTION, max_tokens=1)).tokens


def test_threads_take_turns(engine):
    alone = [engine.generate(tokens_of(40, seed), max_tokens=8, temperature=0).tokens for seed in range(4)]
    together = [None] * 4

    def write(i):
        together[i] = list(engine.generate(tokens_of(40, i), max_tokens=8, temperature=0, on_text=lambda _: None).tokens)
    threads = [threading.Thread(target=write, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone


def test_arrays_outlive_what_they_came_from(model_dir):
    engine = Engine(model_dir, device='cpu')
    rows = []
    tokens = tokens_of(200)
    score = engine.score(tokens, 'dense+full', on_logits=lambda position, logits: rows.append((position, logits)))
    profile = engine.profile(tokens, 'paper:threshold=0:segment=32:dense-tail=0:dense-layers=0')
    entropy, stats = profile.entropy[1:], profile.generation.timings
    del engine, profile
    gc.collect()
    junk = [np.full(4096, np.nan, np.float32) for _ in range(300)]
    assert [position for position, _ in rows] == list(range(1, 200))
    for position, logits in rows:
        expected = logits.astype(np.float64) - np.logaddexp.reduce(logits.astype(np.float64))
        assert score.logprobs[position] == pytest.approx(expected[tokens[position]], abs=1e-4)
        assert score.argmax[position] == logits.argmax()
    assert np.isfinite(entropy).all() and entropy.base is not None and stats.prefill_ms > 0 and junk


def test_a_profile_has_every_head_and_segment(engine):
    profile = engine.profile(tokens_of(1000), 'paper:threshold=128:segment=64:base-budget=128:dense-tail=0')
    layers, heads, segments = 8, 2, 16
    assert profile.entropy.shape == profile.blocks.shape == profile.dense.shape == (layers, heads, segments)
    assert profile.segment == 64 and profile.block == 8 and profile.votes.shape == (layers, heads, 128)
    assert np.isnan(profile.entropy[0]).all() and profile.dense[0].all()  # the first layer is dense
    past = np.arange(segments) * 8
    sparse = profile.entropy[1:]
    assert (sparse >= 0).all() and (sparse <= np.log(np.maximum(past, 1)) + 1e-5).all() and (sparse[..., 1:] > 0).any()
    assert (profile.blocks[1:] <= past).all() and (profile.blocks[1:][~profile.dense[1:]] < 128 * 3 // 8 + 1).all()
    assert not profile.dense[1:, :, 2:-1].any() and profile.dense[1:, :, [0, 1, -1]].all()
    votes = profile.votes.sum(-1)  # the rest goes to the window itself
    assert (profile.votes >= 0).all() and (votes > .05).all() and (votes <= 1 + 1e-5).all()
    assert 0 < profile.generation.sparsity.density < 1


@pytest.mark.parametrize('error, message, call', [
    (ValueError, 'papr', lambda e: e.generate('x', 'papr')),
    (ValueError, 'segmnt', lambda e: Policy('paper', segmnt=4)),
    (ValueError, 'block', lambda e: Policy('paper', segment=100, block=8)),
    (TypeError, 'beside a Policy', lambda e: entropyinfer.policy(Policy('paper'), mass=.5).__enter__()),
    (ValueError, 'temperature', lambda e: e.generate('x', temperature=-1)),
    (TypeError, 'seed is -1, expected a whole number from 0 on', lambda e: e.generate('x', seed=-1)),
    (TypeError, "top_p is '1', expected a number", lambda e: e.generate('x', top_p='1')),
    (ValueError, '4096', lambda e: e.generate([5000])),
    (ValueError, r'token id 5000 is not in the vocabulary \(0 to 4095\)', lambda e: e.detokenize([5000])),
    (UnicodeEncodeError, 'surrogates not allowed', lambda e: e.tokenize('\ud800')),
    (ValueError, 'max_tokens is -1, expected 0 or more', lambda e: e.generate('x', max_tokens=-1)),
    (TypeError, 'max_tokens is 2.5, expected a whole number', lambda e: e.generate('x', max_tokens=2.5)),
    (ValueError, 'n_prefill is -2, expected 0 or more', lambda e: e.score('x', n_prefill=-2)),
    (TypeError, r'stop is \[1\], expected a string or several', lambda e: e.generate('x', stop=[1])),
    (TypeError, 'policy is 5, expected a name or a Policy', lambda e: e.generate('x', 5)),
    (ValueError, 'prefix_bytes is -5', lambda e: Engine('x', prefix_bytes=-5)),
    (ValueError, 'expected 0 to 4095', lambda e: e.generate([2**40])),
    (ValueError, 'empty', lambda e: e.generate([])),
    (ValueError, '131072', lambda e: e.generate(np.ones(140000, np.int32))),
    (TypeError, r'object \[\]', lambda e: e.generate(None)),
    (TypeError, r'float64 \[2\]', lambda e: e.generate([1.5, 2])),
    (TypeError, r'\[1, 3\]', lambda e: e.generate(np.ones((1, 3), np.int32))),
    (ValueError, "device is 'tpu', expected auto, cpu, cuda", lambda e: Engine('x', device='tpu')),
    (ValueError, 'no/such/model', lambda e: Engine('/no/such/model')),
    (ValueError, 'threads is -1', lambda e: Engine(entropyinfer.__path__[0], threads=-1)),
])
def test_what_is_wrong_is_said(engine, error, message, call):
    with pytest.raises(error, match=message):
        call(engine)
    assert issubclass(entropyinfer.Error, ValueError)


def test_everything_has_types():
    """What a user's mypy or pyright sees: no parameter without a type, no dict of who knows what."""
    package = pathlib.Path(entropyinfer.__path__[0])
    for file in [*package.glob('*.py'), package / '_core.pyi']:
        tree = ast.parse(file.read_text(encoding='utf-8'))
        for scope in [tree, *(node for node in tree.body if isinstance(node, ast.ClassDef))]:
            for function in (node for node in scope.body if isinstance(node, ast.FunctionDef) and not node.name.startswith('__')):
                for argument in (node for node in ast.walk(function.args) if isinstance(node, ast.arg) and node.arg != 'self'):
                    where = f'{file.name}: {function.name}: {argument.arg}'
                    assert argument.annotation, where
                    assert not re.search(r'\b(dict|Mapping|Callable)\b(?![\[(])', ast.unparse(argument.annotation)), where


def test_an_end_of_the_process_while_it_writes(model_dir):
    code = f'from entropyinfer import Engine; s = Engine({str(model_dir)!r}).stream("x", max_tokens=100000, ignore_eos=True); next(s)'
    assert subprocess.run([sys.executable, '-c', code], env={**os.environ, 'OMP_NUM_THREADS': '1'}, timeout=100).returncode == 0

"""What depends on the device that computes: prompts that are read beside answers, sessions in files, memory that is not there. On a
GPU: ENTROPYINFER_DEVICE=cuda."""
import contextlib
import ctypes
import json
import re
import subprocess
import threading

import pytest

from conftest import DEVICE, MODEL, PROGRAM
from faults_test import STREAM, alive, all_gone, chat, connect, request_bytes
from load_test import prompt


def ask(text, question, **more):
    parts = [{'type': 'text', 'text': part} for part in (text, question)]
    return {'messages': [{'role': 'user', 'content': parts}], 'temperature': 0, **more}


class Stream(threading.Thread):
    """A streamed answer: how many pieces of text have come, and what they say."""

    def __init__(self, server, body):
        super().__init__()
        self.sock = connect(server)
        self.sock.sendall(request_bytes({**body, 'stream': True, 'return_progress': True}, 'Connection: close'))
        self.n_pieces, self.text, self.error, self.begun = 0, '', None, threading.Event()
        self.on_event = lambda event: None
        self.start()

    def run(self):
        with contextlib.suppress(ConnectionError):  # of one that was closed
            self.read()
        self.begun.set()

    def read(self):
        for line in self.sock.makefile('rb'):
            if not line.startswith(b'data: {'):
                continue
            event = json.loads(line[6:])
            self.on_event(event)
            self.error = event.get('error') or self.error
            piece = (event.get('choices') or [{}])[0].get('delta', {}).get('content')
            if piece:
                self.n_pieces += 1
                self.text += piece
                self.begun.set()

    def close(self):
        self.sock.shutdown(2)
        self.join()


def test_answers_go_on_while_a_long_prompt_is_read(server):
    text, question, value = prompt(8000, seed=1)
    body = ask(text, question, max_tokens=32, cache_prompt=False)
    status, alone = server.post('/v1/chat/completions', body)
    assert status == 200 and value in alone['choices'][0]['message']['content']
    writing = Stream(server, {**chat('Once upon a time'), **STREAM, 'max_tokens': 20000})
    assert writing.begun.wait(60)
    reading = Stream(server, body)
    seen = []  # of the other answer, with every chunk that was read
    reading.on_event = lambda event: seen.append(writing.n_pieces) if 'prompt_progress' in event else None
    reading.join(120)
    assert reading.text == alone['choices'][0]['message']['content']
    # Chunks are of 512 tokens, and a step follows each.
    assert len(seen) >= 12 and len(set(seen)) >= 8, seen
    writing.close()
    all_gone(server)


def by_run(*args):
    """The answer, how many tokens the prompt had and how many of them were known."""
    done = subprocess.run([PROGRAM, 'run', MODEL, '--temp', '0', '-n', '32', *args], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    n_prompt, n_known = re.search(r'([\d,]+) prompt tokens(?: \(([\d,]+) known already\))?', done.stderr).groups('0')
    return done.stdout, int(n_prompt.replace(',', '')), int(n_known.replace(',', ''))


@pytest.mark.parametrize('policy', [[], ['--budget', '256'], ['--decode', 'full', '--prefill', 'paper']], ids=' '.join)
def test_a_saved_session_goes_on(tmp_path, policy):
    text, question, value = prompt(6000, seed=2)
    (tmp_path / 'text.txt').write_text(text)
    session = ['--session', tmp_path / 'session', *policy]
    _, n_first, n_known = by_run(*session, '--file', tmp_path / 'text.txt', '--prompt', 'Where is the heron?')
    assert n_first > 4000 and n_known == 0
    answer, n_second, n_known = by_run(*session, '--prompt', question)
    assert value in answer and n_second > n_known > n_first - 512  # but for a page


class Gpu:
    """The driver, by which another process holds a GPU's memory."""

    def __init__(self):
        self.cuda = ctypes.CDLL('libcuda.so.1')
        context = ctypes.c_void_p()
        for call in (lambda: self.cuda.cuInit(0), lambda: self.cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0),
                     lambda: self.cuda.cuCtxSetCurrent(context)):
            assert call() == 0

    def free(self):
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        assert self.cuda.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)) == 0
        return free.value

    @contextlib.contextmanager
    def all_but(self, n_bytes):
        held = ctypes.c_uint64()
        assert self.cuda.cuMemAlloc_v2(ctypes.byref(held), ctypes.c_size_t(self.free() - n_bytes)) == 0
        try:
            yield
        finally:
            assert self.cuda.cuMemFree_v2(held) == 0


def test_a_gpu_without_memory_refuses_one_request_and_answers_the_others(start, request):
    if DEVICE != 'cuda' or not request.config.getoption('--hold-memory'):
        pytest.skip('takes all memory of a GPU: ENTROPYINFER_DEVICE=cuda, --hold-memory')
    gpu = Gpu()
    server = start('--kv-memory', '16GiB', '--prefix-memory', '0', '--default-max-tokens', '64')
    text, question, value = prompt(100_000, seed=3)
    long = ask(text, question, max_tokens=32)
    writing = Stream(server, {**chat('Once upon a time'), **STREAM, 'max_tokens': 3000})
    assert writing.begun.wait(60)
    with gpu.all_but(64 << 20):
        for _ in range(2):
            n_pieces = writing.n_pieces
            status, reply = server.post('/v1/chat/completions', long)
            assert status in (400, 503) and 'MiB' in reply['error']['message'], (status, reply)
            alive(server)
    status, reply = server.post('/v1/chat/completions', long)
    assert status == 200 and value in reply['choices'][0]['message']['content'], reply
    writing.join(120)
    assert writing.error is None and writing.n_pieces > n_pieces
    all_gone(server)

"""Clients that misbehave, at the level of sockets, and a server that is stopped: it answers what can be answered,
forgets the rest, and goes on."""
import collections
import contextlib
import ctypes
import http.client
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import threading
import urllib.request

import pytest

from conftest import PROGRAM, ROOT

SECRET = 'xylophone-quagmire'
LONG = ' '.join(f'The number {i} is followed by {i + 1}.' for i in range(100)) + ' ' + SECRET  # more than one chunk


def connect(server):
    return socket.create_connection(('127.0.0.1', server.port), timeout=60)


def request_bytes(body, *headers, path='/v1/chat/completions'):
    data = json.dumps(body).encode()
    head = [f'POST {path} HTTP/1.1', 'Host: localhost', 'Content-Type: application/json', f'Content-Length: {len(data)}', *headers]
    return '\r\n'.join(head).encode() + b'\r\n\r\n' + data


def chat(text, **more):
    return {'messages': [{'role': 'user', 'content': text}], **more}


def read_all(sock):
    data = b''
    while piece := sock.recv(65536):
        data += piece
    return data


def status_of(server, raw):
    with connect(server) as sock:
        sock.sendall(raw)
        return int(sock.recv(65536).split()[1])


def wait_for(condition, what, tries=20000):
    for _ in range(tries):
        if condition():
            return
    raise AssertionError(what)


def all_gone(server):
    wait_for(lambda: server.metric('num_requests_running') + server.metric('num_requests_waiting') == 0, 'requests are still there')


def alive(server):
    status, reply = server.post('/v1/completions', {'prompt': 'Once upon', 'max_tokens': 2})
    assert status == 200 and reply['usage']['completion_tokens'] == 2


@pytest.mark.parametrize('raw, status', [
    (b'hello\r\n\r\n', 400),
    (b'GET /health HTTP/9.9\r\n\r\n', 400),
    (b'GET / HTTP/1.1\r\nHost: localhost\r\nX: ' + b'x' * 40000 + b'\r\n\r\n', 431),
    (b'POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n\r\n', 413),
    (b'POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n', 400),
    (b'POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd', 400),
    (b'POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n', 400),
    (b'POST /tokenize HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n', 400),
    (b'GET /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n\r\n', 405),
    (b'DELETE /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n', 404),
    (b'GET /../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n', 404),
])
def test_what_is_no_request_of_ours(server, raw, status):
    assert status_of(server, raw) == status


def test_a_chunked_body_without_end(start):
    server = start('--max-body', '64KiB')
    with connect(server) as sock:
        sock.sendall(b'POST /tokenize HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n')
        piece = b'4000\r\n' + b'x' * 0x4000 + b'\r\n'
        for _ in range(5):
            sock.sendall(piece)
        assert sock.recv(65536).split()[1] == b'413'


def test_slow_senders_are_dropped_and_keep_nobody_waiting(server):
    before = server.counts('requests_refused_total').get('header_timeout', 0)
    slow = [connect(server) for _ in range(51)]
    for i, sock in enumerate(slow):
        sock.sendall([b'', b'POST /tok', b'POST /tokenize HTTP/1.1\r\nHost: local'][i % 3])
    alive(server)
    assert {read_all(sock) for sock in slow} == {b''}  # closed by the server when the header's time is over
    # Who said nothing asked for nothing.
    wait_for(lambda: server.counts('requests_refused_total')['header_timeout'] == before + 34, 'not counted')


def test_what_is_refused_is_logged_and_counted(start):
    server = start('--api-key', 'secret', '--max-body', '64KiB')
    key = b'Host: localhost\r\nAuthorization: Bearer secret\r\n'
    refused = [
        (b'hello\r\n\r\n', 400, 'malformed_request'),
        (b'POST /tokenize HTTP/1.1\r\n' + key + b'Transfer-Encoding: chunked\r\n\r\nzz\r\n', 400, 'malformed_request'),
        (b'GET / HTTP/1.1\r\n' + key + b'X: ' + b'x' * 40000 + b'\r\n\r\n', 431, 'header_too_long'),
        (b'POST /tokenize HTTP/1.1\r\n' + key + b'Content-Length: 70000\r\n\r\n', 413, 'body_too_long'),
        (b'POST /v1/messages HTTP/1.1\r\n' + key + b'Content-Length: 70000\r\n\r\n', 413, 'body_too_long'),
        (b'GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n', 401, 'invalid_api_key'),
        (b'GET /v1/models HTTP/1.1\r\nHost: rebound.example\r\n\r\n', 403, 'unknown_host'),
        (b'GET /tokenize HTTP/1.1\r\n' + key + b'\r\n', 405, 'method_not_allowed'),
        (b'GET /nowhere HTTP/1.1\r\n' + key + b'\r\n', 404, 'not_found_error'),
        (b'POST /tokenize HTTP/1.1\r\n' + key + b'Content-Length: 1\r\n\r\n{', 400, 'invalid_request_error'),
    ]
    ids = []
    for raw, status, _ in refused:
        with connect(server) as sock:
            sock.sendall(raw)
            reply = sock.recv(65536)
        assert int(reply.split()[1]) == status
        assert (b'{"type":"error","error":{"type":"request_too_large"' in reply) == (b'/v1/messages' in raw)
        ids.append(re.search(rb'X-Request-Id: (\S+)', reply)[1].decode())
    with connect(server) as sock:  # hangs up within its body
        sock.sendall(b'POST /tokenize HTTP/1.1\r\n' + key + b'Content-Length: 100\r\n\r\n{')

    def metrics():
        reply = urllib.request.urlopen(urllib.request.Request(server.url + '/metrics', headers={'Authorization': 'Bearer secret'}))
        return dict(re.findall(r'requests_refused_total{.*reason="(\w+)"} (\d+)', reply.read().decode()))
    expected = collections.Counter(reason for *_, reason in refused) + collections.Counter(['incomplete_request'])
    wait_for(lambda: metrics() == {reason: str(n) for reason, n in expected.items()}, 'not counted')
    assert server.stop() == 0
    events = [e for e in server.events() if e['event'] == 'request_refused']
    assert [(e['id'], e['status'], e['reason']) for e in events[:-1]] == [(id, *rest) for id, (_, *rest) in zip(ids, refused)]
    assert events[-1]['reason'] == 'incomplete_request' and events[-1]['status'] == 0


def test_more_connections_than_there_may_be(start):
    server = start('--max-connections', '2')
    held = [http.client.HTTPConnection('127.0.0.1', server.port) for _ in range(2)]

    def get(connection, path):
        connection.request('GET', path)
        return connection.getresponse().read().decode()
    for connection in held:
        assert 'ok' in get(connection, '/health')
    with connect(server) as sock:
        reply = read_all(sock)
    assert reply.startswith(b'HTTP/1.1 503') and b'Retry-After: 1' in reply and b'too_many_connections' in reply
    assert 'reason="too_many_connections"} 1' in get(held[0], '/metrics')
    held[1].close()

    def status():
        try:
            return status_of(server, b'GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n')
        except ConnectionError:  # refused before the request was sent
            return 503
    wait_for(lambda: status() == 200, 'there is room again')


STREAM = dict(stream=True, return_progress=True, max_tokens=5000, ignore_eos=True)


@pytest.mark.parametrize('until', [0, 40, 200, None, b'"role"', b'prompt_progress', b'"content":"'], ids=str)
def test_clients_that_hang_up_at_every_stage(server, until):
    raw = request_bytes(chat(LONG if until != b'"content":"' else 'Hi', **STREAM))
    with connect(server) as sock:
        sock.sendall(raw[:until] if isinstance(until, int) else raw)
        seen = b''
        while isinstance(until, bytes) and until not in seen.replace(b'"content":""', b''):
            seen += sock.recv(65536)
    all_gone(server)
    alive(server)


def test_a_client_that_does_not_read_is_not_waited_for(server):
    with connect(server) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.sendall(request_bytes(chat('Hi', **{**STREAM, 'max_tokens': 100})))
        alive(server)
    all_gone(server)


def test_pipelined_requests_are_answered_in_order(server):
    with connect(server) as sock:
        sock.sendall(request_bytes({'content': 'a b'}, path='/tokenize') + request_bytes({'content': ''}, 'Connection: close', path='/tokenize'))
        data = read_all(sock)
    assert data.count(b'200 OK') == 2 and data.index(b'"count":0') > data.index(b'"tokens"')


def test_a_full_queue_says_when_to_come_back(start):
    server = start('--max-sequences', '1', '--max-waiting', '1')
    with connect(server) as running, connect(server) as waiting:
        running.sendall(request_bytes(chat('Hi', **STREAM)))
        running.recv(100)
        wait_for(lambda: server.metric('num_requests_running') == 1, 'does not run')
        waiting.sendall(request_bytes(chat('Hi', **STREAM)))
        wait_for(lambda: server.metric('num_requests_waiting') == 1, 'does not wait')
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(urllib.request.Request(server.url + '/v1/chat/completions', json.dumps(chat('Hi')).encode()))
        assert error.value.code == 429 and int(error.value.headers['Retry-After']) >= 1
        assert json.load(error.value)['error']['type'] == 'rate_limit_error'
    all_gone(server)
    alive(server)


def test_what_cannot_fit_is_refused_with_both_numbers(start):
    server = start('--kv-memory', '8MiB')
    status, reply = server.post('/v1/completions', {'prompt': [5] * 60000, 'decode': 'full'})
    assert status == 400 and reply['error']['code'] == 'kv_memory_exceeded'
    assert 'has 8 MiB' in reply['error']['message'] and '60000 prompt tokens' in reply['error']['message']
    alive(server)


def test_pings_while_a_stream_is_silent(start):
    server = start('--ping-interval', '1', '--max-sequences', '1')
    with connect(server) as running, connect(server) as waiting:
        running.sendall(request_bytes(chat('Hi', **{**STREAM, 'max_tokens': 100000})))
        running.recv(100)
        waiting.sendall(request_bytes(chat('Hi', stream=True, max_tokens=1)))
        data = b''
        while b': still working\n\n' not in data:
            data += waiting.recv(65536)
        assert data.count(b'data: ') == 1 and b'"role"' in data
    all_gone(server)


def test_a_stopped_server_finishes_what_it_took(start):
    server = start('--drain-timeout', '60', '--chunk', '512')
    with connect(server) as sock:
        sock.sendall(request_bytes(chat(LONG, stream=True, return_progress=True, max_tokens=3), 'Connection: close'))
        data = b''
        while b'prompt_progress' not in data:
            data += sock.recv(65536)
        server.process.send_signal(signal.SIGTERM)
        data += read_all(sock)
    assert b'"finish_reason":"length"' in data and b'[DONE]' in data
    assert server.wait() == 0
    events = server.events()
    assert [e['event'] for e in events][-1] == 'stopped' and events[-1]['all_answered'] is True
    done = [e for e in events if e['event'] == 'request_done']
    assert len(done) == 1 and done[0]['id'].startswith('req-') and done[0]['generated_tokens'] == 3
    assert SECRET not in ''.join(server.log)


def test_a_deadline_ends_draining_and_health_says_so(start):
    server = start('--drain-timeout', '8')  # time for all of what follows, on a busy machine too
    with connect(server) as sock, connect(server) as other:
        sock.sendall(request_bytes(chat('Hi', **{**STREAM, 'max_tokens': 100000}), 'Connection: close'))
        data = b''
        while b'"content":"' not in data.replace(b'"content":""', b''):
            data += sock.recv(65536)
        other.sendall(b'GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n')
        assert b'200 OK' in other.recv(65536)
        server.process.send_signal(signal.SIGTERM)
        healths = set()
        wait_for(lambda: healths.add(status_of(server, b'GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n')) or 503 in healths, healths)
        assert server.post('/v1/completions', {'prompt': 'x'})[0] == 503
        data += read_all(sock)
        assert b'data: {"error":' in data and b'[DONE]' in data
        assert data.count(b'"finish_reason":"stop"') == 0  # half an answer is none
    assert server.wait() == 0 and server.events()[-1]['all_answered'] is False


class Stopped:
    """A thread of another process, which it is told to stop; it goes on with this."""
    PTRACE_ATTACH, PTRACE_DETACH, WALL = 16, 17, 0x40000000

    def __init__(self, thread):
        self.thread = thread

    def trace(self, request):
        trace = ctypes.CDLL(None, use_errno=True).ptrace
        trace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
        return trace(request, self.thread, None, None)

    def __enter__(self):
        if self.trace(self.PTRACE_ATTACH) != 0:
            pytest.skip('threads of other processes may not be stopped here')
        os.waitpid(self.thread, self.WALL)

    def __exit__(self, *error):
        try:
            self.trace(self.PTRACE_DETACH)
            os.waitpid(self.thread, self.WALL)
        except ChildProcessError:
            pass


def test_a_rank_that_hangs_ends_the_server(start):
    server = start('--tp', '2')
    with connect(server) as streaming, connect(server) as whole:
        for sock in (streaming, whole):
            body = chat('Hi', stream=sock is streaming, max_tokens=100000, ignore_eos=True)
            sock.sendall(request_bytes(body, 'Connection: close'))
        wait_for(lambda: server.metric('num_requests_running') == 2, 'do not run')
        tasks = pathlib.Path(f'/proc/{server.process.pid}/task')
        whole.settimeout(30)
        answers = []
        for _ in range(3):
            with contextlib.ExitStack() as stopped:
                for task in tasks.iterdir():  # the rank's, and those that it has started
                    if (task / 'comm').read_text() == 'rank 1\n':
                        stopped.enter_context(Stopped(int(task.name)))
                try:
                    begin = whole.recv(65536)
                except TimeoutError:  # stopped with the lock in hand under which ranks meet: not what hangs, so it goes on
                    continue
                answers = [read_all(streaming), begin + read_all(whole)]
                break
        assert answers, 'nobody is told that a rank hangs'
    for answer in answers:
        assert b'of 2 ranks do not answer any more' in answer
    assert answers[1].startswith(b'HTTP/1.1 503 ')
    assert b'data: {"error":' in answers[0]
    assert server.wait() == 1
    assert 'of 2 ranks do not answer any more' in server.log[-1]


MPIRUN = shutil.which('mpirun')


@pytest.fixture
def two_processes(start, monkeypatch, tmp_path):
    """A server of two ranks of MPI, with what they end by, and the second rank's process."""
    if MPIRUN is None:
        pytest.skip('there is no mpirun')
    program = pathlib.Path(os.environ.get('TWO_RANKS_OF', PROGRAM))
    if b'MPI_Init' not in program.read_bytes():
        pytest.skip('built without MPI')
    monkeypatch.setenv('TWO_RANKS_OF', str(program))
    monkeypatch.setenv('TMPDIR', str(tmp_path))
    monkeypatch.delenv('ENTROPYINFER_TP', raising=False)
    server = start(program=ROOT / 'tests/server/two_ranks')
    second, = tmp_path.glob('tmp.*/1')
    yield server, int(second.read_text())


@pytest.mark.parametrize('sent', [signal.SIGKILL, signal.SIGSTOP], ids=['dies', 'hangs'])
def test_a_process_of_a_rank_that(two_processes, sent):
    """Who waits for an answer hears of it, and the server's supervisor as well, within ten seconds of work that is soon done."""
    server, second = two_processes
    with connect(server) as streaming, connect(server) as whole:
        for sock in (streaming, whole):
            body = chat('Hi', stream=sock is streaming, max_tokens=100000, ignore_eos=True)
            sock.sendall(request_bytes(body, 'Connection: close'))
        wait_for(lambda: server.metric('num_requests_running') == 2, 'do not run')
        os.kill(second, sent)
        answers = [read_all(sock) for sock in (streaming, whole)]
    why = b'rank 1 of 2 has ended' if sent == signal.SIGKILL else b'rank 0 of 2: another rank does not answer any more'
    for answer in answers:
        assert why in answer
    assert answers[1].startswith(b'HTTP/1.1 503 ') and b'data: {"error":' in answers[0]
    assert server.wait() not in (0, None)
    assert any(why.decode() in line for line in server.log)


def test_a_second_signal_exits(start):
    server = start('--drain-timeout', '600')
    with connect(server) as sock:
        sock.sendall(request_bytes(chat('Hi', **{**STREAM, 'max_tokens': 100000})))
        sock.recv(65536)
        server.process.send_signal(signal.SIGTERM)
        wait_for(lambda: status_of(server, b'GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n') == 503, 'does not drain')
        server.process.send_signal(signal.SIGTERM)
        assert server.wait() == 128 + signal.SIGTERM


def test_stops_with_many_idle_connections(start):
    for _ in range(4):
        server = start()
        idle = [connect(server) for _ in range(300)]
        alive(server)
        assert server.stop() == 0
        for sock in idle:
            sock.close()


def test_many_idle_connections(server):
    idle = [connect(server) for _ in range(200)]
    threads = [threading.Thread(target=alive, args=(server,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for sock in idle:
        sock.close()

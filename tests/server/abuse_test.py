"""Clients that want the server to hold more, work longer or answer more than it should; what is measured is the server's
memory, what it answers and whether it goes on."""
import http.client
import json
import os
import re
import resource
import socket
import subprocess
import threading

import pytest

from conftest import MODEL, PROGRAM
from faults_test import STREAM, alive, all_gone, chat, connect, read_all, request_bytes, status_of, wait_for
from health_latency import latencies, loads
from load_test import resident_mib

POST = b'POST /tokenize HTTP/1.1\r\nHost: localhost\r\n'
CHUNKED = POST + b'Transfer-Encoding: chunked\r\n\r\n'
SMUGGLED = b'GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n'


def send_until_closed(server, begin, again, most):
    """Sends up to `most` bytes; returns what the server answered."""
    with connect(server) as sock:
        try:
            sock.sendall(begin)
            for _ in range(most // len(again)):
                sock.sendall(again)
            sock.shutdown(socket.SHUT_WR)  # or the server would wait for the rest
        except OSError:
            pass
        try:
            return sock.recv(65536)
        except ConnectionError:
            return b''


@pytest.mark.parametrize('begin, again', [
    (b'GET / HTTP/1.1\r\n', b'X: ' + b'x' * 1000 + b'\r\n'),
    (b'GET /', b'x' * 65536),
    (b'', b'\r\n' * 30000),
    (CHUNKED + b'1;', b'extension=' + b'x' * 65536),
    (CHUNKED + b'0\r\n', b'Trailer: ' + b'x' * 1000 + b'\r\n'),
    (CHUNKED, (b'1' + b';x' * 500 + b'\r\na\r\n') * 64),
    (b'GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n', b'x' * 65536),
], ids=['headers', 'target', 'empty lines', 'extension', 'trailers', 'extensions', 'after the request'])
def test_nothing_grows_without_end(server, begin, again):
    alive(server)
    before = resident_mib(server)
    send_until_closed(server, begin, again, 48 << 20)
    assert resident_mib(server) < before + 24
    alive(server)


@pytest.mark.parametrize('headers', [
    b'Transfer-Encoding: xchunked\r\nContent-Length: %d', b'Transfer-Encoding: chunked, gzip\r\nContent-Length: %d',
    b'Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\nContent-Length: %d', b'Content-Length: %d\r\nContent-Length: 0',
    b'Content-Length: %d\r\nTransfer-Encoding : chunked', b'Content-Encoding: gzip\r\nContent-Length: %d'])
def test_a_body_is_never_a_second_request(server, headers):
    with connect(server) as sock:
        sock.sendall(POST + headers % len(SMUGGLED) + b'\r\n\r\n' + SMUGGLED)
        reply = read_all(sock)
    assert reply.count(b'HTTP/1.1 ') == 1 and int(reply[9:12]) in (400, 415, 501)


def test_no_key_no_body(start):
    server = start('--api-key', 'secret', '--allowed-hosts', 'llm.example')
    for head, status in (b'Host: localhost', 401), (b'Host: rebound.example\r\nAuthorization: bearer secret', 403):
        assert status_of(server, b'POST /tokenize HTTP/1.1\r\n' + head + b'\r\nContent-Length: 60000000\r\n\r\n') == status
    good = b'Host: LLM.example\r\nAuthorization: bearer  secret\r\nConnection: close\r\nContent-Length: 15\r\n\r\n{"content":"x"}'
    assert status_of(server, b'POST /tokenize HTTP/1.1\r\n' + good) == 200


def test_bodies_share_their_memory(start):
    server = start('--body-memory', '8MiB')
    part = POST + b'Content-Length: 6000000\r\n\r\n' + b' ' * 5_000_000
    whole = POST + b'Connection: close\r\nContent-Length: 5000000\r\n\r\n' + b' ' * 5_000_000

    def refused():  # or the first is, if the server read less of it meanwhile
        with connect(server) as first, connect(server) as second:
            first.sendall(part)
            second.sendall(whole)
            reply = read_all(second)
        assert reply[9:12] in (b'400', b'503')
        return b'Retry-After' in reply and b'body_memory' in reply
    wait_for(refused, 'both are held')
    # Whoever hung up holds nothing.
    wait_for(lambda: server.post('/tokenize', b' ' * 5_000_000 + b'{"content":""}')[0] == 200, 'still held')


def test_memory_comes_back(start):
    """Long bodies of many kinds, read and gone; the parser may take some times their length meanwhile, not more."""
    server = start('--prefix-memory', '0', '--prefix-ram', '0')
    alive(server)
    before = resident_mib(server)
    n = 400_000
    bodies = [json.dumps({**body, 'temperature': -1}).encode() for body in (  # refused, once all of it was parsed
        {'content': 'x ' * n}, {'messages': [{'role': 'user', 'content': 'x'}] * 20000},
        {'messages': [{'role': 'user', 'content': [{'type': 'text', 'text': 'x'}] * 20000}]},
        {'prompt': [1] * n}, {'prompt': 'x', 'stop': ['x'] * n}, {'messages': [], 'tools': [{}] * n}, {'content': 'x ' * 10_000_000})]
    for _ in range(2):
        for body in bodies:
            for path in '/tokenize', '/v1/completions', '/v1/chat/completions':
                assert server.post(path, body)[0] in (200, 400)
    wait_for(lambda: resident_mib(server) < 1.1 * before + 4, 'memory is held')  # the last is freed after its answer


def test_no_memory_for_one_request(start):
    server = start('--prefix-memory', '0', '--prefix-ram', '0')
    alive(server)
    with open(f'/proc/{server.process.pid}/status') as status:
        size = int(re.search(r'VmSize:\s+(\d+)', status.read())[1]) << 10
    resource.prlimit(server.process.pid, resource.RLIMIT_AS, (size + (24 << 20), resource.RLIM_INFINITY))
    # Whether there is memory for it after all (400: it is no JSON) is the allocator's business; the server lives on.
    body = POST + b'Connection: close\r\nContent-Length: 60000000\r\n\r\n'
    for _ in range(3):
        assert send_until_closed(server, body, b'[1,2],' * 10000, 60_000_000)[9:12] in (b'', b'400', b'503')
    resource.prlimit(server.process.pid, resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    alive(server)


LOADS = loads(.3)  # enough to keep an I/O thread for a second


@pytest.mark.parametrize('load', LOADS)
def test_health_is_always_known(server, load):
    # The figure to watch is health_latency.py's; a machine of CI that does other things may be ten times slower.
    assert max(latencies(server, LOADS[load])) < 1000


def test_what_cannot_fit_is_not_tokenized(server):
    status, reply = server.post('/v1/completions', {'prompt': 'x' * 15_000_000})
    assert status == 400 and reply['error']['code'] == 'context_length_exceeded' and '15000000 bytes' in reply['error']['message']
    status, reply = server.post('/v1/chat/completions', chat('x' * 15_000_000))
    assert status == 400 and reply['error']['param'] == 'messages'


@pytest.mark.parametrize('more', [{}, {'stream': True}], ids=['whole', 'stream'])
def test_a_byte_does_not_hide_who_hangs_up(server, more):
    before = server.metric('generation_tokens_total')
    with connect(server) as sock:
        sock.sendall(request_bytes(chat('Hi', max_tokens=100000, ignore_eos=True, **more)) + b'G')
        wait_for(lambda: server.metric('num_requests_running') == 1, 'does not run')
    all_gone(server)
    assert server.metric('generation_tokens_total') < before + 50000
    alive(server)


@pytest.mark.parametrize('stream', [False, True])
def test_who_has_said_all_still_gets_an_answer(server, stream):
    with connect(server) as sock:
        sock.sendall(request_bytes(chat('Hi', stream=stream, max_tokens=20)))
        sock.shutdown(socket.SHUT_WR)
        reply = read_all(sock)
    assert reply.startswith(b'HTTP/1.1 200 OK\r\n') and b'"finish_reason":"length"' in reply


def test_a_slow_reader_is_waited_for(server):
    """Megabytes of an answer, read only when all of it was written, and not held as text meanwhile."""
    n, n_tokens = 8, 400
    body = {'prompt': 'Once', 'n': n, 'max_tokens': n_tokens, 'ignore_eos': True, 'stream': True, 'logprobs': 20, 'decode': 'full'}
    alive(server)
    before = resident_mib(server)
    with connect(server) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        sock.sendall(request_bytes(body, 'Connection: close', path='/v1/completions'))
        wait_for(lambda: server.metric('num_requests_running') > 0, 'does not run')
        all_gone(server)
        assert resident_mib(server) < before + 64
        reply = read_all(sock)
    events = [json.loads(x) for x in re.findall(rb'data: (\{.*\})\n\n', reply, re.MULTILINE)]
    assert sum(len(e['choices'][0]['logprobs']['tokens']) for e in events if e['choices'][0].get('logprobs')) == n * n_tokens
    assert b'[DONE]' in reply


@pytest.mark.parametrize('raw, status', [
    (b'\r\nGET /health HTTP/1.1\r\nHost: localhost\r\n\r\n', 200),
    (b'GET HTTP://LOCALHOST/health?x=1 HTTP/1.1\r\nhost: x\r\n\r\n', 200),
    (b'GET /v1/models/needle%2D8m HTTP/1.1\r\nHost: localhost\r\n\r\n', 200),
    (b'GET /health HTTP/1.1\r\n\r\n', 400),
    (b'GET /health HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n', 400),
    (b'GET /%zz HTTP/1.1\r\nHost: localhost\r\n\r\n', 400),
    (POST + b'Content-Length: 16\r\n\r\n{"content":"x"}\0', 400),
    (POST + b'Content-Length: 17\r\n\r\n{"content":"x"} x', 400),
])
def test_requests_as_the_standard_has_them(server, raw, status):
    assert status_of(server, raw) == status


def test_preflights_are_told_what_they_asked_for(start):
    server = start('--cors-origins', 'https://A.example')
    for origin, allowed in ('https://a.example', True), ('https://b.example', False):
        connection = http.client.HTTPConnection('127.0.0.1', server.port)
        connection.request('OPTIONS', '/v1/chat/completions', headers={
            'Origin': origin, 'Access-Control-Request-Method': 'POST', 'Access-Control-Request-Headers': 'authorization,x-stainless-os'})
        reply = connection.getresponse()
        assert (reply.getheader('Access-Control-Allow-Headers') == 'authorization,x-stainless-os') == allowed
        assert (reply.getheader('Access-Control-Allow-Origin') == origin) == allowed


def test_nobody_reads_what_it_says():
    """Standard output and error closed by whoever read them, or never open."""
    read, write = os.pipe()
    process = subprocess.Popen([PROGRAM, 'serve', MODEL, '--port', '0', '-t', '1'], stdout=subprocess.PIPE, stderr=write, text=True)
    os.close(write)
    port = int(process.stdout.readline().split()[3].rsplit(':', 1)[1])
    process.stdout.close()
    os.close(read)
    for _ in range(3):
        connection = http.client.HTTPConnection('127.0.0.1', port)
        connection.request('POST', '/tokenize', '{')  # is logged
        assert connection.getresponse().status == 400
    process.terminate()
    assert process.wait(60) == 0
    closed = subprocess.Popen(f'exec "{PROGRAM}" serve "{MODEL}" --port 0 -t 1 2>&-', shell=True, stdout=subprocess.PIPE, text=True)
    port = int(closed.stdout.readline().split()[3].rsplit(':', 1)[1])
    connection = http.client.HTTPConnection('127.0.0.1', port)
    connection.request('POST', '/tokenize', '{')
    assert connection.getresponse().read().endswith(b'}}')
    closed.terminate()
    assert closed.wait(60) == 0
    closed.stdout.close()


def test_metrics_escape_the_name_of_the_model(start):
    server = start('--alias', 'a"b\\c')
    assert 'model_name="a\\"b\\\\c"}' in server.get('/metrics')


def test_errors_name_no_files_of_the_server(server):
    replies = [server.post('/v1/chat/completions', {'messages': [{'role': role, 'content': 'x'}]}) for role in ('assistant', 'system')]
    replies.append(server.post('/apply-template', chat('x', chat_template_kwargs={'messages': 1})))
    assert str(MODEL.parent) not in json.dumps(replies)


def test_a_prompt_as_long_as_the_context(start, tmp_path):
    config = json.loads((MODEL / 'config.json').read_text())
    for file in MODEL.iterdir():
        if file.name != 'config.json':
            (tmp_path / file.name).symlink_to(file)
    (tmp_path / 'config.json').write_text(json.dumps({**config, 'max_position_embeddings': 256}))
    server = start(model=tmp_path)
    body = {'prompt': [5] * 256, 'echo': True, 'logprobs': 0}
    status, reply = server.post('/v1/completions', {**body, 'max_tokens': 0})
    assert status == 200 and len(reply['choices'][0]['logprobs']['tokens']) == 256
    assert server.post('/v1/completions', {**body, 'max_tokens': 1})[0] == 400
    # What may be written ends where the context does, however much is asked for.
    for max_tokens in 200, 10**9:
        before = resident_mib(server)
        status, reply = server.post('/v1/completions', {'prompt': [5] * 200, 'max_tokens': max_tokens, 'n': 8, 'ignore_eos': True})
        assert status == 200 and [choice['finish_reason'] for choice in reply['choices']] == ['length'] * 8
        assert reply['usage']['completion_tokens'] == 8 * 56
        assert resident_mib(server) < before + 24


def test_many_at_once(server):
    """All of it together, from sixteen clients; the server is what it was."""
    jobs = [lambda: send_until_closed(server, CHUNKED, b'1;x\r\na\r\n' * 100, 1 << 20), lambda: alive(server),
            lambda: send_until_closed(server, POST + b'Content-Length: 1000000\r\n\r\n', b' ', 1000),
            lambda: server.post('/tokenize', {'content': 'x ' * 20_000})]
    threads = [threading.Thread(target=jobs[i % len(jobs)]) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    all_gone(server)
    alive(server)

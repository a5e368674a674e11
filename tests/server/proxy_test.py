"""The proxy of deploy/nginx.conf in front of three servers that only say who they are: where requests go, and where those of a
server that does not answer."""
import http.client
import http.server
import json
import os
import pathlib
import random
import shutil
import socket
import subprocess
import threading

import pytest

from conftest import ROOT, Server
from faults_test import wait_for
from load_test import WORDS

NGINX = shutil.which('nginx', path=os.environ['PATH'] + ':/usr/sbin')
MODULE = pathlib.Path('/usr/lib/nginx/modules/ngx_http_js_module.so')
pytestmark = pytest.mark.skipif(not (NGINX and MODULE.exists()), reason='there is no nginx with libnginx-mod-http-js')

CHAT = '/v1/chat/completions'
PAGE = 2048  # of deploy/prefix.js
BROKEN = (http.client.IncompleteRead, ConnectionError)  # what a client sees of an answer that does not end


class Proxy(Server):
    """nginx with the configuration of deploy, but for its addresses: of these servers, three at most."""

    def __init__(self, folder, servers):
        self.folder = folder
        with socket.create_server(('127.0.0.1', 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f'http://127.0.0.1:{self.port}'
        conf = (ROOT / 'deploy/nginx.conf').read_text()
        ours = [f'server 127.0.0.1:{server.port};' for server in servers] + ['', '']
        for theirs, here in {**{f'server entropyinfer-{i}:8000;': ours[i] for i in range(3)},
                             'listen 8080;': f'listen 127.0.0.1:{self.port};'}.items():
            assert conf.count(theirs) == 1, theirs
            conf = conf.replace(theirs, here)
        (folder / 'conf.d').mkdir(parents=True)
        (folder / 'conf.d/entropyinfer.conf').write_text(conf)
        shutil.copy(ROOT / 'deploy/prefix.js', folder / 'conf.d')
        paths = ''.join(f'{name}_temp_path {folder / name};' for name in ('client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi'))
        (folder / 'nginx.conf').write_text(
            f'load_module {MODULE}; daemon off; pid {folder}/pid; worker_processes 2; error_log {folder}/log info; events {{}}\n'
            f'http {{ access_log off; {paths} include conf.d/*.conf; }}\n')
        self.process = subprocess.Popen([NGINX, '-e', folder / 'log', '-c', folder / 'nginx.conf'])
        wait_for(self.listens, 'nginx does not begin', tries=10_000_000)

    def listens(self):
        assert self.process.poll() is None, 'nginx has ended'
        return (self.folder / 'pid').exists()  # written once its sockets are there

    def says(self):
        return (self.folder / 'log').read_text()

    def stop(self):
        self.process.terminate()
        return self.process.wait(timeout=30)


@pytest.fixture
def proxy(tmp_path):
    """Starts them in front of servers."""
    proxies = []

    def make(servers):
        proxies.append(Proxy(tmp_path / str(len(proxies)), servers))
        return proxies[-1]
    yield make
    for each in proxies:
        assert each.stop() == 0


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def do_POST(self):
        self.body = self.rfile.read(int(self.headers.get('Content-Length', 0)))
        self.server.seen.append(self)
        self.server.behave(self)
    do_GET = do_POST

    def log_message(self, *_):
        pass

    def answer(self, status=200):
        body = json.dumps({'port': self.server.port}).encode()
        self.send_response(status)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def begin(self):
        self.send_response(200)
        self.send_header('Transfer-Encoding', 'chunked')
        self.end_headers()

    def event(self, text):
        self.wfile.write(b'%x\r\n%s\r\n' % (len(text), text))

    def drain(self):
        self.answer(503)

    def hang_up(self):
        self.close_connection = True

    def hang_up_halfway(self):
        self.begin()
        self.event(b'half')
        self.close_connection = True


class Sayer(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self):
        super().__init__(('127.0.0.1', 0), Handler)
        self.port = self.server_address[1]
        self.behave = Handler.answer
        self.seen = []
        threading.Thread(target=self.serve_forever, args=[.02], daemon=True).start()

    def stop(self):
        self.shutdown()
        self.server_close()


@pytest.fixture
def sayers(proxy):
    """Three of them behind a proxy, which has them as `sayers` by their ports."""
    servers = [Sayer() for _ in range(3)]
    front = proxy(servers)
    front.sayers = {server.port: server for server in servers}
    yield front
    for server in servers:
        server.stop()


def post(proxy, body, path=CHAT):
    connection = http.client.HTTPConnection('127.0.0.1', proxy.port, timeout=60)
    connection.request('POST', path, json.dumps(body), {'Content-Type': 'application/json'})
    return connection.getresponse()


def who(proxy, body, path=CHAT):
    status, reply = proxy.post(path, body)
    assert status == 200, (status, reply)
    return reply['port']


def text(n_characters, seed):
    draw = random.Random(seed)
    words = f'{seed} of no other é 中 😀 '
    while len(words) < n_characters:
        words += draw.choice(WORDS) + ' '
    return words[:max(n_characters, len(str(seed)) + 1)]


def said(texts, parts=False):
    """A user and an assistant in turn."""
    return [{'role': 'user' if i % 2 == 0 else 'assistant', 'content': [{'type': 'text', 'text': t}] if parts else t}
            for i, t in enumerate(texts)]


SYSTEM = text(3 * PAGE, 'the system')  # one for all conversations
DIALECTS = {
    'chat': (CHAT, lambda texts: {'messages': [{'role': 'system', 'content': SYSTEM}, *said(texts)]}),
    'chat of parts': (CHAT, lambda texts: {'messages': [{'role': 'developer', 'content': SYSTEM}, *said(texts, parts=True)]}),
    'messages': ('/v1/messages', lambda texts: {'system': SYSTEM, 'messages': said(texts)}),
    'responses': ('/v1/responses', lambda texts: {'instructions': SYSTEM, 'input': said(texts)}),
    'document as system': ('/v1/messages', lambda texts: {'system': texts[0], 'messages': said(['Hello', *texts[1:]])}),
    'document as instructions': ('/v1/responses', lambda texts: {'instructions': texts[0], 'input': said(['Hello', *texts[1:]])}),
    'one input': ('/v1/responses', lambda texts: {'input': texts[0]}),
    'embeddings': ('/v1/embeddings', lambda texts: {'input': [texts[0], 'Another text.']}),
    'completions': ('/v1/completions', lambda texts: {'prompt': text(PAGE, texts[0]) + ''.join(texts)}),
    'tokens': ('/v1/completions', lambda texts: {'prompt': [ord(c) for c in text(PAGE, texts[0]) + ''.join(texts)]}),
}


@pytest.mark.parametrize('dialect', DIALECTS)
def test_a_conversation_stays_where_it_began(sayers, dialect):
    path, body = DIALECTS[dialect]
    sizes = [0, 1, 100, PAGE - 1, PAGE, PAGE + 1, 3 * PAGE, 20_000]
    places = set()
    for seed in range(40):
        first = text(sizes[seed % len(sizes)], seed)
        turns = [who(sayers, body([first, 'Yes.', 'And?', 'No. ' * 1000, 'Why?'][:n]), path) for n in (1, 5)]
        assert len(set(turns)) == 1, (dialect, seed)
        places.add(turns[0])
    assert len(places) == 3  # by chance in one of 3 million runs not


def test_questions_to_a_document_go_to_one_server(sayers):
    for seed in range(8):
        document = text(2 * PAGE, seed)
        for ask in (lambda q: [document + q], lambda q: [[{'text': document}, {'text': q}]]):
            bodies = [{'messages': said(ask(question))} for question in ('Who?', 'Where was the letter?', 'Why?')]
            assert len({who(sayers, body) for body in bodies}) == 1, seed


# One conversation as clients write it: with JSON's escapes or without, in parts, with marks of a cache that move on.
def spellings(seed):
    first, system = text(300, seed), 'Be brief.'
    plain = [{'role': 'system', 'content': system}, *said([first, 'Yes.', 'And?'])]
    marked = said([first, 'Yes.', 'And?'], parts=True)
    marked[0]['content'][0]['cache_control'] = {'type': 'ephemeral'}
    yield CHAT, json.dumps({'messages': plain}).encode()
    yield CHAT, json.dumps({'messages': plain}, ensure_ascii=False).encode()
    yield CHAT, json.dumps({'temperature': 0, 'tools': [], 'messages': plain, 'stream': False}, indent=2).encode()
    yield '/v1/messages', json.dumps({'messages': marked, 'system': [{'type': 'text', 'text': system}]}).encode()
    yield '/v1/messages', json.dumps({'messages': marked[:1], 'system': system}).encode()


def test_the_beginning_and_not_its_spelling_tells_where(sayers):
    for seed in range(8):
        chat = {who(sayers, body, path) for path, body in list(spellings(seed))[:3]}
        messages = {who(sayers, body, path) for path, body in list(spellings(seed))[3:]}
        assert len(chat) == len(messages) == 1, seed


def test_a_client_may_say_what_belongs_together(sayers):
    places = [{who(sayers, {'messages': said([text(100, i)]), 'prompt_cache_key': key}) for i in range(3)} for key in map(str, range(40))]
    assert all(len(place) == 1 for place in places) and len(set.union(*places)) == 3


def test_bodies_of_megabytes(sayers):
    for seed in range(4):
        first = text(100, seed) + 'x' * 3_000_000
        turns = [{'messages': said([first, 'Yes.', 'And?'][:n])} for n in (1, 3)]
        assert len({who(sayers, body) for body in turns}) == 1, seed
    sent = [json.loads(handler.body) for server in sayers.sayers.values() for handler in server.seen]
    assert all(len(body['messages'][0]['content']) > 3_000_000 for body in sent)
    assert 'temporary file' not in sayers.says()


def test_answers_of_megabytes(sayers):
    def behave(handler):
        handler.begin()
        for _ in range(32):
            handler.event(b'x' * 1_000_000)
        handler.event(b'')
    for server in sayers.sayers.values():
        server.behave = behave
    replies = [post(sayers, {'messages': said([str(i)])}) for i in range(4)]
    assert all(len(reply.read()) == 32_000_000 for reply in replies)
    assert 'temporary file' not in sayers.says()  # what a client does not take waits where it is written


@pytest.mark.parametrize('body', [
    b'', b'{', b'[]', b'null', b'\xff', b'{"messages": 7}', b'{"messages": [null]}', b'{"messages": [{"role": "user"}]}',
    b'{"input": {"a": 1}}', b'{"tools": ' + b'[' * 200 + b']' * 200 + b', "messages": []}', b'{"prompt": [[1, 2], [3]]}'])
def test_whatever_is_sent_reaches_a_server(sayers, body):
    assert len({who(sayers, body) for _ in range(3)}) == 1
    assert {handler.body for server in sayers.sayers.values() for handler in server.seen} == {body}


def test_keys_and_names_are_handed_on(sayers):
    status, reply = sayers.post(CHAT, {'messages': said(['a'])}, {'Authorization': 'Bearer secret', 'X-Api-Key': 'other'})
    seen = sayers.sayers[reply['port']].seen[0]
    assert seen.headers['Authorization'] == 'Bearer secret' and seen.headers['X-Api-Key'] == 'other'
    assert seen.headers['Host'] == f'127.0.0.1:{sayers.port}' and seen.path == CHAT
    assert json.loads(sayers.get('/v1/models'))['port'] in sayers.sayers


def test_fewer_servers_take_over_what_the_others_had(sayers, proxy):
    bodies = [{'messages': said([text(100, seed)])} for seed in range(40)]
    before = [who(sayers, body) for body in bodies]
    left = list(sayers.sayers.values())[:2]
    fewer = proxy(left)
    after = [who(fewer, body) for body in bodies]
    kept = [(a, b) for a, b in zip(after, before) if b in [server.port for server in left]]
    assert len(kept) < len(bodies) and all(a == b for a, b in kept)


@pytest.mark.parametrize('how', ['refuses', 'drain', 'hang_up'])
def test_who_does_not_answer_is_passed_over(sayers, how):
    bodies = [{'messages': said([text(100, seed)])} for seed in range(40)]
    before = [who(sayers, body) for body in bodies]
    gone = sayers.sayers[before[0]]
    n_seen = len(gone.seen)
    if how == 'refuses':
        gone.stop()
    else:
        gone.behave = getattr(Handler, how)
    after = [who(sayers, body) for body in bodies]
    assert [a for a, b in zip(after, before) if b != gone.port] == [b for b in before if b != gone.port]  # the others stay
    assert gone.port not in after
    assert len(gone.seen) == n_seen + (how != 'refuses')  # nobody goes on asking it
    assert after == [who(sayers, body) for body in bodies]


def test_two_servers_are_asked_and_not_all(sayers):
    for server in sayers.sayers.values():
        server.behave = Handler.hang_up
    with pytest.raises(json.JSONDecodeError):  # nginx's own page
        sayers.post(CHAT, {'messages': said(['a'])})
    assert sum(len(server.seen) for server in sayers.sayers.values()) == 2


def test_an_answer_that_breaks_off_is_not_asked_for_again(sayers):
    for server in sayers.sayers.values():
        server.behave = Handler.hang_up_halfway
    reply = post(sayers, {'messages': said(['a'])})
    with pytest.raises(BROKEN):
        reply.read()
    assert reply.status == 200 and sum(len(server.seen) for server in sayers.sayers.values()) == 1


def test_streams_come_as_they_are_written(sayers):
    was_read = threading.Event()

    def behave(handler):
        handler.begin()
        handler.event(b'data: 1\n')
        handler.event(b'data: 2\n' if was_read.wait(30) else b'nobody has read\n')
        handler.event(b'')
    for server in sayers.sayers.values():
        server.behave = behave
    reply = post(sayers, {'messages': said(['a']), 'stream': True})
    assert reply.readline() == b'data: 1\n'
    was_read.set()
    assert reply.read() == b'data: 2\n'

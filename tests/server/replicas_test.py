"""Three servers behind the proxy of deploy/nginx.conf: prompts find their beginnings as with one, and a server that is killed or
drained costs nobody an answer that had not begun."""
import collections
import concurrent.futures
import itertools
import json
import random
import socket
import threading
import urllib.error

import pytest

from conftest import HELLO, serving
from faults_test import request_bytes, wait_for
from load_test import prompt
from proxy_test import BROKEN, CHAT, post, proxy, pytestmark  # noqa: F401

# Texts of more than a page of the prefix cache.
SYSTEM, *DOCUMENTS = [prompt(650, seed)[0] for seed in range(7)]
QUESTIONS = [['Where is the heron?', 'And the larch?', 'Is that north of the brook?'],
             ['Who crossed the fjord?', 'Why?', 'When did the others come?']]
FLAGS = ['--chunk', '512']
CONVERSATIONS = list(itertools.product(range(len(DOCUMENTS)), range(len(QUESTIONS))))


def chat(conversation, answers):
    """The request of its next turn, after these answers."""
    document, questions = conversation
    messages = [{'role': 'system', 'content': SYSTEM}]
    for question, answer in zip(QUESTIONS[questions], [*answers, None]):
        first = len(messages) == 1
        text = [{'type': 'text', 'text': DOCUMENTS[document]}, {'type': 'text', 'text': question}] if first else question
        messages += [{'role': 'user', 'content': text}, {'role': 'assistant', 'content': answer}]
    return {'messages': messages[:-1], 'max_tokens': 8, 'temperature': 0, 'ignore_eos': True}


def all_turns(server):
    """Every conversation's answers, asked turn by turn. All conversations go on beside each other, in no order that servers taken
    by turns would meet again."""
    answers = {conversation: [] for conversation in CONVERSATIONS}
    order = random.Random(1).sample(CONVERSATIONS * len(QUESTIONS[0]), len(CONVERSATIONS) * len(QUESTIONS[0]))
    for conversation in order:
        status, reply = server.post(CHAT, chat(conversation, answers[conversation]))
        assert status == 200, reply
        answers[conversation].append(reply['choices'][0]['message']['content'])
    return answers


@pytest.fixture(scope='module')
def alone():
    """What one server answers, and how many tokens it did not read again."""
    with serving(*FLAGS) as server:
        return all_turns(server), server.metric('prompt_tokens_cached_total')


class Replicas:
    def __init__(self, start, proxy):
        self.servers = [start(*FLAGS) for _ in range(3)]
        self.proxy = proxy(self.servers)

    def busy(self):
        """The server with requests under way."""
        def found():
            return [server for server in self.servers if server.metric('num_requests_running') > 0]
        wait_for(found, 'no request is under way')
        return found()[0]


@pytest.fixture
def replicas(start, proxy):  # noqa: F811
    return Replicas(start, proxy)


def test_prompts_find_their_beginnings(replicas, alone, capsys):
    answers, cached_alone = alone
    assert all_turns(replicas.proxy) == answers
    cached = sum(server.metric('prompt_tokens_cached_total') for server in replicas.servers)
    shares = [server.metric('prompt_tokens_total') for server in replicas.servers]
    with capsys.disabled():
        print(f'\n{sum(shares):,.0f} prompt tokens: one server had {cached_alone:,.0f} of them in its cache, '
              f'three with {" + ".join(f"{n:,.0f}" for n in shares)} {cached:,.0f}', end='')
    assert cached >= .9 * cached_alone
    # The page's own requests are known by their origin.
    status, _ = replicas.proxy.post(CHAT, chat(CONVERSATIONS[0], []), {'Origin': replicas.proxy.url})
    assert status == 200


def streamed(events):
    """The text of a whole stream."""
    *chunks, last = [event.removeprefix('data: ') for event in events.decode().split('\n\n') if event]
    assert last == '[DONE]', last
    return ''.join(choice['delta'].get('content', '') for chunk in chunks for choice in json.loads(chunk)['choices'])


def test_a_killed_server_loses_only_what_had_begun(replicas, alone, capsys):
    answers, _ = alone
    n_clients = 3
    stop, rounds = threading.Event(), threading.Semaphore(0)

    def ask(conversation):
        """Twice, once as a stream; fails for an answer that is lost or wrong. A stream that has begun may break."""
        body, expected = chat(conversation, []), answers[conversation][0]
        status, reply = replicas.proxy.post(CHAT, body)
        assert status == 200 and reply['choices'][0]['message']['content'] == expected
        stream = post(replicas.proxy, {**body, 'stream': True})
        assert stream.status == 200
        try:
            assert streamed(stream.read()) == expected
            return ['whole', 'streamed']
        except BROKEN:
            return ['whole', 'broken']

    def client(i):
        done = collections.Counter()
        for n in itertools.count():
            if stop.is_set():
                return done
            done.update(ask(CONVERSATIONS[(5 * i + n) % len(CONVERSATIONS)]))
            rounds.release()

    hello = {'messages': HELLO, 'max_tokens': 300, 'ignore_eos': True}
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        try:
            stream = post(replicas.proxy, {**hello, 'max_tokens': 10000, 'stream': True})
            assert stream.readline().startswith(b'data: ')
            victim = replicas.busy()
            clients = [pool.submit(client, i) for i in range(n_clients)]
            assert all(rounds.acquire(timeout=60) for _ in clients)
            # They begin alike, so they are the victim's as well; more than all other requests together.
            whole = [pool.submit(replicas.proxy.post, CHAT, hello) for _ in range(n_clients + 1)]
            wait_for(lambda: victim.metric('num_requests_running') > n_clients + 1, 'long answers are not under way')
            victim.process.kill()
            victim.process.wait()
            with pytest.raises(BROKEN):
                stream.read()
            for each in whole:
                status, reply = each.result(timeout=120)
                assert status == 200 and reply['usage']['completion_tokens'] == hello['max_tokens']
            assert all(rounds.acquire(timeout=60) for _ in range(3 * n_clients))  # and they go on
        finally:
            stop.set()
            stream.close()
        done = sum((each.result(timeout=120) for each in clients), collections.Counter())
    with capsys.disabled():
        print(f'\none of three servers was killed: of the load {dict(done)}, of long answers {len(whole)} whole, 1 broken', end='')


def test_who_hangs_up_is_noticed(start, proxy):  # noqa: F811
    server = start(*FLAGS)
    front = proxy([server])
    endless = {'messages': HELLO, 'max_tokens': 100_000, 'ignore_eos': True}
    sockets = []
    for more in ({}, {'stream': True}):
        sockets.append(socket.create_connection(('127.0.0.1', front.port)))
        sockets[-1].sendall(request_bytes({**endless, **more}))
    wait_for(lambda: server.metric('num_requests_running') == 2, 'requests are not under way')
    for each in sockets:
        each.close()
    wait_for(lambda: server.metric('num_requests_running') == 0, 'the server goes on')


def health(server):
    try:
        server.get('/health')
        return 200
    except urllib.error.HTTPError as error:
        return error.code


def test_a_drained_server_ends_what_it_has(replicas):
    hello = {'messages': HELLO, 'ignore_eos': True}
    stream = post(replicas.proxy, {**hello, 'max_tokens': 600, 'stream': True})
    stream.readline()
    drained = replicas.busy()
    drained.process.terminate()
    wait_for(lambda: health(drained) == 503, 'the server does not drain')
    for _ in range(2):  # the first was asked of it, the second was not
        status, reply = replicas.proxy.post(CHAT, {**hello, 'max_tokens': 4})
        assert status == 200 and reply['usage']['completion_tokens'] == 4
    assert drained.process.poll() is None  # all that was while the stream went on
    assert stream.read().endswith(b'data: [DONE]\n\n')
    assert drained.wait() == 0
    refused = [event for event in drained.events() if event['event'] == 'request_refused']
    assert [event['status'] for event in refused] == [503]
    status, reply = replicas.proxy.post(CHAT, {**hello, 'max_tokens': 4})
    assert status == 200

"""Sends every field of docs/API.md's table to a running server, which must do with it what the table says."""
import json
import re
import urllib.request

import pytest
from conftest import ROOT

PATHS = {'chat': '/v1/chat/completions', 'completions': '/v1/completions', 'tokenize': '/tokenize',
         'detokenize': '/detokenize', 'apply-template': '/apply-template',
         'messages': '/v1/messages', 'count-tokens': '/v1/messages/count_tokens', 'responses': '/v1/responses', 'embeddings': '/v1/embeddings'}
MESSAGES = [{'role': 'user', 'content': 'Once upon a time'}]
LEAST = {'chat': {'messages': MESSAGES, 'max_tokens': 4, 'temperature': 0},
         'completions': {'prompt': 'Once upon', 'max_tokens': 4, 'temperature': 0},
         'tokenize': {'prompt': 'Once upon'}, 'detokenize': {'tokens': [5, 6]}, 'apply-template': {'messages': MESSAGES},
         'messages': {'messages': MESSAGES, 'max_tokens': 4, 'temperature': 0}, 'count-tokens': {'messages': MESSAGES},
         'responses': {'input': 'Once upon a time', 'max_output_tokens': 4, 'temperature': 0},
         'embeddings': {'input': 'Once upon a time'}}
# What a field needs beside it to make sense.
WITH = {'stream_options': {'stream': True}, 'return_progress': {'stream': True}, 'top_logprobs': {'logprobs': True},
        'max_completion_tokens': {'max_tokens': 2}}

INSTEAD_OF_PROMPT = 'messages', 'content', 'text'  # of /tokenize
WITH_MESSAGES = 'tools', 'tool_choice', 'chat_template_kwargs', 'add_generation_prompt'  # of /tokenize: not with a text


def rows():
    text = (ROOT / 'docs/API.md').read_text()
    for field, endpoints, becomes, example in re.findall(r'^\| `(\w+)` \| ([^|]*) \| (.*?) \| `(.*?)` \| .*\|$', text, re.M):
        for endpoint in endpoints.split(', '):
            yield pytest.param(field, endpoint, becomes, example, id=f'{endpoint}-{field}')


@pytest.mark.parametrize('field, endpoint, becomes, example', list(rows()))
def test_field(server, field, endpoint, becomes, example):
    least = LEAST[endpoint]
    if endpoint == 'tokenize' and field in WITH_MESSAGES:
        least = LEAST['apply-template']
    if endpoint == 'tokenize' and field in INSTEAD_OF_PROMPT:
        least = {}
    with_field = {**least, **WITH.get(field, {}), field: json.loads(example)}
    if with_field.get('stream'):
        text = raw(server, PATHS[endpoint], with_field)
        last = {'messages': 'data: {"type":"message_stop"}', 'responses': '}'}.get(endpoint, 'data: [DONE]')
        assert text.startswith(('data: ', 'event: ')) and text.rstrip().endswith(last)
        return
    status, reply = server.post(PATHS[endpoint], with_field)
    if becomes.startswith('refused') or field == 'tools':  # the demo model's template knows no tools
        named = f"'{field}'" in reply['error']['message'] if endpoint in ('messages', 'count-tokens') else reply['error']['param'] == field
        assert status == 400 and named, reply
        return
    assert status == 200, reply
    if becomes == 'no effect':
        assert meaning(reply) == meaning(server.post(PATHS[endpoint], least)[1])


def raw(server, path, body):
    request = urllib.request.Request(server.url + path, json.dumps(body).encode(), {'Content-Type': 'application/json'})
    with urllib.request.urlopen(request) as reply:
        return reply.read().decode()


def meaning(reply):
    """What of an answer does not differ from one time to the next."""
    if reply.get('object') == 'response':
        return [item['content'] for item in reply['output']], reply['usage']['output_tokens']
    if reply.get('type') == 'message':
        return reply['content'], reply['usage']['output_tokens']
    if 'choices' not in reply:
        return reply
    return reply['choices'], reply['usage']['completion_tokens']


def test_unknown_fields_are_told(server):
    for endpoint, path in PATHS.items():
        body = json.dumps({**LEAST[endpoint], 'temprature': 1, 'foo\n': 2}).encode()
        request = urllib.request.Request(server.url + path, body, {'Content-Type': 'application/json'})
        with urllib.request.urlopen(request) as reply:
            assert reply.headers['X-Unknown-Fields'] == 'temprature, foo?'


def test_detokenize_names_what_is_no_token(server):
    status, reply = server.post('/detokenize', {'tokens': [5, 4096]})
    assert status == 400 and reply['error']['param'] == 'tokens' and '4096' in reply['error']['message']


def test_best_of_gives_the_likeliest(server):
    ask = {'prompt': 'Once upon', 'max_tokens': 6, 'temperature': 1.5, 'seed': 3}
    all_four = server.post(PATHS['completions'], {**ask, 'n': 4, 'logprobs': 0})[1]['choices']
    best = server.post(PATHS['completions'], {**ask, 'n': 2, 'best_of': 4})[1]
    mean = {c['text']: sum(c['logprobs']['token_logprobs']) / len(c['logprobs']['token_logprobs']) for c in all_four}
    likeliest = sorted(mean, key=mean.get, reverse=True)[:2]
    assert [c['text'] for c in best['choices']] == likeliest
    assert [c['index'] for c in best['choices']] == [0, 1] and best['choices'][0]['logprobs'] is None
    assert best['usage']['completion_tokens'] == 24


def test_add_special_tokens_and_generation_prompt(server):
    without = server.post('/apply-template', {'messages': MESSAGES, 'add_generation_prompt': False})[1]['prompt']
    whole = server.post('/apply-template', {'messages': MESSAGES})[1]['prompt']
    assert whole.startswith(without) and whole != without

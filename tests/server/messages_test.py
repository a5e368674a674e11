"""Anthropic's own client against the server: what it sends must be understood, what it reads must be there."""
import json

import anthropic
import jsonschema
import pytest

from conftest import HELLO, HERMES, WEATHER as FUNCTION, model_with_tools, serving

SCHEMA = FUNCTION['function']['parameters']
WEATHER = {'name': 'weather', 'description': 'The weather of a place.', 'input_schema': SCHEMA, 'cache_control': {'type': 'ephemeral'}}


@pytest.fixture(scope='module')
def hermes(tmp_path_factory):
    with serving('--api-key', 'secret', model=model_with_tools(tmp_path_factory.mktemp('hermes'), HERMES + '</think>')) as server:
        yield server


@pytest.fixture
def client(hermes):
    return anthropic.Anthropic(base_url=hermes.url, api_key='secret', max_retries=0)


def test_a_message_and_its_stream(client):
    ask = dict(model='m', max_tokens=12, messages=HELLO, system=[{'type': 'text', 'text': 'Tell a story.', 'cache_control': {'type': 'ephemeral'}}],
               metadata={'user_id': 'u'}, extra_body={'temperature': 0})
    got = client.messages.create(**ask)
    assert got.type == 'message' and got.role == 'assistant' and got.id.startswith('msg_')
    assert got.stop_reason == 'max_tokens' and got.stop_sequence is None and got.usage.output_tokens == 12
    assert [block.type for block in got.content] == ['text'] and got.content[0].text
    assert got.usage.input_tokens == client.messages.count_tokens(model='m', messages=HELLO, system='Tell a story.').input_tokens
    with client.messages.stream(**ask) as stream:
        events = [event.type for event in stream]
        final = stream.get_final_message()
    assert final.content[0].text == got.content[0].text and final.stop_reason == 'max_tokens'
    assert (final.usage.input_tokens, final.usage.output_tokens) == (got.usage.input_tokens, 12)
    kept = [event for event in events if event not in ('text', 'content_block_delta')]
    assert kept == ['message_start', 'content_block_start', 'content_block_stop', 'message_delta', 'message_stop']


def test_the_events_as_they_are(hermes):
    """With a ping, and names that say what the data says again."""
    import urllib.request
    body = {'max_tokens': 2, 'messages': HELLO, 'stream': True}
    request = urllib.request.Request(hermes.url + '/v1/messages', json.dumps(body).encode(),
                                     {'Content-Type': 'application/json', 'X-Api-Key': 'secret', 'anthropic-version': '2023-06-01'})
    with urllib.request.urlopen(request) as reply:
        assert reply.headers['Content-Type'] == 'text/event-stream'
        events = [event.split('\n') for event in reply.read().decode().strip().split('\n\n')]
    data = [json.loads(line.removeprefix('data: ')) for _, line in events]
    assert [name.removeprefix('event: ') for name, _ in events] == [event['type'] for event in data]
    assert [event['type'] for event in data[:3]] == ['message_start', 'ping', 'content_block_start']
    assert data[-2]['usage']['output_tokens'] == 2 and 'density' in data[-2]['sparsity']


def test_stop_sequences(client):
    ask = dict(model='m', max_tokens=12, messages=HELLO)
    whole = client.messages.create(**ask).content[0].text
    stop = whole[10:13]
    got = client.messages.create(**ask, stop_sequences=['never', stop])
    assert got.content[0].text == whole[:whole.index(stop)] and (got.stop_reason, got.stop_sequence) == ('stop_sequence', stop)
    with client.messages.stream(**ask, stop_sequences=[stop]) as stream:
        assert stream.get_final_message().stop_sequence == stop


@pytest.mark.parametrize('choice', [{'type': 'any', 'disable_parallel_tool_use': True}, {'type': 'tool', 'name': 'weather'}])
def test_tools(client, choice):
    ask = dict(model='m', max_tokens=400, messages=HELLO, tools=[WEATHER], tool_choice=choice)
    got = client.messages.create(**ask)
    call = got.content[0]
    assert got.stop_reason == 'tool_use' and (call.type, call.name) == ('tool_use', 'weather')
    jsonschema.validate(call.input, SCHEMA)
    with client.messages.stream(**ask) as stream:
        pieces = [event.partial_json for event in stream if event.type == 'input_json']
        final = stream.get_final_message()
    assert final.content[0].input == call.input and json.loads(''.join(pieces)) == call.input and len(pieces) > 2
    # And the conversation goes on.
    more = HELLO + [{'role': 'assistant', 'content': got.content},
                    {'role': 'user', 'content': [{'type': 'tool_result', 'tool_use_id': call.id, 'content': [{'type': 'text', 'text': 'sunny'}]},
                                                 {'type': 'text', 'text': 'And tomorrow?'}]}]
    ask = dict(model='m', messages=more, tools=[WEATHER])
    n = client.messages.count_tokens(**ask).input_tokens
    assert n > client.messages.count_tokens(model='m', messages=HELLO, tools=[WEATHER]).input_tokens
    usage = client.messages.create(**ask, max_tokens=4, tool_choice={'type': 'auto'}).usage
    assert usage.output_tokens == 4 and usage.input_tokens + usage.cache_read_input_tokens == n


def test_a_form(client):
    got = client.messages.create(model='m', max_tokens=400, messages=HELLO, output_config={'format': {'type': 'json_schema', 'schema': SCHEMA}})
    assert got.stop_reason == 'end_turn'
    jsonschema.validate(json.loads(got.content[0].text), SCHEMA)


def test_thoughts_are_blocks(start, tmp_path):
    """Of a prompt that begins one: the answer is held to no form, and all of it is thought."""
    server = start(model=model_with_tools(tmp_path, HERMES + '</think>', begin='<think>\n'))
    client = anthropic.Anthropic(base_url=server.url, api_key='none', max_retries=0)
    ask = dict(model='m', max_tokens=6, messages=HELLO)
    got = client.messages.create(**ask)
    assert [block.type for block in got.content] == ['thinking'] and got.content[0].thinking
    with client.messages.stream(**ask) as stream:
        assert stream.get_final_message().content[0].thinking == got.content[0].thinking
    assert client.messages.count_tokens(model='m', messages=HELLO + [{'role': 'assistant', 'content': got.content}] + HELLO).input_tokens


def test_what_was_read_is_told(client):
    text = ' '.join(f'The number {i} is followed by {i + 1}.' for i in range(150))
    first = [{'role': 'user', 'content': text}]
    client.messages.create(model='m', max_tokens=4, messages=first)
    usage = client.messages.create(model='m', max_tokens=4, messages=first).usage
    total = client.messages.count_tokens(model='m', messages=first).input_tokens
    assert usage.cache_read_input_tokens > total / 2 and usage.input_tokens + usage.cache_read_input_tokens == total


def test_errors_are_anthropics(hermes, client):
    def body(error):
        return error.value.body['error']['type'], error.value.body['error']['message']
    with pytest.raises(anthropic.BadRequestError) as error:
        client.messages.create(model='m', max_tokens=4, messages=HELLO, tools=[{'type': 'bash_20250124', 'name': 'bash'}])
    assert error.value.body['type'] == 'error' and body(error)[0] == 'invalid_request_error' and 'bash_20250124' in body(error)[1]
    with pytest.raises(anthropic.AuthenticationError) as error:
        anthropic.Anthropic(base_url=hermes.url, api_key='wrong', max_retries=0).messages.create(model='m', max_tokens=4, messages=HELLO)
    assert body(error)[0] == 'authentication_error'
    anthropic.Anthropic(base_url=hermes.url, auth_token='secret', max_retries=0).messages.create(model='m', max_tokens=1, messages=HELLO)
    with pytest.raises(anthropic.NotFoundError):
        client.post('/v1/messages/batches', body={}, cast_to=object)
    status, reply = hermes.post('/v1/messages', {'messages': HELLO}, {'X-Api-Key': 'secret'})
    assert status == 400 and reply == {'type': 'error', 'error': {'type': 'invalid_request_error', 'message': "'max_tokens' is missing."}}
    with pytest.raises(anthropic.BadRequestError) as error:
        client.messages.create(model='m', max_tokens=4, messages=HELLO, stop_sequences=['x'] * 17)
    assert "'stop_sequences' has 17" in body(error)[1]
    with pytest.raises(anthropic.BadRequestError) as error:
        client.messages.create(model='m', max_tokens=4, messages=HELLO, output_config={'format': {'type': 'json_schema', 'schema': {'not': {}}}})
    assert body(error)[1].startswith("'output_config': \"not\"")
    with pytest.raises(anthropic.APIStatusError):
        client.messages.create(model='m', max_tokens=100000, messages=HELLO, timeout=60, extra_body={'timeout_ms': 1})
    with pytest.raises(anthropic.APIStatusError) as error, client.messages.stream(model='m', max_tokens=100000, messages=HELLO,
                                                                               extra_body={'timeout_ms': 1}) as stream:
        stream.get_final_message()
    assert body(error)[0] == 'overloaded_error'

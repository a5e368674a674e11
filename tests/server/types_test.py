"""Answers and events as the official clients' types have them, which the clients themselves do not check."""
import http.client
import json
from typing import get_args

import anthropic.types as anthropic
import openai.types as openai
import openai.types.chat as chat
import openai.types.responses as responses
import pytest
from pydantic import TypeAdapter

from conftest import HELLO, HERMES, WEATHER, model_with_tools, serving

TOOL = {'type': 'function', **WEATHER['function']}
BLOCK = {'name': 'weather', 'input_schema': WEATHER['function']['parameters']}
SCHEMA = {'type': 'object', 'properties': {'place': {'type': 'string', 'maxLength': 5}}, 'required': ['place'], 'additionalProperties': False}


@pytest.fixture(scope='module')
def thinking(tmp_path_factory):
    with serving(model=model_with_tools(tmp_path_factory.mktemp('thinking'), HERMES + '</think>', begin='<think>\n')) as server:
        yield server


def events(server, path, body):
    connection = http.client.HTTPConnection('127.0.0.1', server.port)
    connection.request('POST', path, json.dumps({**body, 'stream': True}))
    lines = connection.getresponse().read().decode().split('\n')
    return [line.removeprefix('data: ') for line in lines if line.startswith('data: ') and line != 'data: [DONE]']


def by_type(union):
    """The members of a union of events by their type: a client picks one of them."""
    union = get_args(union)[0] if not hasattr(get_args(union)[0], 'model_fields') else union
    return {name: event for event in get_args(union) for name in get_args(event.model_fields['type'].annotation)}


def check_all(server, path, body, whole, event_types):
    status, reply = server.post(path, body)
    assert status == 200, reply
    TypeAdapter(whole).validate_python(reply)
    seen = set()
    for data in events(server, path, body):
        if isinstance(event_types, dict):
            name = json.loads(data)['type']
            seen.add(name)
            if name != 'ping':  # Anthropic's, of which its client has no type
                TypeAdapter(event_types[name]).validate_json(data)
        else:
            TypeAdapter(event_types).validate_json(data)
    return seen


@pytest.mark.parametrize('more', [
    {}, {'tools': [TOOL], 'tool_choice': 'required', 'parallel_tool_calls': False}, {'max_output_tokens': 400, 'text': {'format': {
        'type': 'json_schema', 'name': 'n', 'schema': SCHEMA}}},
    {'instructions': 'x', 'metadata': {'a': 'b'}, 'temperature': .5, 'top_p': .5, 'user': 'u', 'truncation': 'disabled'}])
def test_responses(hermes, thinking, more):
    body = {'model': 'm', 'input': HELLO, 'max_output_tokens': 30, **more}
    types = by_type(responses.ResponseStreamEvent)
    seen = check_all(hermes, '/v1/responses', body, responses.Response, types)
    assert {'response.created', 'response.in_progress', 'response.output_item.done'} < seen
    check_all(thinking, '/v1/responses', body, responses.Response, types)


@pytest.mark.parametrize('more', [{}, {'tools': [BLOCK], 'tool_choice': {'type': 'any'}, 'max_tokens': 400}])
def test_messages(hermes, thinking, more):
    body = {'model': 'm', 'messages': HELLO, 'max_tokens': 20, **more}
    for server in hermes, thinking:
        seen = check_all(server, '/v1/messages', body, anthropic.Message, by_type(anthropic.RawMessageStreamEvent))
        assert {'message_start', 'content_block_start', 'message_delta', 'message_stop'} < seen
    status, count = hermes.post('/v1/messages/count_tokens', {'model': 'm', 'messages': HELLO})
    assert status == 200
    TypeAdapter(anthropic.MessageTokensCount).validate_python(count)


@pytest.mark.parametrize('more', [{}, {'tools': [WEATHER], 'tool_choice': 'required'}, {'logprobs': True, 'top_logprobs': 2, 'n': 2}])
def test_chats(hermes, thinking, more):
    body = {'model': 'm', 'messages': HELLO, 'max_tokens': 20, **more}
    for server in hermes, thinking:
        check_all(server, '/v1/chat/completions', body, chat.ChatCompletion, chat.ChatCompletionChunk)


def test_the_others(server):
    for more in {}, {'logprobs': 2}, {'n': 2}:  # chunks have null where the client's type has a reason; OpenAI's do, too
        status, reply = server.post('/v1/completions', {'model': 'm', 'prompt': 'Once', 'max_tokens': 4, **more})
        assert status == 200
        TypeAdapter(openai.Completion).validate_python(reply)
    TypeAdapter(openai.CreateEmbeddingResponse).validate_python(server.post('/v1/embeddings', {'model': 'm', 'input': ['a', 'b']})[1])
    TypeAdapter(openai.Model).validate_python(json.loads(server.get('/v1/models'))['data'][0])

"""OpenAI's own client against /v1/responses."""
import json

import jsonschema
import openai
import pytest

from conftest import HELLO, HERMES, WEATHER, model_with_tools

SCHEMA = WEATHER['function']['parameters']
TOOL = {'type': 'function', 'strict': True, **WEATHER['function']}


@pytest.fixture
def client(hermes):
    return openai.OpenAI(base_url=hermes.url + '/v1', api_key='none', max_retries=0)


def test_a_response_and_its_stream(client):
    ask = dict(model='m', input='Once upon a time', instructions='Tell a story.', max_output_tokens=12, temperature=0, store=False)
    got = client.responses.create(**ask)
    assert got.object == 'response' and got.id.startswith('resp_') and got.instructions == 'Tell a story.'
    assert got.status == 'incomplete' and got.incomplete_details.reason == 'max_output_tokens'
    assert [item.type for item in got.output] == ['message'] and got.output_text and got.usage.output_tokens == 12
    assert got.usage.total_tokens == got.usage.input_tokens + 12
    events = list(client.responses.create(**ask, stream=True))
    kept = [event.type for event in events if not event.type.endswith('.delta')]
    assert kept == ['response.created', 'response.in_progress', 'response.output_item.added', 'response.content_part.added',
                    'response.output_text.done', 'response.content_part.done', 'response.output_item.done', 'response.incomplete']
    assert [event.sequence_number for event in events] == list(range(len(events)))
    text = ''.join(event.delta for event in events if event.type == 'response.output_text.delta')
    assert text == got.output_text == events[-1].response.output_text
    assert events[-1].response.usage.input_tokens == got.usage.input_tokens and 'density' in events[-1].response.sparsity


def test_calls(client):
    ask = dict(model='m', input=HELLO, tools=[TOOL], tool_choice='required', parallel_tool_calls=False, max_output_tokens=400)
    got = client.responses.create(**ask)
    call = got.output[0]
    assert got.status == 'completed' and (call.type, call.name, call.status) == ('function_call', 'weather', 'completed')
    jsonschema.validate(json.loads(call.arguments), SCHEMA)
    with client.responses.stream(**ask) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert final.output[0].arguments == call.arguments
    deltas = [event for event in events if event.type == 'response.function_call_arguments.delta']
    assert ''.join(event.delta for event in deltas) == call.arguments and len(deltas) > 2
    # And the conversation goes on.
    more = [*HELLO, *got.output, {'type': 'function_call_output', 'call_id': call.call_id, 'output': 'sunny'}]
    again = client.responses.create(model='m', input=more, tools=[TOOL], max_output_tokens=4)
    assert again.usage.output_tokens == 4 and again.usage.input_tokens > got.usage.input_tokens
    named = client.responses.create(**{**ask, 'tool_choice': {'type': 'function', 'name': 'weather'}})
    assert named.output[0].name == 'weather'


def test_a_form(client):
    form = {'format': {'type': 'json_schema', 'name': 'x', 'schema': SCHEMA, 'strict': True}}
    got = client.responses.create(model='m', input=HELLO, text=form, max_output_tokens=400)
    assert got.status == 'completed' and got.text.format.type == 'json_schema'
    jsonschema.validate(json.loads(got.output_text), SCHEMA)


def test_thoughts_are_items(start, tmp_path):
    server = start(model=model_with_tools(tmp_path, HERMES + '</think>', begin='<think>\n'))
    client = openai.OpenAI(base_url=server.url + '/v1', api_key='none', max_retries=0)
    ask = dict(model='m', input=HELLO, max_output_tokens=6)
    got = client.responses.create(**ask)
    assert [item.type for item in got.output] == ['reasoning'] and got.output_text == ''
    with client.responses.stream(**ask) as stream:
        thought = ''.join(event.delta for event in stream if event.type == 'response.reasoning_text.delta')
    assert thought == got.output[0].content[0].text
    assert client.responses.create(model='m', input=[*HELLO, *got.output, *HELLO], max_output_tokens=2).usage.output_tokens == 2


def test_failures(client):
    with pytest.raises(openai.BadRequestError) as error:
        client.responses.create(model='m', input='x', previous_response_id='resp_1')
    assert error.value.param == 'previous_response_id'
    events = list(client.responses.create(model='m', input='x', max_output_tokens=100000, stream=True, extra_body={'timeout_ms': 1}))
    assert events[-1].type == 'response.failed' and 'timed out' in events[-1].response.error.message
    assert events[-1].response.error.code == 'server_error' and events[-1].response.status == 'failed'

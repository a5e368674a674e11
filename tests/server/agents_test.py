"""Tools, thoughts and structured output, by the official clients. The demo model writes neither calls nor JSON of its own:
it gets the template of a model that does, and is held to a form."""
import json
import random
import re

import jsonschema
import openai
import pytest

from conftest import HELLO, HERMES, MODEL, ROOT, WEATHER, model_with_tools

CLOCK = {'type': 'function', 'function': {'name': 'clock', 'parameters': {'type': 'object', 'properties': {}, 'additionalProperties': False}}}
LLAMA = '<|start_header_id|>{"name": ..., "parameters": ...}'


@pytest.fixture
def client(hermes):
    return openai.OpenAI(base_url=hermes.url + '/v1', api_key='none', max_retries=0)


def form_of(value):
    return {'type': 'json_schema', 'json_schema': {'name': 'x', 'schema': {'const': value}}}


def tokens_with(letter, at_begin=False):
    tokens = json.loads((MODEL / 'tokenizer.json').read_text())['model']['vocab']
    return [i for token, i in tokens.items() if (token.startswith(letter) if at_begin else letter in token)]


LIST = {i: 100 for i in tokens_with('[', at_begin=True)}  # the answer begins with a bracket, if it may


def check_call(call, name):
    assert call.type == 'function' and len(call.id) == 9 and call.function.name == name
    jsonschema.validate(json.loads(call.function.arguments), WEATHER['function']['parameters'])


@pytest.mark.parametrize('choice', ['required', {'type': 'function', 'function': {'name': 'weather'}}])
def test_a_call_that_must_be_made(client, choice):
    ask = dict(model='m', messages=HELLO, tools=[WEATHER], tool_choice=choice, parallel_tool_calls=False, max_tokens=400)
    got = client.chat.completions.create(**ask).choices[0]
    assert got.finish_reason == 'tool_calls' and got.message.content is None
    check_call(got.message.tool_calls[0], 'weather')
    # The stream says the same, the name first.
    chunks = [c.choices[0] for c in client.chat.completions.create(**ask, stream=True)]
    calls = [d for c in chunks for d in c.delta.tool_calls or []]
    assert calls[0].function.name == 'weather' and calls[0].function.arguments == '' and len(calls[0].id) == 9
    assert len(calls) > 3  # the arguments in pieces, as they are written
    assert ''.join(d.function.arguments for d in calls) == got.message.tool_calls[0].function.arguments
    assert all(d.index == 0 for d in calls) and chunks[-1].finish_reason == 'tool_calls'
    # And the conversation goes on.
    more = HELLO + [got.message.model_dump(exclude_none=True),
                    {'role': 'tool', 'tool_call_id': got.message.tool_calls[0].id, 'content': 'sunny'}]
    assert client.chat.completions.create(model='m', messages=more, tools=[WEATHER], max_tokens=4).usage.completion_tokens == 4


def test_an_answer_that_is_a_call(start, tmp_path):
    """Llama's calls are JSON and nothing else: a form makes the model write one, nobody says that it is one."""
    server = start(model=model_with_tools(tmp_path, LLAMA))
    client = openai.OpenAI(base_url=server.url + '/v1', api_key='none', max_retries=0)

    def answer(name, **more):
        return client.chat.completions.create(model='m', messages=HELLO, tools=[WEATHER, CLOCK], logit_bias=LIST,
                                              response_format=form_of([{'name': name, 'parameters': {'place': 'Rome'}}]), **more)
    got = answer('weather').choices[0]
    assert got.finish_reason == 'tool_calls' and json.loads(got.message.tool_calls[0].function.arguments) == {'place': 'Rome'}
    other = answer('other').choices[0]
    assert other.finish_reason == 'stop' and json.loads(other.message.content)[0]['name'] == 'other' and not other.message.tool_calls
    assert answer('weather', tool_choice='none').choices[0].message.content.startswith('[{"name"')


@pytest.mark.parametrize('stream', [False, True])
@pytest.mark.parametrize('is_call', [False, True])
def test_with_tools_an_answer_is_of_the_form_or_a_call(hermes, client, is_call, stream):
    """Whichever the model begins: here it is made to."""
    value = 'see <tool_call>{"name": "clock", "arguments": {}}</tool_call>'
    ask = dict(model='m', messages=HELLO, tools=[CLOCK], response_format=form_of(value), max_tokens=200, parallel_tool_calls=False,
               logit_bias={i: 100 for i in tokens_with('<' if is_call else '"', at_begin=True)})
    if stream:
        with client.chat.completions.stream(**ask) as events:
            got = events.get_final_completion().choices[0]
    else:
        got = client.chat.completions.create(**ask).choices[0]
    if is_call:
        assert got.finish_reason == 'tool_calls' and [c.function.name for c in got.message.tool_calls] == ['clock']
        assert not got.message.content and json.loads(got.message.tool_calls[0].function.arguments) == {}
    else:
        assert got.finish_reason == 'stop' and json.loads(got.message.content) == value and not got.message.tool_calls


def test_one_call_ends_the_answer(start, tmp_path):
    """Where nothing but `parallel_tool_calls` says so: the form would go on."""
    server = start(model=model_with_tools(tmp_path, LLAMA))
    client = openai.OpenAI(base_url=server.url + '/v1', api_key='none', max_retries=0)
    calls = [{'name': 'weather', 'parameters': {'place': place}} for place in ('Rome', 'Oslo ' * 200)]
    for stream in False, True:
        n = {}
        for parallel in True, False:
            ask = dict(model='m', messages=HELLO, tools=[WEATHER], response_format=form_of(calls), logit_bias=LIST, max_tokens=1500, parallel_tool_calls=parallel)
            if stream:
                chunks = list(client.chat.completions.create(**ask, stream=True, stream_options={'include_usage': True}))
                names = [d.function.name for c in chunks for e in c.choices for d in e.delta.tool_calls or [] if d.function.name]
                reason, n[parallel] = [e.finish_reason for c in chunks for e in c.choices][-1], chunks[-1].usage.completion_tokens
            else:
                got = client.chat.completions.create(**ask)
                names = [c.function.name for c in got.choices[0].message.tool_calls]
                reason, n[parallel] = got.choices[0].finish_reason, got.usage.completion_tokens
            assert names == ['weather'] * (2 if parallel else 1) and reason == 'tool_calls'
        assert n[False] < n[True]


def test_a_form_that_leaves_no_token_is_refused(hermes):
    ask = {'messages': HELLO, 'response_format': form_of('x'), 'logit_bias': {i: -100 for i in tokens_with('x')}}
    status, reply = hermes.post('/v1/chat/completions', ask)
    assert status == 400 and reply['error']['param'] == 'response_format' and 'form' in reply['error']['message']


def test_an_answer_of_a_form_has_no_thoughts(start, tmp_path):
    """Though the prompt begins one."""
    server = start(model=model_with_tools(tmp_path, HERMES + '</think>', begin='<think>\n'))
    value = {'a': 'x</think><think>y'}
    form = {'type': 'json_schema', 'json_schema': {'name': 'x', 'schema': {'const': value}}}
    for more in {}, {'response_format': form}:
        message = server.post('/v1/chat/completions', {'messages': HELLO, 'tools': [WEATHER], 'max_tokens': 60, **more})[1]['choices'][0]['message']
        assert ('reasoning_content' in message) == (not more)
        assert not more or json.loads(message['content']) == value


@pytest.mark.parametrize('field, value, named', [
    ('response_format', {'type': 'json_schema', 'json_schema': {'name': 'x', 'schema': {'type': 'integer', 'multipleOf': 2}}}, 'multipleOf'),
    ('response_format', {'type': 'json_schema', 'json_schema': {'name': 'x'}}, 'json_schema.schema'),
    ('tool_choice', {'type': 'function', 'function': {'name': 'other'}}, 'tool_choice'),
    ('tool_choice', 'always', 'tool_choice'),
    ('tools', [WEATHER, {'type': 'web_search'}], 'tools[1]'),
    ('tools', [{'type': 'function', 'function': {'name': 'f', 'parameters': {'type': 'string'}}}], 'tools[0].function.parameters'),
])
def test_what_is_not_supported_is_named(hermes, field, value, named):
    status, reply = hermes.post('/v1/chat/completions', {'messages': HELLO, 'tools': [WEATHER], field: value})
    assert status == 400 and named in reply['error']['message'], reply


def test_arguments_are_objects(hermes):
    """Whatever else their schema says, where calls must be made."""
    for parameters, named in ({'anyOf': [{'type': 'object'}, {'type': 'null'}]}, 'more than objects'), ({}, None), ({'properties': {}}, None):
        tools = [{'type': 'function', 'function': {'name': 'f', 'parameters': parameters}}]
        status, reply = hermes.post('/v1/chat/completions', {'messages': HELLO, 'tools': tools, 'tool_choice': 'required', 'max_tokens': 4})
        assert status == (400 if named else 200) and (not named or named in reply['error']['message']), reply


def schema_of(random, depth=0):
    """Any schema that an answer of some hundred tokens can be of."""
    kind = random.choice(['string', 'integer', 'number', 'boolean', 'null', 'enum', 'pattern'] + ['object', 'array', 'anyOf'] * (depth < 3))
    if kind == 'string':
        least = random.randrange(3)
        return {'type': 'string', 'minLength': least, 'maxLength': least + random.randrange(6)}
    if kind == 'enum':
        return {'enum': random.sample(['a', 'b"c', 'é', 1, -2.5, None, True, [1, {'x': []}]], random.randint(1, 4))}
    if kind == 'pattern':
        return {'type': 'string', 'pattern': random.choice([r'^\d{4}-\d\d$', r'^(ab|c)+x?$'.replace('+', '{1,3}'), r'^[^"a-z]{2}\.$', r'^\w{1,3}\s$'])}
    if kind == 'anyOf':
        return {'anyOf': [schema_of(random, depth + 1) for _ in range(random.randint(1, 3))]}
    if kind == 'array':
        least = random.randrange(2)
        return {'type': 'array', 'items': schema_of(random, depth + 1), 'minItems': least, 'maxItems': least + random.randrange(3)}
    if kind == 'object':
        names = random.sample(['a', 'ab', 'b c', 'ü', 'x"y', ''], random.randint(1, 4))
        return {'type': 'object', 'properties': {n: schema_of(random, depth + 1) for n in names},
                'required': random.sample(names, random.randrange(len(names) + 1)), 'additionalProperties': False}
    return {'type': kind}


def test_what_is_written_is_what_the_schema_allows(server):
    """At a temperature at which the model draws nearly any token."""
    n_done = 0
    for seed in range(40):
        schema = schema_of(random.Random(seed))
        status, reply = server.post('/v1/completions', {
            'prompt': 'x', 'max_tokens': 300, 'temperature': 50, 'seed': seed,
            'response_format': {'type': 'json_schema', 'json_schema': {'name': 'x', 'schema': schema}}})
        assert status == 200, (schema, reply)
        choice = reply['choices'][0]
        if choice['finish_reason'] == 'stop':
            jsonschema.validate(json.loads(choice['text']), schema)
            n_done += 1
    assert n_done >= 36  # the others were cut off


@pytest.mark.parametrize('file, n', [('README.md', 1), ('docs/API.md', 2)])
def test_the_examples_run(hermes, capsys, file, n):
    blocks = re.findall(r'^```python\n(.*?)^```', (ROOT / file).read_text(), re.M | re.S)
    examples = [code for code in blocks if 'http://127.0.0.1:8000' in code]
    assert len(examples) == n
    for code in examples:
        exec(code.replace('http://127.0.0.1:8000', hermes.url), {})  # noqa: S102
        assert capsys.readouterr().out.strip()

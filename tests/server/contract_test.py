"""OpenAI's own client against the server: what it sends must be understood, what it reads must be there."""
import urllib.request

import openai
import pytest

from conftest import DEVICE

MODEL = 'needle-8m'
HELLO = [{'role': 'user', 'content': 'Once upon a time'}]


@pytest.fixture
def client(server):
    return openai.OpenAI(base_url=server.url + '/v1', api_key='none', max_retries=0)


def test_models(client):
    models = client.models.list().data
    assert [m.id for m in models] == [MODEL]
    assert client.models.retrieve(MODEL).max_model_len == 131072
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve('another')


def test_chat(client):
    got = client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=8)
    choice = got.choices[0]
    assert got.object == 'chat.completion' and got.id.startswith('chatcmpl-') and got.model == MODEL
    assert choice.message.role == 'assistant' and choice.message.content and choice.finish_reason == 'length'
    assert got.usage.completion_tokens == 8
    assert got.usage.total_tokens == got.usage.prompt_tokens + 8
    assert got.usage.prompt_tokens_details.cached_tokens == 0
    assert got.timings['predicted_n'] == 8 and got.sparsity['density'] == 1


def test_a_stream_says_what_the_whole_answer_says(client):
    whole = client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=12).choices[0].message.content
    chunks = list(client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=12, stream=True,
                                                 stream_options={'include_usage': True},
                                                 extra_body={'return_progress': True}))
    assert chunks[0].choices[0].delta.role == 'assistant'
    assert ''.join(c.choices[0].delta.content or '' for c in chunks if c.choices) == whole
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == 'length'
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 12
    assert all('usage' in c.model_fields_set and c.usage is None for c in chunks[:-1])
    progress = [c.prompt_progress for c in chunks if getattr(c, 'prompt_progress', None)]
    assert progress[-1]['processed'] == progress[-1]['total'] == chunks[-1].usage.prompt_tokens


def test_stop(client):
    whole = client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=12).choices[0].message.content
    stop = whole[10:13]
    got = client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=12, stop=[stop, 'never']).choices[0]
    assert got.message.content == whole[:whole.index(stop)] and got.finish_reason == 'stop'


def test_seed_n_and_logit_bias(server, client):
    def draw(**more):
        got = client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=8, temperature=1, **more)
        return [c.message.content for c in got.choices]
    assert draw(seed=3) == draw(seed=3)
    three = draw(seed=3, n=3)
    assert len(set(three)) == 3
    if DEVICE != 'cuda':  # there products of three rows are rounded otherwise than those of one
        assert three[0] == draw(seed=3)[0]
    plain = client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=1, logprobs=True)
    first = plain.choices[0].logprobs.content[0]
    ids = server.post('/tokenize', {'content': first.token})[1]['tokens']
    other = client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=1, logit_bias={ids[-1]: -100})
    assert other.choices[0].message.content != plain.choices[0].message.content


def test_logprobs(client):
    got = client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=4, logprobs=True, top_logprobs=5)
    for token in got.choices[0].logprobs.content:
        assert len(token.top_logprobs) == 5 and token.logprob <= 0
        assert token.logprob == token.top_logprobs[0].logprob  # greedy
        assert bytes(token.bytes).decode() == token.token


def test_completion_with_echo_is_what_lm_eval_reads(client):
    prompt = client.completions.create(model=MODEL, prompt='It was a dark and stormy night', max_tokens=1)
    assert prompt.choices[0].text
    ids = [0, 400, 500, 600, 700, 800]
    got = client.completions.create(model=MODEL, prompt=[ids, ids[:4]], max_tokens=1, logprobs=1, echo=True, temperature=0, seed=1)
    for choice, n in zip(got.choices, (6, 4)):
        scores = choice.logprobs
        assert len(scores.token_logprobs) == len(scores.top_logprobs) == len(scores.tokens) == n + 1
        assert scores.token_logprobs[0] is None and all(x <= 0 for x in scores.token_logprobs[1:])
        # The token that was drawn is the likeliest.
        assert max(scores.top_logprobs[-1].values()) == scores.token_logprobs[-1]
    # The scores of a prefix do not depend on what follows: products of more rows round elsewhere, keys and values to bf16.
    a, b = (c.logprobs.token_logprobs for c in got.choices)
    assert a[1:4] == pytest.approx(b[1:4], abs=1e-2)


def test_offsets_count_characters(client):
    text = 'Füße – naïve'
    for max_tokens in (0, 1):
        got = client.completions.create(model=MODEL, prompt=text, max_tokens=max_tokens, logprobs=0, echo=True, temperature=0)
        chunks = list(client.completions.create(model=MODEL, prompt=text, max_tokens=max_tokens, logprobs=0, echo=True, temperature=0, stream=True))
        assert ''.join(c.choices[0].text for c in chunks) == got.choices[0].text and text in got.choices[0].text
        scores = got.choices[0].logprobs
        for token, offset in zip(scores.tokens, scores.text_offset):
            assert token in ('\ufffd', '<|bos|>') or got.choices[0].text[offset:].startswith(token)
        streamed = [c.choices[0].logprobs for c in chunks if c.choices[0].logprobs]
        assert sum((part.text_offset for part in streamed), []) == scores.text_offset
        assert sum((part.tokens for part in streamed), []) == scores.tokens
        # The token itself is among the likeliest, were it only by being asked for.
        assert all(top[token] == score for token, score, top in list(zip(scores.tokens, scores.token_logprobs, scores.top_logprobs))[1:])


def test_an_answer_cut_short_is_an_error(client, server):
    body = {'prompt': 'Once', 'max_tokens': 100000, 'ignore_eos': True, 'timeout_ms': 1}
    status, reply = server.post('/v1/completions', body)
    assert status == 503 and reply['error']['type'] == 'unavailable_error'
    with pytest.raises(openai.APIError, match='timed out'):
        list(client.completions.create(model=MODEL, prompt='Once', max_tokens=100000, stream=True,
                                       extra_body={'ignore_eos': True, 'timeout_ms': 1}))


def test_the_next_turn_reuses_what_was_read(client):
    text = ' '.join(f'The number {i} is followed by {i + 1}.' for i in range(150))
    first = [{'role': 'user', 'content': [{'type': 'text', 'text': text}, {'type': 'text', 'text': 'What follows 7?'}]}]
    one = client.chat.completions.create(model=MODEL, messages=first, max_tokens=8)
    more = first + [{'role': 'assistant', 'content': one.choices[0].message.content}, {'role': 'user', 'content': 'And 9?'}]
    two = client.chat.completions.create(model=MODEL, messages=more, max_tokens=8)
    assert two.usage.prompt_tokens_details.cached_tokens >= one.usage.prompt_tokens - 1024
    fresh = client.chat.completions.create(model=MODEL, messages=more, max_tokens=8, extra_body={'cache_prompt': False})
    assert fresh.usage.prompt_tokens_details.cached_tokens == 0 and fresh.choices == two.choices
    dense = client.chat.completions.create(model=MODEL, messages=more, max_tokens=8, extra_body={'prefill': 'dense', 'decode': 'full'})
    assert dense.usage.prompt_tokens_details.cached_tokens == 0 and dense.sparsity['density'] == 1


def counted(n):
    return ' '.join(f'The number {i} is followed by {i + 1}.' for i in range(n))


def ask(server, messages, question):
    """A turn of a conversation, answered from a compressed cache."""
    messages.append({'role': 'user', 'content': question})
    status, got = server.post('/v1/chat/completions', {'messages': messages, 'temperature': 0, 'budget': 192})
    assert status == 200, got
    messages.append({'role': 'assistant', 'content': got['choices'][0]['message']['content']})
    return got['timings'] | {'total': got['usage']['prompt_tokens'], 'text': messages[-1]['content']}


def wait_for_files(folder, n):
    for _ in range(10**6):
        if len(list(folder.glob('*.safetensors'))) >= n:
            return


def test_a_conversation_outlives_the_server(start, tmp_path):
    """Each turn reads what is new: also beside a compressed cache, and after the server was killed."""
    flags = '--prefix-dir', tmp_path / 'pages', '--default-max-tokens', '64', '--prefill', 'entropy'
    text = counted(250)
    server = start(*flags)
    messages = []
    first = ask(server, messages, text + ' What follows 7?')
    assert first['cache_n'] == 0
    second = ask(server, messages, 'And 9?')
    assert first['total'] - 32 < second['cache_n'] <= first['total'] + first['predicted_n'] and second['cache_disk_n'] == 0
    before = list(messages)
    third = ask(server, messages, 'And 11?')
    # Pages of 512 tokens, the last of each of two turns in part.
    n_files = -(-(second['total'] + second['predicted_n'] - 1) // 512) + 1
    wait_for_files(tmp_path / 'pages', n_files)
    server.process.kill()
    server.process.wait()
    (tmp_path / 'pages' / '0123456789abcdef.safetensors.1.part').write_bytes(b'half')
    server = start(*flags)
    again = ask(server, before, 'And 11?')
    assert again['text'] == third['text'] and again['cache_n'] >= third['cache_n'] and again['cache_disk_n'] > 0
    assert not list((tmp_path / 'pages').glob('*.part'))
    assert server.counts('prefix_cache_tier_hits_total')['disk'] == again['cache_disk_n']
    assert server.counts('prefix_cache_bytes')['disk'] > 0
    assert all(file.stat().st_mode & 0o777 == 0o600 for file in (tmp_path / 'pages').iterdir())
    assert server.stop() == 0
    done = [event for event in server.events() if event['event'] == 'request_done']
    assert done[-1]['loaded_tokens'] == again['cache_disk_n'] and 'prefix_file' not in ''.join(server.log)


def test_files_alone_keep_a_conversation(start, tmp_path):
    """Where memory keeps no page, the answer's are filed behind those of the prompt that it no longer has."""
    server = start('--prefix-dir', tmp_path / 'pages', '--prefix-memory', '0', '--prefix-ram', '0', '--default-max-tokens', '64',
                   '--prefill', 'entropy')
    messages = []
    first = ask(server, messages, counted(120) + ' What follows 7?')
    wait_for_files(tmp_path / 'pages', -(-(first['total'] + first['predicted_n'] - 1) // 512))
    second = ask(server, messages, 'And 9?')
    assert second['cache_disk_n'] == second['cache_n'] > first['total']


@pytest.mark.parametrize('body, param', [
    ({}, 'messages'),
    ({'messages': []}, 'messages'),
    ({'messages': [{'role': 'tool', 'content': 'x'}]}, 'messages[0].role'),
    ({'messages': [{'role': 'user'}]}, 'messages[0].content'),
    ({'messages': HELLO, 'tools': [{}]}, 'tools'),
    ({'messages': HELLO, 'tool_choice': 'required'}, 'tool_choice'),
    ({'messages': HELLO, 'response_format': {'type': 'grammar'}}, 'response_format'),
    ({'messages': HELLO, 'response_format': {'type': 'json_object'}, 'ignore_eos': True}, 'ignore_eos'),
    ({'messages': HELLO, 'prefill': 'other'}, 'prefill'),
    ({'messages': HELLO, 'stop': ['x'] * 17}, 'stop'),
    ({'messages': HELLO, 'logit_bias': {'x': 1}}, 'logit_bias'),
    ({'messages': HELLO, 'guided_json': {}}, 'guided_json'),
    ({'messages': HELLO, 'continue_final_message': True}, 'continue_final_message'),
])
def test_errors_name_the_field(server, body, param):
    status, reply = server.post('/v1/chat/completions', body)
    assert status == 400 and reply['error']['param'] == param and reply['error']['type'] == 'invalid_request_error'


@pytest.mark.parametrize('field, value', [
    ('n', 0), ('n', 100000), ('n', 1.5), ('max_tokens', 0), ('max_tokens', -1), ('max_tokens', 2**62), ('temperature', -1),
    ('temperature', 'hot'), ('top_p', 2), ('top_k', -2), ('seed', 'x'), ('top_logprobs', 21), ('stream', 'yes'), ('budget', 0),
    ('base_budget', -5), ('min_tokens', -1), ('repetition_penalty', 0), ('presence_penalty', 2.1),
    ('frequency_penalty', -2.1), ('frequency_penalty', 'x'), ('logit_bias', {'99999': 1}), ('timeout_ms', -1),
])
def test_numbers_out_of_range_are_refused(server, field, value):
    status, reply = server.post('/v1/chat/completions', {'messages': HELLO, 'logprobs': True, field: value})
    assert status == 400 and field in reply['error']['message'].replace('-', '_'), reply
    assert reply['error']['param'] == (None if field == 'logit_bias' else field)


@pytest.mark.parametrize('path, body, param', [
    ('/v1/responses', {'input': 'x', 'max_output_tokens': 0}, 'max_output_tokens'),
    ('/v1/responses', {'input': 'x', 'temperature': 'hot'}, 'temperature'),
    ('/v1/responses', {'input': 'x', 'text': {'format': {'type': 'json_schema', 'schema': {'not': {}}}}}, 'text'),
    ('/v1/embeddings', {'input': 'x', 'dimensions': 0}, 'dimensions'),
    ('/v1/completions', {'prompt': 'x', 'logprobs': 21}, 'logprobs'),
    ('/v1/completions', {'prompt': 'x', 'stream': True, 'stream_options': {'include_usage': 1}}, 'stream_options.include_usage'),
    ('/v1/chat/completions', {'messages': [{'role': 5, 'content': 'x'}]}, 'messages[0].role'),
])
def test_errors_name_the_field_that_was_sent(server, path, body, param):
    status, reply = server.post(path, body)
    assert status == 400 and reply['error']['param'] == param and param.split(".")[-1] in reply['error']['message'], reply


@pytest.mark.parametrize('body', [b'', b'{', b'[]', b'"x"', b'{"a":' + b'[' * 100000, b'{"messages": [], "messages": []}', b'\xff\xfe'])
def test_malformed_bodies(server, body):
    status, reply = server.post('/v1/chat/completions', body)
    assert status == 400 and reply['error']['message']


def test_too_long_a_prompt_is_refused_with_both_numbers(client):
    with pytest.raises(openai.BadRequestError) as error:
        client.completions.create(model=MODEL, prompt=[5] * 131073)
    assert error.value.code == 'context_length_exceeded'
    assert '131072' in str(error.value) and '131073' in str(error.value)
    assert error.value.param == 'prompt'
    assert error.value.body['n_prompt_tokens'] == 131073 and error.value.body['n_ctx'] == 131072


def test_tokens_and_template(server):
    status, reply = server.post('/tokenize', {'content': 'hello world'})
    assert status == 200 and reply['count'] == len(reply['tokens'])
    assert server.post('/detokenize', {'tokens': reply['tokens']})[1]['content'] == 'hello world'
    assert server.post('/apply-template', {'messages': HELLO})[1]['prompt'] == '<|bos|><|user|>Once upon a time<|assistant|>'
    assert server.post('/v1/rerank', {})[0] == 501
    assert server.post('/nowhere', {})[0] == 404


def test_embeddings(client, server):
    texts = [f'The heron lay north of the old grove, {i} days long.' for i in range(40)]
    reply = client.embeddings.create(model=MODEL, input=texts)  # as base64
    vectors = [one.embedding for one in reply.data]
    assert [one.index for one in reply.data] == list(range(40)) and len({len(v) for v in vectors}) == 1
    assert all(abs(sum(x * x for x in v) - 1) < 1e-5 for v in vectors)  # floats' rounding
    assert len({tuple(v) for v in vectors}) == 40
    n_tokens = [server.post('/tokenize', {'content': text})[1]['count'] for text in texts]
    assert reply.usage.prompt_tokens == reply.usage.total_tokens == sum(n_tokens)
    near = lambda a, b: all(abs(x - y) < 1e-6 for x, y in zip(a, b, strict=True))
    one = client.embeddings.create(model=MODEL, input=texts[20], encoding_format='float').data[0].embedding
    assert near(one, vectors[20])
    ids = server.post('/tokenize', {'content': texts[20]})[1]['tokens']
    assert near(client.embeddings.create(model=MODEL, input=[ids, ids]).data[1].embedding, vectors[20])
    short = client.embeddings.create(model=MODEL, input=texts[20], dimensions=8).data[0].embedding
    length = sum(x * x for x in one[:8]) ** .5
    assert near(short, [x / length for x in one[:8]])
    # The mean of one token is its own.
    pooled = lambda pooling, ids: client.embeddings.create(model=MODEL, input=ids, extra_body={'pooling': pooling}).data[0].embedding
    assert near(pooled('mean', ids[:1]), pooled('last', ids[:1])) and not near(pooled('mean', ids), one)
    with pytest.raises(openai.BadRequestError) as error:
        client.embeddings.create(model=MODEL, input=['a', [5] * 131073])
    assert error.value.code == 'context_length_exceeded' and error.value.param == 'input'
    for field, value in [('input', []), ('input', ''), ('input', None), ('dimensions', len(one) + 1), ('pooling', 'max'), ('encoding_format', 'int8')]:
        status, reply = server.post('/v1/embeddings', {'input': 'a', field: value})
        assert status == 400 and field in str(reply['error']), (field, value, reply)


def test_keys_hosts_and_origins(start):
    server = start('--api-key', 'secret', '--api-key', 'other', '--cors-origins', 'https://a.example', '--allowed-hosts', 'llm.example')
    body = {'messages': HELLO, 'max_tokens': 1}
    path = '/v1/chat/completions'
    assert server.post(path, body)[0] == 401
    assert server.post(path, body, {'Authorization': 'Bearer secre'})[0] == 401
    assert server.post('/tokenize', {'content': 'x'})[0] == 401
    good = {'Authorization': 'Bearer other'}
    assert server.post(path, body, good)[0] == 200
    assert server.post(path, body, {**good, 'Origin': 'https://a.example'})[0] == 200
    assert server.post(path, body, {**good, 'Origin': 'https://b.example'})[0] == 403
    assert server.post(path, body, {**good, 'Host': 'llm.example:8000'})[0] == 200
    assert server.post(path, body, {**good, 'Host': 'rebound.example'})[0] == 403
    assert urllib.request.urlopen(server.url + '/health').status == 200

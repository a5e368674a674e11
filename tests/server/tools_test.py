"""Programs that people point at a server: lm-eval, vLLM's benchmark (by the requests it sends), promtool."""
import http.client
import json
import random
import shutil
import subprocess
import sys

import pytest

from conftest import MODEL, ROOT
from load_test import prompt


def test_lm_eval_scores_a_task(server, tmp_path):
    data = tmp_path / 'test.jsonl'
    with data.open('w') as file:
        for seed in range(4):
            text, question, value = prompt(400, seed)
            choices = [str(random.Random(1000 * seed + i).randrange(10**6, 10**7)) for i in range(3)]
            choices.insert(seed % 4, value)
            key = question.split(' for ')[1].split()[0]
            file.write(json.dumps({'text': text, 'key': key, 'choices': [f' {c}' for c in choices], 'answer': seed % 4}) + '\n')
    task = (ROOT / 'tests/server/lm_eval/needle_choice.yaml').read_text()
    (tmp_path / 'needle_choice.yaml').write_text(task.replace('DATA', str(data)))
    run = subprocess.run([sys.executable, '-m', 'lm_eval', 'run', '--model', 'local-completions', '--model_args',
                          f'model=needle-8m,base_url={server.url}/v1/completions,tokenizer={MODEL},num_concurrent=4,max_retries=1,tokenized_requests=True',
                          '--tasks', 'needle_choice', '--include_path', str(tmp_path), '--output_path', str(tmp_path / 'out')],
                         capture_output=True, text=True, env={'HF_HUB_OFFLINE': '1', 'HOME': str(tmp_path), 'PATH': '/usr/bin:/bin'})
    assert run.returncode == 0, run.stderr[-3000:]
    results = json.loads(next((tmp_path / 'out').rglob('results*.json')).read_text())
    assert results['results']['needle_choice']['acc,none'] == 1


def test_the_requests_of_vllm_bench_serve(server):
    """Its openai backend streams completions of text with ignore_eos and reads usage from a last chunk without choices."""
    connection = http.client.HTTPConnection('127.0.0.1', server.port)
    connection.request('POST', '/v1/completions', json.dumps({
        'model': 'needle-8m', 'prompt': 'the old mill ' * 60, 'temperature': 0.0, 'repetition_penalty': 1.0, 'max_tokens': 20,
        'logprobs': None, 'stream': True, 'stream_options': {'include_usage': True}, 'ignore_eos': True}),
        {'Content-Type': 'application/json', 'Authorization': 'Bearer None', 'x-request-id': 'bench-0'})
    reply = connection.getresponse()
    assert reply.status == 200 and reply.getheader('Content-Type').startswith('text/event-stream')
    events = reply.read().decode().strip().split('\n\n')
    assert events[-1] == 'data: [DONE]'
    chunks = [json.loads(event.removeprefix('data: ')) for event in events[:-1]]
    assert all(isinstance(c['text'], str) for chunk in chunks for c in chunk['choices'])
    assert chunks[-1]['choices'] == [] and chunks[-1]['usage']['completion_tokens'] == 20


@pytest.mark.skipif(not shutil.which('promtool'), reason="promtool is in Debian's prometheus")
def test_metrics_are_clean(server):
    server.post('/v1/completions', {'prompt': 'Once', 'max_tokens': 3})
    lint = subprocess.run(['promtool', 'check', 'metrics'], input=server.get('/metrics'), capture_output=True, text=True)
    # The names are vLLM's under a prefix of ours, colon and all; promtool keeps colons for recording rules.
    lints = [line for line in (lint.stdout + lint.stderr).splitlines() if not line.endswith("metric names should not contain ':'")]
    assert lints == [] and lint.returncode in (0, 3)

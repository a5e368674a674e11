"""Starts `entropyinfer serve` on the demo model. ENTROPYINFER names the program."""
import contextlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import threading
import urllib.error
import urllib.request

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
PROGRAM = os.environ.get('ENTROPYINFER', ROOT / 'build/release/apps/entropyinfer')
MODEL = ROOT / 'models/needle-8m'
DEVICE = os.environ.get('ENTROPYINFER_DEVICE', 'cpu')

# What agents' tests ask, and a model's form of calls.
HELLO = [{'role': 'user', 'content': 'Once upon a time'}]
WEATHER = {'type': 'function', 'function': {
    'name': 'weather', 'description': 'The weather of a place.',
    'parameters': {'type': 'object', 'properties': {'place': {'type': 'string', 'maxLength': 12}, 'days': {'type': 'integer'}},
                   'required': ['place'], 'additionalProperties': False}}}
HERMES = '<tool_call>{"name": ..., "arguments": ...}</tool_call>'


def pytest_addoption(parser):
    parser.addoption('--load-seconds', type=float, default=6, help='how long the mixed load lasts')
    parser.addoption('--load-tokens', type=int, default=4096, help='its longest prompts')
    parser.addoption('--hold-memory', action='store_true', help='take all memory of the GPU, to see what a server without any does')
    parser.addoption('--screenshots', type=pathlib.Path, help='folder for pictures of the page')


class Server:
    """A running server; what it logs is in `log` once it has stopped."""

    def __init__(self, *flags, model=MODEL, program=PROGRAM):
        self.process = subprocess.Popen([program, 'serve', model, '--port', '0', '-t', '1', '--log-json', *flags],
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        # Read beside the test: a pipe that nobody empties would stop the server.
        self.log = []
        self.reader = threading.Thread(target=lambda: self.log.extend(self.process.stderr), daemon=True)
        self.reader.start()
        self.url = re.search(r'http://[^ ]+', self.process.stdout.readline()).group()
        self.hint = self.process.stdout.readline()
        self.port = int(self.url.rsplit(':', 1)[1])

    def stop(self):
        self.process.terminate()
        return self.wait()

    def wait(self):
        code = self.process.wait(timeout=120)
        self.reader.join()
        return code

    def get(self, path):
        with urllib.request.urlopen(self.url + path) as reply:
            return reply.read().decode()

    def post(self, path, body, headers={}):
        """Status and JSON of the answer."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {'Content-Type': 'application/json', **headers})
        try:
            with urllib.request.urlopen(request) as reply:
                return reply.status, json.loads(reply.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def metric(self, name):
        """The sum of a metric over its labels."""
        found = re.findall(rf'^entropyinfer:{name}(?:{{[^}}]*}})? (\S+)$', self.get('/metrics'), re.MULTILINE)
        assert found, name
        return sum(map(float, found))

    def counts(self, name):
        """A metric by the value of its last label."""
        found = re.findall(rf'^entropyinfer:{name}{{.*"([^"]+)"}} (\S+)$', self.get('/metrics'), re.MULTILINE)
        return {label: float(n) for label, n in found}

    def events(self):
        return [json.loads(line) for line in self.log if line.startswith('{')]


@contextlib.contextmanager
def serving(*flags, **more):
    server = Server(*flags, **more)
    yield server
    assert server.stop() == 0, ''.join(server.log[-20:])


def model_with_tools(folder, form, begin=''):
    """The demo model with a template that writes tools, calls and results."""
    for file in MODEL.iterdir():
        shutil.copy(file, folder)
    config = json.loads((MODEL / 'tokenizer_config.json').read_text())
    config['chat_template'] = (
        "{{ bos_token }}{% if tools %}" + form + "{% for t in tools %}{{ t | tojson }}{% endfor %}{% endif %}"
        "{% for m in messages %}{{ ('<|assistant|>' if m.role == 'assistant' else '<|user|>') ~ (m.content or '') }}"
        "{% for c in m.tool_calls or [] %}{{ c.function.name ~ (c.function.arguments | tojson) }}{% endfor %}"
        "{% if m.role == 'assistant' %}<|eot|>{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>" + begin + "{% endif %}")
    (folder / 'tokenizer_config.json').write_text(json.dumps(config))
    return folder


@pytest.fixture(scope='session')
def server():
    # Prompts are read in several chunks, whoever hangs up is noticed soon, and nobody who does not say so waits for 2048 tokens.
    with serving('--chunk', '512', '--default-max-tokens', '64') as server:
        yield server


@pytest.fixture(scope='session')
def hermes(tmp_path_factory):
    with serving(model=model_with_tools(tmp_path_factory.mktemp('hermes'), HERMES)) as server:
        yield server


@pytest.fixture
def start():
    """Starts servers with flags, or a model, of their own."""
    servers = []

    def make(*flags, **more):
        servers.append(Server(*flags, **more))
        return servers[-1]
    yield make
    for server in servers:
        if server.process.poll() is None:
            assert server.stop() == 0, ''.join(server.log[-20:])

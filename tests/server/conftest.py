"""Starts `entropyinfer serve` on the demo model. ENTROPYINFER names the program."""
import os
import re
import subprocess

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PROGRAM = os.environ.get('ENTROPYINFER', os.path.join(ROOT, 'build/release/apps/entropyinfer'))
MODEL = os.path.join(ROOT, 'models/needle-8m')


class Server:
    def __init__(self, *flags):
        self.process = subprocess.Popen([PROGRAM, 'serve', MODEL, '--port', '0', '--quiet', *flags],
                                        stdout=subprocess.PIPE, text=True)
        self.url = re.search(r'http://[^ ]+', self.process.stdout.readline()).group()
        self.port = int(self.url.rsplit(':', 1)[1])

    def stop(self):
        self.process.terminate()
        return self.process.wait(timeout=60)


@pytest.fixture(scope='session')
def server():
    server = Server()
    yield server
    assert server.stop() == 0


@pytest.fixture
def start():
    """Starts servers with flags of their own."""
    servers = []

    def make(*flags):
        servers.append(Server(*flags))
        return servers[-1]
    yield make
    for server in servers:
        if server.process.poll() is None:
            server.stop()

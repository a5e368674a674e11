#!/usr/bin/env python3
"""Models by name, from a hub on loopback: tests/hub/hub_test.py PROGRAM [OPTIONS OF unittest...].
Python's own library is all that this needs; what PyPI's huggingface_hub makes of the same cache is looked at where
CLIENTS, the environment of tests/server, has it."""
import hashlib
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import unittest

from fake_hub import COMMIT, FakeHub, git_id

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
NEEDLE = {file.name: file.read_bytes() for file in (ROOT / 'models/needle-8m').iterdir()}
FACT = 'One of the special magic numbers for quiet-harbor is: 4821097.'
QUESTION = ['--prompt', 'What is the special magic number for quiet-harbor mentioned in the provided text?']
WEIGHTS = NEEDLE['model.safetensors']
PROGRAM = None


class HubTest(unittest.TestCase):
    def setUp(self):
        self.hub = FakeHub({
            'org/needle': {**NEEDLE, 'pytorch_model.bin': b'pickle', '../evil': b'x', 'original/model.safetensors': b'y'},
            'org/needle-GGUF': {'config.json': b'{}', 'needle-Q4_K_M-00001-of-00002.gguf': b'one' * 99, 'README.md': b'',
                                'needle-Q4_K_M-00002-of-00002.gguf': b'two' * 99, 'needle.Q8_0.gguf': b'eight' * 99,
                                'BF16/needle-BF16.gguf': b'full' * 99, 'needle-mmproj-F16.gguf': b'picture'},
            'org/bins': {'config.json': b'{}', 'pytorch_model.bin': b'pickle'}})
        self.addCleanup(self.hub.close)
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.dir = pathlib.Path(folder.name)
        self.cache = self.dir / 'hf/hub'
        self.needle = self.cache / 'models--org--needle'
        self.environment = {'HOME': folder.name, 'HF_HOME': str(self.dir / 'hf'), 'HF_ENDPOINT': self.hub.hub.url + '/',
                            'PATH': os.environ['PATH'], 'no_proxy': '*', 'OMP_WAIT_POLICY': 'passive'}
        (self.dir / 'fact.txt').write_text(FACT)

    def start(self, *arguments, **environment):
        return subprocess.Popen([PROGRAM, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                text=True, env={**self.environment, **environment})

    def program(self, *arguments, code=0, **environment):
        """What it prints, or what it complains about."""
        process = self.start(*arguments, **environment)
        out, err = process.communicate(timeout=120)
        self.assertEqual(process.returncode, code, out + err)
        return out.strip() if code == 0 else err

    def blob(self, data):
        return self.needle / 'blobs' / hashlib.sha256(data).hexdigest()

    def weight_requests(self):
        return [headers.get('Range') for method, path, headers in self.hub.storage.requests if path.endswith('model.safetensors')]

    def test_a_model_of_the_hub_answers_and_is_fetched_once(self):
        ask = ['run', 'org/needle', '--file', str(self.dir / 'fact.txt'), *QUESTION, '--temp', '0']
        self.assertIn('4821097', self.program(*ask))
        # What is there has the layout of huggingface_hub, and nothing that the model does not need.
        self.assertEqual((self.needle / 'refs/main').read_text(), COMMIT)
        snapshot = self.needle / 'snapshots' / COMMIT
        names = {'config.json', 'generation_config.json', 'tokenizer.json', 'tokenizer_config.json', 'model.safetensors'}
        self.assertEqual({path.name for path in snapshot.iterdir()}, names)
        self.assertEqual(os.readlink(snapshot / 'config.json'), '../../blobs/' + git_id(NEEDLE['config.json']))
        self.assertEqual((snapshot / 'model.safetensors').resolve(), self.blob(WEIGHTS))
        self.assertEqual({path.name for path in self.dir.glob('**/*.incomplete')}, set())
        # From now on the hub is not asked, and need not be there.
        n_requests = len(self.hub.hub.requests)
        self.assertIn('4821097', self.program(*ask))
        self.assertIn('4821097', self.program(*ask, '--offline', HF_ENDPOINT='http://127.0.0.1:1'))
        for path in (self.needle, snapshot):
            self.assertIn('"iet"', self.program('tokenize', str(path), 'quiet'))
        self.assertEqual(len(self.hub.hub.requests), n_requests)
        # pull asks it, and fetches nothing that is there.
        self.assertEqual(self.program('pull', 'org/needle'), str(snapshot))
        self.assertEqual(self.weight_requests(), [None])

    def test_the_token_goes_to_the_hub_alone(self):
        (self.dir / 'hf').mkdir()
        (self.dir / 'hf/token').write_text('hf_file\n')
        self.program('pull', 'org/needle')
        self.assertEqual({headers.get('Authorization') for *_, headers in self.hub.hub.requests}, {'Bearer hf_file'})
        self.assertEqual({headers.get('Authorization') for *_, headers in self.hub.storage.requests}, {None})
        self.hub.hub.requests.clear()
        self.program('pull', 'org/needle', HF_TOKEN='hf_variable', HF_HUB_CACHE=str(self.dir / 'other'))
        self.assertEqual({headers.get('Authorization') for *_, headers in self.hub.hub.requests}, {'Bearer hf_variable'})
        self.assertTrue((self.dir / 'other/models--org--needle/refs/main').exists())

    def test_https_trusts_whom_it_is_told_to(self):
        certificate = self.dir / 'hub.pem'
        subprocess.run(['openssl', 'req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes', '-days', '2',
                        '-subj', '/CN=localhost', '-addext', 'subjectAltName=DNS:localhost', '-keyout', certificate, '-out', self.dir / 'own.pem'],
                       check=True, stderr=subprocess.DEVNULL)
        with certificate.open('a') as file:
            file.write((self.dir / 'own.pem').read_text())
        hub = FakeHub({'org/needle': NEEDLE}, certificate)
        self.addCleanup(hub.close)
        stranger = self.program('pull', 'org/needle', code=1, HF_ENDPOINT=hub.hub.url)
        self.assertIn('certificate', stranger)
        self.assertIn('SSL_CERT_FILE', stranger)
        self.assertEqual(hub.hub.requests, [])
        for n, name in enumerate(['SSL_CERT_FILE', 'REQUESTS_CA_BUNDLE', 'CURL_CA_BUNDLE']):
            known = {'HF_ENDPOINT': hub.hub.url, 'HF_HUB_CACHE': str(self.dir / str(n)), name: str(self.dir / 'own.pem')}
            self.program('pull', 'org/needle', **known)
            self.assertEqual((self.dir / str(n) / 'models--org--needle/blobs' / self.blob(WEIGHTS).name).read_bytes(), WEIGHTS)
        missing = self.program('pull', 'org/needle', code=1, HF_ENDPOINT=hub.hub.url, SSL_CERT_FILE='/nowhere.pem')
        self.assertIn('/nowhere.pem', missing)

    def test_a_cut_connection_is_gone_on_from(self):
        self.hub.cut = [1_000_000, 0, 2_000_000]
        self.program('pull', 'org/needle')
        self.assertEqual(self.weight_requests(), [None, 'bytes=1000000-', 'bytes=1000000-', 'bytes=3000000-'])
        self.assertEqual(self.blob(WEIGHTS).read_bytes(), WEIGHTS)

    def test_a_hub_without_ranges_sends_all_again(self):
        self.hub.cut, self.hub.ranges = [1_000_000], False
        self.program('pull', 'org/needle')
        self.assertEqual(self.blob(WEIGHTS).read_bytes(), WEIGHTS)

    def test_ctrl_c_leaves_a_part_to_go_on_from(self):
        self.hub.gate.clear()
        process = self.start('run', 'org/needle', *QUESTION)
        part = pathlib.Path(str(self.blob(WEIGHTS)) + '.incomplete')
        while not (part.exists() and part.stat().st_size == len(WEIGHTS) // 2):
            self.assertIsNone(process.poll())
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
        self.assertEqual(process.returncode, 130)
        self.hub.gate.set()
        self.program('pull', 'org/needle')
        self.assertEqual(self.weight_requests(), [None, f'bytes={len(WEIGHTS) // 2}-'])
        self.assertEqual(self.blob(WEIGHTS).read_bytes(), WEIGHTS)

    def test_two_at_once_fetch_it_once(self):
        self.hub.gate.clear()
        first = self.start('pull', 'org/needle')
        while not self.weight_requests():
            self.assertIsNone(first.poll())
        second = self.start('pull', 'org/needle')
        self.assertIn('another process', second.stderr.readline())
        self.hub.gate.set()
        ends = [(process.communicate(timeout=60)[1], process.returncode) for process in (first, second)]
        self.assertEqual([code for _, code in ends], [0, 0], ends)
        self.assertEqual(self.weight_requests(), [None])

    def test_what_is_not_what_the_hub_says_is_thrown_away(self):
        for file in ('tokenizer.json', 'model.safetensors'):
            data = NEEDLE[file]
            self.hub.damage = {file: data[:-1] + bytes([data[-1] ^ 1])}
            self.assertIn(file, self.program('pull', 'org/needle', code=1))
            self.assertIn('hash', self.program('run', 'org/needle', *QUESTION, code=1))
            self.assertFalse(self.blob(WEIGHTS).exists())
        self.assertEqual({path.stat().st_size for path in self.dir.glob('**/*.incomplete')}, {0})
        # A part that somebody else left damaged is fetched again as a whole.
        self.hub.damage = {}
        self.hub.storage.requests.clear()
        pathlib.Path(str(self.blob(WEIGHTS)) + '.incomplete').write_bytes(b'nonsense')
        self.program('pull', 'org/needle')
        self.assertEqual(self.weight_requests(), ['bytes=8-', None])

    def test_foreign_names_stay_within_the_cache(self):
        self.hub.etags = {'model.safetensors': '../../../../evil'}
        self.assertIn('etag', self.program('pull', 'org/needle', code=1))
        self.assertEqual(list(self.dir.glob('**/evil*')), [])

    def test_what_the_hub_refuses_is_explained(self):
        gated = {'X_Error_Code': 'GatedRepo'}
        for answer, token, words in [
                ((401, gated), '', ['accept', '/org/needle', 'HF_TOKEN']),
                ((403, gated), 'hf_x', ['accept', '/org/needle', 'token']),
                ((401, {}), '', ['no public model org/needle', 'HF_TOKEN']),
                ((401, {}), 'hf_x', ['token of HF_TOKEN']),
                ((404, {}), '', ['no model org/needle', 'check the name']),
                ((429, {'Retry_After': 37}), '', ['too many requests', '37 seconds', 'HF_TOKEN']),
                ((500, {}), '', None)]:  # passes: is tried again
            with self.subTest(answer=answer, token=token):
                self.hub.refuse = [answer]
                got = self.program('pull', 'org/needle', code=1 if words else 0, HF_TOKEN=token)
                for word in words or []:
                    self.assertIn(word, got)

    def test_what_is_not_there_is_explained(self):
        for name, word in [('org/nothing', 'no model org/nothing'), ('org/needle@v9', 'no revision v9'), ('org/bins', 'pytorch_model.bin'),
                           ('org/needle-GGUF:Q2_K', 'BF16, Q4_K_M, Q8_0'), ('org/needle-GGUF', 'org/needle-GGUF:Q8_0 (')]:
            self.assertIn(word, self.program('pull', name, code=1))
        self.assertIn('--offline', self.program('info', 'org/needle', '--offline', code=1))
        self.assertIn('offline', self.program('pull', 'org/needle', code=1, HF_HUB_OFFLINE='1').lower())
        self.assertIn('not the name', self.program('pull', '/tmp/model', code=2))

    def test_tags_of_gguf_files(self):
        files = self.hub.repos['org/needle-GGUF']
        path = pathlib.Path(self.program('pull', 'org/needle-GGUF:q4_k_m'))
        self.assertEqual(path.name, 'needle-Q4_K_M-00001-of-00002.gguf')
        self.assertEqual({file.name: file.read_bytes() for file in path.parent.iterdir()},
                         {name: data for name, data in files.items() if 'Q4_K_M' in name})
        self.program('pull', 'org/needle-GGUF:Q8_0')
        self.program('pull', 'org/needle-GGUF:BF16/needle-BF16.gguf')
        rows = self.program('list').splitlines()
        self.assertEqual([row.split()[1] for row in rows[2:]], [f'org/needle-GGUF:{tag}' for tag in ('BF16', 'Q4_K_M', 'Q8_0')])
        self.assertEqual(self.program('rm', 'org/needle-GGUF:Q4_K_M'), 'org/needle-GGUF:Q4_K_M: 594 bytes freed')
        self.assertIn('org/needle-GGUF:Q4_K_M is not in', self.program('rm', 'org/needle-GGUF:Q4_K_M', code=1))
        self.assertNotIn('Q4_K_M', self.program('list'))
        self.program('rm', 'org/needle-GGUF')
        self.assertEqual(list(self.cache.glob('models--*')), [])

    def test_huggingface_hub_finds_what_we_fetch_and_we_what_it_fetches(self):
        python = pathlib.Path(os.environ.get('CLIENTS', ROOT / 'build/clients')) / 'bin/python'
        code = 'import huggingface_hub as h, sys; print(h.snapshot_download("org/needle", allow_patterns=["*.json", "model.safetensors"]))'

        def snapshot_download(**environment):
            return subprocess.run([python, '-c', code], env={**self.environment, 'HF_HUB_DISABLE_XET': '1', **environment},
                                  capture_output=True, text=True)
        if not python.exists() or subprocess.run([python, '-c', 'import huggingface_hub'], capture_output=True).returncode:
            self.skipTest(f'{python} has no huggingface_hub')
        path = self.program('pull', 'org/needle')
        theirs = snapshot_download(HF_HUB_OFFLINE='1')
        self.assertEqual(theirs.stdout.strip(), path, theirs.stderr)
        del self.hub.repos['org/needle']['../evil']
        theirs = snapshot_download(HF_HUB_CACHE=str(self.dir / 'theirs'))
        self.assertEqual(theirs.returncode, 0, theirs.stderr)
        self.hub.storage.requests.clear()
        self.assertEqual(self.program('pull', 'org/needle', HF_HUB_CACHE=str(self.dir / 'theirs')), theirs.stdout.strip())
        self.assertEqual(self.weight_requests(), [])


if __name__ == '__main__':
    PROGRAM = sys.argv.pop(1)
    unittest.main()

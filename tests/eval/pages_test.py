#!/usr/bin/env python3
"""The pages that `eval` and `profile` write, in a real browser: drawn without errors and without the
network, and what hovering and clicking shows is what the data say.

    tests/eval/pages_test.py PROGRAM [OUT]      OUT gets screenshots to look at
"""
import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.append(str(ROOT / 'tests' / 'support'))
from browser import Browser  # noqa: E402

MODEL = ROOT / 'models' / 'needle-8m'


class PagesTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.out = pathlib.Path(cls.folder.name)
        cls.browser = Browser()

    @classmethod
    def tearDownClass(cls):
        cls.browser.close()
        cls.folder.cleanup()

    def program(self, *arguments):
        subprocess.run([PROGRAM, *map(str, arguments)], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)

    def open(self, page):
        self.browser.ask('POST', '/url', {'url': page.as_uri()})

    def look(self, name):
        """Nothing was complained about, nothing fetched; a picture for people."""
        errors = [e for e in self.browser.ask('POST', '/se/log', {'type': 'browser'}) if e['level'] == 'SEVERE']
        self.assertEqual(errors, [])
        self.assertEqual(self.browser.run('return performance.getEntriesByType("resource").map(e => e.name)'), [])
        if SCREENSHOTS:
            self.browser.screenshot(SCREENSHOTS / f'{name}.png')

    def test_profile(self):
        text = self.out / 'text.txt'
        text.write_text('The old miller carried the lantern to the harbor, and nobody asked him why. ' * 220)
        self.program('profile', MODEL, '--file', text, '--prompt', 'Why?', '--out', self.out, '-t', '1',
                     '--prefill', 'paper', '--threshold', '1024', '--base-budget', '256')
        data = json.loads((self.out / 'profile.json').read_text())
        b = self.browser
        self.open(self.out / 'profile.html')
        self.look('profile')
        n_layers, n_segments = len(data['layers']), len(data['layers'][1][0]['entropy'])
        self.assertGreater(n_segments, 4)
        width = b.run('return document.getElementById("layers").getBoundingClientRect().width')
        name_width, row_height = b.run('return [nameWidth, rowHeight]')

        def cell(row, segment):
            return name_width + (segment + 0.5) * (width - name_width) / n_segments, (row + 0.5) * row_height

        # The mean over a layer's heads, then each head's own, of every measure.
        b.point('#layers', *cell(3, 4))
        entropies = [head['entropy'][4] for head in data['layers'][3]]
        self.assertEqual(b.run('return getComputedStyle(tip).visibility'), 'visible')
        self.assertIn('layer 3, segment 4, tokens 2048 to 2560', b.text('#tip'))
        shown = float(b.text('#tip').split(': ')[-1])
        self.assertAlmostEqual(shown, sum(entropies) / len(entropies), delta=1e-3 * max(1, shown))
        b.point('#layers', *cell(0, 4))
        self.assertIn('layer 0: dense layer', b.text('#tip'))

        b.point('#layers', *cell(n_layers - 1, 2), click=True)
        self.assertEqual(b.text('#heads-title'), f'Heads of layer {n_layers - 1}')
        b.point('#heads', *cell(1, 2), click=True)
        self.assertTrue(b.text('#head-title').startswith(f'Layer {n_layers - 1}, head 1: '), b.text('#head-title'))
        self.assertEqual(b.count('#detail figure'), 4)  # entropy, budget, distance, votes
        b.choose('#measure', 'budget')
        b.point('#heads', *cell(1, 4))
        shown = float(b.text('#tip').split(': ')[-1])
        self.assertAlmostEqual(shown, data['layers'][-1][1]['budget'][4], delta=0.5)
        b.choose('#measure', 'kept')
        b.point('#heads', *cell(0, 4))
        kept = data['layers'][-1][0]['blocks'][4] / (4 * data['segment'] / data['block'])
        self.assertAlmostEqual(float(b.text('#tip').split(': ')[-1]), kept, delta=1e-3)

        b.run('document.getElementById("layers").focus()')
        b.press('#layers', '\ue013')  # up
        self.assertEqual(b.text('#heads-title'), f'Heads of layer {n_layers - 2}')
        self.look('profile-head')

    def test_report(self):
        policies = ['dense+full', 'entropy+latent', 'dense+snapkv']
        self.program('eval', 'needle', MODEL, '--lengths', '1k,2k', '--samples', '3', '--depths', '0,50,100',
                     '--tasks', 'single,many-values', '--policies', ','.join(policies), '--threshold', '512',
                     '--base-budget', '256', '--budget', '256', '--out', self.out, '-t', '1')
        rows = [json.loads(line) for line in (self.out / 'answers.jsonl').read_text().splitlines()[1:]]
        b = self.browser
        self.open(self.out / 'report.html')
        self.assertEqual(b.count('#legend span'), 3)
        self.assertEqual(b.count('#depth figure'), 3)
        self.assertEqual(b.count('#depth rect'), 3 * 3 * 2)  # policies, depths, lengths
        for policy, depth, length in [('dense+full', 0.5, 1024), ('dense+snapkv', 1, 2048)]:
            scores = [r['score'] for r in rows if (r['policy'], r['depth'], r['length']) == (policy, depth, length)]
            self.assertEqual(len(scores), 1)
            tip = f'{policy}, {length // 1024}k tokens, depth {100 * depth:.0f}%: {scores[0]:.2f} of 1 prompts'
            self.assertIn(tip, b.run('return [...document.querySelectorAll("#depth title")].map(t => t.textContent)'))
        # KV bytes and density: policies times lengths; the speed-up the same, with lines.
        self.assertEqual(b.run('return [...document.querySelectorAll("#charts figure")].map(f => f.querySelectorAll("circle").length)'),
                         [6, 6, 6])
        self.assertEqual(b.count('#charts polyline'), 3)
        self.assertNotIn('NaN', b.run('return document.body.innerHTML'))
        self.assertEqual(b.count('#table tr'), 1 + 6)
        b.choose('#task', 'many-values')
        self.assertEqual(b.run('return [...document.querySelectorAll("#table td:nth-child(2)")].map(c => c.textContent)'),
                         ['many-values'] * 6)
        self.look('report')

    def test_report_of_files(self):
        """An evaluation of somebody's files has no depths, and here one policy and one task."""
        data = self.out / 'ruler'
        data.mkdir()
        (data / 'qa_1.jsonl').write_text('{"index": 0, "input": "Who? </script>", "outputs": ["he"], "length": 40}\n')
        self.program('eval', 'ruler', MODEL, '--data', data, '--policies', 'dense+full', '--out', self.out / 'page')
        self.open(self.out / 'page' / 'report.html')
        self.assertEqual(self.browser.count('#table tr'), 2)
        self.assertTrue(self.browser.run('return document.getElementById("depths").hidden'))
        self.assertNotIn('NaN', self.browser.run('return document.body.innerHTML'))
        self.look('report-ruler')


PROGRAM = pathlib.Path(sys.argv[1]).resolve()
SCREENSHOTS = pathlib.Path(sys.argv[2]).resolve() if len(sys.argv) > 2 else None
if SCREENSHOTS:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
unittest.main(argv=sys.argv[:1])

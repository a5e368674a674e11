"""The page at /, used as people use it, in Chromium: chat about a file, dense and by entropy, stop, regenerate, the figures
of an answer, an API key, a phone. With --screenshots DIR there are pictures to look at."""
import base64
import shutil
import sys

import pytest

from conftest import ROOT
from load_test import prompt

sys.path.append(str(ROOT / 'tests' / 'support'))
from browser import Browser  # noqa: E402

pytestmark = pytest.mark.skipif(not shutil.which('chromedriver'), reason="needs Debian's chromium-driver")


class Page(Browser):
    def __init__(self, screenshots):
        super().__init__()
        self.screenshots = screenshots

    def open(self, server):
        self.ask('POST', '/url', {'url': server.url + '/'})

    def click(self, css):
        self.ask('POST', f'/element/{self.find(css)}/click', {})

    def until(self, condition, what):
        """The browser waits: `condition` is JavaScript, looked at after every frame."""
        ok = self.ask('POST', '/execute/async', {'args': [], 'script': f'''
            const done = arguments[0], end = performance.now() + 100000;
            (function look() {{ if ({condition}) done(true); else if (performance.now() > end) done(false);
                               else requestAnimationFrame(look); }})();'''})
        assert ok, what

    def answered(self, n=1):
        self.until(f'!running && document.querySelectorAll(".assistant").length === {n} && turns.at(-1).done', 'no answer')
        assert self.count('.error') == 0, self.text('.error')

    def say(self, text):
        self.press('#input', text)
        self.click('#send')

    def look(self, name):
        errors = [e for e in self.ask('POST', '/se/log', {'type': 'browser'}) if e['level'] == 'SEVERE']
        assert errors == []
        assert self.run('return document.documentElement.scrollWidth <= innerWidth')
        if self.screenshots:
            self.screenshots.mkdir(parents=True, exist_ok=True)
            (self.screenshots / f'{name}.png').write_bytes(base64.b64decode(self.ask('GET', '/screenshot')))

    def media(self, scheme):
        self.devtools('Emulation.setEmulatedMedia', features=[{'name': 'prefers-color-scheme', 'value': scheme}])

    def phone(self):
        self.devtools('Emulation.setDeviceMetricsOverride', width=390, height=844, deviceScaleFactor=1, mobile=True)

    def desktop(self):
        self.devtools('Emulation.clearDeviceMetricsOverride')


@pytest.fixture(scope='module')
def page(request):
    page = Page(request.config.getoption('--screenshots'))
    page.ask('POST', '/timeouts', {'script': 110000})
    yield page
    page.close()


def test_a_conversation_about_a_file(page, server, tmp_path):
    text, question, value = prompt(5000, 3)
    file = tmp_path / 'novel.txt'
    file.write_text(text)
    page.desktop()
    page.media('light')
    page.open(server)
    page.until('document.getElementById("model").textContent.includes("needle-8m")', 'no model')
    page.look('empty-light')
    page.press('#picker', str(file))
    page.until('files.length === 1', 'no file')
    assert 'novel.txt' in page.text('#files')

    # Dense first: slow enough to see progress.
    page.choose('#mode', 'dense')
    page.say(question)
    page.until('document.querySelector(".reading progress") && document.querySelector(".reading").textContent.includes("left")', 'no progress')
    page.look('reading-light')
    page.answered()
    assert value in page.text('.assistant .text')
    assert 'tokens/s' in page.text('.assistant .foot')
    panel = page.text('#panel')
    assert 'dense' in panel and '100 %' in panel and 'KV held' in panel and 'Rigid heads' in panel

    # The same by entropy.
    page.choose('#mode', 'entropy')
    page.run('[...document.querySelectorAll(".foot button")].find(b => b.textContent === "Regenerate").click()')
    page.answered()
    assert value in page.text('.assistant .text')
    assert 'entropy' in page.text('#panel') and '100 %' not in page.text('#panel')
    page.look('answer-light')

    # The next turn reads only what is new.
    page.say('And again?')
    page.answered(2)
    assert page.run('return turns.at(-1).timings.cache_n') > 2000
    page.media('dark')
    page.look('answer-dark')

    page.phone()
    page.look('phone-dark')
    assert page.run('return innerWidth') == 390  # for anything wider, a phone widens its window
    assert page.run('return getComputedStyle(document.getElementById("panel")).display') == 'none'
    page.click('#stats')
    page.look('phone-figures-dark')
    page.media('light')
    page.click('#stats')
    page.look('phone-light')
    # Everything came from this server.
    origins = page.run('return performance.getEntriesByType("resource").map(e => new URL(e.name).origin)')
    assert set(origins) == {server.url}


def test_stop(page, start):
    server = start('--default-max-tokens', '4096')  # longer than this takes
    page.desktop()
    page.open(server)
    page.until('document.getElementById("model").textContent.includes("needle-8m")', 'no model')
    page.say('Once upon a time')
    page.until('turns.at(-1).text && turns.at(-1).text.length > 20', 'nothing is written')
    page.click('#stop')
    page.until('!running && turns.at(-1).done', 'does not stop')
    assert 'stopped' in page.text('.assistant .foot') or page.run('return turns.at(-1).finished')
    page.click('#clear')
    assert page.count('.message') == 0


def test_text_is_not_markup(page, server):
    page.open(server)
    page.until('document.getElementById("model").textContent.includes("needle-8m")', 'no model')
    page.say('<img src=x onerror="window.hacked=1"><b>bold</b>')
    page.answered()
    assert '<b>bold</b>' in page.text('.user .text') and page.run('return window.hacked === undefined')


def test_a_key_is_asked_for(page, start):
    server = start('--api-key', 'sesame', '--default-max-tokens', '64')
    page.open(server)
    page.until('document.getElementById("ask").open', 'no question')
    page.ask('POST', '/se/log', {'type': 'browser'})  # the browser reports the 401
    page.press('#key', 'sesame')
    page.click('#ask button')
    page.until('document.getElementById("model").textContent.includes("needle-8m")', 'no model')
    page.say('Once')
    page.answered()
    page.look('key')


def test_errors_are_shown(page, start):
    server = start('--kv-memory', '4MiB')
    page.open(server)
    page.until('document.getElementById("model").textContent.includes("needle-8m")', 'no model')
    page.choose('#mode', 'dense')
    page.run('document.getElementById("input").value = "word ".repeat(4000)')
    page.click('#send')
    page.until('document.querySelector(".error")', 'no error')
    assert 'MiB' in page.text('.error')

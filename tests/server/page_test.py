"""The page at /, used as people use it, in Chromium, as wide as a desk and as narrow as a phone. Where it matters what a
model says, answers are scripted; elsewhere the demo model gives them. With --screenshots DIR there are pictures to look at."""
import base64
import json
import shutil
import sys

import pytest

from conftest import ROOT
from load_test import prompt

sys.path.append(str(ROOT / 'tests' / 'support'))
from browser import Browser  # noqa: E402

pytestmark = pytest.mark.skipif(not shutil.which('chromedriver'), reason="needs Debian's chromium-driver")

# Stands between the page and the server: requests for answers get what `script` says, one after the other, and are
# kept in `asked`. 'hold' waits until go() is called.
SCRIPTED = '''
window.script = arguments[0]; window.asked = [];
const real = window.fetch;
window.fetch = async (path, init) => {
  if (!['/v1/chat/completions', '/v1/completions', '/tokenize'].includes(path)) return real(path, init);
  asked.push({path, ...JSON.parse(init.body)});
  if (path === '/tokenize') return new Response(JSON.stringify({tokens: [asked.length]}));
  const answer = script.shift();
  if (answer.unreachable) throw new TypeError('Failed to fetch');
  if (answer.error) return new Response(JSON.stringify(answer), {status: answer.status});
  return new Response(new ReadableStream({async start(stream) {
    init.signal.addEventListener('abort', () => stream.error(new DOMException('', 'AbortError')));
    for (const event of answer.events) {
      if (event === 'hold') await new Promise(go => { window.go = go; });
      else stream.enqueue(new TextEncoder().encode('data: ' + JSON.stringify(event) + '\\n\\n'));
    }
    stream.close();
  }}));
};'''


def delta(**fields):
    return {'choices': [{'delta': fields, 'text': fields.get('content'), 'finish_reason': None}]}


def progress(processed, total, cache=0):
    return {'choices': [], 'prompt_progress': {'processed': processed, 'total': total, 'cache': cache, 'time_ms': 1000}}


def ending(finish='stop', density=.31):
    return {'choices': [{'delta': {}, 'finish_reason': finish}],
            'sparsity': {'prefill': 'entropy', 'decode': 'latent', 'density': density, 'kept_blocks_mean': 9, 'rigid_heads': 5,
                         'dynamic_heads': 3, 'kv_bytes': 1 << 20, 'kv_bytes_full': 4 << 20, 'compressed': True},
            'timings': {'queue_ms': 0, 'cache_n': 900, 'prompt_n': 100, 'prompt_ms': 50, 'prompt_per_second': 2000,
                        'predicted_n': 4, 'predicted_ms': 100, 'predicted_per_second': 40}}


def says(text, finish='stop'):
    return {'events': [delta(content=text), ending(finish)]}


class Page(Browser):
    def __init__(self, screenshots):
        super().__init__()
        self.screenshots = screenshots
        self.ask('POST', '/timeouts', {'script': 110000})

    def open(self, server, answers=None):
        """A page that was never here, once the model is there."""
        self.go(server.url + '/health')
        self.run_async('localStorage.clear(); indexedDB.deleteDatabase("entropyinfer").onsuccess = () => done(true)')
        self.go(server.url)
        self.until('$("#model").textContent.includes("needle-8m")')
        if answers is not None:
            self.run(SCRIPTED, answers)

    def go(self, url):
        self.ask('POST', '/url', {'url': url})

    def run_async(self, script):
        return self.ask('POST', '/execute/async', {'args': [], 'script': f'''
            const done = arguments[0], $ = css => document.querySelector(css), $$ = css => [...document.querySelectorAll(css)];
            {script}'''})

    def until(self, condition):
        """The browser waits: `condition` is JavaScript, looked at after every frame."""
        ok = self.run_async(f'''
            const end = performance.now() + 100000;
            (function look() {{ if ({condition}) done(true); else if (performance.now() > end) done(false);
                               else requestAnimationFrame(look); }})();''')
        assert ok, f'{condition} after {self.text("main")[-300:]}'

    def click(self, css):
        self.ask('POST', f'/element/{self.find(css)}/click', {})

    def tap(self, label, nth=0):
        """The button of that name, wherever it is; some are shown where one points at."""
        assert self.run('''const b = [...document.querySelectorAll('button')].filter(b => !b.hidden && (b.ariaLabel || b.textContent) === arguments[0])
            .at(arguments[1]); b?.click(); return !!b && !b.disabled''', label, nth), label

    def mode(self, name):
        self.run('document.querySelector(`#mode input[value=${arguments[0]}]`).click()', name)

    def say(self, text):
        self.press('#input', text)
        self.click('#send')

    def idle(self):
        self.until('!$("#send").hidden')

    def answered(self, n=1):
        self.until(f'!$("#send").hidden && $$(".assistant").length === {n}')
        assert self.count('.answer > .error:not([hidden])') == 0, self.text('.answer > .error:not([hidden])')

    def texts(self, css):
        return self.run('return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)', css)

    def figure(self, name):
        """What the panel says of it."""
        row = next(r for r in self.texts('#figures tr') if r.startswith(name))
        return row.removeprefix(name)

    def asked(self):
        return self.run('return asked')

    def look(self, name):
        errors = [e for e in self.ask('POST', '/se/log', {'type': 'browser'})
                  if e['level'] == 'SEVERE' and 'favicon.ico' not in e['message']]  # of what is not the page
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
def browser(request):
    page = Page(request.config.getoption('--screenshots'))
    yield page
    page.close()


@pytest.fixture
def page(browser):
    browser.desktop()
    browser.media('light')
    return browser


@pytest.fixture(params=['desktop', 'phone'])
def each(request, page):
    """The page in both widths."""
    getattr(page, request.param)()
    page.width = request.param
    return page


def test_a_conversation_about_a_file(page, server, tmp_path):
    text, question, value = prompt(2000, 3)
    file = tmp_path / 'novel.txt'
    file.write_text(text)
    page.open(server)
    page.look('empty-light')
    page.press('#picker', str(file))
    page.until('$("#files .file")')
    assert 'novel.txt' in page.text('#files')

    # Dense first: slow enough to see progress.
    page.mode('dense')
    page.say(question)
    page.until('$(".reading progress")?.value > 0 && $(".reading").textContent.includes("left")')
    page.look('reading-light')
    page.answered()
    assert value in page.text('.assistant .md')
    assert 'tokens/s' in page.text('.assistant .foot')
    panel = page.text('#figures')
    assert 'dense' in panel and '100\u202f%' in panel and 'Held' in panel and 'Rigid heads' in panel

    # The same by entropy, as another version.
    page.mode('entropy')
    page.tap('Answer again')
    page.until('$(".assistant .versions")?.textContent === "2 / 2" && !$("#send").hidden')
    assert value in page.text('.assistant .md')
    assert 'entropy' in page.text('#figures') and '100\u202f%' not in page.text('#figures')
    page.look('answer-light')

    # The next turn reads only what is new, and its figures are of that.
    page.say('And again?')
    page.answered(2)
    known, read = (int(page.figure(name).replace(',', '')) for name in ('Known from before', 'Tokens read now'))
    assert known > 2000 > read
    # Everything came from this server.
    origins = page.run('return performance.getEntriesByType("resource").map(e => new URL(e.name).origin)')
    assert set(origins) == {server.url}


def test_compare_reads_everything_twice(page, server, tmp_path):
    text, question, value = prompt(2000, 3)  # which the server has read before, either way
    (tmp_path / 'novel.txt').write_text(text)
    page.open(server)
    page.press('#picker', str(tmp_path / 'novel.txt'))
    page.until('$("#files .file")')
    page.mode('compare')
    page.say(question)
    page.until('$$(".reading").at(-1)?.textContent === "Waits for the other answer"')
    page.answered()
    assert all(value in t for t in page.texts('.answer .md')) and page.count('.answer .md') == 2
    rows = page.texts('.comparison tbody tr')
    assert [r.split('\u202f')[0][:7] for r in rows[2:3]] == ['Density'] and '100\u202f%' in rows[2] and rows[2].count('%') == 2
    assert 'First token' in rows[0] and rows[0].endswith('\u00d7') and 'iB' in rows[3]
    assert page.figure('Known from before') == '00'
    page.media('dark')
    page.look('compare-dark')
    page.phone()
    page.look('compare-phone')
    page.tap('Go on with this one')
    assert page.run('return document.querySelectorAll(".answer")[1].classList.contains("kept")')


def test_conversations_are_kept(each, server):
    each.open(server, [says('Of apples.'), says('Of <pears>.')])
    each.say('First question')
    each.answered()
    each.tap('New chat')
    each.say('Second question')
    each.answered()
    names = '#list .name'
    assert each.texts(names) == ['Second question', 'First question']

    # It is there after a reload, the one that was open is open, and the page goes on.
    each.ask('POST', '/refresh', {})
    each.until('$$(".md").length === 1')
    assert each.text('.md').strip() == 'Of <pears>.' and each.texts(names) == ['Second question', 'First question']
    if each.width == 'phone':
        each.tap('Conversations')
    each.press('#search', 'APPLES')  # which only the answer says
    each.until('$$("#list .name").length === 1')
    each.look(f'search-{each.width}')
    each.click(names)
    each.until('$(".md").textContent.includes("apples")')
    each.run('const s = document.querySelector("#search"); s.value = ""; s.dispatchEvent(new Event("input"))')
    each.until('$$("#list .name").length === 2')

    each.tap('Rename First question')
    each.until('$("#list input")')
    each.run('const i = document.querySelector("#list input"); i.value = "Fruit"; i.dispatchEvent(new KeyboardEvent("keydown", {key: "Enter"}))')
    each.until('$("#title").textContent === "Fruit" && $$("#list .name").some(e => e.textContent === "Fruit")')
    each.run('window.saved = []; URL.createObjectURL = blob => { saved.push(blob); return "data:,"; }')
    each.tap('Export Fruit')
    each.until('saved.length')
    assert each.run_async('saved[0].text().then(done)') == '# Fruit\n\n## You\n\nFirst question\n\n## Model, entropy attention\n\nOf apples.\n'

    each.tap('Delete Fruit')
    each.until('$$("#list .name").length === 1 && $$(".message").length === 0')
    each.tap('Undo')
    each.until('$$("#list .name").length === 2 && $(".md")?.textContent.includes("apples")')
    each.tap('Delete Fruit')
    each.until('$$("#list .name").length === 1')
    each.ask('POST', '/refresh', {})
    each.until('$$("#list .name").length === 1')
    assert each.texts(names) == ['Second question']


RICH = '''# Title
Some **bold** and `code`, [a link](https://example.org/).

```python
def f(x):
    return x < 2 and "a very long line that has to scroll by itself and must not make the page any wider than it is"
```

| name | n |
|:--|--:|
| a | 1 |
| b | 22 |

- one
- two'''


def test_markdown_and_copying(each, server):
    each.open(server, [says(RICH)])
    each.say('Show me')
    each.answered()
    assert each.text('.md h1') == 'Title' and each.text('.md strong') == 'bold' and each.count('.md li') == 2
    assert each.run('const a = document.querySelector(".md a"); return a.rel.includes("noopener") && a.target === "_blank"')
    assert each.text('.frame.code .bar span') == 'python'
    assert each.run('return [...document.querySelectorAll(".md td[align=right]")].map(e => e.textContent)') == ['1', '22']
    each.look(f'markdown-{each.width}')

    # Over plain HTTP there is no navigator.clipboard.
    each.run('''Object.defineProperty(navigator, 'clipboard', {value: undefined}); window.copied = [];
        document.addEventListener('copy', () => copied.push(document.activeElement.value))''')
    for label in ('Copy code', 'Copy table', 'Copy the answer'):
        each.tap(label)
    code = RICH.split('```')[1].removeprefix('python\n').strip()
    assert each.run('return copied') == [code, 'name\tn\na\t1\nb\t22', RICH]
    assert each.text('#status') == 'Copied'


HOSTILE = '''<script>hacked = 1</script><img src=x onerror="hacked = 2"><svg onload="hacked = 3"><a xlink:href="javascript:hacked=4"><text>x</text></a></svg>

[one](javascript:hacked=5) [two](JaVaScRiPt&colon;hacked=6) [three](data:text/html,<script>parent.hacked=7</script>) ![four](https://evil.test/x.png" onerror="hacked=8)
<javascript:hacked=9> [five]( java
script:hacked=10) [six](vbscript:x)

<iframe srcdoc="<script>parent.hacked=11</script>"></iframe><form action="https://evil.test"><button>go</button></form><style>body{display:none}</style>
<math><mtext><table><mglyph><style><!--</style><img title="--&gt;&lt;img src=1 onerror=hacked=12&gt;">

```"><img src=x onerror=hacked=13>
</code></pre><script>hacked=14</script>
```
| <img src=x onerror=hacked=15> | `<script>hacked=16</script>` |
|--|--|
| [x](javascript:hacked=17) | <details open ontoggle=hacked=18> |'''


def test_a_hostile_answer_runs_nothing(page, server):
    hostile = [delta(content=HOSTILE[i:i + 7]) for i in range(0, len(HOSTILE), 7)]
    page.open(server, [{'events': [delta(reasoning_content=HOSTILE), *hostile, ending()]}])
    page.run('window.hacked = undefined; window.violations = 0; document.addEventListener("securitypolicyviolation", () => ++violations)')
    page.say(HOSTILE.split('\n')[0])
    page.answered()
    assert page.count('.message :is(script, img, iframe, form, style, math, object, embed, input)') == 0
    assert page.count('.message svg:not(button svg)') == 0
    assert page.run('''return [...document.querySelectorAll('.message, .message *')].flatMap(e => [...e.attributes])
        .filter(a => a.name.startsWith('on') || /^\\s*(javascript|data|vbscript):/i.test(a.value)).map(a => a.name)''') == []
    page.run('for (const a of document.querySelectorAll(".md a")) { a.target = ""; a.onclick = e => e.preventDefault(); a.click(); }')
    assert page.run('return [window.hacked === undefined, violations]') == [True, 0]  # the policy had nothing left to stop
    assert '<script>hacked = 1</script>' in page.text('.user .text') and '<script>hacked = 1</script>' in page.text('.md')
    # And it would have: nothing that is written into a page like this runs.
    page.run('document.body.insertAdjacentHTML("beforeend", \'<img src="x:" onerror="hacked = 1"><svg onload="hacked = 2"></svg>\')')
    page.until('violations >= 2')
    assert page.run('return window.hacked === undefined')
    page.ask('POST', '/se/log', {'type': 'browser'})  # the browser reports them


def test_edit_and_versions(each, server):
    each.open(server, [says('one'), says('two'), says('three')])
    each.say('First')
    each.answered()
    each.tap('Answer again')
    each.until('$(".md")?.textContent.includes("two")')
    each.idle()
    assert each.text('.assistant .versions') == '2 / 2'
    each.tap('Version before')
    assert each.text('.md').strip() == 'one'

    each.tap('Edit and ask again')
    each.run('document.querySelector(".editor textarea").value = "Second"')
    each.tap('Ask')
    each.until('$(".md")?.textContent.includes("three")')
    each.idle()
    assert each.asked()[-1]['messages'] == [{'role': 'user', 'content': [{'type': 'text', 'text': 'Second'}]}]
    assert each.text('.user .versions') == '2 / 2'
    each.look(f'versions-{each.width}')
    each.tap('Version before')
    assert [each.text('.user .text'), each.text('.md').strip()] == ['First', 'one']
    each.ask('POST', '/refresh', {})
    each.until('$(".md")')
    assert [each.text('.user .text'), each.text('.md').strip(), each.text('.assistant .versions')] == ['First', 'one', '1 / 2']


def test_a_cut_answer_goes_on(page, server):
    page.open(server)
    page.run('''document.querySelector('#open-settings').click(); const n = document.querySelector('[name=max_tokens]');
        n.value = 12; n.dispatchEvent(new Event('change', {bubbles: true})); document.querySelector('#settings').close()''')
    page.say('Once upon a time')
    page.answered()
    assert 'Cut after 12 tokens' in page.text('.note')
    page.look('cut')
    page.tap('Continue')
    page.until('!$("#send").hidden')
    body = {'messages': [{'role': 'user', 'content': [{'type': 'text', 'text': 'Once upon a time'}]}], 'max_tokens': 24}
    whole = server.post('/v1/chat/completions', body)[1]['choices'][0]['message']['content']
    assert page.text('.md').split() == whole.split() and page.count('.assistant') == 1


def test_settings(each, server):
    each.open(server, [says('yes'), says('yes')])
    if each.width == 'phone':
        each.tap('Conversations')
    each.click('#open-settings')
    values = {'system': 'Be brief.', 'temperature': '0.5', 'top_p': '0.9', 'max_tokens': '50', 'thinking': 'off', 'prefill': 'paper',
              'base_budget': '256', 'decode': 'snapkv', 'budget': '512'}
    each.run('''for (const [name, value] of Object.entries(arguments[0])) {
        const field = document.querySelector(`#settings [name=${name}]`);
        field.value = value; field.dispatchEvent(new Event('change', {bubbles: true})); }''', values)
    each.look(f'settings-{each.width}')
    each.run('document.querySelector("#settings .main").click()')
    each.run('document.body.classList.remove("side")')
    each.say('Hello')
    each.answered()
    asked = each.asked()[0]
    assert asked['messages'][0] == {'role': 'system', 'content': 'Be brief.'}
    assert asked['chat_template_kwargs'] == {'enable_thinking': False}
    names = 'temperature', 'top_p', 'max_tokens', 'prefill', 'base_budget', 'decode', 'budget'
    assert [asked[n] for n in names] == [0.5, 0.9, 50, 'paper', 256, 'snapkv', 512]
    each.mode('dense')
    each.tap('Answer again')
    each.until('asked.length === 2 && !$("#send").hidden')
    asked = each.asked()[1]
    assert asked['prefill'] == 'dense' and asked['decode'] == 'full' and not {'budget', 'base_budget'} & set(asked)


def test_thoughts(page, server):
    page.open(server, [{'events': [delta(reasoning_content='Let me see.'), 'hold', delta(content='Four.'), ending()]}])
    page.say('Two and two?')
    page.until('$(".thoughts")?.open && $(".thoughts .text").textContent === "Let me see."')
    page.run('go()')
    page.answered()
    assert page.text('.md').strip() == 'Four.'


def test_stop(page, server):
    """While it is read, nothing is left of the turn and the question can be changed; later what is written stays."""
    page.open(server, [{'events': ['hold']}, {'events': [progress(100, 1000), 'hold']}, {'events': [delta(content='Once'), 'hold']}])
    for label in ('Sending', 'Reading 100 of 1,000 tokens'):
        page.say('Tell me')
        page.until('$(".reading progress")')  # from the first moment
        if 'of' in label:
            page.until(f'$(".reading").textContent.startsWith("{label}")')
        page.click('#stop')
        page.idle()
        assert page.count('.message') == 0 and page.run('return document.querySelector("#input").value') == 'Tell me'
        assert page.texts('#list .name') == []
        page.run('document.querySelector("#input").value = ""')
    page.say('Tell me')
    page.until('$(".md")?.textContent.includes("Once")')
    page.press('#input', '\ue00c')  # Escape
    page.idle()
    assert page.text('.note') == 'Stopped.' and page.text('.md').strip() == 'Once'


def test_a_page_that_goes_while_it_reads(page, server):
    page.open(server, [{'events': [progress(500, 1000), 'hold']}])
    page.say('Tell me')
    page.until('$(".reading").textContent.startsWith("Reading 500")')
    page.ask('POST', '/refresh', {})
    page.until('$(".error")?.textContent.includes("closed before the answer began")')
    page.run(SCRIPTED, [says('Once')])
    page.tap('Retry')
    page.answered()
    assert page.text('.md').strip() == 'Once'


def test_scrolling_up_stays(each, server):
    line = delta(content='A line of text.\n\n')
    each.open(server, [{'events': [line] * 60 + ['hold'] + [line] * 60 + ['hold', ending()]}])
    each.say('Go on')
    each.until('$$(".md > div").length === 60')
    log = 'document.querySelector("#log")'
    each.until(f'{log}.scrollHeight - {log}.scrollTop - {log}.clientHeight < 5')
    each.run(f'{log}.scrollTop = 100')
    each.until('!$("#latest").hidden')
    each.run('go()')
    each.until('$$(".md > div").length === 120')
    assert each.run(f'return {log}.scrollTop') == 100
    each.look(f'scrolled-{each.width}')
    each.click('#latest')
    each.until(f'{log}.scrollHeight - {log}.scrollTop - {log}.clientHeight < 5 && $("#latest").hidden')
    each.run('go()')
    each.answered()


def test_a_key_is_asked_for_once(page, start):
    server = start('--api-key', 'sesame', '--default-max-tokens', '8')
    page.go(server.url)
    page.until('$("#ask-key").open')
    page.press('#key', 'mellon')
    page.click('#ask-key .main')
    page.until('$("#ask-key").open && $("#key-why").textContent.includes("wrong")')
    page.ask('POST', '/se/log', {'type': 'browser'})  # the browser reports every 401
    page.press('#key', 'sesame')
    page.click('#ask-key .main')
    page.until('$("#model").textContent.includes("needle-8m")')
    page.ask('POST', '/se/log', {'type': 'browser'})
    page.ask('POST', '/refresh', {})
    page.until('$("#model").textContent.includes("needle-8m")')
    page.say('Once')
    page.answered()
    page.look('key')


def test_what_is_too_long_goes_and_the_rest_stays(page, server, tmp_path):
    (tmp_path / 'huge.txt').write_text('word ' * 500000)
    (tmp_path / 'small.txt').write_text('A few words.')
    page.open(server)
    page.say('Once')
    page.answered()
    page.press('#picker', f'{tmp_path}/huge.txt\n{tmp_path}/small.txt')
    page.until('$$("#files .file").length === 2')
    page.say('What is this?')
    page.until('!$("#notice").hidden && !$("#send").hidden')
    assert 'huge.txt is too long and was removed.' in page.text('#notice') and '131' in page.text('#notice')
    assert 'small.txt' in page.text('#files') and 'huge' not in page.text('#files')
    assert page.run('return document.querySelector("#input").value') == 'What is this?'
    assert page.count('.message') == 2  # of the turn before
    page.ask('POST', '/se/log', {'type': 'browser'})  # the browser reports the 400
    page.look('too-long')
    page.click('#send')
    page.answered(2)


def test_what_failed_is_tried_again(page, server):
    cut = {'events': [delta(content='Half')]}  # and no end
    busy = {'status': 429, 'error': {'message': 'Too many wait.', 'type': 'rate_limit_error', 'code': 'busy'}}
    page.open(server, [{'unreachable': True}, busy, cut, says(' and whole')])
    error = '.answer > .error:not([hidden])'
    page.say('Hello')
    for message in ('cannot be reached', 'Too many wait.', 'ended before the answer did'):
        page.idle()
        page.until(f'$("{error}")?.textContent.includes("{message}")')
        page.look('failed')
        page.tap('Retry')
    page.answered()
    assert page.text('.md').strip() == 'Half and whole'
    tokenized = [a for a in page.asked() if a['path'] == '/tokenize']
    assert tokenized[1]['content'] == 'Half' and page.asked()[-1]['prompt'] == [4, 5]


PDF = '''%PDF-1.4
1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj
2 0 obj<</Type/Pages/Kids[3 0 R 6 0 R]/Count 2/MediaBox[0 0 300 300]/Resources<</Font<</F 5 0 R>>>>>>endobj
3 0 obj<</Type/Page/Parent 2 0 R/Contents 4 0 R>>endobj
4 0 obj<</Length 47>>stream
BT /F 12 Tf 20 250 Td (The number is 4711.) Tj ET
endstream endobj
5 0 obj<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>endobj
6 0 obj<</Type/Page/Parent 2 0 R/Contents 4 0 R>>endobj
trailer<</Root 1 0 R>>
'''

# The same in Chinese, by a font that only knows its characters' codes.
CHINESE = PDF.replace('(The number is 4711.)', '<4E2D65876570>').replace(
    '/Subtype/Type1/BaseFont/Helvetica', '/Subtype/Type0/BaseFont/STSong-Light/Encoding/UniGB-UCS2-H/DescendantFonts[7 0 R]').replace(
    'trailer', """7 0 obj<</Type/Font/Subtype/CIDFontType0/BaseFont/STSong-Light/CIDSystemInfo<</Registry(Adobe)/Ordering(GB1)/Supplement 4>>
/FontDescriptor 8 0 R>>endobj
8 0 obj<</Type/FontDescriptor/FontName/STSong-Light/Flags 4/FontBBox[-25 -254 1000 880]/ItalicAngle 0/Ascent 880/Descent -120/StemV 93>>endobj
trailer""")


def test_attachments(page, server, tmp_path):
    files = {'paper.pdf': PDF.encode(), 'chinese.pdf': CHINESE.encode(), 'photo.png': b'\x89PNG\r\n\x1a\n\0\0\0\rIHDR', 'broken.pdf': b'%PDF-1.4 no more',
             'old.txt': 'caf\u00e9'.encode('latin-1'), 'empty.txt': b' \n', 'wide.txt': 'wide'.encode('utf-16')}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    page.open(server, [says('4711')])
    page.press('#picker', '\n'.join(str(tmp_path / name) for name in files))
    page.until('!$("#notice").hidden')
    assert page.texts('#files b') == ['paper.pdf', 'old.txt', 'wide.txt'] and '2 pages' in page.text('#files')
    for refused in ('photo.png is not text', 'chinese.pdf has characters by a table that is not here, UniGB-UCS2-H; attach its text instead',
                    'broken.pdf cannot be read as a PDF', 'empty.txt has no text'):
        assert refused in page.text('#notice')
    page.ask('POST', '/se/log', {'type': 'browser'})
    page.look('attached')
    page.say('Which number?')
    page.answered()
    parts = [p['text'] for p in page.asked()[0]['messages'][0]['content']]
    assert parts == ['The number is 4711.\n\nThe number is 4711.', 'caf\u00e9', 'wide', 'Which number?']
    assert page.texts('.user .file b') == ['paper.pdf', 'old.txt', 'wide.txt']


def test_words_are_explained(each, server):
    each.open(server, [says('yes')])
    each.say('Hello')
    each.answered()
    if each.width == 'phone':
        each.tap('Figures')
    for word, meaning in {'Density': 'share', 'Rigid heads': 'low entropy', 'Dynamic heads': 'high entropy', 'latent': 'questions'}.items():
        each.run('[...document.querySelectorAll("#figures .term")].find(e => e.textContent === arguments[0]).focus()', word)
        assert meaning in each.text('#tip') and each.run('const b = document.querySelector("#tip").getBoundingClientRect(); '
                                                         'return b.width > 0 && b.left >= 0 && b.right <= innerWidth && b.bottom <= innerHeight')
    each.look(f'words-{each.width}')
    each.run('document.activeElement.dispatchEvent(new KeyboardEvent("keydown", {key: "Escape", bubbles: true}))')
    assert each.run('return document.querySelector("#tip").hidden')
    assert [each.figure(n) for n in ('Density', 'Tokens read now', 'Known from before')] == ['31\u202f%', '100', '900']


def test_keyboard_and_screen_reader(each, server):
    each.open(server, [{'events': [progress(500, 1000), 'hold', delta(content='Yes, it does.'), ending()]}])
    each.press('#input', 'Does it\ue008\ue007\ue000 work?\ue007')  # Shift+Enter is a line, Enter sends
    each.until('$("#status").textContent === "Reading, 50 percent"')
    each.run('go()')
    each.answered()
    assert each.text('.user .text') == 'Does it\n work?'
    assert each.text('#status') == 'Answer: Yes, it does.'
    each.run('document.body.classList.add("side", "figures")')
    # Whatever can be used has a name and is reached, in the order in which it is seen.
    nameless = each.run('''return [...document.querySelectorAll('button, input, select, textarea')]
        .filter(e => !(e.ariaLabel || e.textContent.trim() || e.labels?.length || e.hidden)).map(e => e.outerHTML)''')
    assert nameless == []
    tree = each.devtools('Accessibility.getFullAXTree')['nodes']
    roles = {(n['role']['value'], n.get('name', {}).get('value')) for n in tree if not n.get('ignored')}
    assert {('navigation', 'Conversations'), ('main', ''), ('log', 'Conversation'), ('complementary', 'Figures'), ('form', 'Message'),
            ('article', 'You'), ('article', 'Model'), ('radio', 'Compare'), ('textbox', 'Message'), ('button', 'Send')} <= roles
    if each.width == 'desktop':
        each.run('document.querySelector("#new").focus()')
        order = []
        for _ in range(40):
            each.devtools('Input.dispatchKeyEvent', type='keyDown', key='Tab', code='Tab', windowsVirtualKeyCode=9)
            order.append(each.run('const e = document.activeElement; return e.ariaLabel || e.name || e.textContent || e.id'))
        wanted = ['Search conversations', 'Settings', 'Edit and ask again', 'Answer again', 'Message', 'Attach text or PDF', 'Send', 'Density']
        found = [order.index(name) for name in wanted]
        assert found == sorted(found)
        each.devtools('Input.dispatchKeyEvent', type='keyDown', key='k', code='KeyK', windowsVirtualKeyCode=75, modifiers=2)
        assert each.run('return document.activeElement.id') == 'search'
        each.devtools('Input.dispatchKeyEvent', type='keyDown', key='n', code='KeyN', windowsVirtualKeyCode=78, modifiers=1)
        each.until('$$(".message").length === 0 && document.activeElement.id === "input"')


def test_a_phone(page, server):
    page.phone()
    page.open(server, [says(RICH)])
    assert page.run('return innerWidth') == 390  # for anything wider, a phone widens its window
    page.say('Hello')
    page.answered()
    shown = 'return getComputedStyle(document.querySelector(arguments[0])).display !== "none"'
    assert not page.run(shown, '#side') and not page.run(shown, '#figures')
    page.click('#open-figures')
    assert page.run(shown, '#figures')
    page.look('phone-figures')
    page.tap('Close the figures')
    page.click('#open-side')
    assert page.run(shown, '#side')
    page.media('dark')
    page.look('phone-side-dark')
    page.tap('New chat')
    assert not page.run(shown, '#side')
    small = page.run('''return [...document.querySelectorAll('header button, #form button')].filter(b => b.offsetWidth && b.offsetWidth < 36)
        .map(b => b.outerHTML)''')
    assert small == []

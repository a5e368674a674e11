"""Chromium without a window, spoken to over HTTP (the WebDriver standard). Needs Debian's chromium and chromium-driver."""
import base64
import json
import re
import subprocess
import urllib.error
import urllib.request

ELEMENT = 'element-6066-11e4-a52e-4f735466cecf'  # the standard's name of a reference


class Browser:
    def __init__(self):
        self.driver = subprocess.Popen(['chromedriver', '--port=0'], stdout=subprocess.PIPE, text=True)
        for line in self.driver.stdout:
            if port := re.search(r'started successfully on port (\d+)', line):
                self.base = f'http://127.0.0.1:{port[1]}'
                break
        options = {'args': ['--headless=new', '--no-sandbox', '--disable-gpu', '--window-size=1280,1000']}
        self.session = None
        self.session = self.ask('POST', '/session', {'capabilities': {'alwaysMatch': {
            'browserName': 'chrome', 'goog:chromeOptions': options, 'goog:loggingPrefs': {'browser': 'ALL'}}}})['sessionId']

    def ask(self, method, path, body=None):
        url = self.base + (f'/session/{self.session}' if self.session else '') + path
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, data, {'Content-Type': 'application/json'}, method=method)
        try:
            with urllib.request.urlopen(request) as answer:
                return json.load(answer)['value']
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{method} {path}: {json.load(error)['value']['message']}") from None

    def close(self):
        self.ask('DELETE', '')
        self.driver.terminate()
        self.driver.wait()
        self.driver.stdout.close()

    def devtools(self, command, **parameters):
        return self.ask('POST', '/goog/cdp/execute', {'cmd': command, 'params': parameters})

    def run(self, script, *arguments):
        return self.ask('POST', '/execute/sync', {'script': script, 'args': arguments})

    def find(self, css):
        return self.ask('POST', '/element', {'using': 'css selector', 'value': css})[ELEMENT]

    def text(self, css):
        return self.run('return document.querySelector(arguments[0]).textContent', css)

    def count(self, css):
        return self.run('return document.querySelectorAll(arguments[0]).length', css)

    # x and y in pixels from the element's upper left corner.
    def point(self, css, x, y, click=False):
        box = self.run('const e = document.querySelector(arguments[0]); e.scrollIntoView({block: "center"});'
                       'const b = e.getBoundingClientRect(); return [b.left, b.top]', css)
        press = [{'type': 'pointerDown', 'button': 0}, {'type': 'pointerUp', 'button': 0}] if click else []
        move = {'type': 'pointerMove', 'duration': 0, 'x': round(box[0] + x), 'y': round(box[1] + y)}
        self.ask('POST', '/actions', {'actions': [{'type': 'pointer', 'id': 'mouse', 'actions': [move] + press}]})

    def press(self, css, key):
        self.ask('POST', f'/element/{self.find(css)}/value', {'text': key})

    def choose(self, css, value):
        self.ask('POST', f'/element/{self.find(f"{css} option[value={json.dumps(value)}]")}/click', {})

    def screenshot(self, path):
        height = self.run('return document.documentElement.scrollHeight')
        self.ask('POST', '/window/rect', {'width': 1280, 'height': min(4000, height + 200)})
        path.write_bytes(base64.b64decode(self.ask('GET', '/screenshot')))
        self.ask('POST', '/window/rect', {'width': 1280, 'height': 1000})

"""A hub on loopback that answers as huggingface.co does, and misbehaves when it is told to."""
import hashlib
import http.server
import json
import ssl
import threading
import urllib.parse

COMMIT = '0123456789abcdef0123456789abcdef01234567'


def git_id(data):
    return hashlib.sha1(b'blob %d\0' % len(data) + data).hexdigest()


class Site(http.server.ThreadingHTTPServer):
    """A server whose requests `answer` answers; they are kept in `requests`. With a certificate, a file that has its key as well, it speaks https."""
    daemon_threads = True

    def __init__(self, answer, certificate=None):
        site = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = 'HTTP/1.1'

            def do_GET(self):
                site.requests.append((self.command, urllib.parse.unquote(self.path), dict(self.headers)))
                answer(self, urllib.parse.unquote(urllib.parse.urlsplit(self.path).path))

            do_HEAD = do_GET

            def reply(self, status, body=b'', **headers):
                self.send_response(status)
                headers.setdefault('Content-Length', len(body))
                for name, value in headers.items():
                    self.send_header(name.replace('_', '-'), str(value))
                self.end_headers()
                if self.command != 'HEAD':
                    self.wfile.write(body)

            def log_message(self, *_):
                pass

        super().__init__(('127.0.0.1', 0), Handler)
        self.requests = []
        self.url = f'http://127.0.0.1:{self.server_port}'
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self.socket = context.wrap_socket(self.socket, server_side=True)
            self.url = f'https://localhost:{self.server_port}'
        threading.Thread(target=self.serve_forever, daemon=True).start()


class FakeHub:
    """repos: {name: {file: bytes}}. Weights lie on a second server, to which the hub redirects, as with git-lfs."""

    def __init__(self, repos, certificate=None):
        self.repos = repos
        self.refuse = []    # answers (status, headers) to the next requests, whatever they are
        self.damage = {}    # {file: bytes} that come in place of what was announced
        self.cut = []       # of the next files from the second server: bytes after which the connection ends
        self.ranges = True  # whether parts of files can be asked for
        self.etags = {}     # {file: etag} that are no hash
        self.gate = threading.Event()  # the second server stops in the middle of a file until this is set
        self.gate.set()
        self.hub, self.storage = Site(self.answer, certificate), Site(self.send_weights, certificate)

    def close(self):
        self.gate.set()
        for site in (self.hub, self.storage):
            site.shutdown()
            site.server_close()

    def answer(self, request, path):
        if self.refuse:
            status, headers = self.refuse.pop(0)
            return request.reply(status, b'no', **headers)
        parts = path.strip('/').split('/')
        if parts[:2] in (['api', 'models'], ['api', 'resolve-cache']):
            repo, rest = '/'.join(parts[2:4]), parts[4:]
        else:
            repo, rest = '/'.join(parts[:2]), parts[2:]
        if repo not in self.repos:
            return request.reply(404, X_Error_Code='RepoNotFound')
        files = self.repos[repo]
        if rest[0] == 'revision':
            if rest[1] not in ('main', COMMIT):
                return request.reply(404, X_Error_Code='RevisionNotFound')
            siblings = [{'rfilename': name, 'size': len(data)} for name, data in files.items()]
            return request.reply(200, json.dumps({'id': repo, 'sha': COMMIT, 'siblings': siblings}).encode(),
                                 Content_Type='application/json')
        if rest[0] == 'tree':
            entries = [{'type': 'file', 'path': name, 'size': len(data), 'oid': git_id(data)} for name, data in files.items()]
            return request.reply(200, json.dumps(entries).encode(), Content_Type='application/json')
        name = '/'.join(rest[2:] if rest[0] == 'resolve' else rest[1:])
        if name not in files:
            return request.reply(404, X_Error_Code='EntryNotFound')
        data = files[name]
        if name.endswith(('.safetensors', '.gguf', '.bin')):
            etag = self.etags.get(name, hashlib.sha256(data).hexdigest())
            return request.reply(302, Location=f'{self.storage.url}/{repo}/{name}', X_Repo_Commit=COMMIT, ETag='"pointer"',
                                 X_Linked_Size=len(data), X_Linked_Etag=f'"{etag}"')
        if rest[0] == 'resolve':
            return request.reply(307, Location=f'/api/resolve-cache/{repo}/{COMMIT}/{name}', X_Repo_Commit=COMMIT)
        request.reply(200, self.damage.get(name, data), X_Repo_Commit=COMMIT, ETag=f'"{self.etags.get(name, git_id(data))}"')

    def send_weights(self, request, path):
        owner, name, file = path.strip('/').split('/', 2)
        data = self.damage.get(file, self.repos[f'{owner}/{name}'][file])
        begin = int(request.headers.get('Range', 'bytes=0-')[6:-1]) if self.ranges else 0
        request.send_response(206 if begin else 200)
        if begin:
            request.send_header('Content-Range', f'bytes {begin}-{len(data) - 1}/{len(data)}')
        request.send_header('Content-Length', str(len(data) - begin))
        request.end_headers()
        if self.cut:
            request.wfile.write(data[begin:begin + self.cut.pop(0)])
            request.close_connection = True
            return
        middle = (begin + len(data)) // 2
        try:
            request.wfile.write(data[begin:middle])
            request.wfile.flush()
            self.gate.wait()
            request.wfile.write(data[middle:])
        except OSError:  # whoever asked is gone
            request.close_connection = True

#!/usr/bin/env python3
"""Long texts of Debian 12's packages as tokens, for tools/train_smollm2_32k.py: debian_texts.py TOKENIZER.json OUT [DEBS]

Downloads the packages below with apt-get into DEBS (a temporary folder if none is named), takes their texts apart and writes
OUT.u16.xz, all tokens in one row, and OUT.json, {name: [first, end]} of each text in it. A manual's pages follow each other in
the order of their names, so that a text is long however its package cuts it. Needs PyPI's tokenizers and numpy."""

import argparse
import gzip
import html.parser
import json
import lzma
import pathlib
import re
import subprocess
import tempfile
import zlib

import numpy as np
import tokenizers

# Name, package, files, most tokens. Those whose name begins with "held" are never trained on.
MILLION = 1_000_000
TEXTS = [
    ('held novel', 'r-cran-janeaustenr', 'usr/lib/R/site-library/janeaustenr/data/Rdata.rdb:emma', MILLION),
    ('held manual', 'debian-policy', 'usr/share/doc/debian-policy/policy.txt.gz', MILLION),
    ('novels', 'r-cran-janeaustenr', 'usr/lib/R/site-library/janeaustenr/data/Rdata.rdb:', MILLION),
    ('anarchism', 'anarchism', 'usr/share/doc/anarchism/html/*.html', 5 * MILLION // 2),
    ('dictionary', 'dict-gcide', 'usr/share/dictd/*.dict.dz', MILLION),
    ('computing', 'dict-foldoc', 'usr/share/dictd/*.dict.dz', MILLION // 2),
    ('jargon', 'dict-jargon', 'usr/share/dictd/*.dict.dz', MILLION // 2),
    ('fortunes', 'fortunes', 'usr/share/games/fortunes/*', MILLION // 2),
    ('python', 'python3.11-doc', 'usr/share/doc/python3.11/html/{library,reference,howto,tutorial}/*.html', MILLION),
    ('kernel', 'linux-doc-6.1', 'usr/share/doc/linux-doc-6.1/Documentation/**/*.rst*', MILLION),
    ('perl', 'perl-doc', 'usr/share/perl/5.36*/pod/perl*.pod', MILLION),
    ('postgresql', 'postgresql-doc-15', 'usr/share/doc/postgresql-doc-15/html/*.html', MILLION),
    ('git', 'git-doc', 'usr/share/doc/git-doc/**/*.txt', MILLION // 2),
    ('apache', 'apache2-doc', 'usr/share/doc/apache2-doc/manual/en/**/*.html', MILLION // 2),
    ('reference', 'debian-reference-en', 'usr/share/debian-reference/*.en.txt.gz', MILLION // 2),
    ('standards', 'gnu-standards', 'usr/share/doc/gnu-standards/*.text.gz', MILLION // 4),
    ('library', 'libpython3.11-stdlib', 'usr/lib/python3.11/{asyncio,email,unittest,tkinter,http,json,logging,multiprocessing,.}/*.py', MILLION // 2),
    ('library more', 'libpython3.11-minimal', 'usr/lib/python3.11/*.py', MILLION // 4),
]


class Text(html.parser.HTMLParser):
    """What a page says: no scripts, a line for each block."""
    SKIP, BLOCKS = {'script', 'style', 'head', 'nav'}, {'p', 'div', 'li', 'tr', 'br', 'h1', 'h2', 'h3', 'h4', 'pre', 'dt', 'dd'}

    def __init__(self):
        super().__init__()
        self.out, self.skipped, self.verbatim = [], 0, 0

    def handle_starttag(self, tag, attributes):
        self.skipped += tag in self.SKIP
        self.verbatim += tag == 'pre'
        if tag in self.BLOCKS:
            self.out.append('\n')

    def handle_endtag(self, tag):
        self.skipped -= tag in self.SKIP and self.skipped > 0
        self.verbatim -= tag == 'pre' and self.verbatim > 0
        if tag in self.BLOCKS:
            self.out.append('\n')

    def handle_data(self, data):
        if not self.skipped:
            self.out.append(data if self.verbatim else re.sub(r'\s+', ' ', data))


def strings_of_r(data, want):
    """The character vectors of an R package's data: pieces of zlib, each a name's vector in R's XDR; the books' names are those
    of objects, which their first lines give away."""
    books, at = [], 0
    while at + 4 < len(data):
        at = data.find(b'\x78', at)
        if at < 0:
            break
        try:
            piece = zlib.decompressobj().decompress(data[at:])
        except zlib.error:
            at += 1
            continue
        lines = [m.group(2)[:int.from_bytes(m.group(1), 'big')] for m in re.finditer(rb'\0\x04\0\x09(\0\0..)([^\0]*)', piece, re.S)]
        if len(lines) > 1000:
            books.append(b'\n'.join(lines).decode('utf-8', 'replace'))
        at += 4
    is_wanted = lambda book: ('emma' in book[:200].lower()) == (want == 'emma')
    return [book for book in books if is_wanted(book)]


def texts_of(path, want):
    data = path.read_bytes()
    if path.suffix in ('.gz', '.dz'):
        data = gzip.decompress(data)
    if path.suffix == '.rdb':
        return strings_of_r(data, want)
    if b'\0' in data:
        return []
    text = data.decode('utf-8', 'replace')
    if '.html' in path.name:
        page = Text()
        page.feed(text)
        text = ''.join(page.out)
    return [re.sub(r'[ \t]+\n', '\n', re.sub(r'\n{3,}', '\n\n', text)).strip()]


def alternatives(pattern):
    """a{b,c}d as abd and acd."""
    found = re.search(r'\{([^}]*)\}', pattern)
    if not found:
        return [pattern]
    return [p for part in found.group(1).split(',') for p in alternatives(pattern[:found.start()] + part + pattern[found.end():])]


def read(package, pattern, debs):
    root = debs / package
    if not root.exists():
        subprocess.run(['apt-get', '-qq', 'download', package], cwd=debs, check=True)
        subprocess.run(['dpkg-deb', '-x', next(debs.glob(f'{package}_*.deb')), root], check=True)
    pattern, _, want = pattern.partition(':')
    paths = sorted({p for a in alternatives(pattern) for p in root.glob(a) if p.is_file() and not p.is_symlink()})
    return [text for path in paths for text in texts_of(path, want) if len(text) > 2000]


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument('tokenizer', type=pathlib.Path)
    arguments.add_argument('out', type=pathlib.Path)
    arguments.add_argument('debs', type=pathlib.Path, nargs='?')
    args = arguments.parse_args()
    tokenizer = tokenizers.Tokenizer.from_file(str(args.tokenizer))
    with tempfile.TemporaryDirectory() as temporary:
        debs = args.debs or pathlib.Path(temporary)
        parts, index, at = [], {}, 0
        for name, package, pattern, most in TEXTS:
            tokens = []
            for text in read(package, pattern, debs):
                tokens += tokenizer.encode(text + '\n\n').ids
                if len(tokens) >= most:
                    break
            tokens = tokens[:most]
            print(f'{name}: {len(tokens)} tokens of {package}', flush=True)
            index[name] = [at, at + len(tokens)]
            at += len(tokens)
            parts.append(np.array(tokens, '<u2'))
    filters = [{'id': lzma.FILTER_LZMA2, 'preset': 9, 'lp': 1, 'lc': 3, 'pb': 1, 'dict_size': 1 << 26}]
    args.out.with_suffix('.u16.xz').write_bytes(lzma.compress(np.concatenate(parts).tobytes(), filters=filters))
    args.out.with_suffix('.json').write_text(json.dumps(index, indent=1) + '\n')


if __name__ == '__main__':
    main()

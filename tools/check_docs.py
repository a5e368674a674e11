#!/usr/bin/env python3
"""Checks what documents and comments name, and prints one line for each thing that is not there.

In code spans, code blocks and links of every *.md: paths of the repository, make targets, presets,
subcommands and flags of the program, ENTROPYINFER_ variables. In comments: files.
"""
import json
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROGRAM = 'entropyinfer'
PLACEHOLDER = re.compile(r'[<>*{}$…]|\b[A-Z]{2,}\b|\bNAME\b|\.\.\.')


def git_files(*patterns):
    out = subprocess.run(['git', 'ls-files', '--cached', '--others', '--exclude-standard', *patterns],
                         cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / line for line in out.splitlines() if (ROOT / line).is_file()]


def text_of(*patterns):
    return '\n'.join(file.read_text(encoding='utf-8') for file in git_files(*patterns))


class Known:
    """What there is."""

    def __init__(self):
        apps = text_of('apps/*.cc', 'apps/*.h')
        self.commands = set(re.findall(r'add_subcommand\(\s*"([a-z-]+)"', apps))
        self.flags = set(re.findall(r'(?<![\w-])--?[a-z][a-z0-9-]*', ' '.join(
            re.findall(r'"([^"\n]*)"', apps)))) | {'--help', '-h'}
        self.variables = set(re.findall(r'ENTROPYINFER_[A-Z0-9_]+',
                                        text_of('*.cc', '*.h', '*.py', '*.txt', '.ci/*')))
        self.variables |= {'ENTROPYINFER_' + flag.lstrip('-').upper().replace('-', '_')
                           for flag in self.flags}
        self.targets = set(re.findall(r'^([a-z-]+):', (ROOT / 'Makefile').read_text(), re.MULTILINE))
        presets = json.loads((ROOT / 'CMakePresets.json').read_text())
        self.presets = {preset['name'] for preset in presets['configurePresets']}
        self.top = {file.relative_to(ROOT).parts[0] for file in git_files()}


def lines(markdown):
    """(line number, line, whether it is in a code block)."""
    in_block = False
    for number, line in enumerate(markdown.splitlines(), 1):
        if line.lstrip().startswith('```'):
            in_block = not in_block
        else:
            yield number, line.strip(), in_block


def snippets(markdown):
    """(line number, code) of each code span and each line of a code block."""
    for number, line, in_block in lines(markdown):
        for code in [line] if in_block else re.findall(r'`([^`]+)`', line):
            yield number, code


def links(markdown):
    """(line number, target) of each link."""
    for number, line, in_block in lines(markdown):
        if not in_block:
            for target in re.findall(r'\]\(([^)#\s]+)', line):
                yield number, target


def missing_paths(words, known, folder):
    for word in words:
        path = word.strip('.,;:()"\'')
        first = path.split('/')[0]
        if '/' not in path or first not in known.top or PLACEHOLDER.search(path):
            continue
        if not (ROOT / path).exists() and not (folder / path).exists():
            yield f'no path {path}'


def missing_names(words, known):
    command = words[0].rsplit('/', 1)[-1] if words else ''
    if command == 'make':
        for word in words[1:]:
            if word.startswith('#'):
                break
            if re.fullmatch('[a-z-]+', word) and word not in known.targets:
                yield f'no make target {word}'
    for before, word in zip(words, words[1:]):
        if before == '--preset' and command in ('cmake', 'ctest') and word not in known.presets:
            yield f'no preset {word}'
    if command == PROGRAM and len(words) > 1:
        if re.fullmatch('[a-z-]+', words[1]) and not words[1].startswith('-') \
                and words[1] not in known.commands:
            yield f'no subcommand {words[1]}'
    if command == PROGRAM or command.startswith('-'):
        for word in words:
            flag = re.match(r'\[?(--?[a-z][a-z0-9-]*)', word)
            if flag and flag.group(1) not in known.flags:
                yield f'no flag {flag.group(1)}'
    for word in words:
        for variable in re.findall(r'ENTROPYINFER_[A-Z0-9_]*[A-Z0-9]', word):
            if variable not in known.variables:
                yield f'no variable {variable}'


SLASHED = {'.cc', '.h', '.cu', '.cuh'}  # whose comments start with //
HASHED = {'.py', '.sh', '.txt', '.cmake', '.yaml', '.service', '.conf', ''}  # with #, and Python's documentation
COMMENT = {True: re.compile(r'(?:^|\s)//(.*)'), False: re.compile(r'(?:^|\s)#(.*)')}
SOURCE = re.compile(r'(?<![\w./*<>{}$@-])[\w.-]+(?:/[\w.-]+)*\.(?:h|cc|cu|cuh|cpp|py|md|cmake|txt|sh|html|jinja)\b(?![\w*<{/])')

FOREIGN = {'chat_template.jinja', 'metrics.py', 'llama.cpp'}  # in model directories; LongBench's; a peer


def comments(file):
    """(line number, text) of each line that has a comment."""
    is_slashed = file.suffix in SLASHED
    in_text = False  # Python's \"""
    for number, line in enumerate(file.read_text(encoding='utf-8').splitlines(), 1):
        quotes = 0 if is_slashed else line.count('"""')
        if in_text or quotes:
            yield number, line
            in_text ^= quotes % 2 == 1
        elif comment := COMMENT[is_slashed].search(line):
            yield number, comment[1]


def missing_files(text, files, folder, known):
    """What looks like a source or a document of ours, or starts with a folder of ours."""
    for name in SOURCE.findall(text):
        there = name in FOREIGN or (folder / name).exists() or \
            any(file == name or file.endswith('/' + name) for file in files)
        if not there:
            yield f'no file {name}'
    yield from missing_paths([word for word in text.split() if not SOURCE.search(word)], known, folder)


def comment_problems(known):
    files = [file.relative_to(ROOT).as_posix() for file in git_files()]
    for name in files:
        file = ROOT / name
        if file.suffix not in SLASHED | HASHED or '/data/' in name or 'corpus/' in name:
            continue
        for number, text in comments(file):
            for problem in missing_files(text, files, file.parent, known):
                yield f'{name}:{number}: {problem}'


def main():
    known = Known()
    n_problems = 0
    for problem in comment_problems(known):
        print(problem)
        n_problems += 1
    for file in git_files('*.md'):
        markdown = file.read_text(encoding='utf-8')
        found = []
        for number, code in snippets(markdown):
            words = code.removeprefix('$ ').split()
            for problem in (*missing_paths(words, known, file.parent), *missing_names(words, known)):
                found.append((number, problem))
        for number, link in links(markdown):
            if '://' not in link and not (file.parent / link).exists():
                found.append((number, f'no path {link}'))
        for number, problem in found:
            print(f'{file.relative_to(ROOT)}:{number}: {problem}')
        n_problems += len(found)
    return 1 if n_problems else 0


if __name__ == '__main__':
    sys.exit(main())

#!/usr/bin/env python3
"""Checks the rules that keep the code in layers, and prints one line for each break.

Who may include whom (directly or through the folders named), #pragma once, no `using namespace`,
and the sizes: headers under 200 lines, sources under 500, .cu under 700.
"""
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent

MAY_INCLUDE = {
    'base': [],
    'policy': ['base'],
    'ops': ['base', 'policy'],
    'cpu': ['ops'],
    'cuda': ['ops'],
    'io': ['base'],
    'jinja': ['base'],
    'text': ['io', 'jinja', 'base'],
    'grammar': ['io', 'base'],
    'model': ['ops', 'io'],
    'cache': ['ops', 'io'],
    'prefill': ['model', 'cache', 'ops', 'policy'],
    'decode': ['model', 'cache', 'ops', 'policy'],
    'engine': ['text', 'grammar', 'prefill', 'decode'],
    'apps': ['engine'],
}
# The one place that chooses a backend, and those that look at a GPU's own clock and a CPU's own rate.
EXCEPTIONS = {'ei/engine/make_backend.cc': {'cpu', 'cuda'}, 'apps/bench/gpu/gpu_bench.h': {'cuda'},
              'apps/bench/ceilings.cc': {'cpu'}}
# What lies beneath the engine: of the program, only what measures it may look there.
BENEATH_ENGINE = {'ops', 'cache', 'model', 'prefill', 'decode'}
MEASURES = ('apps/bench/', 'apps/eval/')
MAX_LINES = {'.h': 200, '.cuh': 200, '.cc': 500, '.cu': 700}

INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)
GENERATED = {'commit.h'}  # written into the build folder


def reach(folder):
    """The folder, and all it may include."""
    found = {folder}
    for other in MAY_INCLUDE[folder]:
        found |= reach(other)
    return found


def layer(path):
    """The layer of a file: a folder of ei/, 'apps', or None where everything is allowed."""
    parts = path.split('/')
    if parts[0] == 'ei':
        return parts[1]
    return 'apps' if parts[0] == 'apps' else None


def problems(path, text):
    mine = layer(path)
    if mine is not None and mine not in MAY_INCLUDE:
        yield f'folder {mine} has no rule in {pathlib.Path(__file__).name}'
        return
    for include in INCLUDE.findall(text):
        # Highway's *-inl.h come behind its list of targets, where clang-format leaves quoted ones only.
        if include in GENERATED or include.startswith('hwy/'):
            continue
        if not (ROOT / include).is_file():
            yield f'includes "{include}": no such path from the top of the repository'
            continue
        theirs = layer(include)
        if mine is None:
            continue
        if theirs is None:
            yield f'includes "{include}": {mine} may not include {include.split("/")[0]}'
        elif theirs not in reach(mine) | EXCEPTIONS.get(path, set()):
            yield f'includes "{include}": {mine} may not include {theirs}'
        elif mine == 'apps' and theirs in BENEATH_ENGINE and not path.startswith(MEASURES):
            yield f'includes "{include}": of apps only bench and eval may include {theirs}'
    suffix = pathlib.Path(path).suffix
    # *-inl.h are included once per instruction set.
    if suffix in ('.h', '.cuh') and not path.endswith('-inl.h') and '#pragma once' not in text:
        yield 'has no #pragma once'
    if re.search(r'^\s*using namespace', text, re.MULTILINE):
        yield 'says using namespace'
    lines = text.count('\n')
    if lines >= MAX_LINES[suffix]:
        yield f'has {lines} lines, expected fewer than {MAX_LINES[suffix]}'


def main():
    n_problems = 0
    for top in ('ei', 'apps', 'python', 'tests', 'examples'):
        for file in sorted((ROOT / top).rglob('*')):
            if file.suffix in MAX_LINES:
                path = file.relative_to(ROOT).as_posix()
                for problem in problems(path, file.read_text(encoding='utf-8')):
                    print(f'{path} {problem}')
                    n_problems += 1
    return 1 if n_problems else 0


if __name__ == '__main__':
    sys.exit(main())

#!/usr/bin/env python3
"""Parses every source for itself, and says which fail: tools/parse_each.py BUILD [JOBS]

BUILD is configured with preset `single`, by clang. Other presets compile several sources as one, where
each sees what its neighbours include. Kernels of the CPU are compiled alone in any case.
"""
import concurrent.futures
import json
import os
import pathlib
import shlex
import subprocess
import sys


def parse(entry):
    """The entry's source, and what its compiler complains about."""
    done = subprocess.run([*shlex.split(entry['command']), '-fsyntax-only'], cwd=entry['directory'], capture_output=True, text=True)
    return entry['file'], done.stderr if done.returncode else ''


def main():
    build = pathlib.Path(sys.argv[1]).resolve()
    jobs = int(sys.argv[2]) if len(sys.argv) > 2 else os.cpu_count()
    entries = [entry for entry in json.loads((build / 'compile_commands.json').read_text())
               if '/ei/cpu/' not in entry['file'] and build not in pathlib.Path(entry['file']).parents]
    n_failed = 0
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        for file, complaints in pool.map(parse, entries):
            if complaints:
                print(f'{file}:\n{complaints}', flush=True)
                n_failed += 1
    print(f'{len(entries)} sources, {n_failed} of them do not stand alone')
    return 1 if n_failed else 0


if __name__ == '__main__':
    sys.exit(main())

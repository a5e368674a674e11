"""README's Python runs as printed."""
import re
import subprocess
import sys

import pytest
from conftest import TOP

SECTION = (TOP / 'README.md').read_text(encoding='utf-8').split('## From Python\n')[1].split('\n## ')[0]


@pytest.mark.parametrize('code', re.findall(r'```python\n(.*?)```', SECTION, re.DOTALL), ids=['engine', 'transformers'])
def test_the_section_runs(code):
    if 'torch' in code:
        pytest.importorskip('torch')
    done = subprocess.run([sys.executable, '-c', code], cwd=TOP, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()

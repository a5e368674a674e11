"""The notebook's cells run, on a small model and a short text."""
import json

import pytest
from conftest import TOP

NOTEBOOK = TOP / 'python/examples/policies.ipynb'


def test_the_notebook_runs(model_dir, monkeypatch):
    pytest.importorskip('matplotlib')
    monkeypatch.setenv('MPLBACKEND', 'agg')
    monkeypatch.setenv('MODEL', str(model_dir))
    monkeypatch.setenv('TEXT', str(TOP / 'LICENSE'))
    monkeypatch.setenv('TOKENS', '1700')
    names = {}
    for cell in json.loads(NOTEBOOK.read_text(encoding='utf-8'))['cells']:
        if cell['cell_type'] == 'code':
            exec(compile(''.join(cell['source']), str(NOTEBOOK), 'exec'), names)
    density, kl = zip(*names['table'].values())
    assert len(kl) == 6 and density[0] == 1 and abs(kl[0]) < 1e-6  # dense is dense
    assert all(0 < d < 1 for d in density[1:]) and all(k > 0 for k in kl[1:])

import pathlib

import pytest

TOP = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope='session', autouse=True)
def cache(tmp_path_factory):
    """What the engine measures of a model once is kept for the tests alone."""
    patch = pytest.MonkeyPatch()
    patch.setenv('XDG_CACHE_HOME', str(tmp_path_factory.mktemp('cache')))
    yield
    patch.undo()


@pytest.fixture(scope='session')
def model_dir():
    return TOP / 'models/needle-8m'

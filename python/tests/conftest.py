import pathlib

import entropyinfer
import pytest

TOP = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope='session', autouse=True)
def cache(tmp_path_factory):
    """What the engine measures of a model once is kept for the tests alone."""
    patch = pytest.MonkeyPatch()
    patch.setenv('XDG_CACHE_HOME', str(tmp_path_factory.mktemp('cache')))
    yield
    patch.undo()


@pytest.fixture(scope='module', params=['cpu', 'cuda'])
def device(request):
    """Where the engine runs and tensors are."""
    if request.param == 'cuda':
        need_cuda()
    return request.param


@pytest.fixture(params=['cpu-float32', 'cpu-bfloat16', 'cuda-bfloat16'])
def place(request):
    """Device and type of tensors."""
    torch = pytest.importorskip('torch')
    device, dtype = request.param.split('-')
    if device == 'cuda':
        need_cuda()
    return {'device': device, 'dtype': getattr(torch, dtype)}


def need_cuda():
    if not entropyinfer.cuda_available():
        pytest.skip('cuda: no Hopper GPU, or the package was built without CUDA')


@pytest.fixture(scope='session')
def model_dir():
    return TOP / 'models/needle-8m'

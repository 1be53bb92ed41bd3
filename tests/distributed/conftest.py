import pytest

from tests.helpers.places import CPU, CUDA, SHARED_CUDA, at

PLACES = [
    pytest.param(CPU, id="cpu"),
    pytest.param(CUDA, id="cuda", marks=pytest.mark.gpu),
    pytest.param(SHARED_CUDA, id="shared cuda", marks=pytest.mark.gpu),
]


@pytest.fixture(params=PLACES)
def place(request):
    """Runs the test once in each place; `run` skips where there are fewer GPUs than the test's processes need."""
    with at(request.param):
        yield request.param

import pytest
import torch

from reference.testbeds import text


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    """For every test of this folder."""


@pytest.fixture(scope="session")
def doc():
    return text.corpus("DOC")


@pytest.fixture(params=["DOC", "CODE"])
def corpus(request):
    return text.corpus(request.param)


@pytest.fixture(autouse=True)
def global_random_state_is_left_alone():
    before = torch.get_rng_state()
    yield
    assert torch.equal(torch.get_rng_state(), before)

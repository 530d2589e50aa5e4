import pytest
import torch

from reference.testbeds import text


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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

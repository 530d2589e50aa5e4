"""What one test must not leave to the next."""

import sys

import pytest


@pytest.fixture(autouse=True)
def _subnormals_count():
    """A suite may let torch flush subnormals for its process: in a run a worker, here all later tests."""
    yield
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_flush_denormal(False)


@pytest.fixture
def one_thread():
    """torch on one thread, as in the trial lane."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)

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

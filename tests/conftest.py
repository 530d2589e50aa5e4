"""What one test must not leave to the next."""

import sys

import pytest


@pytest.fixture(autouse=True)
def _subnormals_count():
    """A suite may let torch flush subnormals for its process. In a run that is a worker; here it would be every test."""
    yield
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_flush_denormal(False)

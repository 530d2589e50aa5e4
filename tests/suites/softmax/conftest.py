"""What tests of several suites need: one thread, and artefacts that are built once."""

import pytest
import torch


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Kept:
    """Artefacts that outlive a cell, as in a run; every caller gets the same object."""

    def __init__(self):
        self.built = {}

    def get(self, suite, name, config, build):
        key = name, repr(sorted(config.items()))
        if key not in self.built:
            self.built[key] = build(config)
        return self.built[key]


@pytest.fixture(scope="module")
def kept():
    return Kept()

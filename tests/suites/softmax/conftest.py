"""What tests of several suites need: artefacts that are built once."""

import pytest


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

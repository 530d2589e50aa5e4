import mmap

import pytest

from harness.run.measure.memory import peak_bytes, reset_peak
from harness.run.measure.place import Host


def touch(size):
    """Make ``size`` fresh bytes resident and give them back; a mapping of its own, since a heap may reuse old pages."""
    with mmap.mmap(-1, size) as block:
        for place in range(0, size, mmap.PAGESIZE):
            block[place] = 1


def peak_of(work):
    return Host().observe(work).peak_bytes


@pytest.mark.parametrize("size", [32 * 2**20, 128 * 2**20])
def test_a_peak_is_seen_after_it_was_given_back(size):
    found = peak_of(lambda: touch(size))
    assert 0.9 * size < found < 1.5 * size + 2**23


def test_a_new_mark_forgets_the_last_peak():
    peak_of(lambda: touch(128 * 2**20))
    resident = reset_peak()
    assert peak_bytes() < resident + 64 * 2**20
    assert peak_of(lambda: None) < 2**23

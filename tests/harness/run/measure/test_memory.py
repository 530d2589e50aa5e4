import pytest

from harness.run.measure.memory import peak_bytes, peak_of, reset_peak


@pytest.mark.parametrize("size", [32 * 2**20, 128 * 2**20])
def test_a_peak_is_seen_after_it_was_given_back(size):
    def work():
        block = bytearray(size)
        block[::4096] = b"x" * len(block[::4096])

    found = peak_of(work)
    assert 0.9 * size < found < 1.5 * size + 2**23


def test_a_new_mark_forgets_the_last_peak():
    peak_of(lambda: bytearray(b"x") * (128 * 2**20))
    resident = reset_peak()
    assert peak_bytes() < resident + 64 * 2**20
    assert peak_of(lambda: None) < 2**23

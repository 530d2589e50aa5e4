import numpy as np
import pytest

from harness.plan.machine import this_machine
from harness.run.measure import streams
from harness.run.measure.ceilings import measure_ceilings


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_streams_do_what_is_counted(parts):
    size = 4 * parts * streams.LANES
    b, c = np.arange(size, dtype=np.float32), np.ones(size, np.float32)
    sums, a = np.empty(parts, np.float32), np.zeros(size, np.float32)
    assert streams.read(b) == b.sum(dtype=np.float64)
    streams.read_ahead(b, sums)
    assert np.array_equal(sums, b.reshape(parts, -1).sum(axis=1, dtype=np.float64))
    streams.copy_ahead(a, b, parts)
    assert np.array_equal(a, b)
    streams.triad_ahead(a, b, c, parts)
    assert np.array_equal(a, b + 3)
    streams.copy(a, c)
    assert np.array_equal(a, c)
    streams.triad(a, b, c)
    assert np.array_equal(a, b + 3)


def test_a_chain_does_as_many_operations_as_are_counted():
    blocks = np.full((2, 8), 0.5, np.float32)
    streams.chain(blocks, np.float32(1.0), np.float32(2.0**-12))
    assert np.all(blocks == 0.5 + streams.CHAIN * streams.PASSES * 2.0**-12)


def test_ceilings_are_measured_beyond_the_cache_by_thread_count():
    found = measure_ceilings((1,))
    assert found["array_bytes"] >= 4 * this_machine().caches["llc"]
    assert set(found["threads"]) == {"1"}
    rates = found["threads"]["1"]
    assert set(rates) == {"read_bytes_per_s", "copy_bytes_per_s", "triad_bytes_per_s", "flops_per_s"}
    assert all(rate > 1e8 for rate in rates.values())

"""Every arm of every speed cell: right, and then timed unless --benchmark-disable is given.

pytest tests/benchmarks --benchmark-only [--litmus-select softmax/* --litmus-profile small --litmus-device cpu]
"""


def test_speed(case, bench, benchmark):
    record = bench.run(case, benchmark)
    assert record.error is None or record.error <= record.tolerance

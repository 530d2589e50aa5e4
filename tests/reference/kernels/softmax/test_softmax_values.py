"""The softmax kernels against float64, torch and the algebra of softmax."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference.kernels.softmax import ALGORITHMS, softmax, truth

KERNELS = [(backend, algorithm) for backend in ("numba", "eager") for algorithm in ALGORITHMS]
# x - max is rounded by all but two_pass: half an ulp of up to 128 is 64 units of 2^-24.
ROUNDED_SHIFT = 72.0
pytestmark = pytest.mark.parametrize(("backend", "algorithm"), KERNELS)


def limit(algorithm: str) -> float:
    return 8.0 if algorithm == "two_pass" else ROUNDED_SHIFT


def uniform(shape: tuple[int, ...], bound: float, seed: int = 0) -> np.ndarray:
    return ((np.random.default_rng(seed).random(shape) * 2 - 1) * bound).astype(np.float32)


def run(x: np.ndarray, backend: str, algorithm: str, threads: int | None = 1) -> np.ndarray:
    """Into a poisoned buffer, on a copy of the inputs that must stay as it was."""
    kept, out = x.copy(), np.full_like(x, np.nan)
    assert softmax(x, out, algorithm=algorithm, backend=backend, threads=threads) is out
    assert np.array_equal(x, kept, equal_nan=True)
    return out


@settings(max_examples=40, deadline=None)
@given(
    n=st.one_of(st.integers(1, 300), st.sampled_from([1023, 1024, 1025, 2048, 4099])),
    rows=st.sampled_from([None, 1, 3]),
    bound=st.sampled_from([0.0, 1e-30, 1.0, 30.0, 1e3, 1e4, 1.3e5, 1e7, 1e30]),
    offset=st.sampled_from([0.0, -5e4, 9e4]),
    threads=st.sampled_from([1, 2]),
    seed=st.integers(0, 99),
)
def test_equals_float64(backend, algorithm, n, rows, bound, offset, threads, seed):
    x = uniform((n,) if rows is None else (rows, n), bound, seed) + np.float32(offset)
    y = run(x, backend, algorithm, threads)
    assert truth.error_units(y, truth.softmax(x)) <= limit(algorithm)


@settings(max_examples=40, deadline=None)
@given(
    values=st.lists(
        st.one_of(st.floats(width=32, allow_nan=True, allow_infinity=True), st.sampled_from([0.0, -np.inf, 700.0])),
        min_size=1, max_size=200,
    ),
)
def test_any_floats_behave_as_in_float64(backend, algorithm, values):
    x = np.array(values, np.float32)
    with np.errstate(invalid="ignore"):
        assert truth.error_units(run(x, backend, algorithm), truth.softmax(x)) <= limit(algorithm)


@pytest.mark.parametrize("rows, n", [(1, 2**16 + 7), (1, 2**17), (2, 2**16 + 3), (5, 40001), (700, 100)])
def test_threads_share_long_rows_and_many_rows(backend, algorithm, rows, n):
    x = uniform((rows, n), 1000.0)
    one, two = (run(x, backend, algorithm, threads) for threads in (1, 2))
    expected = truth.softmax(x)
    assert truth.error_units(one, expected) <= 8.0
    assert truth.error_units(two, expected) <= 8.0
    assert np.array_equal(two, run(x, backend, algorithm, 2))


def test_masked_inputs_get_exactly_zero(backend, algorithm):
    x = uniform((2, 5000), 3.0)
    x[0, :4096] = -np.inf  # every accumulator starts with masked inputs only
    x[1, ::2] = -np.inf
    y = run(x, backend, algorithm)
    assert (y[np.isneginf(x)] == 0.0).all()
    assert (y[~np.isneginf(x)] > 0.0).all()
    assert y.sum(axis=1) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(
    "x",
    [[-np.inf], [-np.inf] * 300, [np.nan], [1] * 100 + [np.nan], [np.nan] + [1] * 300, [np.inf, 1], [np.inf] * 70],
    ids=["one masked", "all masked", "nan", "nan last", "nan first", "inf", "all inf"],
)
def test_undefined_rows_are_nan_as_in_torch(backend, algorithm, x):
    x = np.array([x, [1.0] * len(x)], np.float32)
    y = run(x, backend, algorithm)
    assert np.isnan(torch.softmax(torch.from_numpy(x[0]), -1).numpy()).all()
    assert np.isnan(y[0]).all()
    assert np.allclose(y[1], 1 / x.shape[1])


def test_small_outputs_are_flushed(backend, algorithm):
    x = np.linspace(-110.0, 0.0, 40_000, dtype=np.float32)
    y = run(x, backend, algorithm)
    assert ((y == 0.0) | (y >= 2.0**-128)).all()  # exponent -126 is kept whatever its mantissa
    assert (y == 0.0).any() and (y > 0.0).mean() > 0.5
    assert (np.diff(y[y > 1e-30]) >= -1e-6 * y[y > 1e-30][1:]).all()


def test_error_does_not_grow_with_length(backend, algorithm):
    for value in (0.3, -0.2, 12.7):
        y = run(np.full(2**19 + 11, value, np.float32), backend, algorithm)
        assert truth.error_units(y, np.full(y.shape, 1 / y.size)) <= 4.0

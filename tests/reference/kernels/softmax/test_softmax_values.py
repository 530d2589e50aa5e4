"""The softmax functions against float64, torch and the algebra of softmax."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reference.kernels.softmax import ALGORITHMS, cost, log_softmax, log_sum_exp, softmax, truth

KERNELS = [(backend, algorithm) for backend in ("numba", "eager") for algorithm in ALGORITHMS]
LOGARITHMIC = [name for name in ALGORITHMS if name != "three_pass_reload"]
# x - max is rounded by all but two_pass: half an ulp of up to 128 is 64 units of 2^-24.
ROUNDED_SHIFT = 72.0
every_kernel = pytest.mark.parametrize(("backend", "algorithm"), KERNELS)
any_example = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SIZES = st.one_of(st.integers(1, 300), st.sampled_from([511, 512, 513, 1023, 1024, 1025, 2048, 4099]))


@pytest.fixture
def fine_grain(monkeypatch):
    """Threads share short inputs as well."""
    monkeypatch.setattr(cost, "GRAIN", 64)


def limit(algorithm: str) -> float:
    return 8.0 if algorithm == "two_pass" else ROUNDED_SHIFT


def uniform(shape: tuple[int, ...], bound: float, seed: int = 0) -> np.ndarray:
    return ((np.random.default_rng(seed).random(shape) * 2 - 1) * bound).astype(np.float32)


def grid(shape: tuple[int, ...], bound: float, seed: int = 0) -> np.ndarray:
    """Multiples of 2^-6, whose sums and differences are exact."""
    return np.round(uniform(shape, bound, seed) * 64) / np.float32(64)


def run(x: np.ndarray, backend: str, algorithm: str, threads: int | None = 1) -> np.ndarray:
    """Into a poisoned buffer, on a copy of the inputs that must stay as it was."""
    kept, out = x.copy(), np.full_like(x, np.nan)
    assert softmax(x, out, algorithm=algorithm, backend=backend, threads=threads) is out
    assert np.array_equal(x, kept, equal_nan=True)
    return out


@every_kernel
@settings(any_example, max_examples=40)
@given(
    n=SIZES,
    rows=st.sampled_from([None, 1, 3, 17, 40]),
    bound=st.sampled_from([0.0, 1e-30, 1.0, 30.0, 1e3, 1e4, 1.3e5, 1e7, 1e30]),
    offset=st.sampled_from([0.0, -5e4, 9e4]),
    threads=st.sampled_from([1, 2]),
    seed=st.integers(0, 99),
)
def test_equals_float64(fine_grain, backend, algorithm, n, rows, bound, offset, threads, seed):
    x = uniform((n,) if rows is None else (rows, n), bound, seed) + np.float32(offset)
    y = run(x, backend, algorithm, threads)
    assert truth.error_units(y, truth.softmax(x)) <= limit(algorithm)


@pytest.mark.parametrize("algorithm", LOGARITHMIC)
@pytest.mark.parametrize("backend", ["numba", "eager"])
@settings(any_example, max_examples=40)
@given(
    n=SIZES,
    rows=st.sampled_from([None, 1, 3, 17]),
    bound=st.sampled_from([0.0, 1e-30, 1.0, 1e3, 1.3e5, 1e30]),
    threads=st.sampled_from([1, 2]),
    masked=st.sampled_from([0.0, 0.3, 1.0]),
    seed=st.integers(0, 99),
)
def test_logarithms_equal_float64(fine_grain, backend, algorithm, n, rows, bound, threads, masked, seed):
    x = uniform((n,) if rows is None else (rows, n), bound, seed)
    x[np.random.default_rng(seed).random(x.shape) < masked] = -np.inf
    options = {"algorithm": algorithm, "backend": backend, "threads": threads}
    y = log_softmax(x, np.full_like(x, np.nan), **options)
    assert truth.log_error_units(y, truth.log_softmax(x)) <= 8.0
    found = log_sum_exp(x, **options)
    assert found.shape == x.shape[:-1] and found.dtype == np.float32
    assert truth.log_error_units(found, truth.log_sum_exp(x)) <= 8.0


@every_kernel
@settings(any_example, max_examples=30)
@given(
    n=SIZES, rows=st.sampled_from([1, 5, 17]), type_=st.sampled_from(["float16", "bfloat16"]),
    bound=st.sampled_from([0.0, 1e-6, 3.0, 100.0, 3e4]), threads=st.sampled_from([1, 2]), seed=st.integers(0, 99),
)  # fmt: skip
def test_halves_are_rounded_once(fine_grain, backend, algorithm, n, rows, type_, bound, threads, seed):
    x = torch.from_numpy(uniform((rows, n), bound, seed)).to(getattr(torch, type_))
    y = softmax(x, torch.full_like(x, torch.nan), algorithm=algorithm, backend=backend, threads=threads)
    expected = truth.softmax(x.double().numpy())
    # The reload form stores rounded terms, and half a spacing of a term is up to one of the quotient.
    spacings = 1.5 if algorithm == "three_pass_reload" else 0.5
    allowance = spacings * truth.spacing(expected, type_)
    assert truth.error_units(y.double().numpy(), expected, allowance=allowance) <= limit(algorithm)


@every_kernel
@settings(any_example, max_examples=40)
@given(
    values=st.lists(
        st.one_of(st.floats(width=32, allow_nan=True, allow_infinity=True), st.sampled_from([0.0, -np.inf, 700.0])),
        min_size=1, max_size=200,
    ),
)  # fmt: skip
def test_any_floats_behave_as_in_float64(backend, algorithm, values):
    x = np.array(values, np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        assert truth.error_units(run(x, backend, algorithm), truth.softmax(x)) <= limit(algorithm)
        if algorithm in LOGARITHMIC:
            found = log_sum_exp(x, algorithm=algorithm, backend=backend, threads=1)
            assert truth.log_error_units(found, truth.log_sum_exp(x).astype(np.float32)) <= 8.0


@every_kernel
@settings(any_example, max_examples=25)
@given(
    n=SIZES, rows=st.sampled_from([1, 3, 17]), shift=st.sampled_from([-1024.0, 64.0, 4096.0]), seed=st.integers(0, 99)
)  # fmt: skip
def test_shifting_a_row_changes_nothing(fine_grain, backend, algorithm, n, rows, shift, seed):
    """Where adding the shift rounds nothing; log-sum-exp moves by as much."""
    x = grid((rows, n), 100.0, seed)
    shifted = x + np.float32(shift)
    y = run(x, backend, algorithm, 2)
    assert truth.error_units(run(shifted, backend, algorithm, 2), y.astype(np.float64)) <= 12.0
    if algorithm in LOGARITHMIC:
        options = {"algorithm": algorithm, "backend": backend, "threads": 2}
        moved = log_sum_exp(shifted, **options).astype(np.float64) - log_sum_exp(x, **options)
        assert np.abs(moved - shift).max() <= 12 * truth.UNIT * (abs(shift) + 110.0)


@every_kernel
@settings(any_example, max_examples=25)
@given(n=SIZES, rows=st.sampled_from([1, 2, 17]), start=st.integers(0, 17), seed=st.integers(0, 99))
def test_where_the_memory_begins_and_ends_makes_no_difference(fine_grain, backend, algorithm, n, rows, start, seed):
    """In place equals out of place; unaligned memory works; nothing beside it is touched."""
    x = uniform((rows, n), 20.0, seed)
    expected = run(x, backend, algorithm, 2)
    memory = np.full(rows * n + start + 20, 7.0, np.float32)
    inside = memory[start : start + rows * n].reshape(rows, n)
    inside[:] = x
    assert softmax(inside, inside, algorithm=algorithm, backend=backend, threads=2) is inside
    assert truth.error_units(inside, expected.astype(np.float64)) == 0.0
    assert (memory[:start] == 7.0).all() and (memory[start + rows * n :] == 7.0).all()


@every_kernel
@settings(any_example, max_examples=15)
@given(pieces=st.lists(st.integers(1, 700), min_size=2, max_size=6), seed=st.integers(0, 99))
def test_the_order_of_elements_matters_little(backend, algorithm, pieces, seed):
    """Permuted pieces give the permuted result but for the rounding of the sum, in one chunk or two."""
    parts = np.split(uniform((sum(pieces),), 1000.0, seed), np.cumsum(pieces)[:-1])
    order = np.random.default_rng(seed).permutation(len(parts))
    y = np.split(run(np.concatenate(parts), backend, algorithm), np.cumsum(pieces)[:-1])
    permuted = run(np.concatenate([parts[i] for i in order]), backend, algorithm, 2)
    expected = np.concatenate([y[i] for i in order]).astype(np.float64)
    assert truth.error_units(permuted, expected) <= 4.0


@every_kernel
@pytest.mark.parametrize("rows, n", [(1, 2**16 + 7), (1, 2**17), (2, 2**16 + 3), (5, 40001), (700, 100)])
def test_threads_share_long_rows_and_many_rows(backend, algorithm, rows, n, monkeypatch):
    monkeypatch.setattr(cost, "GRAIN", 2**14)
    x = uniform((rows, n), 1000.0)
    one, two = (run(x, backend, algorithm, threads) for threads in (1, 2))
    expected = truth.softmax(x)
    assert truth.error_units(one, expected) <= 8.0
    assert truth.error_units(two, expected) <= 8.0
    assert np.array_equal(two, run(x, backend, algorithm, 2))


@every_kernel
def test_masked_inputs_get_exactly_zero(backend, algorithm):
    x = uniform((2, 5000), 3.0)
    x[0, :4096] = -np.inf  # every accumulator starts with masked inputs only
    x[1, ::2] = -np.inf
    y = run(x, backend, algorithm)
    assert (y[np.isneginf(x)] == 0.0).all()
    assert (y[~np.isneginf(x)] > 0.0).all()
    assert y.sum(axis=1) == pytest.approx(1.0, abs=1e-6)


@every_kernel
@pytest.mark.parametrize(
    "x",
    [[-np.inf], [-np.inf] * 300, [np.nan], [1] * 100 + [np.nan], [np.nan] + [1] * 300, [np.inf, 1], [np.inf] * 70],
    ids=["one masked", "all masked", "nan", "nan last", "nan first", "inf", "all inf"],
)
def test_undefined_rows_are_as_in_torch(backend, algorithm, x):
    x = torch.tensor([x, [1.0] * len(x)], dtype=torch.float32)
    functions = {softmax: torch.softmax, log_softmax: torch.log_softmax, log_sum_exp: torch.logsumexp}
    for ours, theirs in functions.items():
        if ours is softmax or algorithm in LOGARITHMIC:
            y = ours(x, algorithm=algorithm, backend=backend)
            torch.testing.assert_close(y, theirs(x, -1), equal_nan=True)


@every_kernel
def test_small_outputs_are_flushed(backend, algorithm):
    x = np.linspace(-110.0, 0.0, 40_000, dtype=np.float32)
    y = run(x, backend, algorithm)
    assert ((y == 0.0) | (y >= 2.0**-128)).all()  # exponent -126 is kept whatever its mantissa
    assert (y == 0.0).any() and (y > 0.0).mean() > 0.5
    assert (np.diff(y[y > 1e-30]) >= -1e-6 * y[y > 1e-30][1:]).all()


@every_kernel
def test_error_does_not_grow_with_length(backend, algorithm):
    for value in (0.3, -0.2, 12.7):
        y = run(np.full(2**19 + 11, value, np.float32), backend, algorithm)
        assert truth.error_units(y, np.full(y.shape, 1 / y.size)) <= 4.0

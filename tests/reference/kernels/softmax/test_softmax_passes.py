"""Single passes, the merge of chunks, the streams, and whether the compiler did its part."""

from __future__ import annotations

import importlib.util
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from reference.kernels.softmax import numba_cpu, numba_passes, truth
from reference.kernels.softmax.numba_vectors import elements

F32 = np.float32


def uniform(n: int, bound: float = 1000.0, seed: int = 0) -> np.ndarray:
    return ((np.random.default_rng(seed).random(n) * 2 - 1) * bound).astype(F32)


@pytest.mark.parametrize("n", [1, 63, 64, 257, 5000])
@pytest.mark.parametrize("chunks", [1, 2, 3])
def test_reading_passes_find_the_sum(n, chunks):
    x = uniform(n)
    log_sum = truth.log_sum_exp(x)
    sums, exponents = numba_cpu.partials(min(chunks, n))
    numba_cpu.run_pass("accumulate", x, x, sums, exponents)
    assert numba_cpu.log_sum(*numba_cpu.merge(sums, exponents)) == pytest.approx(log_sum, abs=4 * truth.UNIT)
    numba_cpu.run_pass("max", x, x, sums, exponents)
    assert exponents.max() == x.max()
    numba_cpu.run_pass("sum_exp", x, x, sums, exponents, shift=float(x.max()))
    assert math.log(sums.sum()) + float(x.max()) == pytest.approx(log_sum, abs=4 * truth.UNIT)
    numba_cpu.run_pass("online_sum", x, x, sums, exponents)
    total = sum(s * math.exp(float(m) - float(x.max())) for s, m in zip(sums, exponents, strict=True))
    assert math.log(total) + float(x.max()) == pytest.approx(log_sum, abs=4 * truth.UNIT)


@pytest.mark.parametrize("n", [1, 64, 70, 5000])
def test_storing_passes_and_streams_write_every_element_and_no_more(n):
    x, padded = uniform(n), np.full(n + 16, 7.0, F32)
    y, expected = padded[:n], truth.softmax(x)
    maximum = float(x.max())
    total = math.exp(truth.log_sum_exp(x) - maximum)
    sums, exponents = numba_cpu.partials(1)
    r, r_low, k = numba_cpu.normaliser(total)
    numba_cpu.run_pass("store_shifted", x, y, sums, exponents, shift=maximum, r=r, r_low=r_low, k=k)
    assert truth.error_units(y, expected) <= 8.0
    numba_cpu.run_pass("accumulate", x, x, sums, exponents)
    r, r_low, k = numba_cpu.normaliser(*numba_cpu.merge(sums, exponents))
    numba_cpu.run_pass("store", x, y, sums, exponents, r=r, r_low=r_low, k=k)
    assert truth.error_units(y, expected) <= 8.0
    numba_cpu.run_pass("sum_store_exp", x, y, sums, exponents, shift=maximum)
    assert truth.error_units(y, expected, 1.0 / total) <= 8.0
    numba_cpu.run_pass("scale", y, y, sums, exponents, total=total)
    assert truth.error_units(y, expected) <= 8.0
    numba_cpu.run_pass("stream_copy", x, y, sums, exponents, r=3.0)
    assert np.array_equal(y, x * F32(3.0))
    numba_cpu.run_pass("stream_scale", y, y, sums, exponents, r=2.0)
    assert np.array_equal(y, x * F32(3.0) * F32(2.0))
    numba_cpu.run_pass("stream_read", x, x, sums, exponents)
    assert sums[0] == pytest.approx(x.sum(dtype=np.float64), abs=1e-3 * n)
    assert (padded[n:] == 7.0).all()


@pytest.mark.parametrize("threads", [1, 2])
def test_the_pass_of_log_softmax(threads):
    x = uniform(5000)
    y, log = np.full_like(x, np.nan), float(truth.log_sum_exp(x))
    high = float(F32(log))
    numba_cpu.run_pass("store_log", x, y, *numba_cpu.partials(threads), r=high, r_low=log - high)
    assert truth.log_error_units(y, truth.log_softmax(x)) <= 8.0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(0.5, 1e6), st.integers(-3000, 3000)), min_size=2, max_size=40), st.randoms())
def test_merging_extended_exponents_is_a_sum_in_any_order(parts, random):
    def merged(items):
        sums, exponents = numba_cpu.partials(len(items))
        sums[:], exponents[:] = zip(*items, strict=True)
        return numba_cpu.log_sum(*numba_cpu.merge(sums, exponents))

    top = max(math.log2(m) + e for m, e in parts)
    expected = top + math.log2(sum(2.0 ** (math.log2(m) + e - top) for m, e in parts))
    shuffled = list(parts)
    random.shuffle(shuffled)
    # What lies 127 binary orders below is dropped, and nothing else.
    assert merged(parts) / math.log(2.0) == pytest.approx(expected, abs=1e-9)
    assert merged(shuffled) == pytest.approx(merged(parts), abs=4 * 2.0**-23)


@given(st.floats(0.6, 1e9), st.integers(-2000, 2000))
def test_normaliser_is_the_reciprocal_and_never_denormal(m, e):
    r, r_low, k = numba_cpu.normaliser(m, float(e))
    assert 0.5 < r <= 1.0
    assert math.log2(r + r_low) - k == pytest.approx(-math.log2(m) - e, abs=1e-12)


def _altered(tmp_path: Path, old: str, new: str) -> object:
    """The passes, compiled from a source with one constant changed."""
    source = Path(numba_passes.__file__).read_text()
    assert source.count(old) == 1
    path = tmp_path / "altered_passes.py"
    path.write_text(source.replace(old, new))
    spec = importlib.util.spec_from_file_location("altered_passes", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_wrong_cody_waite_constant_is_found(tmp_path):
    x = uniform(2000)
    bad = _altered(tmp_path, 'HIGH = F32(float.fromhex("-0x1.62E43p-1"))', 'HIGH = F32(float.fromhex("-0x1.62E42p-1"))')
    errors = []
    for passes in (numba_passes, bad):
        y = np.full_like(x, np.nan)
        _two_pass(passes)(x, y)
        errors.append(truth.error_units(y, truth.softmax(x)))
    assert errors[0] <= 8.0 < 100.0 < errors[1]


def _two_pass(passes):
    accumulate, normaliser, store = passes.accumulate, passes.normaliser, passes.store

    @njit
    def two_pass(x, y):
        m, e = accumulate(elements(x), 0, x.size)
        r, r_low, k = normaliser(m, e)
        store(elements(x), elements(y), 0, x.size, r, r_low, k)

    return two_pass


def compiled_for(cpu: str, features: str, code: str, cache: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache), "NUMBA_CPU_NAME": cpu, "NUMBA_CPU_FEATURES": features}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)


_ASM = """
import numpy as np
from numba import njit
from reference.kernels.softmax import numba_passes as p
from reference.kernels.softmax.numba_vectors import elements
f = np.float32(1)
calls = {"accumulate": (), "find_max": (), "sum_exp": (f,), "sum_store_exp": (f,), "online_sum": (),
         "store": (f, f, f), "store_shifted": (f, f, f, f), "scale": (1.0,), "store_log": (f, f), "stream_read": ()}
for name, arguments in calls.items():
    which = getattr(p, name)
    places = ("y",) if name == "scale" else ("x", "y") if "store" in name else ("x",)
    code = f"lambda x, y, a: which({', '.join(f'elements({place})' for place in places)}, 0, x.size, *a)"
    kernel = njit(eval(code))
    for kind in (np.float32, np.uint16, np.int16):
        kernel(np.ones(4096, kind), np.ones(4096, kind), arguments)
    for signature, text in kernel.inspect_asm().items():
        print("@@", name, signature[0].dtype)
        print(text)
"""
STORED = ("store", "store_shifted", "sum_store_exp")
COMPUTES = ("accumulate", "sum_exp", "online_sum", *STORED)


def test_inner_loops_are_vectorised_with_fma(tmp_path):
    """Compiled for a plain AVX2 machine, wherever this runs on x86-64."""
    if os.uname().machine != "x86_64":
        pytest.skip("looks at x86-64 assembly")
    done = compiled_for("haswell", "+avx2,+fma,+f16c", _ASM, tmp_path)
    if done.returncode < 0:
        pytest.skip("this CPU has no AVX2")
    assert done.returncode == 0, done.stderr
    kernels = dict(part.split("\n", 1) for part in done.stdout.split("@@ ")[1:])
    assert len(kernels) == 30
    for title, text in kernels.items():
        name, kind = title.split()
        assert len(re.findall(r"\bymm", text)) > 10, title
        assert "vgather" not in text, title
        fused = re.findall(r"vfn?m(?:add|sub)\d+ps\s.*ymm", text)
        assert len(fused) >= 7 or name not in COMPUTES, title
        assert "fma" not in re.findall(r"call\S*\s+\S*(fma|half|hf2|sf2)", text), title
        assert ("vcvtph2ps" in text) == (kind == "uint16"), title
        assert ("vcvtps2ph" in text) == (kind == "uint16" and ("store" in name or name == "scale")), title


_PORTABLE = """
import numpy as np, torch
from numba import njit
from reference.kernels.softmax import truth
from reference.kernels.softmax.numba_passes import accumulate, normaliser, store, stream_copy
from reference.kernels.softmax.numba_vectors import elements

@njit
def two_pass(x, y):
    m, e = accumulate(elements(x), 0, x.size)
    r, r_low, k = normaliser(m, e)
    store(elements(x), elements(y), 0, x.size, r, r_low, k)

@njit
def scaled(x, y, factor):
    stream_copy(elements(x), elements(y), 0, x.size, factor)

x = ((np.random.default_rng(0).random(5000) * 2 - 1) * 1e4).astype(np.float32)
y = np.empty_like(x)
two_pass(x, y)
assert truth.error_units(y, truth.softmax(x)) <= 8.0
# Every half there is, widened and rounded again, and rounded where it is not exact, large or small.
for kind, bits in ((torch.float16, np.uint16), (torch.bfloat16, np.int16)):
    every = torch.arange(-2**15, 2**15).to(torch.int16)
    for factor in (1.0, 0.3, 3.0, 2.0**-9):
        y = np.empty(2**16, bits)
        scaled(every.numpy().view(bits), y, np.float32(factor))
        found, expected = torch.from_numpy(y.view(np.int16)).view(kind), (every.view(kind).float() * factor).to(kind)
        assert torch.equal(found.isnan(), expected.isnan()), (kind, factor)
        assert torch.equal(found.nan_to_num(7.0), expected.nan_to_num(7.0)), (kind, factor)
"""


def test_halves_are_converted_as_torch_does():
    done = subprocess.run([sys.executable, "-c", _PORTABLE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_right_without_fma_or_half_hardware(tmp_path):
    features = "+sse2" if os.uname().machine == "x86_64" else ""
    done = compiled_for("generic", features, _PORTABLE, tmp_path)
    assert done.returncode == 0, done.stderr

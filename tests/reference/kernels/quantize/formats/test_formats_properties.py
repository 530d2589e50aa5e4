"""What holds for any input: nearest codes, bounded errors, packing, unbiased rounding."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from reference.kernels.quantize import formats
from reference.kernels.quantize.formats import books, truth
from reference.kernels.quantize.formats.grid import Grid

NUMBERS = st.floats(-(2.0**100), 2.0**100, width=32)
SHAPES = st.tuples(st.integers(1, 7), st.integers(0, 90))
MATRICES = SHAPES.flatmap(lambda shape: arrays(np.float32, shape, elements=NUMBERS))
UNIT = 2.0**-24


@settings(max_examples=80, deadline=None)
@given(x=MATRICES, block=st.sampled_from([32, 64, 4096]))
def test_nf4_takes_the_nearest_value_and_equals_eager(x, block):
    packed = formats.quantize_nf4(torch.from_numpy(x), block=block)
    eager = formats.quantize_nf4(torch.from_numpy(x), block=block, backend="eager")
    assert torch.equal(packed.codes, eager.codes) and torch.equal(packed.scale, eager.scale)
    flat = x.ravel().astype(np.float64)
    scale = packed.scale.numpy().astype(np.float64)[truth.blocks(x.size, block)]
    values = formats.dequantize_nf4(packed).numpy().ravel().astype(np.float64)
    for value, entry, largest in zip(values, flat, scale, strict=True):
        nearest = np.abs(np.array(books.NF4_VALUES) * largest - entry).min()
        assert abs(value - entry) <= nearest + 4 * UNIT * largest + 2e-38
    assert np.array_equal(truth.unpack(packed.codes.numpy(), 4, x.size),
                          formats.unpack_codes(packed.codes, 4, x.size).numpy())


@settings(max_examples=150, deadline=None)
@given(
    x=MATRICES, bits=st.integers(2, 8), symmetric=st.booleans(), narrow=st.booleans(),
    place=st.sampled_from([{}, {"axis": 0}, {"axis": 1}, {"group": 1}, {"group": 7}, {"group": 32}]),
)
def test_uniform_codes_err_by_half_a_step_at_most_and_equal_eager(x, bits, symmetric, narrow, place):
    tensor, options = torch.from_numpy(x), {"bits": bits, "symmetric": symmetric, "narrow": narrow, **place}
    packed = formats.quantize_uniform(tensor, **options)
    eager = formats.quantize_uniform(tensor, backend="eager", **options)
    assert torch.equal(packed.codes, eager.codes) and torch.equal(packed.scale, eager.scale)
    assert symmetric or torch.equal(packed.zero, eager.zero)
    values = formats.dequantize_uniform(packed)
    assert torch.equal(values, formats.dequantize_uniform(packed, backend="eager"))
    scale = packed.scale
    if "group" in place:
        scale = scale.repeat_interleave(place["group"], -1)[:, : x.shape[1]]
    elif place.get("axis") == 0:
        scale = scale[:, None]
    error = (values.double() - tensor.double()).abs()
    assert bool((error <= scale.double() * (0.5 + 4 * UNIT * 2**bits)).all())
    assert bool((values[tensor == 0] == 0).all())


@settings(max_examples=150, deadline=None)
@given(
    x=arrays(np.float32, st.integers(1, 300), elements=st.floats(0, 1, width=32)), bits=st.integers(2, 7),
    q=st.integers(10, 138), zero=st.sampled_from(["extra", "last"]),
)
def test_log_codes_are_the_rounded_logarithms(x, bits, q, zero):
    packed = formats.quantize_log(torch.from_numpy(x), bits=bits, q=q, r=37, scale=1.0, zero=zero)
    codes = packed.codes if packed.each == 1 else formats.unpack_codes(packed.codes, bits, x.size)
    levels = 2**bits - (zero == "last")
    expected = truth.log_codes(x, 1.0, q, 37, levels)
    assert np.array_equal(codes.numpy(), np.where(x < 2.0**-126, levels, expected))
    eager = formats.quantize_log(torch.from_numpy(x), bits=bits, q=q, r=37, scale=1.0, zero=zero, backend="eager")
    assert torch.equal(packed.codes, eager.codes)
    assert torch.equal(formats.dequantize_log(packed), formats.dequantize_log(packed, backend="eager"))


@pytest.mark.parametrize("ratio", [(1, 1), (2, 1), (4, 1), (3, 1), (2, 2)])
def test_log_ties_go_to_the_even_code(ratio):
    q, r = ratio
    x = 2.0 ** -torch.arange(0, 40, dtype=torch.float32)
    codes = formats.quantize_log(x, bits=4, q=q, r=r, scale=1.0).codes
    assert codes.tolist() == np.minimum(np.rint(np.arange(40) * r / q), 16).tolist()
    # The neighbours of a tie fall to either side of it.
    if q == 2 * r:
        for exponent in (1, 3, 5):
            near = torch.tensor([np.nextafter(np.float32(2.0**-exponent), np.float32(end)) for end in (1, 0)])
            assert formats.quantize_log(near, q=q, r=r, scale=1.0).codes.tolist() == [exponent // 2, exponent // 2 + 1]


def test_log2_is_the_base_with_q_equal_r():
    x = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    log2 = formats.quantize_log(x, scale=1.0)
    adalog = formats.quantize_adalog(x, q=37)
    assert torch.equal(log2.codes, adalog.codes)
    assert torch.equal(formats.dequantize_log(log2), formats.dequantize_log(adalog))
    assert torch.equal(formats.dequantize_log(log2), torch.where(log2.codes == 16, 0.0, 2.0 ** -log2.codes.float()))


@pytest.mark.parametrize("bits", [3, 4, 6])
@pytest.mark.parametrize("q", [10, 37, 50, 138])
def test_the_rounded_table_is_adalogs(bits, q):
    packed = formats.quantize_adalog(torch.rand(2000, generator=torch.Generator().manual_seed(q)) ** 4, q=q, bits=bits)
    expected = truth.adalog_values(1.0, q, 37, bits)[packed.codes.numpy()]
    assert np.allclose(formats.dequantize_log(packed, rounded=True).numpy(), expected, rtol=2 * UNIT, atol=0)
    exact = formats.dequantize_log(packed)
    assert bool(((formats.dequantize_log(packed, rounded=True) - exact).abs() <= 0.51 / (2 ** (bits + 1) - 2)).all())


@settings(max_examples=100, deadline=None)
@given(
    x=arrays(np.float32, st.integers(1, 300), elements=NUMBERS),
    options=st.sampled_from([{}, {"density": 0.25}, {"density": 1.0}, {"threshold": 1.0}]),
)
def test_ternary_planes_hold_the_large_signs(x, options):
    packed = formats.quantize_ternary(torch.from_numpy(x), **options)
    eager = formats.quantize_ternary(torch.from_numpy(x), backend="eager", **options)
    assert torch.equal(packed.mask, eager.mask) and torch.equal(packed.sign, eager.sign)
    keep = np.unpackbits(packed.mask.numpy())[: x.size].astype(bool)
    negative = np.unpackbits(packed.sign.numpy())[: x.size].astype(bool)
    assert keep.sum() == packed.kept
    assert np.array_equal(negative, keep & (x < 0))
    if keep.any() and not keep.all():
        dropped = np.abs(x[~keep])
        assert np.abs(x[keep]).min() >= dropped.max()
    if "density" in options:
        assert packed.kept >= min(round(options["density"] * x.size), np.count_nonzero(x))
    values = formats.dequantize_ternary(packed)
    assert np.array_equal(values.numpy(), (keep.astype(np.float32) - 2 * negative) * np.float32(packed.scale))


def test_ternary_planes_multiply_by_and_and_count():
    random = torch.Generator().manual_seed(0)
    one, two = (formats.quantize_ternary(torch.randn(999, generator=random), scale=1.0) for _ in range(2))
    both = one.mask & two.mask
    unlike = (one.sign ^ two.sign) & both
    product = np.bitwise_count(both.numpy()).sum(dtype=int) - 2 * np.bitwise_count(unlike.numpy()).sum(dtype=int)
    assert product == formats.dequantize_ternary(one) @ formats.dequantize_ternary(two)


@settings(max_examples=60, deadline=None)
@given(bits=st.sampled_from([1, 2, 4]), n=st.integers(0, 70), data=st.data())
def test_packing_is_undone_by_unpacking(bits, n, data):
    codes = data.draw(arrays(np.uint8, n, elements=st.integers(0, 2**bits - 1)))
    packed = formats.pack_codes(torch.from_numpy(codes), bits, fill=1)
    assert packed.numel() == -(-n * bits // 8)
    assert np.array_equal(formats.unpack_codes(packed, bits, n).numpy(), codes)
    assert np.array_equal(truth.unpack(packed.numpy(), bits, n), codes)


def test_the_first_entry_is_in_the_highest_bits():
    assert formats.pack_codes(torch.tensor([1, 2, 3], dtype=torch.uint8), 4).tolist() == [0x12, 0x30]
    assert formats.pack_codes(torch.tensor([1, 2, 3], dtype=torch.uint8), 2).tolist() == [0b01101100]
    assert formats.pack_codes(torch.tensor([1, 0, 1], dtype=torch.uint8), 1).tolist() == [0b10100000]
    assert formats.quantize_uniform(torch.tensor([7.0, -7.0, 1.0]), bits=4).codes.tolist() == [0x79, 0x10]
    assert formats.quantize_nf4(torch.tensor([1.0, -1.0, 0.0])).codes.tolist() == [0xF0, 0x77]


@pytest.mark.parametrize("backend", ["numba", "eager"])
def test_stochastic_rounding_is_unbiased_and_keeps_integers(backend):
    n, random = 2**18, torch.Generator().manual_seed(4)
    steps = torch.tensor([-1.75, -0.5, 0.0, 0.1, 2.0, 3.999])
    x = (steps[:, None] * 2.0**-5).expand(-1, n).contiguous()
    noise = torch.rand(x.shape, generator=random)
    packed = formats.quantize_uniform(x, bits=8, narrow=False, scale=2.0**-5, noise=noise, backend=backend)
    codes = packed.codes.double()
    fraction = steps - steps.floor()
    # Six standard deviations of the mean, and the grid of the generator, which draws multiples of 2^-24.
    assert bool(((codes.mean(1) - steps).abs() <= 6 * (fraction * (1 - fraction) / n).sqrt() + 2.0**-23).all())
    assert codes[2].unique().tolist() == [0] and codes[4].unique().tolist() == [2]
    largest = torch.full((2,), 1 - 2.0**-24)
    at_most = formats.quantize_uniform(torch.tensor([127.0, 5.0]), scale=1.0, noise=largest, backend=backend)
    assert at_most.codes.tolist() == [127, 5]


@settings(max_examples=80, deadline=None)
@given(
    x=arrays(np.float32, st.integers(1, 50), elements=st.floats(-1e4, 1e4, width=32)), word=st.integers(2, 8),
    fraction=st.integers(-3, 12),
)
def test_fixed_point_is_exact_and_the_same_as_codes(x, word, fraction):
    tensor = torch.from_numpy(x)
    exact = [min(max(round(float(v) * 2**fraction), -(2 ** (word - 1))), 2 ** (word - 1) - 1) / 2**fraction for v in x]
    assert formats.round_fixed_point(tensor, word=word, fraction=fraction).tolist() == exact
    packed = formats.quantize_uniform(tensor, bits=word, narrow=False, scale=2.0**-fraction)
    assert formats.dequantize_uniform(packed).tolist() == exact


def test_wide_words_of_fixed_point():
    x = torch.tensor([1.0 + 2.0**-20, 100.0, -200.0, torch.nan])
    assert formats.round_fixed_point(x, word=32, fraction=20).tolist()[:2] == [1.0 + 2.0**-20, 100.0]
    assert formats.round_fixed_point(x, word=16, fraction=8)[:3].tolist() == [1.0, 100.0, -128.0]
    assert formats.round_fixed_point(x, word=16, fraction=8)[3].isnan()
    up = formats.round_fixed_point(torch.tensor([0.5, 1.0]), word=8, fraction=0, noise=torch.tensor([0.49, 0.0]))
    assert up.tolist() == [1.0, 1.0]


def test_the_range_of_codes():
    assert [(Grid(8, True).low, Grid(8, True).high), (Grid(8, True, False).low, Grid(8, False).high)] == [
        (-127, 127), (-128, 255)]
    assert [(Grid(bits, True).low, Grid(bits, True).high) for bits in (2, 4)] == [(-1, 1), (-7, 7)]
    full = formats.quantize_uniform(torch.tensor([-128.0, 127.0, 200.0]), narrow=False, scale=1.0)
    assert full.codes.tolist() == [-128, 127, 127]

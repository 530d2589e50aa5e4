"""Block-wise quantisation: nearest code, independent blocks, bounded error, edges, backends agree."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from reference.kernels.quantize import (
    MAPS,
    block_count,
    dequantize_blockwise,
    dynamic_map,
    linear_map,
    quantize_blockwise,
    truth,
)
from reference.kernels.quantize.maps import search_table

NUMBERS = st.floats(width=32, allow_nan=False, allow_infinity=False)
VECTORS = arrays(np.float32, st.integers(1, 400), elements=NUMBERS)
BLOCKS = st.sampled_from([1, 7, 64, 256, None])
SIGNED_MAPS = st.sampled_from([maker(True) for maker in MAPS.values()])


def roundtrip(x, code, block, backend="numba"):
    codes, absmax = quantize_blockwise(x, code=code, block=block, backend=backend)
    return dequantize_blockwise(codes, absmax, code, block=block, shape=tuple(x.shape), backend=backend)


def scale_of_each(absmax, n, block):
    return absmax.repeat_interleave(block or n)[:n]


def test_the_dynamic_maps_have_the_published_values():
    signed, unsigned = dynamic_map(True), dynamic_map(False)
    assert signed.unique().numel() == unsigned.unique().numel() == 256
    assert signed[signed > 0][0].item() == pytest.approx(5.5e-7, rel=1e-6)
    assert signed[-2].item() == pytest.approx(0.99296875, rel=1e-7)
    assert signed[0].item() == pytest.approx(-0.99296875, rel=1e-7)
    assert unsigned[0].item() == 0
    assert unsigned[1].item() == pytest.approx(3.25e-7, rel=1e-6)
    assert signed[-1].item() == unsigned[-1].item() == 1
    assert (signed == 0).sum() == (unsigned == 0).sum() == 1


def test_the_linear_maps_are_uniform_and_hold_zero():
    assert linear_map(False).diff().allclose(torch.tensor(1 / 255))
    assert linear_map(True).unique().diff().allclose(torch.tensor(1 / 127))
    assert (linear_map(True) == 0).sum() == 2


@settings(max_examples=80, deadline=None)
@given(x=VECTORS, block=BLOCKS, code=SIGNED_MAPS)
def test_every_entry_gets_the_nearest_code(x, block, code):
    codes, absmax = quantize_blockwise(torch.from_numpy(x), code=code, block=block)
    scale = scale_of_each(absmax, x.size, block).numpy()
    with np.errstate(divide="ignore", invalid="ignore"):
        scaled = np.where(scale > 0, x / scale, np.float32(0)).astype(np.float64)
    book = code.double().numpy()
    chosen = np.abs(book[codes.numpy()] - scaled)
    assert np.array_equal(chosen, np.abs(book - scaled[:, None]).min(1))


@settings(max_examples=60, deadline=None)
@given(x=VECTORS, block=BLOCKS, code=SIGNED_MAPS)
def test_backends_agree_bit_for_bit(x, block, code):
    results = []
    for backend in ("numba", "eager"):
        for keep_sign in (False, True):
            codes, absmax = quantize_blockwise(
                torch.from_numpy(x), code=code, block=block, backend=backend, keep_sign=keep_sign
            )
            values = dequantize_blockwise(codes, absmax, code, block=block, shape=x.shape, backend=backend)
            results.append((keep_sign, codes, absmax, values))
    for numba, eager in zip(results[:2], results[2:], strict=True):
        assert numba[0] == eager[0]
        assert all(torch.equal(a, b) for a, b in zip(numba[1:], eager[1:], strict=True))


@settings(max_examples=60, deadline=None)
@given(x=VECTORS, block=BLOCKS, code=SIGNED_MAPS)
def test_the_error_is_at_most_half_the_widest_gap_of_the_scale(x, block, code):
    tensor = torch.from_numpy(x)
    _, absmax = quantize_blockwise(tensor, code=code, block=block)
    error = (roundtrip(tensor, code, block).double() - tensor.double()).abs()
    bound = truth.relative_error_bound(code.numpy()) * scale_of_each(absmax, x.size, block).double()
    assert bool((error <= bound * (1 + 1e-4) + 1e-44).all())


@settings(max_examples=40, deadline=None)
@given(data=st.data(), x=arrays(np.float32, st.integers(65, 400), elements=NUMBERS))
def test_a_block_depends_on_its_own_entries_only(data, x):
    block, code = 64, dynamic_map(True)
    before = roundtrip(torch.from_numpy(x), code, block)
    place = data.draw(st.integers(0, x.size - 1))
    x[place] = data.draw(NUMBERS)
    after = roundtrip(torch.from_numpy(x), code, block)
    changed = torch.arange(x.size) // block == place // block
    assert torch.equal(before[~changed], after[~changed])


@settings(max_examples=40, deadline=None)
@given(x=arrays(np.float32, st.integers(1, 300), elements=st.floats(-1e3, 1e3, width=32)), block=BLOCKS)
def test_the_float64_reference_gives_the_same_values(x, block):
    code = dynamic_map(True)
    values = roundtrip(torch.from_numpy(x), code, block).numpy()
    codes, absmax = truth.quantize(x, code.numpy(), block)
    expected = truth.dequantize(codes, absmax, code.numpy(), block)
    # A quotient rounded to float32 may fall on the other side of a midpoint: then both codes are as near.
    error, least = np.abs(values - x.astype(np.float64)), np.abs(expected - x.astype(np.float64))
    assert np.allclose(error, least, rtol=1e-4, atol=1e-6 * np.abs(x).max() + 1e-44)


@pytest.mark.parametrize("backend", ["numba", "eager"])
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("maker", MAPS.values())
def test_zeros_and_the_ragged_last_block(backend, signed, maker):
    x = torch.zeros(2 * 256 + 3)
    x[256] = 5.0
    x[-1] = 1e-30
    codes, absmax = quantize_blockwise(x, code=maker(signed), block=256, backend=backend)
    assert absmax.tolist() == [0.0, 5.0, pytest.approx(1e-30)]
    back = dequantize_blockwise(codes, absmax, maker(signed), block=256, shape=(5, 103), backend=backend)
    assert back.shape == (5, 103)
    assert torch.equal(back.reshape(-1), x)


@pytest.mark.parametrize("backend", ["numba", "eager"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_no_number_spoils_its_whole_block_and_no_other(backend, bad):
    x = torch.ones(192)
    x[70] = bad
    codes, absmax = quantize_blockwise(x, code=dynamic_map(True), block=64, backend=backend)
    back = dequantize_blockwise(codes, absmax, dynamic_map(True), block=64, shape=(192,), backend=backend)
    assert not torch.isfinite(absmax[1])
    assert back[64:128].isnan().all()
    assert torch.equal(back[:64], x[:64])
    assert torch.equal(back[128:], x[128:])


def test_the_largest_magnitudes_survive_exactly_except_minus_one():
    x = torch.tensor([3.0, -3.0, 0.0])
    back = roundtrip(x, dynamic_map(True), None)
    assert back[0] == 3.0
    assert back[1].item() == pytest.approx(-3 * 0.99296875)
    assert back[2] == 0.0


def test_keep_sign_moves_a_lost_negative_to_the_smallest_negative_code():
    x = torch.tensor([1.0, -1e-9, 1e-9, 0.0])
    code = dynamic_map(True)
    plain, _ = quantize_blockwise(x, code=code, block=None)
    kept, _ = quantize_blockwise(x, code=code, block=None, keep_sign=True)
    assert code[plain.long()].tolist() == [1, 0, 0, 0]
    assert code[kept.long()].tolist() == pytest.approx([1, -5.5e-7, 0, 0])


@settings(max_examples=25, deadline=None)
@given(values=st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=256), x=VECTORS)
def test_any_sorted_map_is_searched_right(values, x):
    values = [*values, *[values[-1]] * (256 - len(values))]
    code = torch.tensor(sorted(values), dtype=torch.float32)
    codes, _ = quantize_blockwise(torch.from_numpy(x), code=code, block=None)
    eager, _ = quantize_blockwise(torch.from_numpy(x), code=code, block=None, backend="eager")
    assert torch.equal(codes, eager)
    assert search_table(code).steps <= 255


def test_one_comparison_is_enough_for_the_maps_in_use():
    assert {search_table(maker(signed)).steps for maker in MAPS.values() for signed in (True, False)} == {1}


@pytest.mark.parametrize("n", [0, 1, 2**16 + 5])
def test_sizes_around_the_serial_and_the_parallel_path(n):
    x = torch.randn(n, generator=torch.Generator().manual_seed(0))
    codes, absmax = quantize_blockwise(x, code=dynamic_map(True))
    assert (codes.numel(), absmax.numel()) == (n, block_count(n, 256))
    eager = quantize_blockwise(x, code=dynamic_map(True), backend="eager")
    assert torch.equal(codes, eager[0])
    assert torch.equal(absmax, eager[1])


def test_refusals_name_what_is_wrong():
    x, code = torch.zeros(8), dynamic_map(True)
    with pytest.raises(ValueError, match="float32"):
        quantize_blockwise(x.double(), code=code)
    with pytest.raises(ValueError, match="256"):
        quantize_blockwise(x, code=code[:255].clone())
    with pytest.raises(ValueError, match="sorted"):
        quantize_blockwise(x, code=code.flip(0).clone())
    with pytest.raises(ValueError, match="at least one"):
        quantize_blockwise(x, code=code, block=0)
    with pytest.raises(ValueError, match="unknown backend"):
        quantize_blockwise(x, code=code, backend="fpga")
    with pytest.raises(ValueError, match="absmax"):
        dequantize_blockwise(torch.zeros(8, dtype=torch.uint8), torch.zeros(1), code, block=4, shape=(8,))

"""The table that GPU kernels search: for every float the nearest code, as counting midpoints finds it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference.kernels.quantize import MAPS, dynamic_map, gpu_book
from reference.kernels.quantize.maps import midpoints_below

BINNED = [("dynamic", True), ("dynamic", False), ("linear", False)]


def codes_of(words, x):
    """The formula of the module's docstring."""
    below, above, first = (int(number) for number in words[gpu_book.HEADER : gpu_book.HEADER + 3])
    k = gpu_book.ordered(x)
    s = k - np.clip(k, below, above) + (k >> 63) + (first << 16)
    return (words[gpu_book.BINS :].astype(np.int64)[s >> 16] + (s & 0xFFFF)) >> 16


def expected_codes(code, x, keep_sign):
    found = np.searchsorted(midpoints_below(code), x, side="left")
    return found - (keep_sign & (x < 0) & (code[found] == 0) & (found > 0))


def telling(code):
    """Both neighbours of every midpoint, the ends, zeros, and numbers of all magnitudes and signs."""
    middle = midpoints_below(code)
    random = np.random.default_rng(0)
    spread = 10 ** random.uniform(-45, 0, 20_000)
    ends = [0.0, -0.0, 1.0, -1.0, 2.0**-149, -(2.0**-149)]
    beside = [np.nextafter(middle, np.float32(end)) for end in (2, -2)]
    x = np.concatenate([middle, *beside, ends, spread])
    return np.concatenate([x, -x]).astype(np.float32)


@pytest.mark.parametrize("keep_sign", [False, True])
@pytest.mark.parametrize("name, signed", BINNED)
def test_the_bins_of_the_maps_in_use_find_every_code(name, signed, keep_sign):
    code = MAPS[name](signed).numpy()
    words, x = gpu_book.book(code, keep_sign), telling(code)
    assert words[gpu_book.HEADER + 3] > 0
    assert np.array_equal(codes_of(words, x), expected_codes(code, x, keep_sign))
    assert words[gpu_book.HEADER + 4] == np.flatnonzero(code == 0)[0]


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=256, unique=True), keep_sign=st.booleans(),
    drawn=st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=50),
)
def test_a_map_has_right_bins_or_none(values, keep_sign, drawn):
    code = np.sort(np.array([*values, *[values[-1]] * (256 - len(values))], np.float32))
    words, x = gpu_book.book(code, keep_sign), np.concatenate([telling(code), np.array(drawn, np.float32)])
    if words[gpu_book.HEADER + 3]:
        assert np.array_equal(codes_of(words, x), expected_codes(code, x, keep_sign))
        assert words.size <= gpu_book.BINS + gpu_book.MOST_BINS


def test_two_midpoints_in_a_bin_or_one_at_zero_leave_no_bins():
    crowded = dynamic_map(True).numpy().copy()
    crowded[200:203] = crowded[200] * (1 + np.array([0, 1e-5, 2e-5]))
    for code in (crowded, MAPS["linear"](True).numpy()):
        assert gpu_book.book(code, False)[gpu_book.HEADER + 3] == 0


def test_midpoints_and_codes_are_held_as_they_are():
    code = dynamic_map(True).numpy()
    floats = gpu_book.book(code, False)[: gpu_book.HEADER].view(np.float32)
    assert np.array_equal(floats[:256], code)
    assert np.array_equal(floats[gpu_book.MIDPOINTS : -1], midpoints_below(code))
    assert floats[-1] == np.inf


def test_a_map_changed_in_place_gets_a_new_book():
    code = dynamic_map(True).clone()
    before = gpu_book.on_device(code, False)
    assert gpu_book.on_device(code, False) is before
    code[0] = -1.0
    assert not torch.equal(gpu_book.on_device(code, False), before)

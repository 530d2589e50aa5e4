"""The Triton kernels ahead of time, in every variant that the launches choose, and what the launches choose."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("triton")

from reference.kernels.quantize import triton_gpu, triton_kernels

OPS = ("quantize", "adam", "momentum", "lion")
STATE = {"codes": "*u8", "absmax": "*fp32", "code": "*fp32", "book": "*i32"}
TYPES = {
    "x": "*fp32", "p": "*fp32", "g": "*fp32", "out": "*fp32", "fresh": "*fp32", "shift": "i32", **STATE,
    **{f"{state}_{name}": kind for state in "mv" for name, kind in STATE.items()},
}
SIZES = ("n", "block", "each", "blocks")


def signature(kernel, constants, size_type):
    types = TYPES | dict.fromkeys(SIZES, size_type)
    names = getattr(triton_kernels, kernel).arg_names
    return {name: types.get(name, "fp32") for name in names if name not in constants}


def check(aot, kernel, constants, warps, size_type="i32"):
    types = signature(kernel, constants, size_type)
    aligned = [name for name, kind in types.items() if kind.startswith("*")]
    module = f"{triton_kernels.__name__}:{kernel}"
    compiled = aot(module, types, constants, aligned, num_warps=warps, **triton_gpu.OPTIONS)
    for capability, taken in compiled.items():
        assert taken["fused"] == 0, capability
        assert taken.get("stack_bytes", 0) == 0, capability
        assert taken["shared_bytes"] <= 48 * 1024, capability
        assert taken.get("registers", 0) * 32 * warps <= 2**16, capability


@pytest.mark.parametrize("block", triton_gpu.BLOCKS)
@pytest.mark.parametrize("op", OPS)
def test_tiles_compile_without_spills_and_fused_operations(aot, op, block):
    chosen = triton_gpu.plan(10 * block, block)
    check(aot, f"{op}_tiles", {"ROWS": chosen.rows, "BLOCK": chosen.block}, chosen.warps)


@pytest.mark.parametrize("piece, block", [(256, 100), (4096, 5000)])
@pytest.mark.parametrize("op", OPS)
def test_pieces_compile_without_spills_and_fused_operations(aot, op, piece, block):
    chosen = triton_gpu.plan(10 * block, block)
    assert (chosen.rows, chosen.block) == (0, piece)
    for finish in (False, True):
        check(aot, f"{op}_pieces", {"PIECE": piece, "FINISH": finish}, chosen.warps)


@pytest.mark.parametrize("shifted", [False, True])
def test_dequantisation_compiles_without_spills_and_fused_operations(aot, shifted):
    constants = {"SHIFTED": shifted, "ENTRIES": triton_gpu.DEQUANTIZED}
    check(aot, "dequantize_entries", constants, triton_gpu.DEQUANTIZE_WARPS)


@pytest.mark.parametrize("op", OPS)
def test_sizes_beyond_2_to_the_31_compile(aot, op):
    chosen = triton_gpu.plan(2**33, 256)
    check(aot, f"{op}_tiles", {"ROWS": chosen.rows, "BLOCK": chosen.block}, chosen.warps, "i64")


@given(n=st.integers(1, 2**34), block=st.one_of(st.integers(1, 10**5), st.sampled_from([*triton_gpu.BLOCKS, 2**34])))
def test_programs_cover_the_tensor_and_no_more(n, block):
    chosen = triton_gpu.plan(n, block)
    if chosen.rows:
        tile = chosen.rows * chosen.block
        assert chosen.block == block or (block >= n and chosen.block >= n)
        assert (chosen.grid - 1) * tile < n <= chosen.grid * tile
        return
    each = -(-min(block, n) // chosen.block)
    assert chosen.grid == -(-n // block) * each
    assert each == 1 or block > triton_gpu.PIECES[-1]


def test_one_small_block_takes_one_pass():
    assert triton_gpu.plan(700, 700) == triton_gpu.Plan(rows=2, block=1024, grid=1, warps=8)
    assert triton_gpu.plan(5000, 5000).rows == 0
    assert triton_gpu.plan(2**26, 256) == triton_gpu.Plan(rows=8, block=256, grid=2**15, warps=8)


@pytest.mark.parametrize("op, constants", [("quantize", {"block": 1, "each": 1}), ("adam", {"blocks": 1, "each": 2})])
def test_sizes_of_one_which_triton_takes_as_constants_compile(aot, op, constants):
    check(aot, f"{op}_pieces", {"PIECE": 256, "FINISH": False, **constants}, 1)

"""The GPU kernels as compilers see them: Triton ahead of time for cc 80 and 90, CUDA C++ for sm_80 and sm_90."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference.kernels.project import dispatch, plan

MODULE = "reference.kernels.project.triton_kernels"
SCALARS = dict.fromkeys(("b1", "c1", "b2", "c2", "eps"), "fp32")
PLACE = {"first_row": "i64", "first_quad": "i64", "step": "i64", "seed": "u64", "scale": "fp32"}
# kernel -> (signature, compile-time values, options)
KERNELS = {
    "adam_moments": ({**dict.fromkeys("RMVN", "*fp32"), "n": "i32", **SCALARS}, {"BLOCK": 1024}, {}),
    "adam_moments bf16": ({**dict.fromkeys("RMVN", "*bf16"), "n": "i64", **SCALARS}, {"BLOCK": 1024}, {}),
    "polynomial": ({"A": "*fp32", "S": "*fp32", "n": "i32", **dict.fromkeys("abc", "fp32")}, {"BLOCK": 1024}, {}),
    **{f"column_sums {kind} {squares}": (
        {"S": f"*{kind}", "sums": "*fp64", "rows": "i32", "n": "i32", "rows_a_part": "i32"},
        {"SQUARES": squares, "ROWS": 8, "COLUMNS": 128}, {},
    ) for kind in ("fp32", "fp16") for squares in (False, True)},
    "finish_norms": (
        {"sums": "*fp64", "out": "*fp32", "parts": "i32", "n": "i32"}, {"SQUARES": True, "BLOCK": 128}, {},
    ),
    "gather_columns": (
        {"S": "*fp32", "columns": "*i32", "out": "*fp32", "n": "i32", "rank": "i32"}, {"BLOCK": 128}, {},
    ),
    **{f"random_block {kind}": ({"out": "*fp32", "n": "i32", **PLACE}, {"KIND": kind, "QUADS": 32}, {"num_warps": 1})
       for kind in range(3)},
}


@pytest.mark.parametrize("name", KERNELS)
def test_triton_compiles_ahead_of_time_without_spills(aot, name):
    signature, values, options = KERNELS[name]
    pointers = [argument for argument, kind in signature.items() if kind.startswith("*")]
    for cc, numbers in aot(f"{MODULE}:{name.split()[0]}", signature, values, divisible=pointers, **options).items():
        assert numbers.get("stack_bytes", 0) == 0, cc
        assert numbers.get("registers", 0) <= 128, cc


def test_cuda_compiles_without_spills(nvcc):
    for arch, kernels in nvcc(dispatch.SOURCE).items():
        assert len(kernels) == 10, arch
        for name, taken in kernels.items():
            assert taken.spill_stores == taken.spill_loads == taken.stack_bytes == 0, (arch, name)
            assert taken.registers <= 64, (arch, name)


@given(
    rows=st.integers(0, 10**6), across=st.integers(1, 10**4), least=st.sampled_from([8, 32]), many=st.integers(1, 200)
)
def test_parts_cover_the_rows_and_none_is_empty(rows, across, least, many):
    parts = plan.parts(rows, across, least, many)
    each = -(-rows // parts)
    assert 1 <= parts <= 65535
    assert parts * each >= rows
    assert rows == 0 or (parts - 1) * each < rows


@given(st.integers(0, 10**6))
def test_powers_of_two_hold_what_was_wanted_within_bounds(wanted):
    found = plan.power_of_two(wanted, 32, 1024)
    assert found in (32, 64, 128, 256, 512, 1024)
    assert found == 1024 or found >= wanted
    assert found == 32 or found < 2 * wanted

"""What the Triton backend launches: plans, and every kind of launch compiled ahead of time for cc 80 and 90."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference.kernels.softmax import ALGORITHMS
from reference.kernels.target import Width

triton_gpu = pytest.importorskip("reference.kernels.softmax.triton_gpu", exc_type=ImportError)

H100 = Width(132, 227 * 1024)
TYPES = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float64: "*fp64"}
KERNELS = [name for name in dir(triton_gpu.kernels) if name.endswith("_kernel")]


@settings(max_examples=300, deadline=None)
@given(
    rows=st.integers(1, 5000), n=st.one_of(st.integers(1, 40_000), st.integers(1, 2**27)),
    algorithm=st.sampled_from(ALGORITHMS), size=st.sampled_from([2, 4]), multiprocessors=st.integers(1, 200),
)  # fmt: skip
def test_plans_cover_the_row(rows, n, algorithm, size, multiprocessors):
    p = triton_gpu.plan(algorithm, rows, n, size, Width(multiprocessors, 0))
    assert p.block & (p.block - 1) == 0 and p.num_warps in (2, 4, 8, 16, 32)
    assert p.block * p.rows >= 4 * 32 * p.num_warps or p.kind == "rows"
    if p.kind == "rows":
        assert p.block >= n and p.grid * p.rows >= rows > (p.grid - 1) * p.rows
        assert p.block * p.rows <= 16 * 32 * p.num_warps
    elif p.kind == "twice":
        assert p.grid == rows and (p.steps - 1) * 4 * p.block < n <= p.steps * 4 * p.block
        assert algorithm in ("two_pass", "online")
    else:
        whole = p.steps * 4 * p.block
        assert p.grid == rows * p.chunks and (p.chunks - 1) * whole < n <= p.chunks * whole
        assert p.chunks <= p.chunks_padded <= triton_gpu.MOST_CHUNKS
    assert triton_gpu.workspace_bytes(algorithm, rows, n, size, Width(multiprocessors, 0)) == rows * p.chunks * 16


def test_plans_for_the_shapes_that_matter():
    def plan(rows, n, size=4, algorithm="two_pass"):
        return triton_gpu.plan(algorithm, rows, n, size, H100)

    assert plan(4096, 128) == triton_gpu.Plan("rows", 512, 128, 2, rows=8)
    assert plan(256, 16000) == triton_gpu.Plan("rows", 256, 2**14, 32)
    assert plan(8192, 128256, 2) == triton_gpu.Plan("twice", 8192, 4096, 32, steps=8)
    assert plan(1, 2**25) == triton_gpu.Plan("chunks", 512, 1024, 8, steps=16, chunks=512)
    with pytest.raises(ValueError, match="a row may have 1073741824 elements, not 1073741825"):
        plan(1, 2**30 + 1)


class Recorder:
    """Takes the place of a kernel and remembers how it would have been launched."""

    def __init__(self, name: str, launches: list) -> None:
        self.name, self.launches = name, launches

    def __getitem__(self, grid):
        return lambda *args, **keywords: self.launches.append((self.name, args, keywords))


def launched(monkeypatch, op: str, algorithm: str, shape: tuple[int, int], dtype: torch.dtype) -> list:
    """What ``op`` launches on an H100; nothing runs, since the tensors have no memory."""
    launches: list = []
    with monkeypatch.context() as patch:
        patch.setattr(triton_gpu, "INTERPRETED", H100)
        for name in KERNELS:
            patch.setattr(triton_gpu.kernels, name, Recorder(name, launches))
        x = torch.empty(shape, dtype=dtype, device="meta")
        out = torch.empty(shape[:1] if op == "log_sum_exp" else shape, dtype=dtype, device="meta")
        getattr(triton_gpu, op)(x, out, algorithm, None)
    return launches


def request(name: str, args: tuple, keywords: dict) -> dict[str, dict]:
    """The arguments of ``aot`` for a launch, as Triton would specialise it."""
    names = getattr(triton_gpu.kernels, name).arg_names
    given_args = dict(zip(names, args, strict=False))
    return {
        "signature": {key: TYPES[a.dtype] if isinstance(a, torch.Tensor) else "i32" for key, a in given_args.items()},
        "divisible": [key for key, a in given_args.items() if isinstance(a, torch.Tensor) or a % 16 == 0],
        "constexprs": {key: value for key, value in keywords.items() if key in names},
        **{key: value for key, value in keywords.items() if key not in names},
    }


ROWS = [("softmax", "two_pass", (4096, 2**k), torch.float32) for k in range(4, 14)]
ROWS += [(op, "two_pass", (4096, 2**14), dtype) for op in ("softmax", "log_softmax", "log_sum_exp") for dtype in
         (torch.float32, torch.bfloat16)]  # fmt: skip
ROWS += [("softmax", "two_pass", (4096, 2**14 - 1), torch.float16), ("softmax", "two_pass", (4096, 100), torch.float16)]
LONG = [("softmax", algorithm, shape, dtype) for algorithm in ALGORITHMS for shape in ((1, 2**25), (1000, 99_999)) for
        dtype in (torch.float32, torch.bfloat16)]  # fmt: skip
LONG += [(op, algorithm, (1, 2**25), torch.float32) for op in ("log_softmax", "log_sum_exp") for algorithm in
         ("two_pass", "three_pass_recompute")]  # fmt: skip
LONG += [("log_softmax", "two_pass", (1000, 99_999), torch.float16)]
LONG += [("log_sum_exp", "online", (1000, 2**17), torch.float16)]


GROUPS = {"short": ROWS[:8], "wide": ROWS[8:14], "halves": ROWS[14:], "algorithms": LONG[:8], "more": LONG[8:]}


@pytest.mark.parametrize("group", GROUPS)
def test_launches_compile_without_spills(aot, monkeypatch, group):
    seen = []
    for call in GROUPS[group]:
        for name, args, keywords in launched(monkeypatch, *call):
            if (name, request(name, args, keywords)) in seen:
                continue
            seen.append((name, request(name, args, keywords)))
            results = aot(f"reference.kernels.softmax.triton_kernels:{name}", **seen[-1][1])
            for capability, taken in results.items():
                assert taken.get("stack_bytes", 0) == 0, (capability, name, call)
                assert taken.get("registers", 0) * 32 * keywords["num_warps"] <= 2**16, (capability, name, call)
    assert seen


def test_the_calls_compiled_use_every_kernel(monkeypatch):
    used = {name for call in ROWS + LONG for name, _, _ in launched(monkeypatch, *call)}
    assert used == set(KERNELS)

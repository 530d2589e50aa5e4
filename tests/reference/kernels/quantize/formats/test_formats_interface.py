"""Refusals, cost models, memory, what importing costs, and the GPU sources compiled with no GPU."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from reference.kernels.backend import BackendMissing
from reference.kernels.quantize import formats
from reference.kernels.quantize.formats import cost, cuda_gpu, support

ROOT = Path(__file__).parents[5]
X = torch.ones(4, 64)


@pytest.mark.parametrize(
    "use, words",
    [
        (lambda: formats.quantize_nf4(X.double()), "x must be float32, float16 or bfloat16, found torch.float64"),
        (lambda: formats.quantize_nf4(X.t()), "x must be contiguous, found strides"),
        (lambda: formats.quantize_nf4(X, block=48), "block must be one of 32, 64"),
        (lambda: formats.quantize_nf4(X, out=formats.quantize_nf4(X, block=32)), "out is for shape"),
        (lambda: formats.dequantize_nf4(formats.quantize_nf4(X), dtype=torch.int8), "not torch.int8"),
        (lambda: formats.dequantize_nf4(formats.quantize_nf4(X), out=torch.empty(3)), "out must be contiguous"),
        (lambda: formats.dequantize_nf4(formats.quantize_nf4(X), out=torch.empty(64, 4).t()), "out must be contiguous"),
        (lambda: formats.quantize_uniform(X, bits=9), "bits must be 2 to 8, found 9"),
        (lambda: formats.quantize_uniform(X, axis=0, group=8), "not both"),
        (lambda: formats.quantize_uniform(X, axis=2), "axis 2 does not exist"),
        (lambda: formats.quantize_uniform(X, group=0), "a group is a positive number"),
        (lambda: formats.quantize_uniform(X, scale=0.0), "scale must be a positive normal number"),
        (lambda: formats.quantize_uniform(X, scale=torch.ones(4)), "scale must be contiguous"),
        (lambda: formats.quantize_uniform(X, zero=3), "symmetric codes have no zero point"),
        (lambda: formats.quantize_uniform(X, symmetric=False, scale=1.0), "pass both or neither"),
        (lambda: formats.quantize_uniform(X, bits=4, symmetric=False, scale=1.0, zero=16), "a code, 0 to 15"),
        (lambda: formats.quantize_uniform(X, noise=torch.zeros(4)), "noise must be contiguous"),
        (lambda: formats.quantize_uniform(X, out=formats.quantize_uniform(X, bits=4)), "out is for"),
        (lambda: formats.quantize_log(X, bits=8), "bits must be 2 to 7 with zero='extra'"),
        (lambda: formats.quantize_log(X, zero="none"), "zero must be 'extra' or 'last'"),
        (lambda: formats.quantize_log(X, q=7, r=37), "the base"),
        (lambda: formats.quantize_log(X, scale=-1.0), "scale must be positive"),
        (lambda: formats.quantize_ternary(X, threshold=1.0, density=0.5), "not both"),
        (lambda: formats.quantize_ternary(X, density=0.0), "density must be in"),
        (lambda: formats.pack_codes(X.byte(), 3), "1, 2 and 4 bits can be packed"),
        (lambda: formats.unpack_codes(X.byte(), 4, 3), "are uint8"),
        (lambda: formats.round_fixed_point(X, word=40, fraction=3), "2 to 32 bits"),
    ],
)
def test_refusals_name_what_is_wrong(use, words):
    with pytest.raises(ValueError, match=words):
        use()


def test_a_backend_that_cannot_run_says_why():
    with pytest.raises(BackendMissing, match="cuda runs on a CUDA device"):
        formats.quantize_nf4(X, backend="cuda")
    with pytest.raises(ValueError, match="unknown backend"):
        formats.quantize_nf4(X, backend="fpga")


@pytest.mark.parametrize("there, taken", [(True, "triton_gpu"), (False, "eager")])
def test_where_cuda_has_no_kernel_auto_takes_the_next_best(device, monkeypatch, there, taken):
    monkeypatch.setattr(support, "choose", lambda chosen, *_: "cuda" if chosen == "auto" else chosen)
    monkeypatch.setattr(support, "missing", lambda *_: None if there else "not installed")
    assert support.kernels("auto", torch.device(device), "this").__name__.rsplit(".", 1)[1] == taken
    assert support.kernels("auto", torch.device(device)).__name__.rsplit(".", 1)[1] == "cuda_gpu"


def test_cost_models_count_what_the_results_take():
    x = torch.randn(64, 512)
    nf4 = formats.quantize_nf4(x)
    assert cost.nf4_bytes(x.numel(), 64) == x.nbytes + nf4.nbytes
    assert cost.nf4_bits(64) * x.numel() / 8 == nf4.nbytes
    for bits, symmetric in ((8, True), (4, True), (4, False), (2, False), (3, True)):
        uniform = formats.quantize_uniform(x, bits=bits, symmetric=symmetric, group=128)
        assert cost.uniform_bytes(x.numel(), bits, uniform.scale.numel(), symmetric) == x.nbytes + uniform.nbytes
        assert cost.uniform_bits(bits, 128, symmetric) * x.numel() / 8 == uniform.nbytes
    log = formats.quantize_log(x, zero="last")
    assert cost.log_bytes(x.numel(), 4) == x.nbytes + log.codes.nbytes
    ternary = formats.quantize_ternary(x)
    assert cost.ternary_bytes(x.numel()) == x.nbytes + ternary.mask.nbytes + ternary.sign.nbytes


# What each use takes beyond its results and buffers, in a process of its own.
PEAKS = """
import torch
from reference.kernels.quantize import formats as f
x = torch.randn(2048, 4096); values = torch.empty_like(x)
uses = {
    "nf4": (f.quantize_nf4, {}, f.dequantize_nf4),
    "groups": (f.quantize_uniform, {"bits": 4, "group": 128}, f.dequantize_uniform),
    "tensor": (f.quantize_uniform, {"symmetric": False}, f.dequantize_uniform),
    "channels": (f.quantize_uniform, {"axis": 1}, f.dequantize_uniform),
    "log": (f.quantize_log, {"scale": 1.0}, f.dequantize_log),
    "ternary": (f.quantize_ternary, {}, f.dequantize_ternary),
}
def high_water():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
for name, (quantize, options, dequantize) in uses.items():
    packed = quantize(x, **options); dequantize(packed, out=values)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before = high_water()
    packed = quantize(x, out=packed, **options); dequantize(packed, out=values)
    print(name, high_water() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read from Linux's /proc")
def test_no_call_takes_more_memory_than_its_cost_model_says():
    command = [sys.executable, "-c", PEAKS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    peaks = {name: int(size) for name, size in map(str.split, done.stdout.splitlines())}
    assert len(peaks) == 6
    for name, peak in peaks.items():
        scales = {"tensor": 1, "channels": 4096}.get(name, 0)
        allowed = cost.workspace_bytes(torch.get_num_threads(), scales)
        # The resident set is counted in batches of pages; the inputs hold 32 MiB.
        assert peak <= allowed + 2**19, name


def test_importing_brings_neither_numba_nor_triton():
    program = "import sys, reference.kernels.quantize.formats as f; print({'numba', 'triton'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# --- compiled with no GPU


def test_every_cuda_kernel_compiles_without_spills(nvcc):
    for arch, kernels in nvcc(formats.SOURCE).items():
        assert len(kernels) == 4 * 3, arch
        for name, taken in kernels.items():
            assert taken.spill_stores == taken.spill_loads == taken.stack_bytes == 0, (arch, name)
            assert taken.registers * cuda_gpu.THREADS * 2 <= 2**16, (arch, name)


LAYOUT = {"n": "i32", "length": "i32", "group": "i32", "runs_per_row": "i32", "period": "i32"}
RANGE = {"low": "i32", "high": "i32", "mask": "i32"}
TRITON = [
    ("nf4_tiles", {"x": "*fp32", "codes": "*u8", "scale": "*fp32", "n": "i32"}, {"ROWS": 32, "BLOCK": 64}),
    ("nf4_tiles", {"x": "*bf16", "codes": "*u8", "scale": "*fp32", "n": "i32"}, {"ROWS": 1, "BLOCK": 4096}),
    ("nf4_values", {"codes": "*u8", "scale": "*fp32", "out": "*bf16", "n": "i64", "shift": "i32"},
     {"BYTES": 1024, "WIDE": True}),
    *[
        ("groups_tiles", {"x": "*fp32", "codes": "*u8", "scale": "*fp32", "zeros": "*u8", "n": "i32", **RANGE},
         {"ROWS": 16, "GROUP": 128, "EACH": each, "SYMMETRIC": each == 2})
        for each in (1, 2, 4)
    ],
    ("encode", {"x": "*fp16", "noise": "*fp32", "scale": "*fp32", "zeros": "*u8", "codes": "*u8", **LAYOUT, **RANGE},
     {"EACH": 2, "NOISE": True, "SYMMETRIC": False, "BYTES": 1024, "WIDE": False}),
    ("decode", {"codes": "*u8", "scale": "*fp32", "zeros": "*u8", "out": "*fp16", **LAYOUT},
     {"EACH": 2, "SYMMETRIC": True, "ENTRIES": 2048, "WIDE": True}),
    ("log_codes", {"x": "*fp32", "thresholds": "*fp32", "codes": "*u8", "n": "i32"},
     {"STEPS": 5, "EACH": 1, "BYTES": 2048, "WIDE": False}),
    ("table_values", {"codes": "*u8", "table": "*fp32", "out": "*fp32", "n": "i32"},
     {"EACH": 2, "ENTRIES": 2048, "WIDE": False}),
    ("ternary_planes", {"x": "*fp32", "mask": "*u8", "sign": "*u8", "counts": "*i32", "totals": "*fp64", "n": "i32",
                        "threshold": "fp32"}, {"BYTES": 256}),
    ("ternary_values", {"mask": "*u8", "sign": "*u8", "out": "*bf16", "n": "i32", "scale": "fp32"},
     {"ENTRIES": 2048, "WIDE": False}),
]


@pytest.mark.parametrize("kernel, signature, constants", TRITON, ids=lambda part: str(part)[:40])
def test_triton_kernels_compile_for_cc_80_and_90(aot, kernel, signature, constants):
    pointers = [name for name, kind in signature.items() if kind.startswith("*")]
    module = "reference.kernels.quantize.formats.triton_kernels"
    made = aot(f"{module}:{kernel}", signature, constants, pointers, num_warps=8, enable_fp_fusion=False)
    for capability, taken in made.items():
        assert taken.get("stack_bytes", 0) == 0, capability
        assert taken["shared_bytes"] <= 48 * 1024, capability
        # A fused multiply-add would round once where the other backends round twice.
        assert taken.get("fused", 0) == 0, capability

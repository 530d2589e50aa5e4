"""Number formats of 1 to 8 bits: quantize, dequantize and the packing between.

| format | functions | codes |
|---|---|---|
| NF4 | quantize_nf4, dequantize_nf4 | 16 quantiles of the normal distribution, block-wise |
| uniform | quantize_uniform, dequantize_uniform | 2 to 8 bits, symmetric or not, per tensor, channel or group |
| logarithmic | quantize_log, quantize_adalog, dequantize_log | s * 2^(-code*q/r), non-negative |
| ternary | quantize_ternary, dequantize_ternary | {-1, 0, 1} * s as two bit planes |

Each quantize function returns a frozen dataclass that holds the codes and all that its dequantize function needs.
Inputs are contiguous float32, float16 or bfloat16 tensors, computed with in float32; codes are equal bit for bit in
every backend, and values too. Zero entries give empty results. Arithmetic is IEEE float32 without flush-to-zero: a
process that flushes subnormals can differ where a scale or its reciprocal is one, below 2^-126 or above 2^126.
"""

from reference.kernels.backend import BACKENDS
from reference.kernels.quantize.formats.grid import Grid, Layout, layout_of
from reference.kernels.quantize.formats.logarithmic import (
    Logarithmic,
    dequantize_log,
    quantize_adalog,
    quantize_log,
)
from reference.kernels.quantize.formats.nf4 import NF4, dequantize_nf4, quantize_nf4
from reference.kernels.quantize.formats.packing import pack_codes, unpack_codes
from reference.kernels.quantize.formats.support import SOURCE
from reference.kernels.quantize.formats.ternary import Ternary, dequantize_ternary, quantize_ternary
from reference.kernels.quantize.formats.uniform import (
    Uniform,
    dequantize_uniform,
    quantize_uniform,
    round_fixed_point,
)

__all__ = [
    "BACKENDS", "NF4", "SOURCE", "Grid", "Layout", "Logarithmic", "Ternary", "Uniform", "dequantize_log",
    "dequantize_nf4", "dequantize_ternary", "dequantize_uniform", "layout_of", "pack_codes", "quantize_adalog",
    "quantize_log", "quantize_nf4", "quantize_ternary", "quantize_uniform", "round_fixed_point", "unpack_codes",
]

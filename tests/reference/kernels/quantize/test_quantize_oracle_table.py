"""Every backend through the oracle table, and the public functions where it holds nothing."""

import pytest
import torch

from reference.kernels import quantize as op
from reference.kernels.quantize import block_count, dynamic_map

# NumPy, under Triton's interpreter, warns of what the rules expect.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
HYPER = {"lr": 0.1, "weight_decay": 0.0, "block": 256}


def test_codes(backend, code_case):
    code_case.check(backend)


def test_steps(backend, step_case):
    step_case.check(backend)


@pytest.mark.parametrize("name", ["numba", "eager"])
def test_nothing_is_quantised_to_nothing(name):
    nothing = torch.empty(0)
    codes, absmax = op.quantize_blockwise(nothing, code=dynamic_map(True), backend=name)
    assert codes.shape == absmax.shape == (0,)
    assert op.dequantize_blockwise(codes, absmax, dynamic_map(True), block=256, backend=name).shape == (0,)
    op.lion8bit_step(nothing, nothing, codes, absmax, beta1=0.9, beta2=0.99, **HYPER, backend=name)
    op.momentum8bit_step(nothing, nothing, codes, absmax, momentum=0.9, **HYPER, backend=name)
    assert block_count(0, 256) == block_count(0, None) == 0

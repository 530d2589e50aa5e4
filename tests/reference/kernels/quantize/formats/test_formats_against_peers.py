"""NF4 against bitsandbytes, uniform codes against torch's fake quantisation."""

import pytest
import torch

from reference.kernels.quantize import formats

FLOATS = (torch.float32, torch.float16, torch.bfloat16)


@pytest.fixture(scope="module")
def bnb():
    return pytest.importorskip("bitsandbytes").functional


def draw(shape, dtype):
    return torch.randn(shape, generator=torch.Generator().manual_seed(7)).to(dtype)


@pytest.mark.peer
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("block", [32, 64, 128, 1024, 4096])
@pytest.mark.parametrize("shape", [(3, 4096), (96, 64), (1, 70), (50, 101)])
def test_nf4_bytes_are_those_of_bitsandbytes(bnb, shape, block, dtype):
    x = draw(shape, dtype)
    packed, state = bnb.quantize_4bit(x, blocksize=block, quant_type="nf4")
    mine = formats.quantize_nf4(x, block=block)
    assert torch.equal(mine.scale, state.absmax)
    # Its CPU version divides in a ragged last block instead of multiplying by the reciprocal.
    whole = x.numel() // block * block // 2
    assert torch.equal(mine.codes[:whole], packed.view(-1)[:whole])
    distance = (formats.unpack_codes(mine.codes, 4, x.numel()).int()
                - formats.unpack_codes(packed.view(-1), 4, x.numel()).int()).abs()
    assert distance.max() <= 1 and (distance > 0).sum() <= 1
    assert mine.codes[-1] & 15 == packed.view(-1)[-1] & 15


@pytest.mark.peer
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("block", [64, 4096])
def test_nf4_values_are_those_of_bitsandbytes(bnb, block, dtype):
    x = draw((40, 256), dtype)
    packed, state = bnb.quantize_4bit(x, blocksize=block, quant_type="nf4")
    theirs = bnb.dequantize_4bit(packed, state)
    mine = formats.NF4(packed.view(-1), state.absmax, tuple(x.shape), block)
    assert torch.equal(formats.dequantize_nf4(mine, dtype=dtype), theirs)


@pytest.mark.peer
def test_the_values_are_those_of_bitsandbytes(bnb):
    codes = formats.pack_codes(torch.arange(16, dtype=torch.uint8), 4)
    ours = formats.dequantize_nf4(formats.NF4(codes, torch.ones(1), (16,), 64))
    assert torch.equal(ours, bnb.get_4bit_type("nf4", device="cpu"))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("backend", ["numba", "eager"])
def test_per_tensor_equals_torchs_fake_quantisation(bits, backend):
    x = draw((37, 53), torch.float32)
    packed = formats.quantize_uniform(x, bits=bits, symmetric=False, backend=backend)
    expected = torch.fake_quantize_per_tensor_affine(x, float(packed.scale), int(packed.zero), 0, 2**bits - 1)
    assert torch.equal(formats.dequantize_uniform(packed, backend=backend), expected)
    packed = formats.quantize_uniform(x, bits=bits, narrow=False, backend=backend)
    expected = torch.fake_quantize_per_tensor_affine(x, float(packed.scale), 0, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    assert torch.equal(formats.dequantize_uniform(packed, backend=backend), expected)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("backend", ["numba", "eager"])
def test_per_channel_equals_torchs(axis, backend):
    x = draw((7, 6, 5), torch.float32)
    packed = formats.quantize_uniform(x, symmetric=False, axis=axis, backend=backend)
    expected = torch.fake_quantize_per_channel_affine(x, packed.scale, packed.zero.int(), axis, 0, 255)
    assert torch.equal(formats.dequantize_uniform(packed, backend=backend), expected)

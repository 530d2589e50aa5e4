"""One table for all formats and backends: float64 is met, codes are equal bit for bit, edges follow the docstrings."""

import numpy as np
import pytest
import torch

from reference.kernels.backend import BackendMissing
from reference.kernels.quantize import formats

# Triton's interpreter computes with numpy, which warns of what the rules allow.
pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|overflow|divide by zero) encountered:RuntimeWarning")
FLOATS = (torch.float32, torch.float16, torch.bfloat16)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_agrees_with_float64_and_with_eager(pair, dtype, same):
    case, name, device = pair
    x = case.draw(dtype).to(device)
    packed = case.quantize(x, name)
    values = case.dequantize(packed, backend=name)
    assert values.shape == x.shape
    wide = x.double().cpu().numpy().ravel()
    assert case.judge(wide, packed, values.double().cpu().numpy().ravel()) <= case.allowed
    if name != "eager":
        assert same(packed, case.quantize(x, "eager"))
        assert torch.equal(values, case.dequantize(packed, backend="eager"))


def test_values_are_rounded_to_the_type_asked_for(pair):
    case, name, device = pair
    packed = case.quantize(case.draw().to(device), name)
    values = case.dequantize(packed, backend=name)
    for dtype in (torch.float16, torch.bfloat16):
        out = torch.full(case.shape, torch.nan, dtype=dtype, device=device)
        assert case.dequantize(packed, out=out, backend=name) is out
        expected = values.to(dtype)
        if (name, device, dtype) == ("triton", "cpu", torch.bfloat16):
            # Triton's interpreter cuts bfloat16 off where a device rounds.
            expected = (values.view(torch.int32) & -(2**16)).view(torch.float32).to(dtype)
        assert torch.equal(out, expected)


def test_formats_without_a_cuda_kernel_say_so(case_without_cuda):
    with pytest.raises(BackendMissing, match="use triton"):
        case_without_cuda.quantize(case_without_cuda.draw(), "cuda")


def test_an_earlier_result_is_written_again(backend, same):
    name, device = backend
    x = torch.randn(2, 256, generator=torch.Generator().manual_seed(3)).to(device)
    other = x.flip(0).contiguous() * 2
    uses = [
        lambda x, **out: formats.quantize_nf4(x, backend=name, **out),
        lambda x, **out: formats.quantize_uniform(x, bits=4, group=64, symmetric=False, backend=name, **out),
    ]
    if name != "cuda":
        uses += [
            lambda x, **out: formats.quantize_uniform(x, axis=0, backend=name, **out),
            lambda x, **out: formats.quantize_log(x, backend=name, **out),
            lambda x, **out: formats.quantize_ternary(x, backend=name, **out),
        ]
    for quantize in uses:
        earlier = quantize(x)
        buffers = [part.data_ptr() for part in vars(earlier).values() if isinstance(part, torch.Tensor)]
        again = quantize(other, out=earlier)
        assert [part.data_ptr() for part in vars(again).values() if isinstance(part, torch.Tensor)] == buffers
        assert same(again, quantize(other))


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 4)])
def test_nothing_in_gives_nothing_out(backend, shape):
    name, device = backend
    x = torch.zeros(shape, device=device)
    results = [
        (formats.quantize_nf4(x, backend=name), formats.dequantize_nf4),
        (formats.quantize_uniform(x, bits=4, group=32, backend=name), formats.dequantize_uniform),
        (formats.quantize_uniform(x, symmetric=False, axis=0, backend=name), formats.dequantize_uniform),
        (formats.quantize_log(x, backend=name), formats.dequantize_log),
        (formats.quantize_ternary(x, backend=name), formats.dequantize_ternary),
    ]
    for packed, dequantize in results:
        assert dequantize(packed, backend=name).shape == shape


# --- the rules for NaN, infinities, zeros and extremes


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
def test_a_bad_entry_spoils_its_block_or_group_and_no_other(backend, bad):
    name, device = backend
    x = torch.linspace(-3, 3, 192, device=device)
    x[70] = bad
    clean = torch.arange(192, device=device) // 64 != 1
    packed = formats.quantize_nf4(x, backend=name)
    assert not torch.isfinite(packed.scale[1])
    results = [formats.dequantize_nf4(packed, backend=name)]
    for bits, symmetric in ((8, True), (4, False), (2, True)):
        packed = formats.quantize_uniform(x, bits=bits, symmetric=symmetric, group=64, backend=name)
        assert packed.scale.isnan().tolist() == [False, True, False]
        results.append(formats.dequantize_uniform(packed, backend=name))
    for values in results:
        assert values[~clean].isnan().all()
        assert values[clean].isfinite().all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_bad_entry_spoils_a_tensor_with_one_scale(backend_of_all, bad):
    name, device = backend_of_all
    x = torch.linspace(0.5, 3, 100, device=device)
    x[7] = bad
    for options in ({}, {"symmetric": False}, {"axis": 0}):
        values = formats.dequantize_uniform(formats.quantize_uniform(x, backend=name, **options), backend=name)
        assert values[7].isnan()
        assert values.isnan().sum() == (1 if options.get("axis") == 0 else 100)
    assert formats.dequantize_log(formats.quantize_log(x, backend=name), backend=name).isnan().all()
    assert not formats.dequantize_ternary(formats.quantize_ternary(x, backend=name), backend=name).isfinite().any()


def test_given_scales_saturate(backend_of_all):
    name, device = backend_of_all
    x = torch.tensor([np.nan, -np.inf, -1e30, np.inf, 0.4, 0.5, 1.5, -0.5], device=device)
    packed = formats.quantize_uniform(x, scale=1.0, backend=name)
    assert packed.codes.tolist() == [-127, -127, -127, 127, 0, 0, 2, 0]
    packed = formats.quantize_uniform(x, scale=1.0, zero=3, symmetric=False, backend=name)
    assert packed.codes.tolist() == [0, 0, 0, 255, 3, 3, 5, 3]
    assert formats.quantize_log(x, scale=1.0, backend=name).codes.tolist() == [0, 16, 16, 0, 1, 1, 0, 16]
    ternary = formats.quantize_ternary(x, threshold=1.0, scale=2.0, backend=name)
    assert formats.dequantize_ternary(ternary, backend=name).tolist() == [0, -2, -2, 2, 0, 0, 2, 0]


def test_zeros_come_back_as_zeros(backend):
    name, device = backend
    x = torch.zeros(3, 64, device=device)
    packed = formats.quantize_nf4(x, backend=name)
    assert (packed.scale == 0).all() and (packed.codes == 0x77).all()
    assert (formats.dequantize_nf4(packed, backend=name) == 0).all()
    for symmetric in (True, False):
        uniform = formats.quantize_uniform(x, bits=4, symmetric=symmetric, group=64, backend=name)
        assert (uniform.scale == 2.0**-126).all() and (uniform.codes == 0).all()
        assert (formats.dequantize_uniform(uniform, backend=name) == 0).all()
    if name != "cuda":
        for packed in (formats.quantize_log(x, backend=name), formats.quantize_log(x, zero="last", backend=name)):
            assert (formats.dequantize_log(packed, backend=name) == 0).all()
        ternary = formats.quantize_ternary(x, backend=name)
        assert (ternary.kept, ternary.scale) == (0, 0.0)
        assert (formats.dequantize_ternary(ternary, backend=name) == 0).all()


def test_the_largest_and_the_smallest_numbers(backend, same):
    name, device = backend
    most, least = 0.99 * torch.finfo(torch.float32).max, 2.0**-149
    x = torch.zeros(256, device=device)
    x[:64] = torch.linspace(-most / 2, most / 2, 64) * 2
    x[64:128], x[128:192] = torch.linspace(-1, 1, 64) * 1e-38, least
    x[192:] = torch.linspace(0, 1, 64) * 3e-39
    packed = formats.quantize_nf4(x, backend=name)
    error = (formats.dequantize_nf4(packed, backend=name).double() - x.double()).abs()
    bound = torch.tensor([0.16 * most, 0.16e-38, 2e-38, 2e-38], dtype=torch.float64).repeat_interleave(64)
    assert bool((error.cpu() <= bound).all())
    assert same(packed, formats.quantize_nf4(x, backend="eager"))
    for symmetric in (True, False):
        uniform = formats.quantize_uniform(x, symmetric=symmetric, group=64, backend=name)
        values = formats.dequantize_uniform(uniform, backend=name)
        step = uniform.scale.double().repeat_interleave(64)
        assert bool(((values.double() - x.double()).abs() <= step * 0.501).all())
        assert same(uniform, formats.quantize_uniform(x, symmetric=symmetric, group=64, backend="eager"))


def test_given_scales_and_noise_are_used_the_same_way_everywhere(backend_of_all, same):
    name, device = backend_of_all
    random = torch.Generator().manual_seed(2)
    x, noise = torch.randn(6, 35, generator=random), torch.rand(6, 35, generator=random)
    for axis, group in ((None, None), (0, None), (1, None), (None, 8), (None, 1)):
        layout = formats.layout_of((6, 35), axis, group)
        scale = torch.rand(layout.scale_shape, generator=random) / 10 + 0.01
        zero = torch.randint(0, 16, layout.scale_shape, generator=random, dtype=torch.uint8)
        for options in ({"symmetric": True}, {"symmetric": False, "zero": zero}):
            results = [
                formats.quantize_uniform(
                    x.to(place), bits=4, axis=axis, group=group, noise=noise.to(place), scale=scale.to(place),
                    backend=kind,
                    **{key: value.to(place) if key == "zero" else value for key, value in options.items()},
                )
                for kind, place in ((name, device), ("eager", "cpu"))
            ]
            assert same(*results)


def test_memory_at_any_address(backend, same):
    name, device = backend
    whole = torch.randn(4 * 64 + 3, generator=torch.Generator().manual_seed(5)).to(device)
    for start in (1, 2, 3):
        x = whole[start : start + 256]
        packed = formats.quantize_nf4(x, backend=name)
        assert same(packed, formats.quantize_nf4(x.clone(), backend="eager"))
        out = torch.empty(260, device=device)[start : start + 256]
        assert torch.equal(formats.dequantize_nf4(packed, out=out, backend=name),
                           formats.dequantize_nf4(packed, backend="eager"))
        for bits in (2, 4, 8):
            uniform = formats.quantize_uniform(x, bits=bits, group=64, backend=name)
            assert same(uniform, formats.quantize_uniform(x.clone(), bits=bits, group=64, backend="eager"))
            assert torch.equal(formats.dequantize_uniform(uniform, out=out, backend=name),
                               formats.dequantize_uniform(uniform, backend="eager"))

"""Block-wise FP8: rounding, scales, products, in numpy, torch and Triton, with traffic."""

import numpy as np
import pytest
import torch

import longcat.kernels as kernels
from longcat.kernels.fp8 import reference

SHAPES = [(3, 200), (1, 128), (150, 130), (0, 128), (2, 1)]


@pytest.fixture
def triton_kernel(interpreter, poisoned):
    pytest.importorskip("triton")
    from longcat.kernels.fp8 import triton_kernel

    return triton_kernel


def test_the_definitions_rounding_is_torchs_on_every_kind_of_number(randn):
    x = torch.cat([randn(4000) * 10 ** randn(4000), torch.tensor([0.0, -0.0, 448, 464, 2**-9])])
    x = torch.cat([x, torch.arange(-64, 64) * 2.0**-10, torch.tensor([2**-10, 3 * 2.0**-10])])
    got = reference.round_to_e4m3(x.numpy())
    assert np.array_equal(got, x.clamp(-448, 448).to(torch.float8_e4m3fn).double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("op", ["quantise_rows", "quantise_blocks"])
def test_quantising_agrees_in_all_three_forms(triton_kernel, randn, op, shape, dtype):
    from longcat.kernels.proof.probe import probed

    x = (30 * randn(*shape)).to(dtype)
    x[:1, :128] = 0
    want, want_scales = getattr(reference, op)(x.double().numpy())
    eager = getattr(kernels, op)(x)
    with kernels.use_backend("numpy"):
        assert np.array_equal(getattr(kernels, op)(x)[0].double(), want)
    with kernels.use_backend("triton"), probed() as probe:
        kernel = getattr(kernels, op)(x)
    probe.check_written_once()
    assert probe.loaded(x) == x.nbytes
    for numbers, scales in (eager, kernel):
        assert numbers.dtype == torch.float8_e4m3fn
        assert np.allclose(scales, want_scales, rtol=1e-6)
        # A quotient in float32 can fall on the other side of a tie.
        assert (numbers.double().numpy() != want).mean() <= 2e-3 if want.size else True
    assert torch.equal(eager[0].view(torch.uint8), kernel[0].view(torch.uint8))
    assert torch.equal(eager[1], kernel[1])


def test_a_number_is_off_by_at_most_a_sixteenth_and_an_outlier_costs_its_own_block_alone(randn):
    x = randn(4, 256).float()
    x[0, 0] = 1e7
    numbers, scales = kernels.quantise_rows(x)
    back = numbers.float() * scales.repeat_interleave(128, dim=1)
    quiet = torch.ones_like(x, dtype=torch.bool)
    quiet[0, :128] = False
    error = (back - x).abs()
    # Below a scale's smallest normal number the step is fixed.
    step = scales.repeat_interleave(128, dim=1) * 2.0**-10
    assert (error <= torch.maximum(x.abs() / 16, step) * 1.001).all()
    assert (back[0, 1:128] == 0).all()  # drowned
    assert (back[quiet] != 0).float().mean() > 0.99


@pytest.mark.parametrize("described", [False, True], ids=["pointers", "descriptors"])
@pytest.mark.parametrize("shape", [(5, 70, 208), (17, 130, 128), (40, 64, 304), (70, 200, 256)])
def test_the_product_applies_every_scale(triton_kernel, randn, check, shape, described):
    from longcat.kernels.proof.probe import probed

    tokens, outputs, inner = shape
    x, x_scales = kernels.quantise_rows(randn(tokens, inner).float())
    weight, weight_scales = kernels.quantise_blocks(randn(outputs, inner).float() / inner)
    weight_scales = weight_scales * (1 + torch.arange(weight_scales.numel())).view_as(weight_scales)
    operands = (x, x_scales, weight, weight_scales)
    want = reference.fp8_linear(*(t.double().numpy() for t in operands))
    assert check.error(kernels.fp8_linear(*operands), want) <= 2e-6
    with probed() as probe:
        got = triton_kernel.fp8_linear(*operands, described)
    assert check.error(got, want) <= 2e-6
    probe.check_written_once()
    token_blocks = -(-tokens // 64)
    assert probe.loaded(weight) == token_blocks * weight.nbytes
    assert probe.loaded(x) == -(-outputs // 64) * x.nbytes


@pytest.mark.parametrize(("inner", "described"), [(256, True), (304, True), (300, False)])
def test_tiles_come_by_descriptors_where_rows_begin_at_whole_words(
    triton_kernel, randn, check, monkeypatch, inner, described
):
    x, x_scales = kernels.quantise_rows(randn(5, inner).float())
    weight, weight_scales = kernels.quantise_blocks(randn(70, inner).float() / inner)
    operands = (x, x_scales, weight, weight_scales)
    made = []
    of = triton_kernel.TensorDescriptor.from_tensor
    monkeypatch.setattr(
        triton_kernel.TensorDescriptor, "from_tensor", lambda *given: made.append(1) or of(*given)
    )
    with kernels.use_backend("triton"):
        y = kernels.fp8_linear(*operands)
    assert len(made) == 2 * described
    want = reference.fp8_linear(*(t.double().numpy() for t in operands))
    assert check.error(y, want) <= 2e-6


def test_fp8_loses_what_three_bits_lose_and_no_more(randn, check):
    x, weight = randn(16, 512).float(), randn(96, 512).float()
    y = kernels.fp8_linear(*kernels.quantise_rows(x), *kernels.quantise_blocks(weight))
    assert 0.01 < check.norm_error(y, x.double() @ weight.double().T) < 0.05


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("the next row's scale", "weight_scales_ptr + (tl", "weight_scales_ptr + groups * 0 * (tl"),
        ("one scale for all groups", "tl.load(scale_row + group)", "tl.load(scale_row)"),
        ("no scale of x", "tl.load(scale_row + group) * of_x", "tl.load(scale_row) + of_x * 0"),
        ("another block's weights", "weights.load([first_n,", "weights.load([0,"),
    ],
)
def test_the_product_is_rejected_with(triton_kernel, randn, check, mutate, name, old, new):
    x, x_scales = kernels.quantise_rows(3 * randn(5, 256).float())
    weight, weight_scales = kernels.quantise_blocks(randn(200, 256).float())
    weight_scales = weight_scales * torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    operands = (x, x_scales, weight, weight_scales)
    want = reference.fp8_linear(*(t.double().numpy() for t in operands))
    assert check.error(triton_kernel.fp8_linear(*operands), want) <= 2e-6
    assert check.error(mutate(triton_kernel, old, new).fp8_linear(*operands), want) > 0.01


def test_a_scale_from_a_neighbouring_block_is_caught(triton_kernel, randn, mutate):
    x = randn(20, 256).float() * torch.arange(1, 21)[:, None]
    broken = mutate(
        triton_kernel, "scales_ptr + rows * groups", "scales_ptr + (rows // 2) * groups"
    )
    right, wrong = kernels.quantise_rows(x)[1], broken.quantise(x, 1)[1]
    assert torch.equal(triton_kernel.quantise(x, 1)[1], right)
    assert not torch.equal(wrong, right)


def test_what_does_not_fit_is_refused_by_name(randn):
    x, x_scales = kernels.quantise_rows(randn(5, 256).float())
    weight, weight_scales = kernels.quantise_blocks(randn(200, 256).float())
    with pytest.raises(ValueError, match="fp8_linear: x must be float8_e4m3fn, got float32"):
        kernels.fp8_linear(x.float(), x_scales, weight, weight_scales)
    with pytest.raises(ValueError, match=r"weight_scales must have shape \[2, 2\], got \[1, 2\]"):
        kernels.fp8_linear(x, x_scales, weight, weight_scales[:1])
    with pytest.raises(ValueError, match="fp8_linear: weight must have shape"):
        kernels.fp8_linear(x, x_scales, weight[:, :128], weight_scales)
    with pytest.raises(ValueError, match="quantise_rows: x must be floating point, got int64"):
        kernels.quantise_rows(torch.zeros(2, 2, dtype=torch.int64))

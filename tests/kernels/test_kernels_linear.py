"""The linear map: agreement, gradients, autocast."""

import pytest
import torch

from longcat.kernels import PackedLinear, linear, onednn, use_backend
from longcat.kernels.linear import eager, packed, reference


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", [(3, 5, 12), (12,), (0, 12), (2, 0, 12), (40, 12)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_eager_agrees_with_the_definition(randn, check, shape, dtype, with_bias):
    x, weight = randn(*shape, dtype=dtype), randn(7, 12, dtype=dtype)
    bias = randn(7, dtype=dtype) if with_bias else None
    want = reference.linear(
        x.double().numpy(),
        weight.double().numpy(),
        None if bias is None else bias.double().numpy(),
    )
    assert check.error(linear(x, weight, bias), want) <= check.bound(dtype, 12)
    with use_backend("numpy"):
        assert check.error(linear(x, weight, bias), want) <= check.bound(dtype)


def test_gradients_pass_gradcheck(randn):
    operands = [randn(3, 4).requires_grad_(), randn(5, 4).requires_grad_(), randn(5)]
    assert torch.autograd.gradcheck(linear, (*operands[:2], operands[2].requires_grad_()))


def test_autocast_decides_the_dtype_of_float32_but_not_of_float64(randn):
    x, weight = randn(3, 4, dtype=torch.float32), randn(5, 4, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, weight).dtype == torch.bfloat16
        assert linear(x.bfloat16(), weight).dtype == torch.bfloat16
        assert linear(x.double(), weight.double()).dtype == torch.float64


def test_a_weight_that_is_not_transposed_is_caught(randn, check):
    x, weight = randn(3, 4), randn(4, 4)
    want = reference.linear(x.numpy(), weight.numpy())
    assert check.error(x @ weight, want) > 1e-3


needs_onednn = pytest.mark.skipif(not onednn.available(), reason="no 512-bit vectors, or no oneDNN")


def _with_gradients(x, weight, bias, pull):
    operands = [tensor.detach().clone().requires_grad_() for tensor in (x, weight, bias)]
    y = linear(*operands)
    return [y, *torch.autograd.grad(y, operands, pull)]


@needs_onednn
@pytest.mark.parametrize("shape", [(40, 24), (5, 8, 24), (33, 24)])
def test_large_products_agree_with_float64_and_so_do_their_gradients(
    randn, check, monkeypatch, shape
):
    monkeypatch.setattr(onednn, "SMALLEST", 1)
    operands = [randn(*shape), randn(17, 24), randn(17), randn(*shape[:-1], 17)]
    single = [tensor.float() for tensor in operands]
    assert onednn.takes(*single[:2])
    assert type(linear(single[0], single[1].requires_grad_()).grad_fn).__name__ != "MmBackward0"
    wanted = _with_gradients(*operands)
    for got, want in zip(_with_gradients(*single), wanted, strict=True):
        assert got.shape == want.shape
        assert check.error(got, want) <= check.bound(torch.float32, 48)


@needs_onednn
@pytest.mark.parametrize("shape", [(96, 64, 8), (96, 8, 64), (33, 40, 40)])
def test_a_weights_gradient_is_the_same_whichever_factor_is_turned_around(randn, check, shape):
    rows, outputs, inputs = shape
    left, right = (randn(rows, width, dtype=torch.float32) for width in (outputs, inputs))
    got = eager._sum_of_outer(left, right)
    assert got.is_contiguous()
    assert check.error(got, left.double().t() @ right.double()) <= check.bound(torch.float32, rows)


@needs_onednn
def test_an_expanded_gradient_and_frozen_operands_are_served(randn, monkeypatch):
    monkeypatch.setattr(onednn, "SMALLEST", 1)
    x, weight = randn(64, 8).float().requires_grad_(), randn(16, 8).float()
    linear(x, weight).sum().backward()  # hands back a gradient of stride 0
    torch.testing.assert_close(x.grad, weight.sum(dim=0).expand(64, 8))
    assert weight.grad is None


@needs_onednn
@pytest.mark.parametrize("rows", [2, 8])
def test_in_inference_mode_few_rows_of_a_large_weight_agree_with_float64(randn, check, rows):
    x, weight, bias = randn(1, rows, 512), randn(512, 512), randn(512)
    single = [tensor.float() for tensor in (x, weight, bias)]
    assert not onednn.takes(*single[:2])
    with torch.inference_mode():
        assert onednn.takes(*single[:2])
        assert not onednn.takes(single[0], single[1][:100])
        assert not onednn.takes(single[0][:, :1], single[1])
        assert not onednn.takes(single[0][:, :0], single[1])
        got = linear(*single)
        assert linear(single[0][:, :0], *single[1:]).shape == (1, 0, 512)
    assert got.shape == (1, rows, 512)
    want = reference.linear(*(t.float().double().numpy() for t in (x, weight, bias)))
    assert check.error(got, torch.from_numpy(want)) <= check.bound(torch.float32, 512)


def test_small_wide_and_cast_products_stay_with_torch(randn):
    large = randn(512, 512).float()
    assert onednn.takes(large, large) == onednn.available()
    assert not onednn.takes(large[:2], large)
    assert not onednn.takes(large.double(), large.double())
    with torch.autocast("cpu", torch.bfloat16):
        assert not onednn.takes(large, large)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rows", [0, 1, 3, 40])
def test_a_packed_map_agrees_with_the_definition(randn, check, monkeypatch, dtype, rows):
    monkeypatch.setattr(packed, "SMALLEST", 1)
    x, weight, bias = randn(rows, 24).to(dtype), randn(17, 24).to(dtype), randn(17).to(dtype)
    residual = randn(rows, 17).to(dtype)
    want = reference.linear(*(operand.double().numpy() for operand in (x, weight, bias)))
    for given, of_bias in ((None, 0.0), (bias, bias.double().numpy())):
        linear_map = PackedLinear(weight, given)
        assert linear_map.packed == (onednn.available() and dtype != torch.float64)
        plain = want - bias.double().numpy() + of_bias
        assert check.error(linear_map(x), plain) <= check.bound(dtype, 24)
        added = residual.double().numpy() + plain
        assert check.error(linear_map.added_to(residual, x), added) <= check.bound(dtype, 24)


@needs_onednn
def test_packing_keeps_every_number_and_leaves_small_weights_alone(randn):
    weight = randn(512, 256, dtype=torch.float32)
    assert torch.equal(onednn.pack(weight).to_dense(), weight)
    assert PackedLinear(weight).packed
    assert not PackedLinear(weight[:100]).packed

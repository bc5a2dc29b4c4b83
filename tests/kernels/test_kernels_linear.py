"""The linear map: agreement, gradients, autocast."""

import pytest
import torch

from longcat.kernels import linear, use_backend
from longcat.kernels.linear import reference


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

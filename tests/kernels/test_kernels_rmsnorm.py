"""RMSNorm: claims, agreement with the definition, gradients, mutants."""

import numpy as np
import pytest
import torch

from longcat.kernels import RMSNorm, rmsnorm, use_backend
from longcat.kernels.rmsnorm import eager, reference

EPS = 1e-5
SHAPES = [(3, 5, 12), (7,), (1, 1), (4, 33), (0, 8), (2, 0, 8)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_eager_agrees_with_the_definition(randn, check, shape, dtype):
    x, weight = randn(*shape, dtype=dtype), randn(shape[-1], dtype=dtype)
    want = reference.rmsnorm(x.double().numpy(), weight.double().numpy(), EPS)
    assert check.error(rmsnorm(x, weight, EPS), want) <= check.bound(dtype)


def test_rows_of_equal_direction_come_out_equal(randn, check):
    x, weight = randn(6), randn(6)
    assert check.error(rmsnorm(1e3 * x, weight, 0.0), rmsnorm(x, weight, 0.0)) < 1e-13


def test_a_row_of_zeros_stays_zero_with_a_finite_gradient():
    x = torch.zeros(1, 4, requires_grad=True)
    rmsnorm(x, torch.ones(4), EPS).sum().backward()
    assert torch.isfinite(x.grad).all()


def test_the_quotient_is_rounded_before_the_weight_multiplies(randn):
    x, weight = randn(64, 32, dtype=torch.bfloat16), randn(32, dtype=torch.float32)
    wide = x.float()
    inverse = torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPS)
    got = rmsnorm(x, weight, EPS)
    assert got.dtype == torch.float32
    # One rounding of the quotient may fall the other way where the mean differs in its last bit.
    rounded = (wide * inverse).to(torch.bfloat16) * weight
    assert (got != rounded).float().mean() < 0.01
    mutant = wide * inverse * weight  # the weight first, in float32
    assert (got != mutant).float().mean() > 0.5


def test_the_mean_is_float32_for_low_precision_inputs(randn, check):
    x, weight = randn(4, 4096, dtype=torch.bfloat16), torch.ones(4096, dtype=torch.bfloat16)
    want = reference.rmsnorm(x.double().numpy(), weight.double().numpy(), EPS)
    assert check.error(rmsnorm(x, weight, EPS), want) < 2**-8


@pytest.mark.parametrize("shape", [(3, 5), (2, 3, 4), (4,)])
def test_gradients_pass_gradcheck(randn, shape):
    x, weight = randn(*shape).requires_grad_(), randn(shape[-1]).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, w: rmsnorm(x, w, EPS), (x, weight))


def test_gradients_agree_with_differences_of_the_definition(randn, check):
    x, weight, pull = randn(3, 5), randn(5), randn(3, 5)
    x.requires_grad_()
    (rmsnorm(x, weight, EPS) * pull).sum().backward()
    w64 = weight.numpy()
    want = check.numeric_gradient(
        lambda v: reference.rmsnorm(v, w64, EPS), x.detach().numpy(), pull.numpy()
    )
    assert check.error(x.grad, want) < 1e-8


def test_a_gradient_without_the_mean_term_is_caught(randn, check):
    x, weight, pull = randn(3, 5).requires_grad_(), randn(5), randn(3, 5)
    (rmsnorm(x, weight, EPS) * pull).sum().backward()
    inverse = torch.rsqrt(x.detach().square().mean(-1, keepdim=True) + EPS)
    assert check.error(pull * weight * inverse, x.grad) > 0.01


@pytest.mark.parametrize(
    "mutant",
    [
        lambda x, w, e: x / (np.sqrt(np.mean(x**2, -1, keepdims=True)) + e) * w,
        lambda x, w, e: x / np.sqrt(np.var(x, -1, keepdims=True) + e) * w,
        lambda x, w, e: x / np.sqrt(np.sum(x**2, -1, keepdims=True) + e) * w,
    ],
    ids=["epsilon outside the root", "variance", "sum"],
)
def test_mutants_of_the_formula_are_caught(randn, check, mutant):
    x, weight = randn(4, 8) * 0.1, randn(8)
    wrong = mutant(x.numpy(), weight.numpy(), 1e-2)
    assert check.error(rmsnorm(x, weight, 1e-2), wrong) > 1e-3


def test_a_row_does_not_depend_on_its_neighbours(randn):
    x, weight = randn(37, 48, dtype=torch.float32), randn(48, dtype=torch.float32)
    together = rmsnorm(x, weight, EPS)
    for row in range(37):
        assert torch.equal(rmsnorm(x[row : row + 1], weight, EPS)[0], together[row])


def test_autocast_leaves_float32_rows_in_float32(randn):
    x, weight = randn(2, 8, dtype=torch.float32), randn(8, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(rmsnorm(x, weight, EPS), eager.rmsnorm(x, weight, EPS))


def test_the_module_is_the_function_with_its_weight(randn):
    norm = RMSNorm(8, 1e-6).double()
    with torch.no_grad():
        norm.weight.copy_(randn(8))
    x = randn(3, 8)
    assert torch.equal(norm(x), rmsnorm(x, norm.weight, 1e-6))
    with use_backend("numpy"), torch.no_grad():
        assert torch.allclose(norm(x), rmsnorm(x, norm.weight, 1e-6), rtol=1e-14, atol=0)
    norm.reset_parameters()
    assert torch.equal(norm.weight, torch.ones(8, dtype=torch.float64))
    assert repr(norm) == "RMSNorm(8, eps=1e-06)"

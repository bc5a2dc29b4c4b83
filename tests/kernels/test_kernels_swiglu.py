"""SwiGLU: claims, agreement with the definition, gradients, mutants."""

import numpy as np
import pytest
import torch

from longcat.kernels import swiglu
from longcat.kernels.swiglu import reference


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 5, 12), (7,), (1, 1), (0, 8), (4, 33)])
def test_eager_agrees_with_the_definition(randn, check, shape, dtype):
    gate, up = randn(*shape, dtype=dtype), randn(*shape, dtype=dtype)
    want = reference.swiglu(gate.double().numpy(), up.double().numpy())
    assert check.error(swiglu(gate, up), want) <= check.bound(dtype)


def test_known_values():
    gate = torch.tensor([0.0, 1.0, -1.0], dtype=torch.float64)
    want = [0.0, 1 / (1 + np.exp(-1.0)), -1 / (1 + np.exp(1.0))]
    assert np.allclose(swiglu(gate, torch.ones_like(gate)), want, rtol=1e-15)


def test_large_gates_neither_overflow_nor_warn():
    gate = np.array([-1e4, 1e4])
    with np.errstate(all="raise", under="ignore"):
        assert np.array_equal(reference.swiglu(gate, np.ones(2)), [0.0, 1e4])
    assert torch.equal(swiglu(torch.tensor([-1e4, 1e4]), torch.ones(2)), torch.tensor([-0.0, 1e4]))


def test_views_of_one_product_are_taken_as_they_are(randn):
    both = randn(3, 8)
    gate, up = both.chunk(2, dim=-1)
    assert torch.equal(swiglu(gate, up), swiglu(gate.contiguous(), up.contiguous()))


def test_gradients_pass_gradcheck(randn):
    gate, up = randn(3, 4).requires_grad_(), randn(3, 4).requires_grad_()
    assert torch.autograd.gradcheck(swiglu, (gate, up))


def test_gradients_agree_with_differences_of_the_definition(randn, check):
    gate, up, pull = randn(2, 3).requires_grad_(), randn(2, 3), randn(2, 3)
    (swiglu(gate, up) * pull).sum().backward()
    want = check.numeric_gradient(
        lambda g: reference.swiglu(g, up.numpy()), gate.detach().numpy(), pull.numpy()
    )
    assert check.error(gate.grad, want) < 1e-8


@pytest.mark.parametrize(
    "mutant",
    [
        lambda gate, up: swiglu(up, gate),
        lambda gate, up: torch.nn.functional.gelu(gate) * up,
        lambda gate, up: torch.sigmoid(gate) * up,
    ],
    ids=["gate and up exchanged", "gelu", "no factor z"],
)
def test_mutants_of_the_formula_are_caught(randn, check, mutant):
    gate, up = randn(4, 8), randn(4, 8)
    want = reference.swiglu(gate.numpy(), up.numpy())
    assert check.error(mutant(gate, up), want) > 1e-3

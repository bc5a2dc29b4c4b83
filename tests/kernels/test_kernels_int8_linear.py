"""Weights of 8 bits: agreement with the definition, and the error that rounding allows."""

import numpy as np
import pytest
import torch

from longcat.kernels import int8_linear, quantise_int8, use_backend
from longcat.kernels.int8_linear import reference


@pytest.mark.parametrize("rows", [1, 3, 16, 40])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)]
)
def test_every_dtype_and_row_count_agrees_with_the_definition(randn, rows, dtype, tolerance):
    weight, scale = quantise_int8(randn(48, 64, dtype=dtype))
    x = randn(2, rows, 64, dtype=dtype)[:1]
    want = reference.int8_linear(x.double().numpy(), weight.numpy(), scale.double().numpy())
    got = int8_linear(x, weight, scale).double().numpy()
    np.testing.assert_allclose(got, want, atol=tolerance * np.abs(want).max(), rtol=0)
    with use_backend("numpy"):
        got = int8_linear(x, weight, scale).double().numpy()
    np.testing.assert_allclose(got, want, atol=tolerance * np.abs(want).max(), rtol=0)


@pytest.mark.parametrize("width", [1, 7, 24, 250])
def test_widths_that_torch_would_read_past_agree_too(randn, width):
    """torch's own product of 8 bits reads 16 numbers at a time: what comes is noise, or a crash."""
    weight, scale = quantise_int8(randn(300, width, dtype=torch.bfloat16))
    x = randn(3, width, dtype=torch.bfloat16)
    want = reference.int8_linear(x.double().numpy(), weight.numpy(), scale.double().numpy())
    got = int8_linear(x, weight, scale).double().numpy()
    np.testing.assert_allclose(got, want, atol=2e-2 * np.abs(want).max(), rtol=0)


def test_operands_may_lie_apart_in_memory(randn):
    weight, scale = quantise_int8(randn(5, 32, dtype=torch.bfloat16))
    x = randn(3, 64, dtype=torch.bfloat16)[:, ::2]
    want = int8_linear(x.contiguous(), weight, scale)
    assert torch.equal(int8_linear(x, weight.t().contiguous().t(), scale), want)


def test_quantising_is_its_definition_and_errs_by_half_a_scale(randn):
    weight = randn(5, 32, dtype=torch.float64)
    weight[2] = 0
    steps, scale = quantise_int8(weight)
    want_steps, want_scale = reference.quantise_int8(weight.numpy())
    np.testing.assert_array_equal(steps.numpy(), want_steps)
    np.testing.assert_allclose(scale.numpy(), want_scale, rtol=1e-15)
    error = (steps.double() * scale[:, None] - weight).abs()
    assert bool((error <= scale[:, None] / 2 * (1 + 1e-9)).all())
    assert int(steps[0].abs().max()) == 127


def test_a_wrong_operand_is_named(randn):
    weight, scale = quantise_int8(randn(4, 8))
    with pytest.raises(ValueError, match="weight"):
        int8_linear(randn(3, 8), weight.float(), scale)
    with pytest.raises(ValueError, match="scale"):
        int8_linear(randn(3, 8), weight, scale[:3])

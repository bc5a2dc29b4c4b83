"""The Triton kernels for RMSNorm and SwiGLU, run by Triton's interpreter on CPU tensors.

The interpreter checks the arithmetic and the indexing. It does not show layouts, races or speed;
test_kernels_gpu.py runs the compiled kernels where there is a GPU.
"""

import pytest
import torch

import longcat.kernels as kernels
from longcat.kernels.rmsnorm import eager as rmsnorm_eager
from longcat.kernels.rmsnorm import reference as rmsnorm_reference
from longcat.kernels.swiglu import eager as swiglu_eager
from longcat.kernels.swiglu import reference as swiglu_reference

pytest.importorskip("triton")

pytestmark = pytest.mark.usefixtures("interpreter")

EPS = 1e-5
DTYPES = [torch.float32, torch.float64, torch.bfloat16]
SHAPES = [(3, 5, 12), (7,), (1, 1), (9, 33), (0, 8), (2, 0, 8), (2, 1025)]


def _gradients(function, operands, pull):
    operands = [operand.detach().requires_grad_() for operand in operands]
    y = function(*operands)
    return [y, *torch.autograd.grad(y, operands, pull.to(y.dtype))]


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_rmsnorm_agrees_with_the_definition(randn, check, shape, dtype):
    x, weight, pull = randn(*shape, dtype=dtype), randn(shape[-1], dtype=dtype), randn(*shape)
    want = rmsnorm_reference.rmsnorm(x.double().numpy(), weight.double().numpy(), EPS)
    pull = pull.to(dtype)  # rounded once, so that every dtype pulls with the same numbers
    with kernels.use_backend("triton"):
        got = _gradients(lambda x, w: kernels.rmsnorm(x, w, EPS), (x, weight), pull)
    assert [t.dtype for t in got] == [dtype] * 3
    assert check.error(got[0], want) <= check.bound(dtype)
    exact = _gradients(
        lambda x, w: rmsnorm_eager.rmsnorm(x, w, EPS), (x.double(), weight.double()), pull
    )
    for mine, true in zip(got[1:], exact[1:], strict=True):
        # A row of one element has no direction to change: its gradient cancels to nearly nothing,
        # and the error is that of its two terms, which are of order one.
        error = check.error(mine, true) * min(1.0, float(true.abs().max()) if true.numel() else 0)
        assert error <= check.bound(dtype, shape[-1])


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_swiglu_agrees_with_the_definition(randn, check, shape, dtype):
    gate, up, pull = (randn(*shape, dtype=dtype) for _ in range(3))
    want = swiglu_reference.swiglu(gate.double().numpy(), up.double().numpy())
    with kernels.use_backend("triton"):
        got = _gradients(kernels.swiglu, (gate, up), pull)
    assert [t.dtype for t in got] == [dtype] * 3
    assert check.error(got[0], want) <= check.bound(dtype)
    exact = _gradients(swiglu_eager.swiglu, (gate.double(), up.double()), pull)
    for mine, true in zip(got[1:], exact[1:], strict=True):
        assert check.error(mine, true) <= check.bound(dtype)


def test_operands_that_are_views_are_read_by_their_strides(randn, check):
    both, weight = randn(5, 2, 24), randn(12)
    gate, up = both.chunk(2, dim=-1)
    with kernels.use_backend("triton"):
        assert check.error(kernels.swiglu(gate, up), swiglu_eager.swiglu(gate, up)) < 1e-14
        norm = kernels.rmsnorm(gate, weight, EPS)
        turned = kernels.rmsnorm(both.mT[..., 0], randn(24), EPS)  # columns that are not adjacent
    assert check.error(norm, rmsnorm_eager.rmsnorm(gate, weight, EPS)) < 1e-14
    assert turned.shape == (5, 24)


def test_an_expanded_gradient_is_taken(randn):
    x = randn(3, 6).requires_grad_()
    with kernels.use_backend("triton"):
        kernels.rmsnorm(x, randn(6), EPS).sum().backward()
        kernels.swiglu(x, x).sum().backward()
    assert torch.isfinite(x.grad).all()


def test_gradients_pass_gradcheck(randn):
    x, weight = randn(2, 3).requires_grad_(), randn(3).requires_grad_()
    with kernels.use_backend("triton"):
        assert torch.autograd.gradcheck(lambda x, w: kernels.rmsnorm(x, w, EPS), (x, weight))
        assert torch.autograd.gradcheck(kernels.swiglu, (x, x.detach().flip(0).requires_grad_()))


def test_a_float32_weight_on_bfloat16_rows_gives_float32_as_eager_does(randn):
    x, weight = randn(4, 40, dtype=torch.bfloat16), randn(40, dtype=torch.float32)
    with kernels.use_backend("triton"):
        got = kernels.rmsnorm(x, weight, EPS)
    want = rmsnorm_eager.rmsnorm(x, weight, EPS)
    assert got.dtype == want.dtype == torch.float32
    assert (got != want).float().mean() < 0.02


def test_a_weight_gradient_without_its_last_rows_is_caught(randn, check, monkeypatch):
    # The mutant: backward told of one row fewer than there are.
    from longcat.kernels.rmsnorm import triton_kernel

    x, weight, pull = randn(6, 8), randn(8), randn(6, 8)
    want = _gradients(lambda x, w: rmsnorm_eager.rmsnorm(x, w, EPS), (x, weight), pull)[2]
    whole = triton_kernel._backward

    class Short:
        def __getitem__(self, grid):
            def launch(*arguments, **constants):
                return whole[grid](*arguments[:8], arguments[8] - 1, *arguments[9:], **constants)

            return launch

    with kernels.use_backend("triton"):
        right = _gradients(lambda x, w: kernels.rmsnorm(x, w, EPS), (x, weight), pull)[2]
        monkeypatch.setattr(triton_kernel, "_backward", Short())
        wrong = _gradients(lambda x, w: kernels.rmsnorm(x, w, EPS), (x, weight), pull)[2]
    assert check.error(right, want) < 1e-13
    assert check.error(wrong, want) > 0.01

"""The repair of Triton's interpreter: each thing it mends is shown to be broken as it ships.

When a control here fails, Triton has mended its interpreter and that part of the repair can go.
"""

import pytest
import torch

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")

pytestmark = pytest.mark.usefixtures("interpreter")

N = 32


@triton.jit
def _product(a_ptr, b_ptr, out_ptr, N: tl.constexpr, TF32: tl.constexpr):
    places = tl.arange(0, N)[:, None] * N + tl.arange(0, N)[None, :]
    a, b = tl.load(a_ptr + places), tl.load(b_ptr + places)
    precision: tl.constexpr = "tf32" if TF32 else "ieee"
    tl.store(out_ptr + places, tl.dot(a, b, input_precision=precision))


@triton.jit
def _arithmetic(a_ptr, b_ptr, out_ptr, N: tl.constexpr):
    places = tl.arange(0, N)
    a, b = tl.load(a_ptr + places), tl.load(b_ptr + places)
    tl.store(out_ptr + places, tl.where(a > b, a + b, tl.fma(a, b, b) - a * b))


@triton.jit
def _round(x_ptr, out_ptr, N: tl.constexpr):
    places = tl.arange(0, N)
    tl.store(out_ptr + places, tl.load(x_ptr + places).to(out_ptr.dtype.element_ty))


@triton.jit
def _sum(x_ptr, out_ptr, N: tl.constexpr):
    tl.store(out_ptr, tl.sum(tl.load(x_ptr + tl.arange(0, N)), axis=0).to(tl.float32))


@pytest.fixture
def stock():
    from longcat.kernels.proof.interpreter import stock

    return stock


def _both(stock, launch):
    """What the repaired and the stock interpreter make of a launch."""
    right = launch()
    with stock():
        return right, launch()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_products_multiply_the_numbers_and_not_their_bits(randn, check, stock, dtype):
    a, b = (randn(N, N, dtype=torch.float32).to(dtype) for _ in range(2))

    def launch():
        out = torch.empty(N, N)
        _product[(1,)](a, b, out, N=N, TF32=False)
        return out

    right, wrong = _both(stock, launch)
    want = a.double() @ b.double()
    assert check.error(right, want) < 1e-6
    if dtype == torch.bfloat16:
        assert check.error(wrong, want) > 1e6  # the control


def test_sums_products_and_comparisons_in_bfloat16_are_those_of_torch(randn, stock):
    a, b = (randn(N * N, dtype=torch.bfloat16) for _ in range(2))

    def launch():
        out = torch.empty_like(a)
        _arithmetic[(1,)](a, b, out, N=N * N)
        return out

    right, wrong = _both(stock, launch)
    fused = (a.float() * b.float() + b.float()).bfloat16()
    want = torch.where(a > b, a + b, fused - a * b)
    assert torch.equal(right, want)
    assert (wrong != want).float().mean() > 0.9  # the control


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_rounding_is_to_nearest_even_and_saturates_in_fp8(randn, stock, dtype):
    x = 20 * randn(4096, dtype=torch.float32)
    ties = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-4, 1 + 3 * 2**-4, 1.125, 1.375, -0.0])
    x[:7] = ties

    def launch():
        out = torch.empty(4096, dtype=dtype)
        _round[(1,)](x, out, N=4096)
        return out.float()

    right, wrong = _both(stock, launch)
    assert torch.equal(right, x.to(dtype).float())
    assert not torch.equal(wrong, right)  # the control
    x[:4] = torch.tensor([torch.nan, 1e9, -1e9, torch.inf])
    special = launch()[:4]
    assert special[0].isnan()
    if dtype != torch.bfloat16:
        largest = torch.finfo(dtype).max
        assert special[1:].tolist() == [largest, -largest, largest]


def test_a_product_that_allows_tf32_loses_what_tf32_loses(randn, check, stock):
    a, b = (randn(N, N, dtype=torch.float32) for _ in range(2))

    def launch(tf32=True):
        out = torch.empty(N, N)
        _product[(1,)](a, b, out, N=N, TF32=tf32)
        return out

    right, hidden = _both(stock, launch)
    want = a.double() @ b.double()
    assert 1e-4 < check.error(right, want) < 2e-3
    assert check.error(launch(tf32=False), want) < 1e-6
    assert check.error(hidden, want) < 1e-6  # the control: the stock one hides the loss


def test_a_sum_over_bfloat16_bits_is_refused(randn):
    x = randn(N, dtype=torch.bfloat16)
    with pytest.raises(Exception, match=r"reduces the bits of bf16.*to\(tl.float32\)"):
        _sum[(1,)](x, torch.empty(1), N=N)


def test_the_repair_is_applied_by_the_dispatcher(randn):
    import longcat.kernels as kernels
    from longcat.kernels.proof import interpreter

    x, weight = randn(4, 64, dtype=torch.bfloat16), randn(64, dtype=torch.bfloat16)
    with interpreter.stock(), kernels.use_backend("triton"):
        kernels.rmsnorm(x, weight, 1e-5)
        name = "create_dot"
        mended = getattr(interpreter._Builder, name)
        assert mended is not interpreter._STOCK[interpreter._Builder, name]

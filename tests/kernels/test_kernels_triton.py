"""The Triton kernels for RMSNorm and SwiGLU, run by Triton's interpreter on CPU tensors.

The interpreter checks the arithmetic and the indexing. It does not show layouts, races or speed;
test_kernels_gpu.py runs the compiled kernels where there is a GPU.
"""

import os
import subprocess
import sys

import pytest
import torch

import longcat.kernels as kernels
from longcat.kernels.rmsnorm import eager as rmsnorm_eager
from longcat.kernels.rmsnorm import reference as rmsnorm_reference
from longcat.kernels.swiglu import eager as swiglu_eager
from longcat.kernels.swiglu import reference as swiglu_reference

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")
cast = pytest.importorskip("longcat.kernels.triton_cast").cast

pytestmark = pytest.mark.usefixtures("interpreter")

EPS = 1e-5
DTYPES = [torch.float32, torch.float64, torch.bfloat16]
SHAPES = [(3, 5, 12), (7,), (1, 1), (9, 33), (0, 8), (2, 0, 8), (2, 1025)]


@pytest.fixture
def poisoned(monkeypatch):
    """Memory that a kernel must fill holds NaN, so that an element it forgets is seen."""
    empty, empty_like = torch.empty, torch.empty_like
    fill = lambda t: t.fill_(torch.nan) if t.is_floating_point() else t  # noqa: E731
    monkeypatch.setattr(torch, "empty", lambda *a, **k: fill(empty(*a, **k)))
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: fill(empty_like(*a, **k)))


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


@triton.jit
def _store(x_ptr, right_ptr, cut_ptr, BLOCK: tl.constexpr):
    places = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + places)
    tl.store(right_ptr + places, cast(x, tl.bfloat16))
    tl.store(cut_ptr + places, x.to(tl.bfloat16))


def test_rows_to_bfloat16_are_rounded_to_nearest_even_and_not_cut(randn):
    x = randn(4096, dtype=torch.float32)
    x[:4] = torch.tensor([torch.nan, torch.inf, -torch.inf, 1 + 2**-8])  # the last one is a tie
    right, cut = (torch.empty(4096, dtype=torch.bfloat16) for _ in range(2))
    _store[(1,)](x, right, cut, BLOCK=4096)
    assert torch.equal(right.isnan(), x.isnan())
    assert torch.equal(right[1:], x.bfloat16()[1:])
    # The control: why `cast` exists. If this fails, the interpreter was mended and `cast` can go.
    assert not torch.equal(cut[1:], x.bfloat16()[1:])


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


COMPILE = """
import triton, triton.language as tl
from triton.compiler import ASTSource
from triton.backends.compiler import GPUTarget
from longcat.kernels.rmsnorm import triton_kernel as rmsnorm
from longcat.kernels.swiglu import triton_kernel as swiglu

def kind(name):
    if not name.endswith("ptr"):
        return "fp32" if name == "eps" else "i32"
    return "*fp32" if name in ("inverse_ptr", "grad_weight_ptr") else "*bf16"

for module, block in ((rmsnorm, 8192), (swiglu, 1024)):
    constants = {"BLOCK": block, "ACC": tl.float32}
    for fn in (module._forward, module._backward):
        names = list(fn.arg_names)
        signature = {n: "constexpr" if n in constants else kind(n) for n in names}
        aligned = {
            (i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if signature[n][0] == "*"
        }
        source = ASTSource(fn, signature=signature, constexprs=constants, attrs=aligned)
        options = {"num_warps": 16 if block > 1024 else 4}
        compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
        ptx = compiled.asm["ptx"]
        # Rounded by the hardware's instruction; nothing spilled to local memory.
        assert "cvt.rn.bf16" in ptx and ".local" not in ptx, fn.__name__
        assert compiled.asm["cubin"]
"""


@pytest.mark.slow
def test_the_kernels_compile_for_a_gpu_that_is_not_here():
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr

"""The compiled Triton kernels on a GPU against eager torch in float64. Skipped without a GPU."""

import pytest
import torch

import longcat.kernels as kernels
from longcat.kernels import dispatch
from longcat.kernels.proof import calls
from longcat.kernels.rmsnorm import eager as rmsnorm_eager
from longcat.kernels.swiglu import eager as swiglu_eager

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

CALLS = {n: call for n, call in calls.CALLS.items() if call.reads}
EPS = 1e-5
DTYPES = [torch.float32, torch.bfloat16]
SHAPES = [(3, 5, 12), (257, 6144), (1, 1), (9, 1536), (0, 8)]


def _gradients(function, operands, pull):
    operands = [operand.detach().requires_grad_() for operand in operands]
    y = function(*operands)
    return [y, *torch.autograd.grad(y, operands, pull.to(y.dtype))]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_rmsnorm_on_the_gpu(randn, check, shape, dtype):
    x, weight, pull = (randn(*s, dtype=dtype).cuda() for s in (shape, shape[-1:], shape))
    assert dispatch.choose("rmsnorm", x, weight, has_kernel=True) == "triton"
    got = _gradients(lambda x, w: kernels.rmsnorm(x, w, EPS), (x, weight), pull)
    want = _gradients(
        lambda x, w: rmsnorm_eager.rmsnorm(x, w, EPS), (x.double(), weight.double()), pull
    )
    for mine, true in zip(got, want, strict=True):
        assert check.error(mine, true) <= check.bound(dtype, max(shape[-1], 1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_swiglu_on_the_gpu(randn, check, shape, dtype):
    gate, up, pull = (randn(*shape, dtype=dtype).cuda() for _ in range(3))
    got = _gradients(kernels.swiglu, (gate, up), pull)
    want = _gradients(swiglu_eager.swiglu, (gate.double(), up.double()), pull)
    for mine, true in zip(got, want, strict=True):
        assert check.error(mine, true) <= check.bound(dtype)


def test_two_backward_passes_give_the_same_bits(randn):
    x, weight = randn(2048, 512).cuda().float(), randn(512).cuda().float()
    pull = randn(2048, 512).cuda().float()
    first, second = (
        _gradients(lambda x, w: kernels.rmsnorm(x, w, EPS), (x, weight), pull) for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_moe_path_agrees_with_float64(randn, check, dtype):
    x, gates = randn(65, 64).cuda(), randn(65, 3).abs().cuda()
    indices = randn(65, 8).cuda().argsort(1)[:, :3].contiguous()
    gate_up, down = randn(5, 64, 64).cuda() / 8, randn(5, 64, 32).cuda() / 6

    def moe(x, gate_up, down, gates):
        rows, plan = kernels.permute(x, indices, 5)
        y = kernels.experts(rows, gate_up, down, plan.offsets)
        return kernels.combine(y, plan, gates, indices, x, 5)

    operands = (x, gate_up, down, gates)
    pull = randn(65, 64).cuda()
    want = _gradients(moe, operands, pull)
    got = _gradients(moe, [t.to(dtype) for t in operands], pull)
    for mine, true in zip(got, want, strict=True):
        assert check.error(mine, true) <= check.bound(dtype, 64)


@pytest.mark.parametrize("op", CALLS)
def test_every_kernel_agrees_with_the_definition_at_a_small_call(check, op):
    operands = {name: tensor.cuda() for name, tensor in CALLS[op].operands().items()}
    with kernels.use_backend("triton"):
        got = CALLS[op](**operands)
    with kernels.use_backend("numpy"):
        want = CALLS[op](**CALLS[op].operands())
    half = any(tensor.dtype == torch.bfloat16 for tensor in operands.values())
    for mine, true in zip(got, want, strict=True):
        assert check.error(mine.float(), true.float()) <= (
            check.bound(torch.bfloat16) if half else 1e-3
        )

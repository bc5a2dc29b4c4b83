"""The gradient of the grouped products: numbers, traffic and writes under the interpreter."""

import pytest
import torch

import longcat.kernels as kernels
from longcat.kernels.experts import eager
from longcat.kernels.linear.tiles import Tile

pytest.importorskip("triton")

pytestmark = pytest.mark.usefixtures("interpreter", "poisoned")

# Small blocks, so that small shapes have several of them in each direction.
TILE = Tile(swap=False, outputs=32, tokens=16, inner=32, warps=4, stages=3)
COUNTS = [0, 1, 17, 0, 3]
BOUND = 8e-3  # of the norm: four roundings to bfloat16 on the longest way


@pytest.fixture
def triton_kernel(monkeypatch):
    from longcat.kernels.experts import triton_kernel

    monkeypatch.setattr(triton_kernel.gradients, "__defaults__", (TILE, TILE, TILE))
    return triton_kernel


def _operands(randn, counts=COUNTS, width=40, inner=32, tokens=13):
    slots, experts = sum(counts), len(counts)
    x = randn(tokens, width, dtype=torch.bfloat16)
    gate_up = (randn(experts, 2 * inner, width) / width**0.5).bfloat16()
    down = (randn(experts, width, inner) / inner**0.5).bfloat16()
    rows = (torch.arange(slots) * 7) % tokens
    return x, gate_up, down, torch.tensor(counts).cumsum(0).int(), rows


def _gradients(function, operands, pull):
    x, gate_up, down, offsets, rows = operands
    leaves = [t.detach().requires_grad_() for t in (x, gate_up, down)]
    y = function(*leaves, offsets, rows)
    return torch.autograd.grad(y, leaves, pull.to(y.dtype))


def _true(operands, pull):
    x, gate_up, down, *rest = operands
    return _gradients(eager.experts, (x.double(), gate_up.double(), down.double(), *rest), pull)


def _worst(check, got, want):
    return max(
        check.norm_error(mine, true) if true.any() else float(mine.abs().max())
        for mine, true in zip(got, want, strict=True)
        if true.numel()
    )


@pytest.mark.parametrize("gathered", [False, True])
@pytest.mark.parametrize("counts", [COUNTS, [3], [0, 0], [16, 2]], ids=sum)
def test_gradients_are_those_of_eager_torch_in_float64(
    triton_kernel, randn, check, counts, gathered
):
    operands = _operands(randn, counts, tokens=13 if gathered else sum(counts))
    if not gathered:
        operands = (*operands[:4], None)
    pull = randn(sum(counts), 40, dtype=torch.bfloat16)
    with kernels.use_backend("triton"):
        got = _gradients(kernels.experts, operands, pull)
    assert [t.dtype for t in got] == [torch.bfloat16] * 3
    assert _worst(check, got, _true(operands, pull)) <= BOUND


def test_ragged_widths_write_each_number_once_and_read_no_weight_of_an_idle_expert(
    triton_kernel, randn
):
    from longcat.kernels.proof.probe import probed

    operands = _operands(randn, width=50, inner=33, tokens=23)
    grad = randn(sum(COUNTS), 50, dtype=torch.bfloat16)
    with probed() as probe:
        _, _, of_down = triton_kernel.gradients(*operands, grad)
    probe.check_written_once()
    assert not of_down[[0, 3]].any()
    # Experts have 0, 1, 2, 0 and 1 blocks of 16 rows: a weight is read once for each.
    turned = [one for one in probe.launches if one.kernel == "_grouped_turned"]
    weights = (operands[2], operands[1])
    assert [one["weight_ptr"].loaded for one in turned] == [4 * w[0].nbytes for w in weights]
    # For a weight's gradient each row is read once per block of 32 columns of the other side.
    first, second = (one for one in probe.launches if one.kernel == "_weight_gradient")
    assert first["grad_ptr"].loaded == 2 * grad.nbytes  # 33 numbers of hidden are 2 blocks
    assert first["x_ptr"].loaded == 2 * 21 * 33 * 2  # 50 outputs are 2 blocks
    assert second["grad_ptr"].loaded == 2 * 21 * 66 * 2
    assert second["x_ptr"].loaded == 3 * 21 * 50 * 2


def test_rows_of_no_expert_get_zeros_and_poison_none(triton_kernel, randn, check):
    x, gate_up, down, offsets, _ = _operands(randn, [2, 3], tokens=8)
    grad, few = randn(8, 40, dtype=torch.bfloat16), offsets
    x[5:], grad[5:] = torch.nan, torch.nan
    got = triton_kernel.gradients(x, gate_up, down, few, None, grad)
    assert not got[0][5:].any()
    want = triton_kernel.gradients(x[:5], gate_up, down, few, None, grad[:5])
    assert torch.equal(got[0][:5], want[0])
    assert torch.equal(got[1], want[1])
    assert torch.equal(got[2], want[2])


def test_two_runs_give_the_same_bits(triton_kernel, randn):
    operands, grad = _operands(randn, [2, 17]), randn(19, 40, dtype=torch.bfloat16)
    first, again = (triton_kernel.gradients(*operands, grad) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_the_tiles_of_training_multiply_right(triton_kernel, randn, check):
    from longcat.kernels.experts import triton_gradient
    from longcat.kernels.experts.tiles import LARGE

    operands = _operands(randn, [40, 70], width=72, inner=40, tokens=50)
    grad = randn(110, 72, dtype=torch.bfloat16)
    tiles = LARGE, triton_gradient.TURNED, triton_gradient.WEIGHT
    got = triton_kernel.gradients(*operands, grad, *tiles)
    assert _worst(check, got, _true(operands, grad)) <= BOUND


@pytest.mark.parametrize(
    ("kernel", "old", "new"),
    [
        (
            "_weight_gradient",
            "tl.load(offsets_ptr + expert - 1, mask=expert > 0, other=0)",
            "0 * expert",
        ),
        (
            "_weight_gradient",
            "source = tl.load(rows_ptr + t, mask=t_inside, other=0)",
            "source = source",
        ),
        ("_grouped_turned", "expert.to(tl.int64) * expert_stride", "0 * expert.to(tl.int64)"),
        ("_through_swiglu", "(sigmoid + silu * (1.0 - sigmoid))", "sigmoid"),
    ],
    ids=["rows of other experts", "rows not gathered", "one weight for all", "a linear gate"],
)
def test_the_kernels_are_rejected_with(
    triton_kernel, randn, check, mutate, monkeypatch, kernel, old, new
):
    from longcat.kernels.experts import triton_gradient

    operands = _operands(randn, [3, 18], tokens=23)
    grad = randn(21, 40, dtype=torch.bfloat16)
    want = _true(operands, grad)
    assert _worst(check, triton_kernel.gradients(*operands, grad), want) <= BOUND
    broken = vars(mutate(triton_gradient, old, new))[kernel]
    monkeypatch.setattr(triton_gradient, kernel, broken)
    assert _worst(check, triton_kernel.gradients(*operands, grad), want) > 0.1

"""The FFN experts: agreement of every form, ragged and empty groups, gradients, autocast."""

import itertools
from contextlib import nullcontext

import pytest
import torch

from longcat.kernels import exact, experts, use_backend
from longcat.kernels.experts import batches, eager, loop, reference

# rows per expert, D, F; widths that grouped_mm takes and widths that it refuses
SHAPES = [
    ([3, 0, 5, 1], 8, 16),
    ([3, 0, 5, 1], 5, 7),
    ([0, 0], 8, 8),
    ([], 8, 8),
    ([9], 8, 4),
    ([0, 40, 0], 16, 8),
]


def _operands(randn, rows, width, inner, dtype=torch.float64):
    n_experts = len(rows)
    offsets = torch.tensor(rows, dtype=torch.int64).cumsum(0).int()
    x = randn(sum(rows), width, dtype=dtype)
    gate_up = randn(n_experts, 2 * inner, width, dtype=dtype)
    return x, gate_up, randn(n_experts, width, inner, dtype=dtype), offsets


def _definition(x, gate_up, down, offsets):
    return reference.experts(
        x.detach().double().numpy(), gate_up.detach().double().numpy(),
        down.detach().double().numpy(), offsets.numpy(),
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "width", "inner"), SHAPES)
def test_eager_agrees_with_the_definition(randn, check, rows, width, inner, dtype):
    operands = _operands(randn, rows, width, inner, dtype)
    want = _definition(*operands)
    assert check.error(experts(*operands), want) <= check.bound(dtype, width + inner)
    with use_backend("numpy"):
        assert check.error(experts(*operands), want) <= check.bound(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [[3, 0, 2], [40, 0, 60], []])
def test_rows_behind_the_last_experts_are_nobodys_in_every_form(randn, check, rows, dtype):
    x, gate_up, down, offsets = _operands(randn, rows, 8, 16, dtype)
    want = _definition(x, gate_up, down, offsets)
    longer = torch.cat([x, randn(3, 8, dtype=dtype)]).requires_grad_()
    modes = [nullcontext()] if dtype == torch.bfloat16 else [nullcontext(), exact()]
    for mode in modes:
        with mode:
            y = experts(longer, gate_up, down, offsets)
        assert y.shape == longer.shape
        assert check.error(y[: len(x)].detach(), want) <= check.bound(dtype, 24)
        (gradient,) = torch.autograd.grad(y[: len(x)].sum(), longer)
        assert gradient[: len(x)].isfinite().all()


@pytest.mark.parametrize(("rows", "width", "inner"), SHAPES)
def test_grouped_and_padded_forms_agree(randn, check, rows, width, inner):
    if not rows or not sum(rows):
        return
    x, gate_up, _, offsets = _operands(randn, rows, width, inner, torch.float32)
    padded = eager.padded_linear(x, gate_up, offsets)
    assert check.error(eager._grouped_linear(x, gate_up, offsets), padded) < 1e-5


def test_float32_of_even_widths_takes_grouped_mm_and_float64_does_not(randn):
    x, gate_up, _, _ = _operands(randn, [2], 8, 8, torch.float32)
    assert eager._grouped_mm_takes(x, gate_up)
    assert not eager._grouped_mm_takes(x.double(), gate_up.double())
    assert not eager._grouped_mm_takes(x[:, :6], gate_up[:, :, :6])


@pytest.mark.parametrize(("rows", "width", "inner"), SHAPES)
def test_gradients_pass_gradcheck(randn, rows, width, inner):
    x, gate_up, down, offsets = _operands(randn, rows, min(width, 5), min(inner, 4))
    operands = [x.requires_grad_(), gate_up.requires_grad_(), down.requires_grad_()]
    if sum(rows) > 10:
        return
    assert torch.autograd.gradcheck(lambda *o: experts(*o, offsets), operands)


@pytest.mark.parametrize(("rows", "width", "inner"), SHAPES)
def test_grouped_gradients_agree_with_float64(randn, check, rows, width, inner):
    x, gate_up, down, offsets = _operands(randn, rows, width, inner)
    pull = randn(*x.shape)
    gradients = {}
    for dtype in (torch.float64, torch.float32):
        operands = [t.detach().to(dtype).requires_grad_() for t in (x, gate_up, down)]
        (experts(*operands, offsets) * pull.to(dtype)).sum().backward()
        gradients[dtype] = [operand.grad for operand in operands]
    for got, want in zip(gradients[torch.float32], gradients[torch.float64], strict=True):
        assert check.error(got, want) <= check.bound(torch.float32, 64)


def test_a_plain_sum_has_a_gradient(randn):
    # Its gradient is an expanded scalar, which grouped_mm's own backward refuses.
    x, gate_up, down, offsets = _operands(randn, [3, 2], 8, 8, torch.float32)
    experts(x.requires_grad_(), gate_up.requires_grad_(), down, offsets).sum().backward()
    assert torch.isfinite(x.grad).all()


def test_an_expert_without_rows_gets_a_gradient_of_zeros(randn):
    x, gate_up, down, offsets = _operands(randn, [3, 0, 2], 8, 8, torch.float32)
    experts(x, gate_up.requires_grad_(), down.requires_grad_(), offsets).square().sum().backward()
    assert not gate_up.grad[1].any()
    assert not down.grad[1].any()
    assert gate_up.grad[0].any()


def test_padding_of_the_batched_form_reaches_no_gradient(randn):
    # Row 0 is what padding positions read: its gradient must be that of its own expert alone.
    x, gate_up, down, offsets = _operands(randn, [1, 4], 5, 3)
    gradient = torch.autograd.grad(experts(x.requires_grad_(), gate_up, down, offsets).sum(), x)[0]
    alone = torch.autograd.grad(experts(x[:1], gate_up[:1], down[:1], offsets[:1]).sum(), x)[0]
    assert torch.allclose(gradient[0], alone[0], rtol=1e-12)


@pytest.mark.parametrize(("rows", "width", "inner"), SHAPES)
def test_autocast_computes_in_its_dtype_and_gives_float32_gradients(
    randn, check, rows, width, inner
):
    operands = _operands(randn, rows, width, inner, torch.float32)
    weights = [operands[1].requires_grad_(), operands[2].requires_grad_()]
    with torch.autocast("cpu", torch.bfloat16):
        y = experts(operands[0], *weights, operands[3])
        mixed = experts(operands[0].bfloat16(), *weights, operands[3])
    assert y.dtype == mixed.dtype == torch.bfloat16
    assert torch.equal(y, mixed)
    assert check.error(y, _definition(*operands)) < 0.05
    y.sum().backward()
    assert weights[0].grad.dtype == torch.float32


def test_up_rows_first_is_caught(randn, check):
    x, gate_up, down, offsets = _operands(randn, [3, 4], 8, 8)
    mutant = torch.cat(gate_up.chunk(2, dim=1)[::-1], dim=1)
    want = _definition(x, gate_up, down, offsets)
    assert check.error(experts(x, mutant, down, offsets), want) > 0.01


def test_offsets_shifted_by_one_row_are_caught(randn, check):
    x, gate_up, down, offsets = _operands(randn, [3, 4], 8, 8)
    shifted = torch.tensor([2, 7], dtype=torch.int32)
    want = _definition(x, gate_up, down, offsets)
    assert check.error(experts(x, gate_up, down, shifted), want) > 0.01


def _by_hand(randn, rows, dtype):
    """(result and gradients of the form for many rows, the same of float64), one by one."""
    x, gate_up, down, offsets = _operands(randn, rows, 16, 8)
    pull = randn(*x.shape).to(dtype)
    many = FOR_MANY_ROWS[dtype]
    found = []
    for form, kind in ((many.experts, dtype), (experts, torch.float64)):
        operands = [t.to(dtype).to(kind).requires_grad_() for t in (x, gate_up, down)]
        y = form(*operands, offsets)
        y.backward(pull.to(kind))
        found.append([y.detach(), *(operand.grad for operand in operands)])
    return zip(*found, strict=True)


FOR_MANY_ROWS = {torch.float32: loop, torch.bfloat16: batches}
# enough rows for whole blocks: ragged groups, an empty one in front, between and behind
MANY = [[0, 70, 0, 33, 64, 95, 0], [loop.BLOCK] * 3, [1, 127]]


@pytest.mark.parametrize("dtype", FOR_MANY_ROWS)
@pytest.mark.parametrize("rows", MANY)
def test_many_rows_on_a_cpu_have_a_form_of_their_own_which_agrees_with_float64(
    randn, check, rows, dtype
):
    for kind, form in FOR_MANY_ROWS.items():
        taken = form.pays(torch.empty(sum(rows), 16, dtype=dtype), len(rows))
        assert taken == (kind == dtype)
    for got, want in _by_hand(randn, rows, dtype):
        assert check.error(got, want) <= check.bound(dtype, 64)


@pytest.mark.parametrize("dtype", FOR_MANY_ROWS)
def test_few_rows_and_float64_are_not_for_it(dtype):
    form = FOR_MANY_ROWS[dtype]
    assert form.pays(torch.empty(form.BLOCK * 3, 16, dtype=dtype), 3)
    assert not form.pays(torch.empty(form.BLOCK * 3 - 1, 16, dtype=dtype), 3)
    assert not form.pays(torch.empty(form.BLOCK * 3, 16, dtype=torch.float64), 3)


@pytest.mark.parametrize("form", FOR_MANY_ROWS.values())
def test_it_passes_gradcheck(randn, form):
    x, gate_up, down, offsets = _operands(randn, [3, 0, 5, 1], 5, 4)
    operands = [x.requires_grad_(), gate_up.requires_grad_(), down.requires_grad_()]
    assert torch.autograd.gradcheck(lambda *o: form.experts(*o, offsets), operands)


def test_the_loop_gives_products_that_onednn_takes(randn, check, monkeypatch):
    monkeypatch.setattr(loop, "SMALLEST", 1)
    for got, want in _by_hand(randn, MANY[0], torch.float32):
        assert check.error(got, want) <= check.bound(torch.float32, 64)


@pytest.mark.parametrize("dtype", FOR_MANY_ROWS)
def test_an_expert_without_rows_gets_a_gradient_of_zeros_there_too(randn, dtype):
    x, gate_up, down, offsets = _operands(randn, MANY[0], 16, 8, dtype)
    weights = [gate_up.requires_grad_(), down.requires_grad_()]
    FOR_MANY_ROWS[dtype].experts(x, *weights, offsets).sum().backward()
    for weight in weights:
        used = weight.grad.flatten(1).any(dim=1).tolist()
        assert used == [count > 0 for count in MANY[0]]


@pytest.mark.parametrize("rows", MANY)
def test_batches_cast_weights_as_they_gather_them_to_the_bits_of_a_cast_before(randn, rows):
    x, gate_up, down, offsets = _operands(randn, rows, 16, 8, torch.float32)
    pull = randn(*x.shape).bfloat16()
    found = []
    for early in (False, True):
        weights = [weight.clone().requires_grad_() for weight in (gate_up, down)]
        cast = [weight.bfloat16() for weight in weights] if early else weights
        y = batches.experts(x.bfloat16(), *cast, offsets)
        y.backward(pull)
        found.append([y.detach(), *(weight.grad for weight in weights)])
    assert found[0][1].dtype == torch.float32
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


@pytest.mark.parametrize("dtype", FOR_MANY_ROWS)
def test_what_fills_up_a_block_reaches_no_other_experts_result_or_gradient(randn, dtype):
    x, gate_up, down, offsets = _operands(randn, [70, 33, 64], 16, 8, dtype)
    pull = randn(*x.shape).to(dtype)
    found = []
    for scale in (1, 100):  # of what the second expert is given and gives back
        factor = torch.ones(len(x), 1, dtype=dtype)
        factor[70:103] *= scale
        operands = [t.clone().requires_grad_() for t in (x, gate_up, down)]
        y = FOR_MANY_ROWS[dtype].experts(operands[0] * factor, *operands[1:], offsets)
        y.backward(pull * factor)
        found.append([y.detach(), *(operand.grad for operand in operands)])
    for index, (one, other) in enumerate(zip(*found, strict=True)):
        mine = [0, 2] if index >= 2 else [*range(70), *range(103, 167)]
        assert torch.equal(one[mine], other[mine])
        assert not torch.equal(one, other)


def test_control_rows_in_their_neighbours_place_are_noticed(randn, check, monkeypatch):
    blocks = loop._blocks
    monkeypatch.setattr(loop, "_blocks", lambda *rows: blocks(*rows).roll(1, dims=0))
    errors = [check.error(*pair) for pair in _by_hand(randn, MANY[0], torch.float32)]
    assert max(errors) > 5 * check.bound(torch.float32)


def test_control_a_batch_given_to_its_neighbours_is_noticed(randn, check, monkeypatch):
    give = batches.Batch.give
    monkeypatch.setattr(
        batches.Batch, "give", lambda self, made, own: give(self, made.roll(1, dims=0), own)
    )
    errors = [check.error(*pair) for pair in _by_hand(randn, MANY[0], torch.bfloat16)]
    assert max(errors) > 5 * check.bound(torch.bfloat16)


def test_row_counts_in_whole_blocks_are_few_and_begin_with_the_experts_own(randn):
    rows, sizes = randn(9 * 31, 4), set()
    for first, last in ((0, 1), (5, 37), (3, 35), (100, 279), (270, 279)):
        block = loop._blocks(rows, slice(first, last))
        assert torch.equal(block[: last - first], rows[first:last])
        sizes.add(len(block))
    assert sizes == {loop.BLOCK, 6 * loop.BLOCK}


def test_batches_take_experts_of_like_many_rows_and_all_of_them_once():
    counts = [300, 7, 260, 0, 290, 255, 310, 257, 261, 31]
    found = batches.batches(counts)
    assert sorted(e for batch in found for e in batch.experts) == list(range(len(counts)))
    for batch, following in itertools.pairwise(found):
        most = max(counts[expert] for expert in batch.experts)
        assert most <= min(counts[expert] for expert in following.experts)
        assert 0 <= batch.fullest - most < batches.BLOCK

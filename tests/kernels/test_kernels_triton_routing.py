"""Router, permute and combine as Triton kernels: exact choices, order, traffic, single writes."""

import numpy as np
import pytest
import torch

import longcat.kernels as kernels
from longcat.kernels.permute import reference as permute_reference
from longcat.kernels.route import reference

pytest.importorskip("triton")

pytestmark = pytest.mark.usefixtures("interpreter", "poisoned")

# tokens, width, N, Z, K
SHAPES = [(11, 5, 4, 2, 3), (1, 1, 1, 0, 1), (0, 4, 3, 2, 2), (6, 3, 0, 4, 2), (7, 1030, 2, 3, 5)]


def _logits(randn, tokens, experts):
    return 2 * randn(tokens, experts, dtype=torch.float32), 0.02 * randn(experts).float()


@pytest.mark.parametrize(
    ("tokens", "n_ffn", "n_zero", "top_k"), [(9, 4, 2, 3), (1, 1, 0, 1), (0, 3, 2, 2), (5, 0, 5, 5)]
)
def test_the_router_agrees_with_the_definition_and_writes_once(
    randn, check, tokens, n_ffn, n_zero, top_k
):
    from longcat.kernels.proof.probe import probed

    logits, bias = _logits(randn, tokens, n_ffn + n_zero)
    mask = torch.arange(tokens) % 3 != 0
    operands = (logits, bias, top_k, 6.0, n_ffn, mask)
    with kernels.use_backend("triton"), probed() as probe:
        got = kernels.fused_route(*operands)
        assert torch.equal(kernels.route(*operands[:4])[1], got[1])
    want = reference.fused_route(logits.double().numpy(), bias.double().numpy(), *operands[2:5],
                                 mask.numpy())  # fmt: skip
    for mine, true in zip(got, want, strict=True):
        assert check.error(mine, true) <= 2e-6
    for mine, eager in zip(got, kernels.fused_route(*operands), strict=True):
        assert mine.dtype == eager.dtype
        assert check.error(mine, eager) <= 2e-6
    probe.check_written_once()
    assert probe.loaded(logits) == 2 * logits.nbytes  # of the two calls


def test_at_the_models_size_no_choice_differs_from_an_exact_sort_of_the_same_scores(randn):
    logits, bias = _logits(randn, 12, 768)
    with kernels.use_backend("triton"):
        scores, indices, gates = kernels.route(logits, bias, 12, 6.0)
    exact = np.argsort(-(scores + bias).numpy(), axis=-1, kind="stable")[:, :12]
    assert np.array_equal(indices, exact)
    assert torch.equal(gates, 6.0 * scores.gather(1, indices))


def test_equals_go_to_the_lowest_index_and_nan_stays_in_range():
    logits, bias = torch.zeros(3, 6), torch.zeros(6)
    logits[1, 2] = logits[1, 4] = 1.0
    logits[2] = torch.nan
    with kernels.use_backend("triton"):
        indices = kernels.route(logits, bias, 3, 1.0)[1]
    assert indices.tolist() == [[0, 1, 2], [2, 4, 0], [0, 1, 2]]
    bias[:] = -torch.inf
    with kernels.use_backend("triton"):
        assert kernels.route(logits[:1], bias, 6, 1.0)[1].tolist() == [[0, 1, 2, 3, 4, 5]]


def test_a_bias_that_reached_the_gate_is_caught(randn, check, mutate):
    from longcat.kernels.route import triton_kernel

    mutant = mutate(triton_kernel, "tl.where(here, scores, 0.0)", "tl.where(here, key, 0.0)")
    logits, bias = _logits(randn, 9, 6)
    want = reference.route(logits.double().numpy(), bias.double().numpy(), 3, 6.0)[2]
    assert check.error(triton_kernel.fused_route(logits, bias, 3, 6.0, 4)[2], want) < 2e-6
    assert check.error(mutant.fused_route(logits, bias, 3, 6.0, 4)[2], want) > 1e-3


def test_a_tie_that_goes_to_the_highest_index_is_caught(mutate):
    from longcat.kernels.route import triton_kernel

    mutant = mutate(
        triton_kernel,
        "tl.min(tl.where(left & (key == largest), experts, BLOCK), axis=0)",
        "tl.max(tl.where(left & (key == largest), experts, -1), axis=0)",
    )
    flat = torch.zeros(1, 6), torch.zeros(6)
    assert triton_kernel.fused_route(*flat, 2, 1.0, 4)[1].tolist() == [[0, 1]]
    assert mutant.fused_route(*flat, 2, 1.0, 4)[1].tolist() == [[5, 4]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("tokens", "width", "n_ffn", "n_zero", "top_k"), SHAPES)
def test_the_round_trip_agrees_with_the_definition_and_writes_once(
    randn, check, tokens, width, n_ffn, n_zero, top_k, dtype
):
    from longcat.kernels.proof.probe import probed

    x, gates = randn(tokens, width, dtype=dtype), randn(tokens, top_k, dtype=torch.float32)
    indices = randn(tokens, n_ffn + n_zero).argsort(dim=1)[:, :top_k].contiguous()
    want_rows, want = permute_reference.permute(x.double().numpy(), indices.numpy(), n_ffn)
    with kernels.use_backend("triton"), probed() as probe:
        rows, plan = kernels.permute(x, indices, n_ffn)
        y = randn(*rows.shape, dtype=dtype)
        out = kernels.combine(y, plan, gates, indices, x, n_ffn)
    assert check.error(rows, want_rows) == 0
    for name in ("slots", "tokens", "offsets"):
        assert np.array_equal(getattr(plan, name), getattr(want, name))
    true = permute_reference.combine(
        y.double().numpy(), want, gates.double().numpy(), indices.numpy(), x.double().numpy(), n_ffn
    )
    assert check.error(out, true) <= check.bound(dtype, top_k) / 4
    launches = [one for one in probe.launches if one.kernel != "_invert"]
    probe.launches[:] = launches  # the rows of identity slots are never written, and never read
    probe.check_written_once()


def test_combine_reads_each_row_once_and_x_only_where_an_identity_expert_was_chosen(randn):
    from longcat.kernels.proof.probe import probed

    x, gates = randn(5, 40, dtype=torch.bfloat16), randn(5, 2).float()
    indices = torch.tensor([[0, 1], [0, 3], [3, 4], [1, 0], [2, 1]])
    with kernels.use_backend("triton"), probed() as probe:
        rows, plan = kernels.permute(x, indices, 3)
        kernels.combine(rows, plan, gates, indices, x, 3)
    combine = probe["_combine"]
    assert combine["y_ptr"].loaded == rows.nbytes == 7 * 80
    assert combine["x_ptr"].loaded == 2 * 80  # tokens 1 and 2
    assert combine["rows_ptr"].loaded == 7 * 4
    assert probe["_gather"]["x_ptr"].loaded == probe["_gather"]["out_ptr"].stored == rows.nbytes


def test_a_slot_out_of_order_is_caught(randn, mutate):
    from longcat.kernels.permute import triton_kernel

    mutant = mutate(triton_kernel, "row + rank - 1, slots.to", "row + tl.sum(mine.to(tl.int32), "
                    "axis=0) - rank, slots.to")  # fmt: skip
    x, indices = randn(6, 4), torch.tensor([[0, 1]] * 6)
    right = triton_kernel.permute(x, indices, 2)[1].slots
    assert right.tolist() == [0, 2, 4, 6, 8, 10, 1, 3, 5, 7, 9, 11]
    assert not torch.equal(mutant.permute(x, indices, 2)[1].slots, right)


def test_identity_experts_that_are_forgotten_are_caught(randn, check, mutate):
    from longcat.kernels.permute import triton_kernel

    mutant = mutate(triton_kernel, "identity += tl.where(is_ffn, 0.0, gate)", "identity += 0.0")
    x, gates, indices = randn(4, 8).float(), randn(4, 2).float(), torch.tensor([[0, 2]] * 4)
    rows, plan = triton_kernel.permute(x, indices, 2)
    operands = (rows, plan, gates, indices, x, 2)
    want = kernels.combine(*operands)
    assert check.error(triton_kernel.combine(*operands), want) < 1e-6
    assert check.error(mutant.combine(*operands), want) > 0.01

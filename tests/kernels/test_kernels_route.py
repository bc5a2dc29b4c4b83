"""Routing: softmax over all experts, the bias only chooses, ties to the lowest index, counts."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from longcat.kernels import expert_counts, route, use_backend
from longcat.kernels.route import eager, reference


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("tokens", "n_experts", "top_k"), [(11, 6, 3), (1, 1, 1), (0, 5, 2), (7, 5, 5), (64, 24, 1)]
)
def test_eager_agrees_with_the_definition(randn, check, tokens, n_experts, top_k, dtype):
    logits, bias = randn(tokens, n_experts, dtype=dtype), 0.1 * randn(n_experts, dtype=dtype)
    scores, indices, gates = route(logits, bias, top_k, 6.0)
    want = reference.route(logits.double().numpy(), bias.double().numpy(), top_k, 6.0)
    assert check.error(scores, want[0]) <= check.bound(dtype)
    assert np.array_equal(indices, want[1])
    assert indices.dtype == torch.int64
    assert check.error(gates, want[2]) <= check.bound(dtype)
    with use_backend("numpy"):
        assert torch.equal(route(logits, bias, top_k, 6.0)[1], indices)


def test_the_bias_changes_the_choice_and_never_a_gate(randn):
    logits, bias = randn(9, 6), torch.tensor([0.9, 0, 0, 0, 0, 0], dtype=torch.float64)
    scores, indices, gates = route(logits, bias, 2, 3.0)
    assert (indices[:, 0] == 0).all()
    assert not (route(logits, bias * 0, 2, 3.0)[1][:, 0] == 0).all()
    assert torch.equal(gates, 3.0 * scores.gather(1, indices))
    mutant = 3.0 * (scores + bias).gather(1, indices)
    assert not torch.allclose(gates, mutant)


@pytest.mark.parametrize("backend", ["torch", "numpy"])
def test_a_choice_made_before_stands_and_its_gates_follow_the_scores(randn, backend):
    logits, bias = randn(9, 6), 0.1 * randn(6)
    _, first, _ = route(logits, bias, 2, 3.0)
    again = logits + randn(9, 6)
    with use_backend(backend):
        scores, indices, gates = route(again, bias, 2, 3.0, first)
        fresh = route(again, bias, 2, 3.0)[1]
    assert torch.equal(indices, first)
    assert not torch.equal(fresh, first)  # the control: this choice would have been another
    assert torch.equal(gates, 3.0 * scores.gather(1, first))
    want = reference.route(again.numpy(), bias.numpy(), 2, 3.0, first.numpy())
    np.testing.assert_allclose(gates.numpy(), want[2], rtol=1e-12)
    with pytest.raises(ValueError, match="chosen must have shape"):
        route(again, bias, 2, 3.0, first[:4])


def test_gates_are_not_renormalised(randn):
    scores, indices, gates = route(randn(9, 6), torch.zeros(6, dtype=torch.float64), 2, 1.0)
    assert (gates.sum(1) < 1).all()
    assert torch.allclose(scores.sum(1), torch.ones(9, dtype=torch.float64))
    mutant = gates / gates.sum(1, keepdim=True)
    assert not torch.allclose(mutant, scores.gather(1, indices))


@pytest.mark.parametrize("backend", ["torch", "numpy"])
def test_ties_go_to_the_lowest_index(backend):
    with use_backend(backend):
        # Long rows too: a sort that is stable by chance on few experts is not on many.
        for n_experts in (5, 24, 768):
            logits, bias = torch.zeros(4, n_experts), torch.zeros(n_experts)
            bias[3] = 0.5
            indices = route(logits, bias, 4, 1.0)[1]
            assert indices.tolist() == [[3, 0, 1, 2]] * 4


def test_topk_without_a_rule_for_ties_is_caught():
    scores = torch.full((4, 768), 1 / 768)
    assert torch.topk(scores, 4).indices.tolist() != [[0, 1, 2, 3]] * 4


@given(
    st.lists(
        st.lists(
            st.sampled_from([0.0, -0.0, 1.0, -1.0, 1e-40, -1e-40, 0.25, -3.5]),
            min_size=7,
            max_size=7,
        ),
        min_size=1,
        max_size=4,
    ),
    st.integers(1, 7),
)
def test_the_highest_are_those_of_a_stable_sort_for_values_of_any_sign(rows, count):
    values = torch.tensor(rows, dtype=torch.float32)
    order = torch.sort(values.double(), dim=-1, descending=True, stable=True).indices
    assert torch.equal(eager.highest(values, count), order[:, :count])
    assert torch.equal(eager.highest(values.double(), count), order[:, :count])


def test_control_bits_that_are_not_turned_over_below_zero_are_noticed():
    values = torch.tensor([[-1.0, -2.0, 0.5]])
    assert eager.highest(values, 3).tolist() == [[2, 0, 1]]
    assert values.view(torch.int32).argsort(descending=True).tolist() == [[2, 1, 0]]


def test_indices_come_by_descending_score_plus_bias(randn):
    logits, bias = randn(9, 6), 0.2 * randn(6)
    scores, indices, _ = route(logits, bias, 6, 1.0)
    keys = (scores + bias).gather(1, indices)
    assert (keys.diff(dim=1) <= 0).all()


def test_gradients_flow_through_gates_and_scores_and_not_to_the_bias(randn):
    bias = 0.1 * randn(6).requires_grad_()
    logits = randn(4, 6).requires_grad_()
    indices = route(logits, bias, 3, 2.0)[1]
    pull = randn(4, 3)

    def outputs(logits):
        scores, _, gates = route(logits, bias, 3, 2.0)
        return scores, gates

    assert torch.autograd.gradcheck(outputs, logits)
    got = torch.autograd.grad((route(logits, bias, 3, 2.0)[2] * pull).sum(), logits)[0]
    want = torch.autograd.grad(
        (2 * torch.softmax(logits, 1).gather(1, indices) * pull).sum(), logits
    )[0]
    assert torch.allclose(got, want, rtol=1e-12)
    assert not route(logits.detach(), bias, 3, 2.0)[2].requires_grad


def test_routing_stays_float32_under_autocast(randn):
    logits, bias = randn(5, 6, dtype=torch.float32), torch.zeros(6)
    with torch.autocast("cpu", torch.bfloat16):
        scores, _, gates = route(logits, bias, 2, 1.0)
    assert scores.dtype == gates.dtype == torch.float32
    assert torch.equal(scores, route(logits, bias, 2, 1.0)[0])


def test_extreme_logits_give_finite_scores():
    logits = torch.tensor([[1e4, -1e4, 0.0]])
    assert torch.isfinite(route(logits, torch.zeros(3), 3, 1.0)[0]).all()
    assert np.isfinite(reference.route(logits.double().numpy(), np.zeros(3), 3, 1.0)[0]).all()


def test_a_token_does_not_depend_on_its_neighbours(randn):
    logits, bias = randn(33, 24, dtype=torch.float32), randn(24, dtype=torch.float32) * 0.01
    together = route(logits, bias, 6, 6.0)
    for token in range(33):
        for got, want in zip(route(logits[token : token + 1], bias, 6, 6.0), together, strict=True):
            assert torch.equal(got[0], want[token])


@given(st.integers(0, 20), st.integers(1, 12), st.data())
def test_choices_are_distinct_and_gates_sum_to_the_chosen_mass(tokens, n_experts, data):
    top_k = data.draw(st.integers(1, n_experts))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    logits = torch.randn(tokens, n_experts, generator=generator, dtype=torch.float64)
    bias = torch.randn(n_experts, generator=generator, dtype=torch.float64)
    scores, indices, gates = route(logits, bias, top_k, 2.0)
    assert all(len(set(row)) == top_k for row in indices.tolist())
    chosen = torch.zeros_like(scores).scatter_(1, indices, 1.0)
    assert torch.allclose(gates.sum(1), 2 * (scores * chosen).sum(1))
    # No expert left out beats one that was taken.
    if top_k < n_experts and tokens:
        keys = scores + bias
        left_out = keys.masked_fill(chosen.bool(), -torch.inf).amax(1)
        assert (keys.gather(1, indices).amin(1) >= left_out).all()


@given(st.integers(0, 20), st.integers(1, 4), st.integers(1, 9), st.data())
def test_counts_are_of_unmasked_slots_and_sum_to_them(tokens, top_k, n_experts, data):
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    indices = torch.randint(n_experts, (tokens, top_k), generator=generator)
    mask = torch.rand(tokens, generator=generator) < 0.5
    for token_mask in (None, mask):
        counts = expert_counts(indices, n_experts, token_mask)
        kept = tokens if token_mask is None else int(mask.sum())
        assert counts.dtype == torch.int64
        assert int(counts.sum()) == kept * top_k
        numpy_mask = None if token_mask is None else mask.numpy()
        want = reference.expert_counts(indices.numpy(), n_experts, numpy_mask)
        assert np.array_equal(counts, want)
        with use_backend("numpy"):
            assert torch.equal(expert_counts(indices, n_experts, token_mask), counts)

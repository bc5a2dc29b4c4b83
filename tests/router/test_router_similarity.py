"""Pairwise similarity of the router's rows (report section 3.1.3)."""

import math

import numpy as np
import pytest
import torch

from longcat.router import reference, router_similarity


def rows(seed=0, experts=7, width=5):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(experts, width)))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("experts", [2, 3, 24])
def test_torch_agrees_with_the_definition(seed, experts):
    w = rows(seed, experts)
    w[0] *= 1e-3  # lengths must not matter
    assert router_similarity(w) == pytest.approx(
        reference.router_similarity(w.numpy()), rel=1e-9, abs=1e-15
    )


@pytest.mark.parametrize("mutant", ["without unit length", "pairs with itself", "mean of all"])
def test_control_means_that_are_not_over_pairs_of_unit_rows_differ(mutant):
    w = rows()
    unit = w / w.norm(dim=-1, keepdim=True)
    experts = len(w)
    wrong = {
        "without unit length": ((w @ w.T).sum() - (w * w).sum()) / (experts * (experts - 1)),
        "pairs with itself": (unit @ unit.T).mean(),
        "mean of all": (unit @ unit.T).sum() / (experts * (experts - 1)),
    }[mutant]
    assert abs(float(wrong) - reference.router_similarity(w.numpy())) > 1e-3


def test_known_values():
    one = torch.ones(4, 3)
    assert router_similarity(one) == pytest.approx(1.0)
    assert router_similarity(torch.eye(4)) == pytest.approx(0.0)
    simplex = torch.eye(4, dtype=torch.float64) - 0.25
    assert router_similarity(simplex) == pytest.approx(-1 / 3)
    assert math.isnan(router_similarity(torch.ones(1, 3)))
    assert math.isnan(reference.router_similarity(np.ones((1, 3))))


def test_a_row_of_zeros_is_like_nothing():
    w = rows()
    w[2] = 0
    assert router_similarity(w) == pytest.approx(reference.router_similarity(w.numpy()), rel=1e-9)

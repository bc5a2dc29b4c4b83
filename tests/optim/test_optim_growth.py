"""Claims about growth by stacking."""

import numpy as np
import pytest
import torch

from longcat.optim import reference, source_layer, stacked_names, stacked_rows

NAMES = [
    "model.embed_tokens.weight",
    "model.layers.0.mlp.router.classifier.weight",
    "model.layers.1.mlp.router.classifier.weight",
    "model.layers.2.mlp.router.classifier.weight",
    "model.mtp.layers.0.eh_proj.weight",
    "lm_head.weight",
]


@pytest.mark.parametrize("times", [1, 2, 3])
def test_layer_j_starts_as_layer_j_mod_n(times):
    small = [np.full(2, float(i)) for i in range(3)]
    values = dict(zip(NAMES[1:4], small, strict=True))
    grown = {new: values[old] for new, old in stacked_names(values, 3, times)}
    want = reference.grow(small, times)
    assert len(grown) == len(want) == 3 * times
    for layer, value in enumerate(want):
        name = f"model.layers.{layer}.mlp.router.classifier.weight"
        np.testing.assert_array_equal(grown[name], value)
        assert source_layer(layer, 3) == int(value[0])


def test_the_stack_is_repeated_and_not_each_layer():
    order = [int(v[0]) for v in reference.grow([np.array([0.0]), np.array([1.0])], 2)]
    assert order == [0, 1, 0, 1]
    assert order != [0, 0, 1, 1]  # the interleaved rule


def test_what_is_no_layer_is_carried_over_once():
    grown = dict(stacked_names(NAMES, 3, 2))
    for name in (
        "model.embed_tokens.weight",
        "model.mtp.layers.0.eh_proj.weight",
        "lm_head.weight",
    ):
        assert grown[name] == name
    assert len(grown) == 3 + 6


def test_keys_that_only_contain_a_layer_name_are_stacked_too():
    grown = dict(stacked_names(["exp_avg/model.layers.1.a.weight"], 2, 2))
    assert set(grown) == {"exp_avg/model.layers.1.a.weight", "exp_avg/model.layers.3.a.weight"}


def test_rows_per_layer_are_repeated_as_the_stack_is():
    rows = torch.arange(6).view(3, 2)
    assert stacked_rows(rows, 2)[:, 0].tolist() == [0, 2, 4, 0, 2, 4]


def test_impossible_requests_are_named():
    with pytest.raises(ValueError, match="times must be at least 1; got 0"):
        list(stacked_names(NAMES, 3, 0))
    with pytest.raises(ValueError, match="is of layer 2, the model has 2"):
        list(stacked_names(NAMES, 2, 2))

"""Claims about width transfer: the report's table, row by row."""

import pytest
import torch
from torch import nn

from longcat.optim import (
    adamw,
    learning_rate_factor,
    parameter_groups,
    role_of,
    set_learning_rate,
    variance_factor,
    width_ratio,
)

NAMES = {
    "model.embed_tokens.weight": "embedding",
    "model.mtp.embed_tokens.weight": "embedding",
    "model.layers.0.mlps.0.gate_proj.weight": "hidden",
    "model.layers.0.mlp.router.classifier.weight": "hidden",
    "model.layers.0.mlp.experts.gate_up_proj": "hidden",
    "lm_head.weight": "unembedding",
    "model.norm.weight": "vector",
}


class Named(nn.Module):
    """Parameters under the checkpoint's names."""

    def __init__(self):
        super().__init__()
        for name in NAMES:
            dims = (2,) if "norm" in name else (3, 2)
            self.register_parameter(name.replace(".", "/"), nn.Parameter(torch.ones(dims)))

    def named_parameters(self, *args, **kwargs):
        return [(n.replace("/", "."), p) for n, p in super().named_parameters(*args, **kwargs)]


def test_every_parameter_has_its_role():
    for name, parameter in Named().named_parameters():
        assert role_of(name, parameter.ndim) == NAMES[name]


def test_the_report_s_ratio_is_eight():
    assert width_ratio(6144, 768) == 8
    with pytest.raises(ValueError, match="widths must be positive"):
        width_ratio(0, 768)


@pytest.mark.parametrize("factor", [learning_rate_factor, variance_factor])
def test_hidden_and_unembedding_shrink_by_s_and_the_embedding_does_not(factor):
    assert [factor(r, 8.0) for r in ("embedding", "vector")] == [1.0, 1.0]
    assert [factor(r, 8.0) for r in ("hidden", "unembedding")] == [1 / 8, 1 / 8]


def test_groups_learn_at_their_share_of_the_schedule():
    model = Named()
    optimizer = adamw(model, lr=0.1, weight_decay=0.5, width_ratio=4.0)
    rates = {}
    for lr in (0.1, 0.02):
        set_learning_rate(optimizer, lr)
        by_id = {id(p): g for g in optimizer.param_groups for p in g["params"]}
        rates[lr] = {n: by_id[id(p)]["lr"] for n, p in model.named_parameters()}
        for name, role in NAMES.items():
            share = 1 / 4 if role in ("hidden", "unembedding") else 1
            assert rates[lr][name] == pytest.approx(lr * share)
            decay = by_id[id(dict(model.named_parameters())[name])]["weight_decay"]
            assert decay == (0.0 if role == "vector" else 0.5)
    # The control: without a transfer all learn alike.
    plain = parameter_groups(Named().named_parameters(), 0.5)
    assert {group["lr_factor"] for group in plain} == {1.0}

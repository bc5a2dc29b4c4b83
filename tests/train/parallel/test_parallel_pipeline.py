"""A model cut by layers gives the gradients, the loss and the counts of the uncut one."""

import runpy
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from longcat.flash import FlashModel
from longcat.optim import hidden_z_loss

KIT = runpy.run_path(str(Path(__file__).parents[1] / "conftest.py"))
PARTS, WINDOW = 4, 12


def made(layers):
    model = FlashModel(KIT["make_config"](num_layers=layers), dtype=torch.float64, seed=0)
    model.balance.alpha, model.balance.scale = 0.05, 1 / PARTS
    for layer in model.model.layers:  # biases that matter, so that choices are not the scores'
        bias = layer.mlp.router.e_score_correction_bias
        bias.copy_(torch.linspace(-0.02, 0.02, len(bias)))
    return model


def batch():
    ids = torch.from_numpy(KIT["make_ids"](count=PARTS * (WINDOW + 2))).view(PARTS, -1)
    return ids[:, :-2], ids[:, 1:-1], ids[:, 2:]


def loss(outputs, targets):
    """Next token, token after next, and hidden z-loss; denominators are the whole batch's."""
    logits, last_layer, drafts = outputs
    next_ids, after_next = targets.unbind(dim=-1)
    main = cross_entropy(logits.flatten(0, 1), next_ids.flatten(), reduction="sum")
    draft = cross_entropy(drafts.flatten(0, 1), after_next.flatten(), reduction="sum")
    everything = PARTS * WINDOW
    return (main + 0.3 * draft) / everything + hidden_z_loss(last_layer, 1e-3) / PARTS


def uncut(layers):
    model, total, counts = made(layers), 0.0, 0
    for ids, next_ids, after_next in zip(*(part.split(1) for part in batch()), strict=True):
        output = model(ids)
        drafts = model.mtp(output.hidden, next_ids)[0]
        targets = torch.stack([next_ids, after_next], dim=-1)
        value = loss((output.logits, output.last_layer, drafts), targets)
        value.backward()
        total, counts = total + float(value.detach()), counts + output.counts
    return total, counts, {name: p.grad for name, p in model.named_parameters()}


def on_a_rank(layers, mutant):
    from longcat.train.parallel.pipeline import Pipeline

    model = made(layers)
    if mutant == "balance loss left to the last stage":
        for layer in model.model.layers[:-1]:
            layer.mlp.balance = type(model.balance)()
    pipeline = Pipeline(model, loss, micro_batches=PARTS, batch=1, seq_len=WINDOW)
    ids, next_ids, after_next = batch()
    targets = torch.stack([next_ids, after_next], dim=-1)
    total, counts = pipeline.step(ids, next_ids, targets)
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return float(total), counts, gradients


def compare(ranks, layers, mutant=None):
    """Largest relative difference of any gradient; every parameter belongs to one process."""
    total, counts, want = uncut(layers)
    answers = ranks(2, __file__, "on_a_rank", layers, mutant)
    held = [name for answer in answers for name in answer[2]]
    assert sorted(held) == sorted(want)
    for got_total, got_counts, _ in answers:
        assert got_total == pytest.approx(total, abs=1e-12)
        assert torch.equal(got_counts, counts)
    got = answers[0][2] | answers[1][2]
    return max(
        float((got[n] - g).abs().max() / g.abs().max().clamp(min=1e-30)) for n, g in want.items()
    )


def test_the_cut_model_has_the_gradients_of_the_whole_one(ranks):
    """Four stages of two processes; five layers, so that the stages are not equally long."""
    assert compare(ranks, 5) < 1e-8


def test_control_a_balance_loss_that_is_not_attached_where_it_arises_is_noticed(ranks):
    assert compare(ranks, 4, "balance loss left to the last stage") > 1e-3


def few(layers, parts):
    from longcat.train.parallel.pipeline import Pipeline

    try:
        Pipeline(made(layers), loss, micro_batches=parts, batch=1, seq_len=WINDOW)
    except ValueError as error:
        return str(error)


def test_too_few_layers_or_micro_batches_are_refused(ranks):
    message, _ = ranks(2, __file__, "few", 2, 4)
    assert "2 processes make 4 stages" in message
    assert "got 2 layers and 4 micro-batches" in message

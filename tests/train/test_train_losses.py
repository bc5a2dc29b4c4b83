"""The whole objective of a step against losses written out by hand, at two micro-batches."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from longcat.flash import FlashModel
from longcat.optim import hidden_z_loss
from longcat.router import balance_loss, reference
from longcat.train import step as step_module
from longcat.train.trainer import Trainer

WEIGHTS = {"mtp_weight": 0.3, "z_loss_weight": 1e-2, "balance_weight": 0.05, "micro_batches": 2}


def by_hand(model, whole, settings):
    """d(objective)/d(parameters) over the batch [B,T], each micro-batch's balance loss its own."""
    bos = 1
    total = torch.zeros((), dtype=torch.float64)
    halves = [slice(0, 2), slice(2, 4)]
    n_main = int((whole.next_ids != bos).sum())
    n_mtp = int((whole.after_next != bos).sum())
    for half in halves:
        ids, nxt, after = (
            torch.from_numpy(a[half]) for a in (whole.inputs, whole.next_ids, whole.after_next)
        )
        output = model(ids, output_router=True)
        main = cross_entropy(output.logits.flatten(0, 1), nxt.flatten(), reduction="none")
        total = total + main[nxt.flatten() != bos].sum() / n_main
        logits, _ = model.mtp(output.hidden, nxt)
        mtp = cross_entropy(logits.flatten(0, 1), after.flatten(), reduction="none")
        total = total + settings.mtp_weight * mtp[after.flatten() != bos].sum() / n_mtp
        total = total + hidden_z_loss(output.last_layer, settings.z_loss_weight) / 2
        for routing in output.router:
            loss, _ = balance_loss(routing.scores, routing.indices, model.config.router, 1)
            total = total + settings.balance_weight * loss / 2
    total.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters()}


def difference(kit):
    """Largest deviation of a trainer's gradient from that by hand, over the largest entry."""
    settings = kit.settings(precision="float64", grad_clip=1e9, lr=1e-9, **WEIGHTS)
    trainer = kit.trainer(settings)
    model = FlashModel(kit.config(), dtype=torch.float64, seed=settings.seed)
    want = by_hand(model, trainer.windows.batch(0), settings)
    trainer.train_step()
    got = {n: p.grad for n, p in trainer.model.named_parameters()}
    return max(
        float((got[n] - g).abs().max() / g.abs().max().clamp(min=1e-30)) for n, g in want.items()
    )


def test_a_step_s_gradient_is_that_of_the_objective(kit):
    assert difference(kit) < 1e-9


def test_control_a_balance_loss_not_shared_among_micro_batches_is_noticed(kit, monkeypatch):
    made = Trainer.__init__

    def unscaled(self, *args, **kwargs):
        made(self, *args, **kwargs)
        self.model.balance.scale = 1.0

    monkeypatch.setattr(Trainer, "__init__", unscaled)
    assert difference(kit) > 1e-3


@pytest.mark.parametrize("mutant", ["hidden before the norm", "the next token as target"])
def test_control_another_mtp_objective_is_noticed(kit, monkeypatch, mutant):
    if mutant == "the next token as target":
        run = step_module.forward_backward

        def mistaken(model, batch, *args, **kwargs):
            wrong = type(batch)(
                inputs=batch.inputs, next_ids=batch.next_ids, after_next=batch.next_ids
            )
            run(model, wrong, *args, **kwargs)

        monkeypatch.setattr("longcat.train.trainer.forward_backward", mistaken)
        assert difference(kit) > 1e-3
        return
    settings = kit.settings(precision="float64", grad_clip=1e9, lr=1e-9, **WEIGHTS)
    trainer = kit.trainer(settings)
    model = FlashModel(kit.config(), dtype=torch.float64, seed=settings.seed)
    # hnorm hides a rescaling of the hidden state; a final norm whose weight varies does not.
    for each in (model, trainer.model):
        with torch.no_grad():
            each.model.norm.weight.copy_(torch.linspace(0.5, 1.5, 32))
    want = by_hand(model, trainer.windows.batch(0), settings)
    drafted = trainer.model.mtp
    norm = trainer.model.model.norm.weight
    monkeypatch.setattr(
        trainer.model, "mtp", lambda h, *more, **named: drafted(h / norm, *more, **named)
    )
    trainer.train_step()
    got = dict(trainer.model.named_parameters())
    name = "model.mtp.layers.0.eh_proj.weight"
    assert float((got[name].grad - want[name]).abs().max() / want[name].abs().max()) > 1e-3


def test_r_g_at_two_micro_batches_is_that_of_the_definition(kit):
    settings = kit.settings(precision="float64", **WEIGHTS)
    trainer = kit.trainer(settings)
    model = FlashModel(kit.config(), dtype=torch.float64, seed=settings.seed)
    whole = trainer.windows.batch(0)
    n_main = int((whole.next_ids != 1).sum())
    pulls, frequencies = np.zeros((2, 16)), []
    for half in (slice(0, 2), slice(2, 4)):
        output = model(torch.from_numpy(whole.inputs[half]), output_router=True)
        nxt = torch.from_numpy(whole.next_ids[half]).flatten()
        losses = cross_entropy(output.logits.flatten(0, 1), nxt, reduction="none")
        loss = losses[nxt != 1].sum() / n_main
        gradients = torch.autograd.grad(loss, [r.scores for r in output.router])
        pulls += np.stack([g.sum(0).numpy() for g in gradients])
        frequencies.append(
            [
                reference.balance_loss(
                    r.scores.detach().numpy(), r.indices.numpy(), n_ffn=8, target_ffn=3, groups=1
                ).f
                for r in output.router
            ]
        )
    record = trainer.train_step()
    for layer in range(2):
        f = np.mean([half[layer] for half in frequencies], axis=0)
        for key, centred in (("r_g", False), ("r_g_centred", True)):
            want = reference.router_gradient_ratio(
                pulls[layer], f, alpha=0.05, n_ffn=8, groups=1, centred=centred
            )
            assert record[key][layer] == pytest.approx(want, rel=1e-9)


def test_the_gradient_of_the_logits_takes_their_memory_where_nothing_is_measured(kit, monkeypatch):
    asked = []
    run = step_module.cross_entropy

    def noted(*args, in_place, **kwargs):
        asked.append(in_place)
        return run(*args, in_place=in_place, **kwargs)

    monkeypatch.setattr(step_module, "cross_entropy", noted)
    trainer = kit.trainer(kit.settings(precision="float64", measure_every=2, **WEIGHTS))
    trainer.train_step()
    trainer.train_step()
    # Two micro-batches with two heads each: a step that is measured, and one that is not.
    assert asked == [False] * 4 + [True] * 4

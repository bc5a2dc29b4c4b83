"""What a step does by its number: learning rate, clipping, accumulation, freezing of the bias."""

import itertools
import json
import math

import numpy as np
import pytest
import torch

from longcat.optim import reference
from longcat.train.directory import RunDirectory
from longcat.train.errors import RunError
from longcat.train.exchange import Exchange
from longcat.train.loop import Silent, begin, run
from longcat.train.prepare import prepare, reopen
from longcat.train.session import resume_run
from longcat.train.settings import TrainSettings


def rates(kit, **changes):
    trainer = kit.trainer(kit.settings(lr=1.0, **changes))
    found = []
    for step in range(trainer.settings.steps):
        trainer.step = step
        found.append(trainer.learning_rate)
    return np.array(found)


def test_a_cosine_run_peaks_at_the_end_of_warm_up_and_follows_the_definition(kit):
    got = rates(kit, steps=100, warmup_steps=10, schedule="cosine")
    assert got[:10] == pytest.approx(np.arange(1, 11) / 10)
    progress = np.arange(100) / 100
    assert got[10:] == pytest.approx(reference.cosine(progress, warmup=0.1, final=0.0)[10:])
    assert got[55] == pytest.approx(0.5)
    assert 0 < got[99] < 1e-3
    assert not np.allclose(got, rates(kit, steps=100, warmup_steps=10))  # wsd is another


def test_a_cosine_under_a_time_budget_follows_elapsed_time(kit):
    settings = kit.settings(steps=None, time_budget=100.0, warmup_steps=1, schedule="cosine")
    trainer = kit.trainer(settings)
    trainer.step = 50
    for seconds, share in ((0, 1.0), (50, 0.5), (100, 0.0)):
        trainer.seconds = seconds
        assert trainer.learning_rate == pytest.approx(settings.lr * share)


def gradient(kit, parts, **changes):
    """The flat gradient of the first step over one batch cut into `parts` micro-batches."""
    settings = kit.settings(micro_batches=parts, grad_clip=1e9, **changes)
    tokens = kit.ids()
    # <s> is in no loss, so micro-batches hold unequal numbers of targets.
    tokens[np.random.default_rng(5).random(len(tokens)) < 0.2] = 1
    trainer = kit.trainer(settings, tokens=tokens)
    captured = []
    trainer.optimizer.step = lambda: captured.append(trainer.pieces.gradients.clone())
    trainer.train_step()
    return captured[0], trainer


def relative(a, b):
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize(("precision", "bound"), [("float64", 1e-12), ("float32", 1e-5)])
def test_four_micro_batches_give_the_gradient_of_one(kit, precision, bound):
    """All but the balance loss: z-loss and both cross entropies are means over equal shares."""
    shared = {"precision": precision, "balance_weight": 0.0, "z_loss_weight": 1e-2}
    one, _ = gradient(kit, 1, **shared)
    four, _ = gradient(kit, 4, **shared)
    assert relative(four, one) < bound


def test_with_the_balance_loss_the_difference_is_that_loss_alone(kit):
    """It is a product of two means over the tokens it sees, so it differs by micro-batch."""
    shared = {"precision": "float64", "balance_weight": 0.5}
    one, whole = gradient(kit, 1, **shared)
    four, cut = gradient(kit, 4, **shared)
    assert relative(four, one) > 1e-4

    def of_balance(trainer):
        """The flat gradient of the attached balance losses: with them minus without."""
        parts = trainer.settings.micro_batches
        return (
            gradient(kit, parts, **shared)[0]
            - gradient(kit, parts, **{**shared, "balance_weight": 0.0})[0]
        )

    assert relative(four - of_balance(cut), one - of_balance(whole)) < 1e-10


def test_control_a_mean_of_means_is_rejected(kit, monkeypatch):
    """Each micro-batch divided by its own targets, then averaged: wrong where they differ."""
    from longcat.train import trainer as trainer_module
    from longcat.train.step import count_targets

    shared = {"precision": "float64", "balance_weight": 0.0}
    one, _ = gradient(kit, 1, **shared)
    right = trainer_module.forward_backward

    def mistaken(model, batch, targets, settings, *args, **kwargs):
        own = count_targets(batch, 1)
        four = type(own)(main=4 * own.main, mtp=4 * own.mtp)
        right(model, batch, four, settings, *args, **kwargs)

    monkeypatch.setattr(trainer_module, "forward_backward", mistaken)
    four, _ = gradient(kit, 4, **shared)
    assert relative(four, one) > 1e-4


def test_clipping_scales_the_whole_gradient_to_its_limit(kit):
    def norm_used(limit):
        trainer = kit.trainer(kit.settings(grad_clip=limit))
        used = []
        trainer.optimizer.step = lambda: used.append(float(trainer.pieces.gradients.norm()))
        record = trainer.train_step()
        return used[0], record["grad_norm"]

    used, norm = norm_used(1e9)
    assert used == pytest.approx(norm)
    used, again = norm_used(norm / 3)
    assert used == pytest.approx(norm / 3, rel=1e-4)
    assert again == norm  # what is reported is the norm before clipping


def biases(trainer):
    layers = trainer.model.model.layers
    return torch.stack([layer.mlp.router.e_score_correction_bias for layer in layers]).clone()


def test_a_frozen_bias_moves_until_its_step_and_never_after(kit):
    trainer = kit.trainer(kit.settings(freeze_bias_at=3))
    seen = [biases(trainer)]
    for _ in range(6):
        trainer.train_step()
        seen.append(biases(trainer))
    moved = [not torch.equal(a, b) for a, b in itertools.pairwise(seen)]
    assert moved == [True, True, True, False, False, False]
    assert trainer.controller.step == 3


def started(kit, path, **changes):
    directory = RunDirectory(path)
    prepared = prepare(directory, kit.corpus(), kit.settings(**changes), kit.config())
    begin(directory, prepared)
    return directory, prepared


def cut_and_resumed(kit, path, at, **changes):
    """A run stopped after `at` steps and resumed from its directory, and the same run uncut."""
    whole_dir, prepared = started(kit, path / "whole", **changes)
    whole = run(whole_dir, prepared, Exchange(), Silent())
    cut_dir, prepared = started(kit, path / "cut", **changes)
    asked = iter(step + 1 >= at for step in range(1000))
    run(cut_dir, prepared, Exchange(), Silent(), stopping=lambda: next(asked))
    saved = json.loads((cut_dir.latest() / "trainer.json").read_text())
    assert saved["step"] == at
    return whole, run(cut_dir, reopen(cut_dir), Exchange(), Silent()), saved


@pytest.mark.parametrize("at", [2, 4])
def test_a_resumed_run_stays_frozen_from_the_same_step_on(kit, tmp_path, at):
    whole, resumed, saved = cut_and_resumed(kit, tmp_path, at, steps=6, freeze_bias_at=3)
    assert saved["controller"]["frozen"] == (at > 3)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name
    assert resumed.controller.frozen


def test_control_a_resume_that_thaws_the_bias_is_noticed(kit, tmp_path):
    whole, _, _ = cut_and_resumed(kit, tmp_path, 4, steps=6, freeze_bias_at=3)
    thawed = kit.trainer(kit.settings(steps=6))
    thawed.controller.load_state_dict({**whole.controller.state_dict(), "frozen": False})
    before = biases(thawed)
    thawed.train_step()
    assert not torch.equal(biases(thawed), before)


def test_a_cosine_run_resumes_to_the_same_bits(kit, tmp_path):
    whole, resumed, _ = cut_and_resumed(kit, tmp_path, 3, steps=6, schedule="cosine")
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schedule": "linear"}, "--schedule must be wsd or cosine; got linear"),
        ({"decay": 1.5}, "--decay is a fraction of the run, 0 to 1; got 1.5"),
        ({"warmup_steps": -1}, "--warmup-steps must not be negative; got -1"),
        ({"freeze_bias_at": -2}, "--freeze-bias-at must not be negative; got -2"),
        ({"grad_clip": 0.0}, "--grad-clip must be positive; got 0.0"),
        ({"grad_clip": math.nan}, "--grad-clip must be positive; got nan"),
        ({"micro_batches": 3}, "8 windows cannot be cut into 3 equal micro-batches"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, words):
    with pytest.raises(RunError, match=words):
        TrainSettings(steps=10, **changes)


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"schedule": "cosine"}, "schedule is 'wsd', not 'cosine'"),
        ({"freeze_bias_at": 2}, "freeze_bias_at is None, not 2"),
        ({"grad_clip": 2.0}, "grad_clip is 1.0, not 2.0"),
        ({"micro_batches": 1}, "micro_batches is 2, not 1"),
        ({"document_mask": True}, "document_mask is False, not True"),
    ],
)
def test_a_run_cannot_go_on_under_another_rule(kit, tmp_path, wanted, words):
    started(kit, tmp_path / "run")
    with pytest.raises(RunError, match=words):
        resume_run(tmp_path / "run", wanted, say=lambda _: None)

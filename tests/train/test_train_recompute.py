"""Training with recomputation: every bit of the state and of the metrics is as without it."""

import pytest
import torch

from longcat.train import trainer as trainer_module
from longcat.train.directory import RunDirectory
from longcat.train.errors import RunError
from longcat.train.exchange import Exchange
from longcat.train.loop import Silent, begin, run
from longcat.train.memory import estimate_bytes
from longcat.train.metrics import TIMED_FIELDS
from longcat.train.prepare import prepare, reopen
from longcat.train.session import resume_run
from longcat.train.settings import TrainSettings

KINDS = ["layer", "layer-reentrant"]


def after_steps(kit, kind, steps=3, **changes):
    settings = kit.settings(recompute=kind, measure_every=2, balance_weight=1e-2, **changes)
    trainer = kit.trainer(settings)
    records = [trainer.train_step() for _ in range(steps)]
    return trainer, [{k: v for k, v in r.items() if k not in TIMED_FIELDS} for r in records]


def state(trainer):
    tensors = {f"model/{n}": t for n, t in trainer.model.state_dict().items()}
    for name, parameter in trainer.model.named_parameters():
        for key, value in trainer.optimizer.state[parameter].items():
            tensors[f"{key}/{name}"] = value
    tensors["controller"] = trainer.controller.error
    return tensors


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", ["float64", "float32", "bf16"])
def test_three_steps_give_the_bits_of_three_steps_without(kit, kind, precision):
    plain, lines = after_steps(kit, "none", precision=precision)
    trainer, again = after_steps(kit, kind, precision=precision)
    assert again == lines  # counts, R_g, losses, gradient norms
    wanted, got = state(plain), state(trainer)
    for name, tensor in wanted.items():
        assert torch.equal(got[name], tensor), name


@pytest.mark.parametrize("kind", KINDS)
def test_with_documents_kept_apart_too(kit, kind):
    plain, lines = after_steps(kit, "none", document_mask=True)
    trainer, again = after_steps(kit, kind, document_mask=True)
    assert again == lines
    wanted, got = state(plain), state(trainer)
    assert all(torch.equal(got[name], tensor) for name, tensor in wanted.items())


def test_control_a_balance_loss_attached_in_both_runs_is_noticed(kit, monkeypatch):
    """What adding the loss once per run of the layer would do: its gradient doubles."""
    plain, _ = after_steps(kit, "none", steps=1)
    right = trainer_module.forward_backward

    def twice(model, *args, **kwargs):
        scale = model.balance.scale
        model.balance.scale = 2 * scale
        right(model, *args, **kwargs)
        model.balance.scale = scale

    monkeypatch.setattr(trainer_module, "forward_backward", twice)
    doubled, _ = after_steps(kit, "layer", steps=1)
    wanted, got = state(plain), state(doubled)
    assert not all(torch.equal(got[name], tensor) for name, tensor in wanted.items())


def test_control_counts_doubled_are_noticed_in_the_metrics(kit, monkeypatch):
    """The bias law divides by the sum of counts and shrugs; the slots per token do not."""
    plain, _ = after_steps(kit, "none", steps=1)
    from longcat.train import step as step_module

    right = step_module._add_sums

    def twice(output, documents, tally):
        right(output, documents, tally)
        tally.counts += output.counts

    monkeypatch.setattr(step_module, "_add_sums", twice)
    doubled, _ = after_steps(kit, "layer", steps=1)
    biases = [n for n in state(plain) if n.endswith("correction_bias")]
    assert all(torch.equal(state(plain)[n], state(doubled)[n]) for n in biases)
    tokens = plain.tokens_seen
    assert plain.tally.counts.sum(1).tolist() == [4 * tokens] * 2
    assert doubled.tally.counts.sum(1).tolist() == [8 * tokens] * 2


def test_a_run_may_go_on_with_recomputation_and_to_the_same_bits(kit, tmp_path):
    """It changes memory and time alone, so it is one of the settings a resume may change."""

    def started(name):
        directory = RunDirectory(tmp_path / name)
        settings = kit.settings(steps=6, save_every=3)
        prepared = prepare(directory, kit.corpus(), settings, kit.config())
        begin(directory, prepared)
        return directory, prepared

    directory, prepared = started("whole")
    whole = run(directory, prepared, Exchange(), Silent())
    directory, prepared = started("cut")
    asked = iter([False, False, True])
    run(directory, prepared, Exchange(), Silent(), stopping=lambda: next(asked, True))
    resume_run(directory.path, {"recompute": "layer"}, say=lambda _: None)
    reopened = reopen(directory)
    assert reopened.settings.recompute == "layer"
    resumed = run(directory, reopened, Exchange(), Silent())
    wanted, got = state(whole), state(resumed)
    assert all(torch.equal(got[name], tensor) for name, tensor in wanted.items())


def test_the_preflight_estimate_counts_one_layer(kit):
    deep = kit.config(num_layers=8)
    plain = estimate_bytes(deep, kit.settings())
    assert estimate_bytes(deep, kit.settings(recompute="layer")) < plain
    assert estimate_bytes(deep, kit.settings(recompute="layer-reentrant")) < plain


def test_another_word_is_refused():
    with pytest.raises(RunError, match="--recompute must be one of none, layer, layer-reentrant"):
        TrainSettings(steps=1, recompute="all")

"""Claims about the end of a run: its published biases hold the target, its snapshot stays."""

import pytest
import torch

from longcat.flash import FlashModel
from longcat.flash.checkpoint import save_checkpoint
from longcat.train.directory import RunDirectory
from longcat.train.loop import Silent, begin
from longcat.train.prepare import prepare
from longcat.train.session import finish, resume_run, train_run
from longcat.train.settle import count_slots, settle_run

BIAS = "e_score_correction_bias"


@pytest.fixture
def ended(kit, tmp_path):
    """A run of 12 steps, and its trainer."""

    def make(**changes):
        directory = RunDirectory(tmp_path / "run")
        settings = kit.settings(steps=12, **changes)
        begin(directory, prepare(directory, kit.corpus(), settings, kit.config()))
        session = resume_run(directory.path, {}, processes=1, say=lambda _: None)
        trainer, _ = train_run(session, Silent())
        return session, trainer

    return make


def off_target(model, trainer, first=1_000, batches=12):
    """Each layer's largest |mean FFN experts / K_e - 1| over batches the run never counted."""
    with torch.no_grad():
        counts = sum(count_slots(model, trainer, first + i) for i in range(batches))
    used = counts[:, :8].sum(dim=1) / counts.sum(dim=1) * 4
    return float((used / 3 - 1).abs().max())


def test_biases_far_from_what_the_weights_need_are_settled(ended, monkeypatch):
    session, trainer = ended()
    path = session.directory.path
    model = FlashModel.from_pretrained(path)
    for layer in model.model.layers:
        layer.mlp.router.e_score_correction_bias[:8] += 0.05
    save_checkpoint(model, path)
    assert off_target(model, trainer) > 0.1  # the control: unsettled
    monkeypatch.setattr(trainer, "step", 48 * 6)  # as after a longer run
    told = settle_run(trainer, path)
    assert told["steps"] == 48
    assert off_target(FlashModel.from_pretrained(path), trainer) < 0.02


def test_a_run_publishes_settled_biases_and_its_snapshot_keeps_those_of_training(
    ended, monkeypatch
):
    session, trainer = ended()
    monkeypatch.setattr("longcat.train.session.summarise", lambda d, p, training, **_: training)
    monkeypatch.setattr("longcat.train.session.write_report", lambda path, summary: None)
    summary = finish(session, trainer, say=lambda _: None)
    assert summary["settled"]["steps"] == 2
    published, snapshot = (
        FlashModel.from_pretrained(f).state_dict()
        for f in (session.directory.path, session.directory.latest())
    )
    moved = {n for n, t in snapshot.items() if not torch.equal(t, published[n])}
    assert moved
    assert all(n.endswith(BIAS) for n in moved)
    trained = trainer.model.state_dict()
    assert all(torch.equal(t, trained[n]) for n, t in snapshot.items())


@pytest.mark.parametrize(
    "changes",
    [{"freeze_bias_at": 3}, {"mu": 0.0, "mu_final": 0.0, "mu_mean": None}],
    ids=["frozen", "no gain"],
)
def test_biases_that_training_left_alone_are_left_alone(ended, changes):
    session, trainer = ended(**changes)
    before = FlashModel.from_pretrained(session.directory.path).state_dict()
    settle_run(trainer, session.directory.path)
    after = FlashModel.from_pretrained(session.directory.path).state_dict()
    assert all(torch.equal(t, after[n]) for n, t in before.items())


def test_settling_twice_from_the_same_end_gives_the_same_bits(ended):
    session, trainer = ended(precision="float64", document_mask=True)
    path = session.directory.path
    unsettled = (path / "model.safetensors").read_bytes()
    settle_run(trainer, path)
    first = (path / "model.safetensors").read_bytes()
    assert first != unsettled
    (path / "model.safetensors").unlink()
    (path / "model.safetensors").write_bytes(unsettled)
    settle_run(trainer, path)
    assert (path / "model.safetensors").read_bytes() == first

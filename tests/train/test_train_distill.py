"""Claims about the MTP-only phase: the head alone learns, from the frozen model's own choices."""

import numpy as np
import pytest
import torch

from longcat.flash import FlashModel
from longcat.train.directory import RunDirectory
from longcat.train.distill import DistillSettings, distill_loss, distill_mtp
from longcat.train.errors import RunError
from longcat.train.loop import Silent, begin
from longcat.train.prepare import prepare
from longcat.train.session import finish, resume_run, train_run

SETTINGS = {"steps": 12, "window": 24, "prompt": 8, "pool": 12, "refresh": 2, "lr": 5e-3}


def settings(**changes):
    return DistillSettings(**{**SETTINGS, "corpus_windows": 4, "own_windows": 4, **changes})


def model_of(kit, seed=0):
    # A head of deviation 0.3 gives a model that has opinions, which is what is to be learned.
    return FlashModel(kit.config(initializer_range=0.3), seed=seed)


def test_the_head_learns_what_the_model_says_and_nothing_else_moves(kit):
    model = model_of(kit)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    records = []
    distill_mtp(model, kit.ids(), settings(steps=60), records.append)
    moved = {n for n, t in model.state_dict().items() if not torch.equal(t, before[n])}
    assert moved
    assert all(n.startswith("model.mtp.") and "embed_tokens" not in n for n in moved)
    assert [r.step for r in records] == list(range(1, 61))
    first, last = (np.mean([r.loss for r in part]) for part in (records[:6], records[-6:]))
    assert last < first - 0.05
    own = [np.mean([r.agreement_own for r in part]) for part in (records[:6], records[-6:])]
    assert own[1] > own[0]
    assert all(p.requires_grad for p in model.parameters())


def test_the_same_seed_gives_the_same_bits(kit):
    heads = []
    for seed in (0, 0, 1):
        model = model_of(kit)
        distill_mtp(model, kit.ids(), settings(seed=seed))
        heads.append(model.model.mtp.layers[0].eh_proj.weight.detach())
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


@pytest.mark.parametrize(("late", "agrees"), [(1, True), (0, False), (2, False)])
def test_the_teacher_of_position_i_is_the_model_at_i_plus_1(kit, monkeypatch, late, agrees):
    """A head that says what the model says `late` places on is perfect for 1 alone."""
    model = model_of(kit).double()
    ids = torch.from_numpy(kit.ids(count=48)).view(2, 24)
    with torch.no_grad():
        output = model(ids)
        monkeypatch.setattr(
            model, "mtp", lambda hidden, next_ids: (output.logits.roll(-late, 1)[:, :-2], None)
        )
        loss, agreement = distill_loss(model, ids, output.hidden, 1.0)
    assert bool(agreement.all()) is agrees
    entropy = torch.distributions.Categorical(logits=output.logits[:, 1:-1]).entropy().mean()
    assert (abs(loss.item() - entropy.item()) < 1e-5) is agrees


def test_a_run_publishes_the_taught_head_and_keeps_the_trained_one_to_go_on_from(kit, tmp_path):
    directory = RunDirectory(tmp_path / "run")
    prepared = prepare(directory, kit.corpus(), kit.settings(steps=2), kit.config())
    begin(directory, prepared)
    wanted = {"distill_steps": 3}
    session = resume_run(directory.path, wanted, processes=1, say=lambda _: None)
    trainer, _ = train_run(session, Silent())
    summary = finish(session, trainer, say=lambda _: None)
    assert summary["distilled"]["settings"]["steps"] == 3
    published, snapshot = (
        FlashModel.from_pretrained(f).state_dict() for f in (directory.path, directory.latest())
    )
    moved = {n for n, t in snapshot.items() if not torch.equal(t, published[n])}
    assert moved
    assert all(n.startswith("model.mtp.") for n in moved)
    trained = trainer.model.state_dict()
    assert all(torch.equal(t, trained[n]) for n, t in snapshot.items())


def test_what_cannot_be_distilled_is_named(kit):
    with pytest.raises(RunError, match="has no MTP head"):
        distill_mtp(FlashModel(kit.config(num_nextn_predict_layers=0)), kit.ids(), settings())
    with pytest.raises(RunError, match="at least one window of 24 tokens, got 10"):
        distill_mtp(model_of(kit), kit.ids(count=10), settings())
    with pytest.raises(RunError, match="prompt must lie inside the window"):
        settings(prompt=24)
    with pytest.raises(RunError, match="must be positive"):
        settings(steps=0)

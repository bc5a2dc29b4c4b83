"""Claims about width transfer in training: what the table changes, and that nothing else does."""

import pytest
import torch

from longcat.train.directory import RunDirectory
from longcat.train.errors import RunError
from longcat.train.loop import begin
from longcat.train.prepare import model_config, prepare
from longcat.train.transfer import transferred_settings


@pytest.fixture(scope="module")
def proxy(kit, tmp_path_factory):
    """A run at width 128, saved at step 0."""
    path = tmp_path_factory.mktemp("transfer") / "proxy"
    settings = kit.settings(steps=3, vocab_size=300, lr=0.004)
    prepared = prepare(RunDirectory(path), kit.corpus(), settings)
    begin(RunDirectory(path), prepared)
    return path


def test_only_width_and_rates_change(proxy, kit):
    target = transferred_settings(proxy, {"width": 256, "steps": 7, "seed": 5})
    assert (target.width, target.width_ratio, target.steps, target.seed) == (256, 2.0, 7, 5)
    same = ("preset", "lr", "batch_size", "seq_len", "vocab_size", "mtp_weight", "warmup_steps")
    proxy_settings = kit.settings(steps=3, vocab_size=300, lr=0.004)
    assert all(getattr(target, n) == getattr(proxy_settings, n) for n in same)
    config = model_config(target)
    assert config.hidden_size == 256
    assert config.num_layers == 2


def test_the_target_learns_by_the_table(proxy, kit):
    target = transferred_settings(proxy, {"width": 256})
    trainer = kit.trainer(target, config=model_config(target))
    trainer.train_step()
    rates = {g["lr_factor"]: g["lr"] for g in trainer.optimizer.param_groups}
    assert set(rates) == {1.0, 0.5}
    assert rates[0.5] == pytest.approx(rates[1.0] / 2)
    slow = {
        id(p) for g in trainer.optimizer.param_groups if g["lr_factor"] == 0.5 for p in g["params"]
    }
    assert id(trainer.model.lm_head.weight) in slow
    assert id(trainer.model.model.embed_tokens.weight) not in slow
    plain = kit.trainer()
    assert {g["lr_factor"] for g in plain.optimizer.param_groups} == {1.0}  # the control


def test_hidden_matrices_move_half_as_far_in_the_first_step(proxy, kit):
    """Adam's first step is the learning rate in every coordinate, whatever the gradient."""
    target = transferred_settings(proxy, {"width": 256})
    trainer = kit.trainer(target, config=model_config(target))
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    lr = trainer.learning_rate
    trainer.train_step()
    for name, share in (("lm_head.weight", 0.5), ("model.embed_tokens.weight", 1.0)):
        after = dict(trainer.model.named_parameters())[name].detach()
        decayed = before[name] * (1 - lr * share * trainer.settings.weight_decay)
        assert torch.median((after - decayed).abs()[after != decayed]).item() == pytest.approx(
            lr * share, rel=0.05
        )


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({}, "give the target's --width, a multiple of the proxy's 128"),
        ({"width": 256, "lr": 0.1}, "lr come from the proxy"),
        ({"width": 256, "batch_size": 3, "preset": "bench"}, "--preset, --batch-size"),
    ],
)
def test_what_the_transfer_decides_cannot_be_given(proxy, wanted, words):
    with pytest.raises(RunError, match=words):
        transferred_settings(proxy, wanted)


def test_a_place_without_a_run_is_named(tmp_path):
    with pytest.raises(RunError, match="expected a run with a saved snapshot"):
        transferred_settings(tmp_path, {"width": 256})

"""A draft head with a mixture: its router is moved too, counted once, saved and grown."""

import runpy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from longcat.train.directory import RunDirectory
from longcat.train.errors import RunError
from longcat.train.exchange import Exchange
from longcat.train.growth import grow_run
from longcat.train.loop import Silent, begin, make_trainer, run
from longcat.train.metrics import read_metrics
from longcat.train.parallel.layout import Layout
from longcat.train.prepare import model_config, prepare, reopen
from longcat.train.snapshot import read_snapshot

KIT = runpy.run_path(str(Path(__file__).parent / "conftest.py"))


def config():
    return KIT["make_config"](nextn_use_scmoe=True)


def trainer(**changes):
    settings = KIT["make_settings"](mtp_layer="scmoe", **changes)
    return KIT["make_trainer"](settings, config=config())


def test_the_drafts_router_follows_the_controllers_law():
    one = trainer()
    assert len(one.routers) == 3
    line = one.train_step()
    counts = one.tally.draft_counts
    tokens, top_k, target = 4 * 24, 4, 3
    assert counts.sum() == tokens * top_k
    assert line["mtp_ffn_experts_mean"] == pytest.approx(float(counts[:8].sum()) / tokens)
    error = target / (top_k * 8) - counts[:8] / counts.sum()
    bias = one.routers[-1].e_score_correction_bias
    gain = one.controller.gains.mu
    assert torch.allclose(bias[:8].double(), gain * error, rtol=1e-5, atol=1e-9)
    assert bias[:8].any()
    assert not bias[8:].any()


def test_a_dense_head_has_no_such_router():
    one = KIT["make_trainer"]()
    assert len(one.routers) == 2
    assert one.train_step()["mtp_ffn_experts_mean"] is None
    assert not one.tally.draft_counts.any()


def used(**changes):
    """FFN experts per token in the draft head over the last of many steps."""
    one = trainer(steps=60, mu_steps=60, **changes)
    return [one.train_step()["mtp_ffn_experts_mean"] for _ in range(60)][-20:]


def test_the_draft_head_comes_to_its_target_and_without_the_controller_it_does_not():
    held = used(mu=2.0)
    assert sum(held) / len(held) == pytest.approx(3.0, rel=0.03)
    left = used(freeze_bias_at=0)
    assert abs(sum(left) / len(left) - 3.0) > 0.3


@pytest.mark.parametrize("kind", ["layer", "layer-reentrant"])
def test_recomputation_counts_the_draft_once(kind):
    kept, made_again = trainer(), trainer(recompute=kind)
    for _ in range(2):
        kept.train_step()
        made_again.train_step()
        assert torch.equal(kept.tally.draft_counts, made_again.tally.draft_counts)
    for a, b in zip(kept.model.parameters(), made_again.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_run_with_it_resumes_to_the_bit_and_grows(tmp_path):
    settings = KIT["make_settings"](steps=4, save_every=2, keep=9, mtp_layer="scmoe")
    directory = RunDirectory(tmp_path / "run")
    begin(directory, prepare(directory, KIT["make_corpus"](), settings, config()))
    whole = run(directory, reopen(directory), Exchange(), Silent())
    directory.rewind(2)
    again = run(directory, reopen(directory), Exchange(), Silent())
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name
    assert torch.equal(whole.controller.error, again.controller.error)
    assert read_metrics(directory.path)[-1]["mtp_ffn_experts_mean"] > 0
    grow_run(directory.path, tmp_path / "deep", 2)
    deep = RunDirectory(tmp_path / "deep")
    grown = make_trainer(reopen(deep), Exchange())
    read_snapshot(grown, deep.latest())
    assert len(grown.routers) == 5
    error = whole.controller.error
    assert torch.equal(grown.controller.error, torch.cat([error[:2], error[:2], error[2:]]))


def test_the_setting_decides_the_model():
    settings = KIT["make_settings"](mtp_layer="scmoe")
    assert model_config(settings).mtp_layer == "scmoe"
    assert model_config(replace(settings, mtp_layer="dense")).mtp_layer == "dense"
    assert not model_config(replace(settings, mtp_weight=0.0)).has_mtp
    with pytest.raises(RunError, match="--mtp-layer must be dense or scmoe; got wide"):
        replace(settings, mtp_layer="wide")


def on_a_rank(layout):
    """Losses, and the draft's counts and biases after three steps."""
    import torch.distributed as dist

    world = dist.get_world_size() if dist.is_initialized() else 1
    exchange = Exchange(dist.get_rank() if world > 1 else 0, world, Layout(**layout))
    settings = KIT["make_settings"](precision="float64", mtp_layer="scmoe", micro_batches=4)
    deep = KIT["make_config"](nextn_use_scmoe=True, num_layers=4)
    one = KIT["make_trainer"](settings, config=deep, exchange=exchange)
    losses = [one.train_step()["mtp_loss"] for _ in range(3)]
    bias = one.routers[-1].e_score_correction_bias.clone()
    return losses, one.tally.draft_counts.clone(), bias


@pytest.mark.slow
@pytest.mark.parametrize("layout", [{}, {"fsdp": True}, {"expert_parallel": 2}, {"pipeline": True}])
def test_two_processes_move_it_alike_in_every_layout(ranks, layout):
    losses, counts, bias = on_a_rank({})
    for other_losses, other_counts, other_bias in ranks(2, __file__, "on_a_rank", layout):
        assert other_losses == pytest.approx(losses, abs=1e-9)
        assert torch.equal(other_counts, counts)
        assert torch.equal(other_bias, bias)

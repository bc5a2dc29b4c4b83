"""Claims about grown runs: the whole stack repeated, all training state kept, training goes on."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from longcat.flash import FlashModel, reference
from longcat.train.directory import RunDirectory
from longcat.train.errors import RunError
from longcat.train.exchange import Exchange
from longcat.train.growth import grow_model, grow_run
from longcat.train.loop import Silent, begin, make_trainer, run
from longcat.train.metrics import read_metrics
from longcat.train.prepare import prepare, reopen
from longcat.train.session import finish, resume_run, train_run
from longcat.train.snapshot import read_snapshot


@pytest.fixture(scope="module")
def small(kit, tmp_path_factory):
    """A finished run of 4 steps and 2 layers."""
    directory = RunDirectory(tmp_path_factory.mktemp("grow") / "small")
    prepared = prepare(directory, kit.corpus(), kit.settings(steps=4), kit.config())
    begin(directory, prepared)
    run(directory, prepared, Exchange(), Silent())
    return directory


@torch.no_grad()
@pytest.mark.parametrize("times", [2, 3])
def test_the_grown_model_is_the_small_stack_run_repeatedly(kit, times):
    model = FlashModel(kit.config(), seed=0).double()
    grown = grow_model(model, times)
    ids = np.arange(4, 20)
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    config = model.config.to_hf()
    x = weights["model.embed_tokens.weight"][ids]
    for _ in range(times):
        for layer in range(2):
            x, _ = reference.block(weights, f"model.layers.{layer}", config, x, np.arange(len(ids)))
    got = grown(torch.from_numpy(ids)[None]).last_layer[0].numpy()
    np.testing.assert_allclose(got, x, atol=1e-12)
    # The control: repeating each layer in place is another model.
    x = weights["model.embed_tokens.weight"][ids]
    for layer in sorted(list(range(2)) * times):
        x, _ = reference.block(weights, f"model.layers.{layer}", config, x, np.arange(len(ids)))
    assert np.abs(got - x).max() > 1e-3


def test_all_training_state_is_kept(small, tmp_path):
    config = grow_run(small.path, tmp_path / "grown", 2)
    assert config.num_layers == 4
    before, after = small.latest(), RunDirectory(tmp_path / "grown").latest()
    assert before.name == after.name == "step-00000004"
    for name in ("settings.json", "tokenizer.json"):
        assert (before / name).read_bytes() == (after / name).read_bytes()
    was, now = (json.loads((p / "trainer.json").read_text()) for p in (before, after))
    # The losses that a next step is judged by were another model's.
    assert now == {**was, "mean_loss": None, "watch": {}}
    assert was["watch"]["losses"]
    old, new = (load_file(folder / "optimizer.safetensors") for folder in (before, after))
    for key in ("exp_avg", "exp_avg_sq"):
        for layer in range(4):
            name = "mlps.0.gate_proj.weight"
            source = old[f"{key}/model.layers.{layer % 2}.{name}"]
            assert torch.equal(new[f"{key}/model.layers.{layer}.{name}"], source)
    errors = old["controller/error"]
    assert torch.equal(new["controller/error"], torch.cat([errors, errors]))
    grown, source = (FlashModel.from_pretrained(f).state_dict() for f in (after, before))
    bias = "mlp.router.e_score_correction_bias"
    assert torch.equal(grown[f"model.layers.3.{bias}"], source[f"model.layers.1.{bias}"])
    assert grown[f"model.layers.3.{bias}"].any()
    assert len(read_metrics(tmp_path / "grown")) == 4


def test_a_grown_run_goes_on_training(small, kit, tmp_path):
    grow_run(small.path, tmp_path / "grown", 2)
    directory = RunDirectory(tmp_path / "grown")
    settings = kit.settings(steps=7)
    directory.replace_settings(directory.latest(), settings.to_json())
    trainer = run(directory, reopen(directory), Exchange(), Silent())
    assert trainer.step == 7
    assert trainer.tokens_seen == 7 * 4 * 24
    records = read_metrics(directory.path)
    assert [r["step"] for r in records] == list(range(1, 8))
    assert [len(r["ffn_experts_mean"]) for r in records] == [2] * 4 + [4] * 3
    state = trainer.model.state_dict()
    name = "mlps.0.gate_proj.weight"
    # Both copies of a layer see different inputs, so they part with the first step.
    assert not torch.equal(state[f"model.layers.0.{name}"], state[f"model.layers.2.{name}"])


def test_the_report_of_a_grown_run_shows_layers_of_both_sizes(small, tmp_path):
    grow_run(small.path, tmp_path / "grown", 2)
    session = resume_run(tmp_path / "grown", {"steps": 6}, processes=1, say=lambda _: None)
    trainer, interrupted = train_run(session, Silent())
    assert not interrupted
    summary = finish(session, trainer, say=lambda _: None)
    assert len(summary["held_out"]["ffn_experts_mean"]) == 4
    report = (tmp_path / "grown" / "report.html").read_text()
    assert "layer 2" in report
    assert "layer 4" in report


def test_a_bare_checkpoint_is_grown_without_state(small, tmp_path):
    FlashModel.from_pretrained(small.path).save_pretrained(tmp_path / "bare")
    config = grow_run(tmp_path / "bare", tmp_path / "grown", 3)
    assert config.num_layers == 6
    assert json.loads((tmp_path / "grown/config.json").read_text())["num_layers"] == 6
    assert FlashModel.from_pretrained(tmp_path / "grown").config == config
    assert not (tmp_path / "grown/state").exists()


def test_the_source_is_left_as_it_was(small, tmp_path):
    files = {p: p.read_bytes() for p in small.path.rglob("*") if p.is_file()}
    grow_run(small.path, tmp_path / "grown", 2)
    assert files == {p: p.read_bytes() for p in small.path.rglob("*") if p.is_file()}


def test_a_place_in_use_and_impossible_times_are_refused(small, tmp_path):
    with pytest.raises(RunError, match="already holds a run"):
        grow_run(small.path, small.path, 2)
    with pytest.raises(ValueError, match="--times must be at least 2; got 1"):
        grow_run(small.path, tmp_path / "x", 1)
    assert not (tmp_path / "x").exists()


def test_a_damaged_state_leaves_nothing_behind(small, tmp_path):
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(small.path, broken)
    (RunDirectory(broken).latest() / "optimizer.safetensors").write_bytes(b"x")
    with pytest.raises(RunError, match="cannot be read"):
        grow_run(broken, tmp_path / "grown", 2)
    assert not (tmp_path / "grown").exists()


def test_the_grown_run_resumes_into_a_deeper_trainer(small, tmp_path):
    grow_run(small.path, tmp_path / "grown", 2)
    directory = RunDirectory(tmp_path / "grown")
    trainer = make_trainer(reopen(directory), Exchange())
    read_snapshot(trainer, directory.latest())
    assert trainer.controller.error.shape[0] == 4
    assert trainer.step == 4

"""The exactness grid: its cheap rows hold, and a broken promise is an error, not a figure."""

from dataclasses import replace

import pytest

from longcat.cli.benchmarks import exactness_runs as runs
from longcat.cli.benchmarks.exactness import EQUAL, cases, row_of

COLUMNS = ("loss", "gradients", "bias", "counts", "RNG", "data cursor")


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(runs, "STEPS", 3)
    monkeypatch.setattr(runs, "SETTINGS", replace(runs.SETTINGS, seq_len=16))


def case(start):
    return next(c for c in cases() if c.name.startswith(start))


def test_resuming_changes_no_bit_of_anything():
    row = row_of(case("resume"))
    assert {row[column] for column in COLUMNS} == {EQUAL}


def test_resuming_after_growth_changes_no_bit_of_anything():
    row = row_of(case("growth"))
    assert {row[column] for column in COLUMNS} == {EQUAL}


@pytest.mark.parametrize("kind", ["recompute layer", "recompute layer-reentrant"])
def test_recomputing_activations_changes_no_bit_of_anything(kind):
    row = row_of(next(c for c in cases() if c.name == kind))
    assert {row[column] for column in COLUMNS} == {EQUAL}


def test_accumulation_moves_the_last_bits_and_no_choice():
    row = row_of(case("accumulation"))
    assert row["counts"] == row["bias"] == row["data cursor"] == EQUAL
    assert row["gradients"] != EQUAL
    assert float(row["gradients"]) < 1e-12


@pytest.mark.parametrize("mutant", ["moments forgotten", "biases forgotten", "a draw in a step"])
def test_control_a_broken_promise_is_an_error(monkeypatch, mutant):
    if mutant == "a draw in a step":
        import torch

        step = runs.Trainer.train_step
        monkeypatch.setattr(runs.Trainer, "train_step", lambda self: (torch.rand(1), step(self))[1])
    else:
        read = runs.read_snapshot

        def forgetful(trainer, snapshot):
            read(trainer, snapshot)
            if mutant == "moments forgotten":
                trainer.optimizer.state.clear()
            else:
                for layer in trainer.model.model.layers:
                    layer.mlp.router.e_score_correction_bias.zero_()

        monkeypatch.setattr(runs, "read_snapshot", forgetful)
    with pytest.raises(ValueError, match="exactness: resume breaks its promise"):
        row_of(case("resume"))


def test_every_layout_of_the_guide_has_a_row():
    names = " ".join(c.name for c in cases())
    for part in ("resume", "accumulation", "growth", "EP 2", "EP 4", "FSDP 1", "FSDP 2"):
        assert part in names
    assert "pipeline 2" in names
    assert all("4" not in c.name for c in cases(processes=(2,)) if c.name.startswith(("EP", "FS")))


@pytest.mark.slow
def test_the_whole_grid_holds():
    for each in cases():
        row_of(each)

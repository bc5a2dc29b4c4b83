"""A run whose model is cut by layers over its processes trains what one process trains."""

import runpy
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from longcat.train.directory import SHARDED, RunDirectory
from longcat.train.errors import RunError
from longcat.train.exchange import Exchange
from longcat.train.loop import Silent, begin, run, work
from longcat.train.metrics import TIMED_FIELDS
from longcat.train.parallel.layout import Layout
from longcat.train.prepare import prepare, reopen

KIT = runpy.run_path(str(Path(__file__).parents[1] / "conftest.py"))
PIPELINE = Layout(pipeline=True)


def train(steps, precision, layers, mutant=None):
    """One process's run: metrics lines, counts, biases, and how much it holds."""
    import torch.distributed as dist

    world = dist.get_world_size() if dist.is_initialized() else 1
    exchange = Exchange() if world == 1 else Exchange(dist.get_rank(), world, PIPELINE)
    settings = KIT["make_settings"](
        steps=steps,
        precision=precision,
        batch_size=8,
        micro_batches=8,
        measure_every=2,
        lr=1e-3,
    )
    if mutant == "gradients of the measuring pass stay" and world > 1:
        from longcat.train.parallel.staged import StagedModel

        honest = StagedModel.clear
        calls = []

        def clear(self):
            calls.append(1)
            if len(calls) % 3 != 2:  # the second of a measured step's
                honest(self)

        StagedModel.clear = clear
    trainer = KIT["make_trainer"](
        settings, config=KIT["make_config"](num_layers=layers), exchange=exchange
    )
    records, counts, biases = [], [], []
    for _ in range(steps):
        records.append(trainer.train_step())
        counts.append(trainer.tally.counts.clone())
        routers = [layer.mlp.router for layer in trainer.layers]
        biases.append(torch.stack([r.e_score_correction_bias.clone() for r in routers]))
    held = sum(p.numel() for _, p in trainer.pieces.named_parameters())
    kept = sum(p.numel() for p in trainer.model.parameters())
    return {"records": records, "counts": counts, "biases": biases, "held": held, "kept": kept}


def compare(ranks, world, layers, steps, precision, tolerance, mutant=None):
    alone = train(steps, precision, layers)
    answers = ranks(world, __file__, "train", steps, precision, layers, mutant)
    for step, want in enumerate(alone["records"]):
        for answer in answers:
            assert torch.equal(answer["counts"][step], answers[0]["counts"][step])
            assert torch.equal(answer["biases"][step], answers[0]["biases"][step])
            got = answer["records"][step]
            assert got["loss"] == pytest.approx(want["loss"], abs=tolerance)
            if precision != "float64":
                continue
            assert torch.equal(answer["counts"][step], alone["counts"][step])
            assert set(got) == set(want)
            for key, value in want.items():
                if key in ("expert_load", "alarms"):
                    assert got[key] == value
                elif key not in TIMED_FIELDS and value is not None:
                    assert got[key] == pytest.approx(value, rel=1e-7, abs=1e-12), key
    assert sum(answer["held"] for answer in answers) == alone["held"]
    assert all(answer["kept"] == answer["held"] < alone["held"] for answer in answers)


def test_two_processes_of_a_pipeline_train_what_one_trains(ranks):
    """Every field of the metrics line too; five layers, so that stages are not equally long."""
    compare(ranks, 2, 5, 3, "float64", 1e-9)


def run_on_a_rank(path):
    """The loops of `longcat train --pipeline`."""
    import torch.distributed as dist

    exchange = Exchange(dist.get_rank(), dist.get_world_size(), PIPELINE)
    if exchange.rank:
        work(Path(path), exchange)
    else:
        run(RunDirectory(path), reopen(RunDirectory(path)), exchange, Silent())


def test_a_pipeline_saves_its_pieces_and_goes_on_to_the_same_bits(ranks, tmp_path):
    """And one process goes on from what it left."""
    directory = RunDirectory(tmp_path / "run")
    settings = KIT["make_settings"](steps=4, micro_batches=4, save_every=2, keep=9)
    config = KIT["make_config"](num_layers=4)
    begin(directory, prepare(directory, KIT["make_corpus"](), settings, config))
    ranks(2, __file__, "run_on_a_rank", str(directory.path))
    assert [step for step, _ in directory.snapshots()] == [0, 2, 4]
    assert (directory.at(2) / SHARDED).is_dir()
    again = RunDirectory(tmp_path / "again")
    shutil.copytree(directory.path, again.path)
    again.rewind(2)
    ranks(2, __file__, "run_on_a_rank", str(again.path))
    for file in ("model.safetensors", "optimizer.safetensors"):
        assert (directory.at(4) / file).read_bytes() == (again.at(4) / file).read_bytes(), file
    longer = replace(reopen(again), settings=replace(settings, steps=5))
    assert run(again, longer, Exchange(), Silent()).step == 5


def test_control_what_the_measuring_pass_leaves_behind_is_noticed(ranks):
    with pytest.raises(AssertionError):
        compare(ranks, 2, 4, 2, "float64", 1e-9, "gradients of the measuring pass stay")


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float64", "float32", "bf16"])
@pytest.mark.parametrize(("world", "layers"), [(2, 4), (4, 8)])
def test_a_pipeline_trains_what_one_process_trains(ranks, world, layers, precision):
    """To 1e-9 over 50 steps in float64, to 1e-5 over the first 10 in float32."""
    steps, tolerance = {"float64": (50, 1e-9), "float32": (10, 1e-5), "bf16": (4, 5e-2)}[precision]
    compare(ranks, world, layers, steps, precision, tolerance)


@pytest.mark.parametrize(
    ("layout", "world", "changes", "sentence"),
    [
        (Layout(pipeline=True, fsdp=True), 2, {}, "leave out --fsdp and --expert-parallel"),
        (PIPELINE, 1, {}, "over 1 process makes 2 stages and needs at least two processes"),
        (PIPELINE, 4, {}, "over 4 processes makes 8 stages .* the model has 4"),
        (PIPELINE, 2, {}, "needs --micro-batches 4 or more, one for each stage; got 2"),
        (
            PIPELINE,
            2,
            {"micro_batches": 4, "document_mask": True, "sdc_every": 3},
            "does not go with --document-mask, --sdc-every",
        ),
    ],
)
def test_what_a_pipeline_cannot_do_is_refused(layout, world, changes, sentence):
    with pytest.raises(RunError, match=sentence):
        layout.check(world, KIT["make_config"](num_layers=4), KIT["make_settings"](**changes))


def test_a_pipeline_says_what_it_does():
    assert PIPELINE.describe(2) == "layers cut into 4 stages"
    assert not PIPELINE.is_whole

"""Snapshots of divided models: exact, in the background, readable by any number of processes."""

import json
import os
import runpy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from longcat.flash import FlashModel
from longcat.train.directory import SHARDED, RunDirectory
from longcat.train.errors import RunError
from longcat.train.exchange import Exchange
from longcat.train.loop import Silent, begin, make_trainer, run, work
from longcat.train.metrics import read_metrics
from longcat.train.parallel.layout import Layout
from longcat.train.prepare import prepare, reopen
from longcat.train.snapshot import read_snapshot

KIT = runpy.run_path(str(Path(__file__).parents[1] / "conftest.py"))
BOTH = Layout(expert_parallel=2, fsdp=True)


def start(path, **changes):
    changes = {"micro_batches": 4, "precision": "float64", "lr": 1e-3, **changes}
    directory = RunDirectory(path)
    settings = KIT["make_settings"](**changes)
    begin(directory, prepare(directory, KIT["make_corpus"](), settings, KIT["make_config"]()))
    return directory


def full_state(trainer):
    """Every weight, moment and bias, whole, in clones."""
    from longcat.train.snapshot import moments

    state = {}
    for name, held in trainer.pieces.named_parameters():
        parts = {"weight": held.detach(), **moments(trainer, held)}
        for key, part in parts.items():
            whole = part if key == "step" else trainer.pieces.as_saved(name, part)
            full = whole.full_tensor() if hasattr(whole, "full_tensor") else whole
            state[f"{key} {name}"] = full.clone()
    state |= {n: b.clone() for n, b in trainer.model.named_buffers()}
    state |= {f"controller {k}": v for k, v in trainer.controller.state_dict().items()}
    return state


def same(a, b):
    return {n for n in a if not torch.equal(torch.as_tensor(a[n]), torch.as_tensor(b[n]))}


def on_a_rank(path, layout, *, keep_pieces=False, record=False):
    """One process's part of a run in `path`; with record, its state after every step."""
    import torch.distributed as dist

    import longcat.train.loop as loop
    from longcat.train.trainer import Trainer

    states = {}
    if keep_pieces:
        loop.make_whole = lambda directory, prepared: None
    if record:
        step = Trainer.train_step

        def remember(trainer, *, stop=False):
            done = step(trainer, stop=stop)
            states[trainer.step] = full_state(trainer)
            return done

        Trainer.train_step = remember
    directory = RunDirectory(path)
    exchange = Exchange(dist.get_rank(), dist.get_world_size(), layout)
    if exchange.rank:
        work(Path(path), exchange)
    else:
        prepared = reopen(directory)
        run(directory, prepared, exchange, Silent())
    return states


def read_alone(directory, snapshot):
    """The state that one process with the whole model reads."""
    trainer = make_trainer(reopen(directory), Exchange())
    read_snapshot(trainer, snapshot)
    return full_state(trainer)


def read_on_a_rank(path, layout):
    import torch.distributed as dist

    exchange = Exchange(dist.get_rank(), dist.get_world_size(), layout)
    directory = RunDirectory(path)
    trainer = make_trainer(reopen(directory), exchange)
    read_snapshot(trainer, directory.latest())
    return full_state(trainer)


def resettle(directory, **changes):
    snapshot = directory.latest()
    settings = replace(reopen(directory).settings, **changes)
    directory.replace_settings(snapshot, settings.to_json())


def test_what_is_saved_while_training_goes_on_is_the_state_of_its_step(ranks, tmp_path):
    """And it is the same bits for one process and for two in another layout."""
    directory = start(tmp_path / "run", steps=3, save_every=1, keep=9)
    states, _ = ranks(2, __file__, "recorded", str(directory.path), BOTH)
    snapshots = dict(directory.snapshots())
    assert sorted(snapshots) == [0, 1, 2, 3]
    for step in (1, 2, 3):
        assert (snapshots[step] / SHARDED).is_dir()
        assert same(states[step], read_alone(directory, snapshots[step])) == set()
    assert same(states[3], states[2])  # the control: steps do differ
    for state in ranks(2, __file__, "read_on_a_rank", str(directory.path), Layout(fsdp=True)):
        assert same(states[3], state) == set()
    refuse_a_damaged_one(directory)


def recorded(path, layout):
    return on_a_rank(path, layout, keep_pieces=True, record=True)


def test_a_run_begun_by_two_goes_on_in_one_and_the_other_way_round(ranks, tmp_path):
    mixed = start(tmp_path / "mixed", steps=2, decay=0.0, warmup_steps=0)
    plain = start(tmp_path / "plain", steps=6, decay=0.0, warmup_steps=0)
    run(plain, reopen(plain), Exchange(), Silent())
    want = read_metrics(plain.path)
    ranks(2, __file__, "kept_in_pieces", str(mixed.path), BOTH)
    assert (mixed.latest() / SHARDED).is_dir()
    resettle(mixed, steps=4)
    run(mixed, reopen(mixed), Exchange(), Silent())
    assert not (mixed.latest() / SHARDED).is_dir()
    resettle(mixed, steps=6)
    ranks(2, __file__, "on_a_rank", str(mixed.path), Layout(expert_parallel=2))
    got = read_metrics(mixed.path)
    assert [r["step"] for r in got] == [1, 2, 3, 4, 5, 6]
    for a, b in zip(want, got, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-9)
        assert a["ffn_experts_mean"] == b["ffn_experts_mean"]
    # At its end the directory is a checkpoint as every run's is.
    assert not (mixed.latest() / SHARDED).exists()
    loaded = FlashModel.from_pretrained(mixed.path, dtype=torch.float64).state_dict()
    expected = FlashModel.from_pretrained(plain.path, dtype=torch.float64).state_dict()
    assert all(torch.allclose(loaded[n], expected[n], rtol=1e-7, atol=1e-9) for n in expected)
    assert list(mixed.state.glob(".*")) == []


def kept_in_pieces(path, layout):
    return on_a_rank(path, layout, keep_pieces=True)


def refuse_a_damaged_one(directory):
    piece = next((directory.latest() / SHARDED).glob("__0_*"))
    piece.write_bytes(piece.read_bytes()[: piece.stat().st_size // 2])
    with pytest.raises(RunError, match=r"resume: .*step-00000003 cannot be read"):
        read_alone(directory, directory.latest())
    (directory.latest() / SHARDED / ".metadata").unlink()
    with pytest.raises(RunError, match=r"resume: .*step-00000003 cannot be read"):
        read_alone(directory, directory.latest())


def killed_while_saving(path, layout):
    """Every process ends in the middle of the second save, as if killed."""
    import longcat.train.parallel.sharded as sharded

    begun = []
    original = sharded.ShardedSaver.finish

    def die(saver):
        if len(begun) == 1 and saver._begun is not None:
            os._exit(0)
        if saver._begun is not None:
            begun.append(saver._begun[0])
        original(saver)

    sharded.ShardedSaver.finish = die
    on_a_rank(path, layout)


def test_a_killed_save_leaves_the_snapshot_before(ranks, tmp_path):
    directory = start(tmp_path / "run", steps=4, save_every=1)
    with pytest.raises((AssertionError, FileNotFoundError)):
        ranks(2, __file__, "killed_while_saving", str(directory.path), Layout(fsdp=True))
    assert directory.latest().name == "step-00000001"
    assert list(directory.state.glob(".pending-*"))
    state = json.loads((directory.latest() / "trainer.json").read_text())
    assert state["step"] == 1
    run(directory, reopen(directory), Exchange(), Silent())
    assert [r["step"] for r in read_metrics(directory.path)] == [1, 2, 3, 4]

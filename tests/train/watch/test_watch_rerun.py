"""Steps made twice: the same bits in every process, or a sentence that says where they differ."""

import runpy
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from longcat.train.directory import RunDirectory
from longcat.train.exchange import Exchange
from longcat.train.loop import begin
from longcat.train.parallel.layout import Layout
from longcat.train.prepare import prepare, reopen
from longcat.train.trainer import Trainer
from longcat.train.watch import rerun as rerun_module
from longcat.train.watch.rerun import rerun


def start(kit, path, **changes):
    directory = RunDirectory(path)
    prepared = prepare(directory, kit.corpus(), kit.settings(**changes), kit.config())
    begin(directory, prepared)
    return directory, prepared


class Unsteady(Trainer):
    """One bit of one gradient of the second trainer's second step, where `FAULTY`."""

    made = 0

    def __init__(self, *arguments):
        super().__init__(*arguments)
        type(self).made += 1
        original, number = self.pieces.sum_, type(self).made

        def sum_():
            original()
            if number == 2 and self.step == 1:
                gradient = next(p.grad for _, p in self.pieces.named_parameters())
                gradient.view(-1).view(torch.int32)[3] ^= 1

        self.pieces.sum_ = sum_


def test_steps_made_twice_are_the_same_and_the_run_is_not_touched(kit, tmp_path):
    directory, prepared = start(kit, tmp_path / "run")
    before = {p: p.stat().st_mtime_ns for p in directory.path.rglob("*")}
    found = rerun(prepared, directory.latest())
    assert found.differing == ()
    assert "3 steps made twice in one process of 1 thread, every bit the same" in found.sentence()
    assert {p: p.stat().st_mtime_ns for p in directory.path.rglob("*")} == before


def test_control_steps_that_are_not_deterministic_are_named(kit, tmp_path, monkeypatch):
    directory, prepared = start(kit, tmp_path / "run")
    monkeypatch.setattr(rerun_module, "Trainer", Unsteady)
    monkeypatch.setattr(Unsteady, "made", 0)
    found = rerun(prepared, directory.latest())
    assert found.differing[0] == (2, "gradients", 0)
    names = {(step, name) for step, name, _ in found.differing}
    assert (2, "loss") not in names
    assert (1, "weights") not in names
    assert "at step 2 the bits differ in gradients" in found.sentence()


def test_a_run_by_the_clock_is_no_false_alarm(kit, tmp_path):
    """Its learning rate follows elapsed time, so its own steps are never made twice alike."""
    directory, prepared = start(kit, tmp_path / "run", steps=None, time_budget=5.0)
    assert rerun(prepared, directory.latest()).differing == ()


def on_a_rank(path, layout, faulty):
    """What rerun finds in this process; in `faulty`, a gradient changes."""
    import torch.distributed as dist

    directory = RunDirectory(Path(path))
    exchange = Exchange(dist.get_rank(), dist.get_world_size(), Layout(**layout))
    if dist.get_rank() == faulty:
        rerun_module.Trainer = runpy.run_path(__file__)["Unsteady"]
    found = rerun(reopen(directory), directory.latest(), exchange)
    return found.differing, found.sentence()


@pytest.mark.parametrize("layout", [{}, {"fsdp": True}, {"expert_parallel": 2}])
def test_every_process_compares_what_it_holds(kit, tmp_path, ranks, layout):
    directory, _ = start(kit, tmp_path / "run")
    found = ranks(2, __file__, "on_a_rank", str(directory.path), layout, None)
    for differing, sentence in found:
        assert differing == ()
        assert "in 2 processes of 1 thread, every bit the same" in sentence


@pytest.mark.parametrize("faulty", [0, 1])
def test_control_a_process_that_differs_is_named_in_all(kit, tmp_path, ranks, faulty):
    directory, _ = start(kit, tmp_path / "run")
    answers = ranks(2, __file__, "on_a_rank", str(directory.path), {}, faulty)
    assert answers[0] == answers[1]
    differing, sentence = answers[0]
    assert differing[0] == (2, "gradients", faulty)
    assert f"at step 2 the bits of process {faulty} differ in gradients" in sentence


def test_settings_by_steps_are_taken_as_they_are(kit):
    settings = kit.settings()
    assert rerun_module._by_steps(settings) is settings
    timed = replace(settings, steps=None, time_budget=1.0)
    assert rerun_module._by_steps(timed).time_budget is None

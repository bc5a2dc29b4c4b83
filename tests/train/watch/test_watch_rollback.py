"""Going back: a fault leaves no trace, bad data is passed over, and there is an end to it."""

import pytest
import torch

from longcat.train.directory import RunDirectory
from longcat.train.errors import DivergedError, RunError
from longcat.train.exchange import Exchange
from longcat.train.loop import Silent, begin, run
from longcat.train.metrics import TIMED_FIELDS, read_metrics
from longcat.train.prepare import prepare
from longcat.train.trainer import Trainer
from longcat.train.workers import Workers

STEPS, FAULT = 8, 5


def start(kit, path, **changes):
    directory = RunDirectory(path)
    settings = kit.settings(**{"steps": STEPS, "save_every": 2, "lr": 1e-3, **changes})
    prepared = prepare(directory, kit.corpus(), settings, kit.config())
    begin(directory, prepared)
    return directory, prepared


def trained(kit, path, *, exchange=None, **changes):
    directory, prepared = start(kit, path, **changes)
    return directory, run(directory, prepared, exchange or Exchange(), Silent())


def at_batch(monkeypatch, batch, spoil, times=1):
    """Call spoil(trainer) before the step that reads this batch, that many times."""
    original, left = Trainer.train_step, [times]

    def train_step(self, *, stop=False):
        if self.step + self.skipped == batch and left[0] and self.exchange.rank == 0:
            left[0] -= 1
            spoil(self)
        return original(self, stop=stop)

    monkeypatch.setattr(Trainer, "train_step", train_step)


@torch.no_grad()
def flip(trainer):
    """The highest exponent bit of one weight: 2^128 times as large, or so."""
    trainer.model.lm_head.weight.view(torch.int32)[7, 3] ^= 1 << 30


@torch.no_grad()
def scale(trainer):
    """A block of memory goes wrong, and every number stays one."""
    trainer.model.lm_head.weight.mul_(30)


def untimed(directory, leave=()):
    left_out = {*TIMED_FIELDS, *leave}
    lines = read_metrics(directory.path)
    return [{k: v for k, v in r.items() if k not in left_out} for r in lines]


def same_weights(a, b):
    other = b.model.state_dict()
    return all(torch.equal(t, other[n]) for n, t in a.model.state_dict().items())


def alarms(directory):
    return [(r["step"], a["kind"]) for r in read_metrics(directory.path) for a in r["alarms"]]


@pytest.fixture(scope="module")
def clean(kit, tmp_path_factory):
    return trained(kit, tmp_path_factory.mktemp("clean") / "run")


def test_after_a_fault_the_run_goes_on_to_the_bits_of_one_without(
    kit, tmp_path, monkeypatch, clean
):
    at_batch(monkeypatch, FAULT, flip)
    directory, trainer = trained(kit, tmp_path / "run", rollback=1)
    assert same_weights(clean[1], trainer)
    assert untimed(directory, ["alarms"]) == untimed(clean[0], ["alarms"])
    assert alarms(directory) == [(5, "rollback")]
    told = read_metrics(directory.path)[4]["alarms"][0]["text"]
    assert f"step {FAULT + 1} went wrong" in told
    assert "back to step 4 and on over the same data; 0 more times" in told
    assert trainer.skipped == 0


def test_control_without_rollback_the_fault_ends_the_run(kit, tmp_path, monkeypatch):
    at_batch(monkeypatch, FAULT, flip)
    with pytest.raises(RunError, match="not finite at step 6"):
        trained(kit, tmp_path / "run")


@pytest.mark.parametrize("rollback", [1, 0])
def test_a_spike_is_gone_back_for_only_when_asked(kit, tmp_path, monkeypatch, rollback):
    """After 17 steps there is history enough to tell a spike."""
    at_batch(monkeypatch, 17, scale)
    changes = {"steps": 19, "save_every": 15, "rollback": rollback}
    directory, _ = trained(kit, tmp_path / "run", **changes)
    assert alarms(directory)[0] == ((16, "rollback") if rollback else (18, "spike"))
    norms = [r["grad_norm"] for r in read_metrics(directory.path)]
    assert (norms[17] > 3 * norms[16]) != bool(rollback)


def test_what_comes_again_at_the_same_step_is_passed_over(kit, tmp_path, monkeypatch):
    """As often as this batch is read, something breaks: it is the data."""
    at_batch(monkeypatch, FAULT, flip, times=99)
    directory, trainer = trained(kit, tmp_path / "run", rollback=5)
    assert trainer.step == STEPS
    # once to 4 over the same data, then to 2 and past the batches 2 to 5
    assert trainer.skipped == FAULT + 1 - 2
    assert alarms(directory) == [(3, "rollback")]
    text = read_metrics(directory.path)[2]["alarms"][0]["text"]
    assert "back to step 2 and on past the data of 4 steps; 3 more times" in text
    assert [r["step"] for r in read_metrics(directory.path)] == list(range(1, STEPS + 1))


def test_the_data_passed_over_stay_passed_over_after_a_resume(kit, tmp_path, monkeypatch):
    at_batch(monkeypatch, FAULT, flip, times=99)
    _, whole = trained(kit, tmp_path / "whole", rollback=5)

    class Killed(BaseException):
        pass

    class Killer(Silent):
        def step(self, record, progress, seconds_left):
            if record["step"] == 7:
                raise Killed

    directory, prepared = start(kit, tmp_path / "cut", rollback=5)
    with pytest.raises(Killed):
        run(directory, prepared, Exchange(), Killer())
    assert directory.latest().name == "step-00000006"
    assert same_weights(whole, run(directory, prepared, Exchange(), Silent()))


def test_attempts_are_bounded(kit, tmp_path, monkeypatch):
    original = Trainer.train_step

    def broken(self, *, stop=False):
        if self.step >= 2:
            flip(self)
        return original(self, stop=stop)

    monkeypatch.setattr(Trainer, "train_step", broken)
    directory, prepared = start(kit, tmp_path / "run", rollback=3)
    with pytest.raises(RunError, match=r"not finite at step 3.*step \d stands") as caught:
        run(directory, prepared, Exchange(), Silent())
    assert isinstance(caught.value.__cause__, DivergedError) or "not finite" in str(caught.value)
    with pytest.raises(RunError, match="--rollback must not be negative"):
        kit.settings(rollback=-1)


def test_two_processes_go_back_together(kit, tmp_path, monkeypatch):
    """The fault is in one process alone; the other one's weights are well."""

    def both(path, **changes):
        directory, prepared = start(kit, path, **changes)
        with Workers(directory.path, 2) as workers:
            return directory, run(directory, prepared, workers.exchange, Silent())

    clean_dir, clean = both(tmp_path / "clean")
    at_batch(monkeypatch, FAULT, flip)
    directory, trainer = both(tmp_path / "run", rollback=1)
    assert same_weights(clean, trainer)
    assert untimed(directory, ["alarms"]) == untimed(clean_dir, ["alarms"])
    assert alarms(directory) == [(5, "rollback")]

"""Snapshots: the newest ones and the best one stay, and --resume takes the newest."""

import contextlib
import json
import math
import os
import shutil

import pytest

from longcat.train import directory as directory_module
from longcat.train import resume_run
from longcat.train.directory import RunDirectory
from longcat.train.errors import RunError
from longcat.train.exchange import Exchange
from longcat.train.loop import Silent, begin, run
from longcat.train.metrics import read_metrics
from longcat.train.prepare import prepare, reopen
from longcat.train.watch.history import LENGTH, MEAN_OVER, History
from longcat.train.watch.keep import best_step, kept, mean_losses


def start(kit, path, **changes):
    directory = RunDirectory(path)
    prepared = prepare(directory, kit.corpus(), kit.settings(**changes), kit.config())
    begin(directory, prepared)
    return directory, prepared


def writer(mean):
    def write(folder):
        (folder / "model.safetensors").write_text(f"{mean}")
        (folder / "trainer.json").write_text(json.dumps({"mean_loss": mean}))

    return write


def saved(directory, means, keep=2):
    directory.create()
    for step, mean in means.items():
        directory.save(
            step, writer(mean), keep=keep, best=lambda: best_step(mean_losses(directory))
        )
    return [step for step, _ in directory.snapshots()]


@pytest.mark.parametrize(
    ("means", "expected"),
    [
        ({0: None, 10: 5.0, 20: 4.0, 30: 3.0, 40: 2.0}, [30, 40]),  # the best is the newest
        ({0: None, 10: 5.0, 20: 2.0, 30: 3.0, 40: 4.0, 50: 4.0}, [20, 40, 50]),
        ({10: 2.0, 20: 2.0, 30: 3.0, 40: 3.0}, [20, 30, 40]),  # of two equals the later
        ({10: None, 20: None, 30: None, 40: None}, [30, 40]),  # no figure: nothing is best
    ],
)
def test_the_newest_and_the_best_stay(tmp_path, means, expected):
    assert saved(RunDirectory(tmp_path / "run"), means) == expected


def test_control_keeping_by_age_alone_would_lose_the_best(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.best_step", lambda means: max(means))
    means = {10: 5.0, 20: 2.0, 30: 3.0, 40: 4.0, 50: 4.0}
    assert saved(RunDirectory(tmp_path / "run"), means) == [40, 50]


def test_resuming_takes_the_newest_not_the_best(tmp_path):
    directory = RunDirectory(tmp_path / "run")
    saved(directory, {10: 2.0, 20: 3.0, 30: 4.0})
    assert directory.latest().name == "step-00000030"
    directory.restore()
    assert (directory.path / "model.safetensors").read_text() == "4.0"


class Killed(BaseException):
    """Stands for a kill -9."""


@pytest.mark.parametrize("function", ["rename", "link", "replace", "fsync"])
@pytest.mark.parametrize("at", range(6))
def test_killed_while_saving_or_removing_the_last_good_and_the_best_stay(
    tmp_path, monkeypatch, function, at
):
    directory = RunDirectory(tmp_path / "run")
    saved(directory, {10: 2.0, 20: 3.0, 30: 4.0})
    original, calls = getattr(os, function), []

    def dying(*args, **kwargs):
        calls.append(args)
        if len(calls) > at:
            raise Killed
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, function, dying)
        patch.setattr(directory_module.shutil, "rmtree", lambda *a, **k: None)
        with contextlib.suppress(Killed):
            directory.save(40, writer(3.5), keep=2, best=lambda: best_step(mean_losses(directory)))
    there = dict(directory.snapshots())
    assert {10, 30} <= set(there)  # the best, and the last good one
    for folder in there.values():
        assert {p.name for p in folder.iterdir()} == {"model.safetensors", "trainer.json"}
    expected = "3.5" if 40 in there else "4.0"
    directory.restore()
    assert (directory.path / "model.safetensors").read_text() == expected
    assert not list(directory.state.glob(".tmp-*"))


def half_of(folder, **_):
    (folder / "model.safetensors").unlink()
    raise Killed


@pytest.mark.parametrize("renamed_first", [True, False])
def test_half_a_removed_snapshot_never_looks_like_one(tmp_path, monkeypatch, renamed_first):
    """And the control: removed under its own name, what a kill leaves would."""
    directory = RunDirectory(tmp_path / "run")
    saved(directory, {10: 2.0, 20: 3.0, 30: 4.0})
    monkeypatch.setattr(directory_module.shutil, "rmtree", half_of)
    if not renamed_first:
        monkeypatch.setattr(RunDirectory, "_remove", lambda self, snapshot: half_of(snapshot))
    with pytest.raises(Killed):
        directory.save(40, writer(3.5), keep=2, best=lambda: 10)
    whole = [(p / "model.safetensors").exists() for _, p in directory.snapshots()]
    assert all(whole) == renamed_first


def test_a_run_keeps_its_best_and_says_which(kit, tmp_path):
    directory, prepared = start(kit, tmp_path / "run", steps=8, save_every=2, keep=1)
    run(directory, prepared, Exchange(), Silent())
    found = kept(directory)
    losses = [record["loss"] for record in read_metrics(directory.path)]
    assert found[-1]["step"] == 8
    assert found[-1]["mean_loss"] == pytest.approx(sum(losses) / 8)
    assert [k["step"] for k in found if k["best"]] == [found[0]["step"]]


def test_going_on_from_an_older_snapshot_gives_the_same_steps_again(kit, tmp_path):
    directory, prepared = start(kit, tmp_path / "run", steps=6, save_every=2, keep=3)
    run(directory, prepared, Exchange(), Silent())
    before = [record["loss"] for record in read_metrics(directory.path)]
    session = resume_run(directory.path, {}, processes=1, from_step=4, say=lambda _: None)
    assert [step for step, _ in directory.snapshots()] == [2, 4]
    assert session.resumed_from == 4
    run(directory, reopen(directory), Exchange(), Silent())
    assert [record["loss"] for record in read_metrics(directory.path)] == before


def test_going_on_from_a_step_that_was_not_kept_changes_nothing(kit, tmp_path):
    directory, prepared = start(kit, tmp_path / "run", steps=4, save_every=2)
    run(directory, prepared, Exchange(), Silent())
    with pytest.raises(RunError, match=r"no snapshot of step 3; it has kept those of steps \[2, 4"):
        resume_run(directory.path, {}, from_step=3, say=lambda _: None)
    with pytest.raises(RunError, match="begun with other settings"):
        resume_run(directory.path, {"lr": 1.0}, from_step=2, say=lambda _: None)
    assert [step for step, _ in directory.snapshots()] == [2, 4]


def test_a_number_of_snapshots_below_one_is_refused(kit):
    with pytest.raises(RunError, match="--keep must be positive; got 0"):
        kit.settings(keep=0)


def test_a_damaged_figure_is_never_the_best(tmp_path):
    directory = RunDirectory(tmp_path / "run")
    saved(directory, {10: 2.0, 20: 3.0, 30: 4.0})
    (directory.state / "step-00000010" / "trainer.json").write_text("{")
    assert best_step(mean_losses(directory)) == 20
    assert kept(directory)[0] == {"step": 10, "mean_loss": None, "best": False}


def test_the_history_is_bounded_and_keeps_its_bits_in_json():
    history = History()
    assert history.mean_loss is None
    values = [math.sin(i) + 2 for i in range(LENGTH + 10)]
    for value in values:
        history.add(value, 1 / value)
    assert history.mean_loss == pytest.approx(sum(values[-MEAN_OVER:]) / MEAN_OVER)
    again = History()
    again.load_state_dict(json.loads(json.dumps(history.state_dict())))
    assert again.state_dict() == history.state_dict()
    assert list(again.losses) == values[-LENGTH:]
    again.load_state_dict({})
    assert again.mean_loss is None


def test_an_old_snapshot_without_a_history_is_read(kit, tmp_path):
    directory, prepared = start(kit, tmp_path / "run", steps=4, save_every=2)
    path = directory.latest() / "trainer.json"
    state = json.loads(path.read_text())
    del state["watch"], state["mean_loss"]
    path.write_text(json.dumps(state))
    assert run(directory, prepared, Exchange(), Silent()).step == 4
    shutil.rmtree(directory.path)

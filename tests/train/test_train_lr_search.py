"""Claims about the learning-rate search: same windows for all, scored by the end, kept, resumed."""

import json
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from statistics import fmean

import pytest

from longcat.train import lr_search, session
from longcat.train.directory import RunDirectory
from longcat.train.errors import DivergedError, RunError, has_diverged
from longcat.train.loop import Silent
from longcat.train.lr_search import best_run, learning_rates, open_search, read_search
from longcat.train.metrics import read_metrics
from longcat.train.preflight import Probe
from longcat.train.session import train_run
from longcat.train.trainer import Trainer
from longcat.train.transfer import transferred_settings


def quiet(_):
    return None


@pytest.fixture(scope="module", autouse=True)
def tiny(kit):
    """The tiny model and text in place of the preset and the default corpus, and no timing."""
    speed = Probe(tokens_per_s={"float32": 1e4}, precision="float32", peak=1e10)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "model_config", lambda settings: kit.config())
        patch.setattr(session, "read_corpus", lambda data: kit.corpus())
        patch.setattr(session, "probe", lambda prepared, device: speed)
        yield


def searched(path, settings, rates, stop_before=None):
    """Run a search to its end, or up to a trial."""
    if not lr_search.is_search(path):
        open_search(path, settings, rates, processes=1, say=quiet)
    search = read_search(path)
    for number, trial in enumerate(search.trials):
        if number == stop_before:
            break
        if trial.state != "planned":
            continue
        try:
            train_run(search.session(trial, processes=1, say=quiet), Silent())
        except RunError as error:
            if not has_diverged(error):
                raise
            search = search.noted(trial, diverged=True)
        else:
            search = search.noted(trial, diverged=False)
    return search


@pytest.fixture(scope="module")
def wide(kit, tiny, tmp_path_factory):
    """A finished search over rates so far apart that only the middle one learns well."""
    path = tmp_path_factory.mktemp("search") / "lr"
    rates = learning_rates(6e-3, 3, factor=60)
    return searched(path, kit.settings(steps=16, mtp_weight=0.0), rates)


def test_rates_stand_around_the_default_which_is_one_of_them():
    assert learning_rates(4e-3, 5) == pytest.approx([1e-3, 2e-3, 4e-3, 8e-3, 16e-3])
    assert learning_rates(4e-3, 4) == pytest.approx([1e-3, 2e-3, 4e-3, 8e-3])
    with pytest.raises(RunError, match=r"at least 3 learning rates.*got 2"):
        learning_rates(4e-3, 2)


def test_the_best_rate_is_the_one_that_learned_most(wide):
    assert wide.best.lr == 6e-3
    assert not wide.at_edge
    losses = [trial.loss for trial in wide.trials]
    assert losses[1] < min(losses[0], losses[2]) - 0.1


def test_the_score_is_the_mean_loss_of_the_last_quarter(wide):
    for trial in wide.trials:
        losses = [record["loss"] for record in read_metrics(wide.path / trial.run)]
        assert len(losses) == 16
        assert trial.loss == pytest.approx(fmean(losses[-4:]))
        # The control: a score over the whole run is another number.
        assert trial.loss != pytest.approx(fmean(losses), abs=1e-3)


def test_trials_differ_in_their_rate_alone(wide):
    first, *others = (transfer_settings(wide.path / trial.run, trial.lr) for trial in wide.trials)
    assert others == [first] * 2
    starts = [read_metrics(wide.path / trial.run)[0]["loss"] for trial in wide.trials]
    assert starts == [starts[0]] * 3  # same weights, same windows: the rate acts from step 2 on


def transfer_settings(run, lr):
    settings = lr_search.reopen(RunDirectory(run)).settings
    assert settings.lr == lr
    return replace(settings, lr=1.0)


def test_a_search_by_the_first_losses_would_choose_otherwise(wide, monkeypatch):
    """The control: the same trials, scored over the beginning, no longer single out the middle."""

    def early(path):
        return read_metrics(path)[:1]

    monkeypatch.setattr(lr_search, "read_metrics", early)
    monkeypatch.setattr(lr_search.LearningRateSearch, "write", lambda self: None)
    search = wide
    for trial in wide.trials:
        search = search.noted(trial, diverged=False)
    assert search.best.lr != 6e-3


def test_plan_and_plot_say_what_was_found(wide):
    document = json.loads((wide.path / "lr_search.json").read_text())
    assert document == wide.document()
    assert document["best"]["lr"] == 6e-3
    assert document["finished"] is True
    root = ElementTree.parse(wide.path / "lr_search.svg").getroot()
    text = (wide.path / "lr_search.svg").read_text()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert text.count("<circle") == 3
    assert [f">{rate}" in text for rate in ("1.0e-04", "6.0e-03", "3.6e-01")] == [True] * 3
    assert "http" not in re.sub(r'xmlns="[^"]*"', "", text)


def test_each_trial_is_a_run_that_can_be_resumed_and_generates(wide):
    from longcat.flash import FlashModel

    for trial in wide.trials:
        assert RunDirectory(wide.path / trial.run).latest().name == "step-00000016"
        FlashModel.from_pretrained(wide.path / trial.run)


def test_a_transfer_from_a_search_starts_from_its_best_run(wide):
    target = transferred_settings(wide.path, {"width": 64, "steps": 5})
    assert (target.lr, target.width_ratio) == (6e-3, 2.0)
    assert best_run(wide.path) == wide.path / "lr-6.00e-03"


def test_a_search_that_was_cut_ends_as_one_that_was_not(kit, tmp_path):
    settings, rates = kit.settings(steps=3), learning_rates(4e-3, 3)
    whole = searched(tmp_path / "whole", settings, rates)
    cut = searched(tmp_path / "cut", settings, rates, stop_before=1)
    assert not cut.is_finished
    with pytest.raises(RunError, match="is not finished; go on with it by `longcat train --resume"):
        transferred_settings(tmp_path / "cut", {"width": 64})
    # Killed while the second trial was being made: a folder without a snapshot.
    (tmp_path / "cut" / cut.trials[1].run / "state").mkdir(parents=True)
    assert searched(tmp_path / "cut", settings, rates).trials == whole.trials
    files = [
        (tmp_path / name / whole.trials[2].run / "model.safetensors").read_bytes()
        for name in ("whole", "cut")
    ]
    assert files[0] == files[1]


def test_a_rate_that_diverges_is_noted_and_the_search_goes_on(kit, tmp_path, monkeypatch):
    honest = Trainer._check_finite

    def check(trainer, norm):
        if trainer.settings.lr > 5e-3 and trainer.step == 1:
            raise DivergedError("train: the loss is not finite")
        honest(trainer, norm)

    monkeypatch.setattr(Trainer, "_check_finite", check)
    search = searched(tmp_path / "lr", kit.settings(steps=3), learning_rates(4e-3, 3))
    assert [trial.state for trial in search.trials] == ["finished", "finished", "diverged"]
    assert search.trials[2].loss is None
    assert search.is_finished
    assert search.best in search.trials[:2]
    assert read_search(tmp_path / "lr") == search


def test_the_best_rate_at_the_edge_is_said_to_be_there(wide):
    trials = wide.trials
    assert not wide.at_edge
    assert replace(wide, trials=trials[:2]).at_edge
    assert replace(wide, trials=trials[1:]).at_edge
    bounded = (replace(trials[2], lr=1e-2), replace(trials[2], state="diverged", loss=None))
    assert not replace(wide, trials=(*trials[:2], *bounded)).at_edge


def test_all_diverged_leaves_no_best_and_says_what_to_do(wide, tmp_path):
    lost = tuple(replace(t, state="diverged", loss=None) for t in wide.trials)
    search = replace(wide, path=tmp_path, trials=lost)
    search.write()
    assert search.best is None
    assert not (tmp_path / "lr_search.svg").exists()
    with pytest.raises(RunError, match=r"all learning rates of .* diverged"):
        best_run(tmp_path)


def test_a_place_in_use_a_budget_and_a_damaged_plan_are_refused(wide, kit, tmp_path):
    with pytest.raises(RunError, match="already holds a learning-rate search"):
        open_search(wide.path, kit.settings(), learning_rates(4e-3, 3), say=quiet)
    budget = replace(kit.settings(), steps=None, time_budget=9.0)
    with pytest.raises(RunError, match="give --steps N"):
        open_search(tmp_path / "x", budget, learning_rates(4e-3, 3), say=quiet)
    assert not (tmp_path / "x").exists()
    (tmp_path / "lr_search.json").write_text("{")
    with pytest.raises(RunError, match="is damaged"):
        read_search(tmp_path)

"""The balance weight is held so that R_g stays small; what is wrong raises an alarm."""

import json
import math
from dataclasses import replace

import pytest

from longcat.train.directory import RunDirectory
from longcat.train.exchange import Exchange
from longcat.train.loop import Silent, begin, run
from longcat.train.metrics import TIMED_FIELDS, read_metrics
from longcat.train.prepare import prepare, reopen
from longcat.train.watch.alarm import counted
from longcat.train.watch.hold import AIM, LIMIT, RISE, held_weight, layers_above
from longcat.train.watch.watch import Watch
from longcat.train.workers import Workers


def test_a_weight_that_pulls_too_hard_falls_at_once_to_what_would_have_been_right():
    assert held_weight(1e-2, [0.2, 0.01], 1e-2) == pytest.approx(1e-2 * AIM / 0.2)
    assert held_weight(1e-2, [0.02, 0.01], 1e-2) == 1e-2  # never above what was asked for
    assert held_weight(1e-3, [0.01, 0.01], 1e-2) == pytest.approx(1e-3 * RISE)  # rises slowly
    assert held_weight(1e-3, [math.inf, 0.2], 1e-2) == pytest.approx(1e-3 * AIM / 0.2)
    assert held_weight(1e-3, [math.inf], 1e-2) == 1e-3
    assert held_weight(0.0, [0.0], 1e-2) == 0.0
    assert layers_above([LIMIT, 0.11, math.inf, 0.0]) == [2, 3]


def heavy(kit, **changes):
    """A balance weight a hundred times the default's."""
    return kit.settings(
        **{"batch_size": 16, "lr": 1e-3, **changes},
        steps=24,
        warmup_steps=4,
        measure_every=2,
        balance_weight=5e-2,
    )


def late_ratios(trainer):
    records = [trainer.train_step() for _ in range(24)]
    return [max(r["r_g"]) for r in records if r["r_g"] and r["step"] > 6], records


def test_r_g_is_held_below_its_limit_after_warm_up(kit):
    ratios, records = late_ratios(kit.trainer(heavy(kit)))
    assert max(ratios) < LIMIT
    assert records[0]["balance_alpha"] == 5e-2
    assert 0 < records[-1]["balance_alpha"] < 5e-3
    # R_g is told for the weight that the step was made with
    assert max(records[0]["r_g"]) > LIMIT


def test_control_without_holding_the_limit_is_passed_and_every_time_it_is_told(kit):
    ratios, records = late_ratios(kit.trainer(heavy(kit, hold_balance=False)))
    assert min(ratios) > LIMIT
    assert all(r["balance_alpha"] == 5e-2 for r in records)
    told = [r for r in records if r["alarms"]]
    assert [r["step"] for r in told] == [r["step"] for r in records if r["r_g"] and r["step"] > 4]
    assert "hold_balance" in told[0]["alarms"][0]["text"]
    assert counted(records)[0]["count"] == len(told)
    assert counted(records)[0]["first"] == told[0]["step"]


def test_a_light_weight_is_left_alone(kit):
    _, records = late_ratios(kit.trainer(replace(heavy(kit), balance_weight=1e-6)))
    assert {r["balance_alpha"] for r in records} == {1e-6}
    assert not any(r["alarms"] for r in records)


def begun(kit, path, **changes):
    directory = RunDirectory(path)
    settings = replace(heavy(kit), steps=8, save_every=4, **changes)
    prepared = prepare(directory, kit.corpus(), settings, kit.config())
    begin(directory, prepared)
    return directory, prepared


class Killed(BaseException):
    pass


class Killer(Silent):
    def step(self, record, progress, seconds_left):
        if record["step"] == 6:
            raise Killed


def untimed(directory):
    lines = read_metrics(directory.path)
    return [{k: v for k, v in r.items() if k not in TIMED_FIELDS} for r in lines]


@pytest.mark.parametrize("forgotten", [False, True])
def test_the_held_weight_is_part_of_the_snapshot(kit, tmp_path, forgotten, monkeypatch):
    """And the control: a resume that forgets it makes other steps."""
    whole, prepared = begun(kit, tmp_path / "whole")
    run(whole, prepared, Exchange(), Silent())
    cut, prepared = begun(kit, tmp_path / "cut")
    with pytest.raises(Killed):
        run(cut, prepared, Exchange(), Killer())
    state = json.loads((cut.latest() / "trainer.json").read_text())["watch"]
    assert state["balance_alpha"] < 5e-2
    assert len(state["losses"]) == 4
    if forgotten:
        monkeypatch.setattr(Watch, "load_state_dict", lambda self, state: None)
    run(cut, reopen(cut), Exchange(), Silent())
    assert (untimed(cut) == untimed(whole)) != forgotten


def test_two_processes_hold_the_same_weight(kit, tmp_path):
    one, prepared = begun(kit, tmp_path / "one", precision="float64")
    run(one, prepared, Exchange(), Silent())
    two, prepared = begun(kit, tmp_path / "two", precision="float64")
    with Workers(two.path, 2) as workers:
        run(two, prepared, workers.exchange, Silent())
    pairs = list(zip(read_metrics(one.path), read_metrics(two.path), strict=True))
    assert pairs[-1][0]["balance_alpha"] < 5e-2
    for a, b in pairs:
        assert a["balance_alpha"] == pytest.approx(b["balance_alpha"], rel=1e-5)
        assert a["router_similarity"] == pytest.approx(b["router_similarity"], abs=1e-6)


def test_an_epsilon_that_meets_the_gradient_is_an_alarm(kit):
    record = kit.trainer(kit.settings(eps=1.0)).train_step()
    assert [a["kind"] for a in record["alarms"]] == ["epsilon"]
    assert kit.trainer().train_step()["alarms"] == []

"""The verdict on a run: expert load over its last tenth, FFN experts over windows, held out."""

import numpy as np
import pytest

from longcat.train.watch import page
from longcat.train.watch.load import verdict


def records(steps=400, layers=2, experts=4, seed=0):
    rng = np.random.default_rng(seed)
    return [
        {
            "step": i + 1,
            "tokens": 10 * (i + 1),
            "expert_load": (1 + 0.05 * rng.normal(size=(layers, experts))).tolist(),
            "ffn_experts_mean": (3 + 0.05 * rng.normal(size=layers)).tolist(),
        }
        for i in range(steps)
    ]


def test_a_balanced_run_meets_every_bound():
    found = verdict(records(), 3.0, [3.01, 2.99])
    assert found["load_met"]
    assert found["window_met"]
    assert found["held_out_met"]
    assert max(found["expert_load_max"]) < 1.05 < max(found["expert_load_max_step"])


def test_figures_are_their_definitions():
    lines = records(seed=3)
    found = verdict(lines, 3.0, None)
    for layer in range(2):
        tenth = [r["expert_load"][layer] for r in lines if r["step"] > 360]
        heaviest = max(sum(row[e] for row in tenth) / 40 for e in range(4))
        assert found["expert_load_max"][layer] == pytest.approx(heaviest)
        means = [
            sum(r["ffn_experts_mean"][layer] for r in lines[first : first + 100]) / 100
            for first in range(200, 301)
        ]
        worst = max(abs(m / 3 - 1) for m in means)
        assert found["window_deviation"][layer] == pytest.approx(worst)


@pytest.mark.parametrize("late", [True, False])
def test_one_crowded_expert_counts_in_the_last_tenth_alone(late):
    lines = records()
    for line in lines:
        if (line["step"] > 360) == late:
            line["expert_load"][1][2] = 1.8
    assert verdict(lines, 3.0, None)["load_met"] != late


def test_a_hundred_steps_off_target_are_found_wherever_they_are():
    lines = records()
    for line in lines[230:330]:
        line["ffn_experts_mean"][0] += 0.06
    found = verdict(lines, 3.0, [3.0, 3.1])
    assert found["window_met"] is False
    assert found["held_out_met"] is False
    assert found["window_deviation"][1] < 0.01 < found["window_deviation"][0]
    for line in lines[:190]:  # before step 200 nothing is asked for
        line["ffn_experts_mean"][1] += 5
    assert verdict(lines, 3.0, None)["window_deviation"][1] < 0.01


def test_a_short_run_is_not_judged_and_a_grown_one_by_its_present_layers():
    found = verdict(records(steps=250), 3.0, None)
    assert found["window_met"] is None
    assert found["load_met"] is True
    assert verdict([], 3.0, None)["load_met"] is None
    assert verdict(records(), 0.0, None)["load_met"] is None
    grown = records(steps=300) + [{**r, "step": 300 + r["step"]} for r in records(200, layers=4)]
    found = verdict(grown, 3.0, None)
    assert len(found["expert_load_max"]) == len(found["window_deviation"]) == 4


def test_the_page_says_met_or_not_met_and_what_was_raised():
    lines = [{**r, "router_similarity": [0.1, 0.2]} for r in records()]
    summary = {"balance": verdict(lines, 3.0, [3.0, 3.1]), "ffn_experts_target": 3, "alarms": []}
    text = page.body(summary, lines)
    assert text.count("<td>met</td>") == 2
    assert text.count("<td>not met</td>") == 1
    assert "No alarm was raised" in text
    assert "router similarity, layer 2" in text
    alarm = {"kind": "spike", "count": 2, "first": 7, "last": 9, "text": "loss <b> 9"}
    text = page.body({**summary, "alarms": [alarm]}, lines)
    assert "loss &lt;b&gt; 9" in text
    assert "7 to 9" in text

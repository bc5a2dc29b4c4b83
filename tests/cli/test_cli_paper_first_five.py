"""What single figures of `longcat bench paper` measure, against definitions in numpy."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from longcat.cli.benchmarks.paper import figure_02, figure_03, figure_04, figure_05
from longcat.cli.benchmarks.paper.figure import Arm, Scale, figures
from longcat.cli.benchmarks.paper.text import Text, load_text
from longcat.cli.benchmarks.paper.training import Job, held_out_loss, train_curve
from longcat.flash.operations import causal_pairs, training_operations
from longcat.train.corpus import Corpus, Document

TINY = Scale(
    name="quick",
    width=16,
    steps=6,
    vocab_size=280,
    batch_size=2,
    seq_len=8,
    held_out_bytes=60,
)


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Text:
    lines = [f"{a} + {b} = {a + b}\n" for a in range(30) for b in range(10)]
    made = Corpus(
        train=(Document(name="t", text="".join(lines)),),
        held_out=(Document(name="h", text="".join(lines[::7])),),
        source="sums",
        licence="none",
    )
    work: Path = tmp_path_factory.mktemp("text")
    return load_text(work, vocab_size=280, held_out_bytes=60, corpus=lambda: made)


def make_job(text: Text, arm: Arm, scale: Scale = TINY) -> Job:
    return Job(figure=99, arm=arm, seed=0, scale=scale, text=text)


def test_the_share_that_epsilon_overrules_is_read_after_the_last_step(text: Text) -> None:
    arms = {arm.settings["eps"]: arm for arm in figure_05.arms(replace(TINY, width=32))}
    shares = {
        eps: figure_05.run(make_job(text, arms[eps], replace(TINY, width=32)))["overruled"]
        for eps in (1e-16, 1e-1)
    }
    assert shares[1e-16] < 1e-3
    assert shares[1e-1] > 0.999


def test_a_loss_between_two_measurements_is_on_the_line_through_them() -> None:
    row = {"held_out": {"flops": [0.0, 10.0, 30.0], "loss": [5.0, 4.0, 3.0]}}
    places = [0.0, 5.0, 10.0, 20.0, 30.0, 99.0]
    expected = np.interp(places, row["held_out"]["flops"], row["held_out"]["loss"])
    found = [figure_03.loss_at(row, "flops", place) for place in places]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_growth_goes_on_from_the_small_model(text: Text) -> None:
    grown, random = figure_03.arms(TINY)
    row = figure_03.run(make_job(text, grown))
    small, large = row["small"]["held_out"], row["held_out"]
    first = grown.options["small_steps"]
    assert (small["step"][0], small["step"][-1]) == (0, first)
    assert (large["step"][0], large["step"][-1]) == (first, grown.settings["steps"])
    assert large["tokens"][0] == small["tokens"][-1]
    assert large["flops"][0] == small["flops"][-1] > 0
    assert large["cpu_seconds"][0] >= small["cpu_seconds"][-1]
    other = figure_03.run(make_job(text, random))
    assert other["parameters"] == row["parameters"]
    # The random arm's run is long enough to meet the grown one's compute.
    assert other["flops"] >= row["flops"]


def test_the_grown_trainer_carries_weights_moments_and_counters(text: Text) -> None:
    job = make_job(text, figure_03.arms(TINY)[0])
    small = job.trainer(settings=job.settings(steps=3))
    while not small.is_done:
        small.train_step()
    grown = figure_03.grow_trainer(small, job)
    assert grown.config.num_layers == 2 * small.config.num_layers
    assert (grown.step, grown.tokens_seen) == (3, small.tokens_seen)
    assert not grown.is_done
    weights = dict(grown.model.named_parameters())
    for name, parameter in small.model.named_parameters():
        deeper = name.replace("layers.1.", "layers.3.").replace("layers.0.", "layers.2.")
        torch.testing.assert_close(weights[deeper], parameter, rtol=0, atol=0)
        kept, moved = (
            t.optimizer.state[p]["exp_avg"]
            for t, p in ((small, parameter), (grown, weights[deeper]))
        )
        torch.testing.assert_close(moved, kept, rtol=0, atol=0)


def test_the_norm_of_the_last_layer_is_that_of_a_token() -> None:
    row = {"curve": {"hidden_rms": [9.0, 2.0]}}
    assert figure_04.final_norm(row, 64) == pytest.approx(np.linalg.norm(np.full(64, 2.0)))


def test_every_figure_names_its_arms_once_and_trains_what_its_scale_allows(text: Text) -> None:
    for figure in (figures()[number] for number in range(1, 6)):
        arms = figure.arms(Scale(**{**TINY.__dict__, "width": 32}))
        assert len({arm.name for arm in arms}) == len({arm.slug for arm in arms}) == len(arms)
        for arm in arms:
            job = make_job(text, arm, replace(TINY, width=32))
            assert job.settings().precision == "float32"
            assert job.config().hidden_size == (arm.width or 32)


def test_arms_of_one_seed_see_the_same_batches(text: Text) -> None:
    arms: Any = figures()[2].arms(replace(TINY, width=32))
    one, two = (make_job(text, arm, replace(TINY, width=32)).trainer() for arm in arms[:2])
    np.testing.assert_array_equal(one.windows.batch(3).inputs, two.windows.batch(3).inputs)
    for (name, first), (_, second) in zip(
        one.model.named_parameters(), two.model.named_parameters(), strict=True
    ):
        assert torch.equal(first, second), name


def test_under_one_deviation_the_correction_restores_what_fan_in_gives(text: Text) -> None:
    scale = replace(TINY, width=32)
    arms = {arm.name: make_job(text, arm, scale) for arm in figure_02.arms(scale)}
    corrected, plain = (arms[name].trainer() for name in figure_02.ONE_DEVIATION)
    fan_in = arms["uncorrected"].trainer()
    before = {name: p.clone() for name, p in corrected.model.named_parameters()}
    for trainer in (corrected, plain):
        figure_02.give_one_deviation(trainer)
    for name, after in corrected.model.named_parameters():
        shrunk = {"q_b_proj": 8 / 32, "kv_b_proj": 4 / 32}.get(name.split(".")[-2], 1.0)
        torch.testing.assert_close(after, before[name] * shrunk**0.5)
    losses = [held_out_loss(arms["corrected"], t).loss for t in (corrected, fan_in, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert losses[2] != pytest.approx(losses[1], rel=1e-4)


def test_figure_two_starts_an_arm_of_one_deviation_from_it(text: Text) -> None:
    scale = replace(TINY, width=32)
    arms = figure_02.arms(scale)
    first = {
        arm.name: figure_02.run(make_job(text, arm, scale))["held_out"]["loss"][0] for arm in arms
    }
    assert first["corrected, one deviation"] == pytest.approx(first["uncorrected"], rel=1e-6)
    assert len(set(first.values())) >= 3


def test_operations_follow_the_experts_that_were_used(text: Text) -> None:
    config = make_job(text, Arm(name="a")).config()
    count = partial(training_operations, config, tokens=16, pairs=causal_pairs(2, 8))
    expert = 3 * config.hidden_size * config.moe.expert_ffn_hidden_size
    assert count(ffn_slots=10) - count(ffn_slots=0) == 6 * expert * 10
    row = train_curve(make_job(text, Arm(name="a")))
    assert row["flops"] > TINY.steps * count(ffn_slots=0)

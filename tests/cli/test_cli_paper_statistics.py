"""Intervals and verdicts of `longcat bench paper`, each with a mutant that the check rejects."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from longcat.cli.benchmarks.paper import figure_01, interval
from longcat.cli.benchmarks.paper.interval import Estimate, estimate, paired, student_quantile
from longcat.cli.benchmarks.paper.plot import Panel, plot
from longcat.cli.benchmarks.paper.results import Point
from longcat.cli.benchmarks.paper.verdict import difference
from longcat.router import RouterConfig

# Printed in every table of Student's t: 0.975 quantiles by degrees of freedom.
PRINTED = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 9: 2.262, 30: 2.042}


def test_the_quantiles_are_those_of_the_tables() -> None:
    for freedom, expected in PRINTED.items():
        assert student_quantile(0.975, freedom) == pytest.approx(expected, abs=6e-4)
    assert student_quantile(0.95, 2) == pytest.approx(2.920, abs=6e-4)
    assert student_quantile(0.975, 2) == pytest.approx(0.95 / math.sqrt(2 * 0.975 * 0.025))


def coverage(interval_of: Callable[[list[float]], Estimate]) -> float:
    """How often the interval of three normal values holds their true mean, of 4,000 times."""
    rng = np.random.default_rng(0)
    found = [interval_of(list(row)) for row in rng.normal(7.0, 2.0, size=(4000, 3))]
    return float(np.mean([one.low <= 7.0 <= one.high for one in found]))


def test_an_interval_of_three_seeds_holds_the_true_mean_in_95_of_100_cases(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert coverage(estimate) == pytest.approx(0.95, abs=0.012)
    # Mutants: the normal quantile, and the deviation without the root of n.
    monkeypatch.setattr(interval, "student_quantile", lambda share, freedom: 1.96)
    assert coverage(estimate) < 0.9
    monkeypatch.undo()
    monkeypatch.setattr(interval.math, "sqrt", lambda n: 1.0)
    assert coverage(estimate) > 0.97


def test_the_interval_is_its_formula() -> None:
    found = estimate([1.0, 2.0, 6.0])
    assert found.mean == 3.0
    assert found.half == pytest.approx(4.303 * math.sqrt(7.0) / math.sqrt(3), rel=1e-3)
    assert found.show(1) == "3.0 ± 6.6"


def test_one_seed_has_no_interval_and_a_missing_value_no_mean() -> None:
    with pytest.raises(ValueError, match="at least two seeds, got 1"):
        estimate([1.0])
    assert estimate([1.0, math.nan, 2.0]).show() == "not finite"


def test_pairing_removes_what_the_seeds_have_in_common() -> None:
    first, second = [4.0, 5.0, 6.0], [4.1, 5.11, 6.09]
    assert paired(first, second).excludes_zero
    assert not paired(first, second[::-1]).excludes_zero


def verdict(
    first: list[float], second: list[float], expected: Any = "lower"
) -> tuple[bool | None, str]:
    found = difference("loss", first, second, of=("one", "two"), expected=expected)
    return found.seen, found.text


def test_a_verdict_follows_the_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    low, high, wide = [2.0, 2.1, 2.2], [2.3, 2.41, 2.49], [1.9, 2.6, 2.3]
    assert verdict(low, high) == (
        True,
        "the loss with one is 0.300 ± 0.025 lower than with two, as in the report.",
    )
    seen, text = verdict(high, low)
    assert not seen
    assert "the opposite" in text
    seen, text = verdict(low, wide)
    assert not seen
    assert "the interval includes 0" in text
    # Mutant: an interval of no width would find an effect in any noise.
    monkeypatch.setattr(interval, "student_quantile", lambda share, freedom: 0.0)
    assert verdict(low, wide)[0]


def test_what_the_report_does_not_say_is_only_measured() -> None:
    found = difference("loss", [2.0, 2.1], [3.0, 3.11], of=("one", "two"), expected="either")
    assert found.seen is None
    assert "the report" not in found.text


def test_no_difference_is_shown_only_by_an_interval_that_is_small() -> None:
    base = [2.0, 2.1, 2.2]
    seen, text = verdict([2.001, 2.099, 2.2], base, "same")
    assert seen
    assert "the same within 0.05, as in the report" in text
    seen, text = verdict([1.9, 2.2, 2.3], base, "same")
    assert not seen
    assert "too uncertain" in text
    seen, text = verdict([2.3, 2.41, 2.5], base, "same")
    assert not seen
    assert "the report shows no difference" in text


def test_a_run_that_diverges_decides_for_the_other() -> None:
    seen, text = verdict([2.0, 2.1, 2.2], [2.0, math.nan, math.nan])
    assert seen
    assert "with one diverged for 0 and with two for 2 of 3 seeds" in text
    assert not verdict([2.0, math.nan, 2.2], [2.0, 2.1, 2.2])[0]


def test_fixed_sign_steps_are_their_definition() -> None:
    router = RouterConfig(
        hidden_size=4, n_routed_experts=3, zero_expert_num=2, top_k=2, expected_ffn_experts=1.5
    )
    counts = torch.tensor([[10, 6, 9, 7, 4]])  # 36 slots; the share is 1.5 / (2 * 3) = 1/4 = 9
    bias = torch.tensor([[0.1, 0.2, 0.3, 0.0, 0.0]], dtype=torch.float64)
    found = figure_01.SignSteps(router, 1).update(bias, counts)
    u = figure_01.SIGN_STEP
    share = 1.5 / (2 * 3)
    expected = [
        b + (u * np.sign(share - c / 36) if i < 3 else 0.0)
        for i, (b, c) in enumerate(zip(bias[0].tolist(), counts[0].tolist(), strict=True))
    ]
    np.testing.assert_allclose(found[0].numpy(), expected, rtol=0, atol=1e-15)
    assert found[0, 2] == bias[0, 2]  # at its target


def points(values: list[float], half: float = 0.1) -> list[Point]:
    return [Point(x=10.0 * i, y=Estimate(mean=v, half=half)) for i, v in enumerate(values)]


def test_a_plot_keeps_intervals_inside_its_axes_and_names_every_series() -> None:
    panel = Panel(series={"one": points([1, 2, 3]), "two": points([3, 2, 1])}, x_label="tokens")
    drawn = plot([panel, panel], title="A title & more.", y_label="loss", target=2.0)
    assert drawn.count("<polyline") == 4
    assert drawn.count("<circle") == 12
    for name in (">one<", ">two<", ">target 2<", "A title &amp; more."):
        assert name in drawn
    assert "\n\n" not in drawn
    assert drawn.count('class="target"') == 3  # both panels and the legend
    assert "stroke-dasharray" in drawn  # colour is not the only carrier


def test_one_wild_interval_leaves_the_means_readable() -> None:
    wild = [*points([1.0, 2.0, 3.0]), Point(x=30.0, y=Estimate(mean=2.0, half=100.0))]
    drawn = plot([Panel(series={"one": wild}, x_label="step")], title="t", y_label="loss")
    assert ">4<" in drawn
    assert ">100<" not in drawn


def test_a_logarithmic_axis_of_one_decade_has_ticks_between_the_powers() -> None:
    panel = Panel(series={"one": points([3.0, 40.0], half=0.0)}, x_label="step")
    drawn = plot([panel], title="t", y_label="RMS", log_y=True)
    assert [f">{v}<" in drawn for v in (5, 10, 20, 100)] == [True, True, True, False]
    for scale, shown in ((1e-3, (0.005, 0.01, 0.02)), (1e-8, ("5e-8", "1e-7", "2e-7"))):
        small = points([3 * scale, 40 * scale], half=0.0)
        panel = Panel(series={"one": small}, x_label="step")
        drawn = plot([panel], title="t", y_label="RMS", log_y=True)
        assert all(f">{v}<" in drawn for v in shown)


def test_what_is_never_negative_has_no_negative_axis() -> None:
    panel = Panel(series={"one": points([0.0, 1.0], half=2.0)}, x_label="step")
    assert ">-" not in plot([panel], title="t", y_label="spread")


def test_a_plot_of_many_points_has_a_band_and_a_logarithmic_axis_has_decades() -> None:
    panel = Panel(
        series={"one": [Point(x=10.0**-i, y=estimate([1.0, 1.1])) for i in range(16)]},
        x_label="epsilon",
        log_x=True,
    )
    drawn = plot([panel], title="t", y_label="loss")
    assert drawn.count("<polygon") == 1
    assert ">1e-15<" in drawn
    assert "<circle" not in drawn

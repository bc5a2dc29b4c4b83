"""The spike detector: a pure function of the history, quiet on noise, loud on a spike."""

import math
import statistics

import numpy as np
import pytest

from longcat.train.watch.spike import (
    AT_LEAST,
    LOSS_LIMIT,
    NORM_LIMIT,
    robust_score,
    scores,
)


def by_hand(history, value):
    """With the standard library alone."""
    median = statistics.median(history)
    deviation = 1.4826 * statistics.median(abs(h - median) for h in history)
    return (value - median) / max(deviation, 1e-3)


@pytest.mark.parametrize("count", [AT_LEAST, 31, 64])
def test_the_score_is_its_definition(count):
    history = np.random.default_rng(count).normal(4.0, 0.3, size=count).tolist()
    for value in (3.0, 4.0, 9.0):
        assert robust_score(history, value) == pytest.approx(by_hand(history, value), rel=1e-12)


def test_a_short_history_says_nothing_and_a_nan_is_infinitely_high():
    assert robust_score([1.0] * (AT_LEAST - 1), 50.0) is None
    assert robust_score([1.0] * AT_LEAST, math.nan) == math.inf
    assert robust_score([1.0] * AT_LEAST, math.inf) == math.inf
    assert scores([], [], 1.0, 1.0) == (None, None)
    assert not scores([], [], 1.0, 1.0).is_spike


def falling(steps=300, seed=0):
    """A loss that falls with noise and a gradient norm that varies by a third."""
    rng = np.random.default_rng(seed)
    losses = 3.5 + 4 * np.exp(-np.arange(steps) / 60) + rng.normal(0, 0.1, steps)
    norms = np.exp(rng.normal(-0.5, 0.3, steps))
    return losses.tolist(), norms.tolist()


def spikes(losses, norms, window=64):
    return [
        i
        for i in range(len(losses))
        if scores(
            losses[max(0, i - window) : i], norms[max(0, i - window) : i], losses[i], norms[i]
        ).is_spike
    ]


@pytest.mark.parametrize("seed", range(4))
def test_a_falling_noisy_loss_is_no_spike_and_a_jump_is(seed):
    losses, norms = falling(seed=seed)
    assert spikes(losses, norms) == []
    losses[200] += 2.0
    assert spikes(losses, norms) == [200]
    norms[250] *= 1e3
    assert spikes(losses, norms) == [200, 250]


def test_control_mean_and_standard_deviation_are_blinded_by_one_outlier():
    """Why the median: after one spike a second one would pass."""
    losses, norms = falling()
    losses[199] += 30.0
    losses[200] += 2.0
    history = losses[136:200]
    plain = (losses[200] - np.mean(history)) / np.std(history)
    assert plain < LOSS_LIMIT
    assert spikes(losses, norms) == [199, 200]


def test_two_flat_histories_are_judged_by_the_smallest_deviation():
    assert robust_score([2.0] * 20, 2.0) == 0.0
    assert robust_score([2.0] * 20, 2.001) == pytest.approx(1.0)
    assert NORM_LIMIT > LOSS_LIMIT

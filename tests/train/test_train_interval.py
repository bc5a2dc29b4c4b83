"""Claims about the interval of a ratio of sums over pieces of text."""

import numpy as np

from longcat.train.interval import ratio_interval


def test_the_interval_is_that_of_a_ratio_over_prompts():
    rng = np.random.default_rng(0)
    truth, rates = 0.8, []
    for _ in range(400):
        tries = rng.integers(40, 60, size=64)
        # Tokens of a prompt share its difficulty, so that they are not independent.
        hits = rng.binomial(tries, rng.beta(8, 2, size=64))
        width = ratio_interval(hits, tries)
        rates.append((abs(hits.sum() / tries.sum() - truth) <= width, width))
    covered, widths = zip(*rates, strict=True)
    assert 0.9 < np.mean(covered) < 0.98
    as_if_independent = 1.96 * np.sqrt(0.16 / (64 * 50))
    assert np.mean(widths) > 2 * as_if_independent  # control: tokens counted one by one
    assert ratio_interval(np.array([3]), np.array([4])) is None

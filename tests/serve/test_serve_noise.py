"""Noise is one function of (seed, position, choice, purpose), the same in numpy and torch."""

import numpy as np
import torch

from longcat.serve import reference
from longcat.serve.noise import gumbel, mix, noise_keys, seed_word, uniform

SEEDS = [0, 1, 2**63, 2**64 - 1, 12345678901234567890]


def keys(seeds, positions, choices, purpose):
    words = torch.tensor([seed_word(seed) for seed in seeds])
    return noise_keys(words, torch.tensor(positions), torch.tensor(choices), purpose)


def test_torch_draws_the_noise_of_the_definition():
    ours = keys(SEEDS, [0, 1, 7, 2**30, 5], [0, 3, 0, 65535, 1], reference.REPLACE)
    for row, (seed, position, choice) in enumerate(
        zip(SEEDS, [0, 1, 7, 2**30, 5], [0, 3, 0, 65535, 1], strict=True)
    ):
        key = reference.noise_key(seed, position, choice, reference.REPLACE)
        assert int(ours[row]) % 2**64 == key
        want = reference.uniform_noise(key, 50)
        np.testing.assert_array_equal(uniform(ours, 50)[row].numpy(), want)
        noise = reference.gumbel_noise(seed, position, 50, choice, reference.REPLACE)
        np.testing.assert_allclose(gumbel(ours, 50)[row].numpy(), noise, rtol=1e-13)


def test_the_scrambler_is_the_finaliser_of_splitmix64():
    """Its first outputs from state 0, as published with the generator."""
    golden = 0x9E3779B97F4A7C15
    outputs = [reference.mix(golden * (i + 1) % 2**64) for i in range(3)]
    assert outputs == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    words = torch.tensor([seed_word(golden * (i + 1) % 2**64) for i in range(3)])
    assert [int(word) % 2**64 for word in mix(words)] == outputs


def test_numbers_are_uniform_along_a_row_and_across_seeds_positions_and_choices():
    count = 40_000
    zeros = torch.zeros(count, dtype=torch.int64)
    along = torch.arange(count)
    rows = [
        uniform(keys([3], [5], [0], 0), count)[0],
        uniform(noise_keys(zeros, along, zeros, 0), 1)[:, 0],
        uniform(noise_keys(along, zeros, zeros, 0), 1)[:, 0],
        uniform(noise_keys(zeros, zeros, along % 65536, 0), 1)[:, 0],
    ]
    for row in rows:
        pairs = (row[:-1] * 16).long() * 16 + (row[1:] * 16).long()  # neighbours are independent
        observed = torch.bincount(pairs, minlength=256).double()
        expected = len(pairs) / 256
        chi_square = float(((observed - expected) ** 2 / expected).sum())
        assert abs(chi_square - 255) < 5 * (2 * 255) ** 0.5


def test_purposes_draw_apart():
    drawn = {float(uniform(keys([1], [1], [0], purpose), 1)) for purpose in range(4)}
    assert len(drawn) == 4

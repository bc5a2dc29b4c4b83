"""RoPE: interleaved pairs in, halves out, frequencies rounded once, YaRN."""

import math

import numpy as np
import pytest
import torch

from longcat.kernels import rope, rope_frequencies, use_backend
from longcat.kernels.rope import reference

YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 256,
    "beta_fast": 32,
    "beta_slow": 1,
}


def _operands(randn, dtype=torch.float64, rope_dim=8, shape=(2, 5, 3)):
    x = randn(*shape, rope_dim, dtype=dtype)
    positions = torch.arange(shape[1]).expand(shape[:2]) + torch.arange(shape[0])[:, None]
    return x, positions, rope_frequencies(rope_dim, 1e4)[0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 5, 3), (1, 1, 1), (2, 0, 3), (0, 4, 1)])
@pytest.mark.parametrize("factor", [1.0, 1.25])
def test_eager_agrees_with_the_definition(randn, check, shape, dtype, factor):
    x, positions, inv_freq = _operands(randn, dtype, shape=shape)
    want = reference.rope(x.double().numpy(), positions.numpy(), inv_freq, factor)
    assert check.error(rope(x, positions, inv_freq, factor), want) <= check.bound(dtype)
    with use_backend("numpy"):
        assert check.error(rope(x, positions, inv_freq, factor), want) <= check.bound(dtype)


def test_position_zero_only_moves_even_components_in_front(randn):
    x = randn(1, 1, 1, 6)
    got = rope(x, torch.zeros(1, 1, dtype=torch.int64), rope_frequencies(6, 1e4)[0])
    assert torch.equal(got, x[..., [0, 2, 4, 1, 3, 5]])


def test_scores_depend_on_the_distance_alone(randn, check):
    q, k = randn(1, 1, 1, 8), randn(1, 1, 1, 8)
    inv_freq = torch.from_numpy(rope_frequencies(8, 1e4)[0]).double()

    def score(at_q, at_k):
        rotated = [rope(x, torch.tensor([[at]]), inv_freq) for x, at in ((q, at_q), (k, at_k))]
        return (rotated[0] * rotated[1]).sum()

    assert check.error(score(107, 100), score(7, 0)) < 1e-12
    assert check.error(score(108, 100), score(7, 0)) > 1e-3


def test_halves_instead_of_interleaved_pairs_are_caught(randn, check):
    x, positions, inv_freq = _operands(randn)
    halves = torch.cat([x[..., 0::2], x[..., 1::2]], dim=-1)  # what a half-split form would pair
    mutant = rope(halves.unflatten(-1, (2, -1)).mT.flatten(-2), positions, inv_freq)
    assert check.error(mutant, rope(x, positions, inv_freq)) < 1e-13  # control of the control
    wrong = rope(x.unflatten(-1, (2, -1)).mT.flatten(-2), positions, inv_freq)
    assert check.error(wrong, rope(x, positions, inv_freq)) > 0.1


def test_a_rotation_the_other_way_round_is_caught(randn, check):
    x, positions, inv_freq = _operands(randn)
    assert check.error(rope(x, -positions, inv_freq), rope(x, positions, inv_freq)) > 0.1


@pytest.mark.parametrize("first", [0, 1, 2])
def test_pairs_are_found_in_any_slice(randn, check, first):
    x, positions, inv_freq = _operands(randn)
    x = randn(*x.shape[:-1], 11)[..., first : first + 8]  # odd strides and offsets
    want = reference.rope(x.numpy(), positions.numpy(), inv_freq)
    assert check.error(rope(x, positions, inv_freq), want) <= check.bound(torch.float64)
    x = x.detach().requires_grad_()
    (got,) = torch.autograd.grad(rope(x, positions, inv_freq).square().sum(), x)
    assert check.error(got, 2 * x.detach()) <= check.bound(torch.float64)  # a turn keeps lengths


def test_positions_that_all_sequences_share_give_the_bits_of_their_copies(randn):
    x, positions, inv_freq = _operands(randn, torch.float32)
    shared = positions[:1].expand(len(x), -1)
    assert shared.stride(0) == 0
    assert torch.equal(rope(x, shared, inv_freq), rope(x, shared.contiguous(), inv_freq))


def test_gradients_pass_gradcheck(randn):
    x, positions, inv_freq = _operands(randn)
    assert torch.autograd.gradcheck(lambda x: rope(x, positions, inv_freq, 1.1), x.requires_grad_())


def test_frequencies_are_computed_in_float64_and_rounded_once():
    inv_freq, factor = rope_frequencies(64, 1e7)
    want = np.array([1e7 ** (-2 * j / 64) for j in range(32)]).astype(np.float32)
    assert inv_freq.dtype == np.float32
    assert factor == 1.0
    assert np.array_equal(inv_freq, want)
    in_float32 = 1 / np.float32(1e7) ** (np.arange(0, 64, 2, dtype=np.float32) / np.float32(64))
    assert not np.array_equal(inv_freq, in_float32)  # the control: the shortcut differs


def test_angles_are_float32_for_low_precision_inputs(randn, check):
    x, _, inv_freq = _operands(randn, torch.bfloat16, rope_dim=8, shape=(1, 1, 1))
    far = torch.tensor([[100_003]])  # bfloat16 would round this position to 99,840
    want = reference.rope(x.double().numpy(), far.numpy(), inv_freq)
    assert check.error(rope(x, far, inv_freq), want) < 0.02


def test_yarn_keeps_fast_pairs_slows_slow_ones_and_ramps_between():
    plain, _ = rope_frequencies(64, 1e4)
    yarn, factor = rope_frequencies(64, 1e4, YARN)
    ratio = yarn / plain
    turns = 256 * plain / (2 * math.pi)
    assert np.allclose(ratio[turns > 33], 1.0)
    assert np.allclose(ratio[turns < 0.5], 1 / 4)
    assert np.all(np.diff(ratio) <= 1e-6)
    assert ((ratio > 0.26) & (ratio < 0.99)).any()
    assert factor == pytest.approx(0.1 * math.log(4) + 1)


@pytest.mark.parametrize(
    ("extra", "want"),
    [
        ({"attention_factor": 1.5}, 1.5),
        ({"mscale": 1.0, "mscale_all_dim": 1.0}, 1.0),
        (
            {"mscale": 0.707, "mscale_all_dim": 1.0},
            (0.0707 * math.log(4) + 1) / (0.1 * math.log(4) + 1),
        ),
        ({"factor": 1.0}, 1.0),
    ],
)
def test_yarn_attention_factor_follows_the_two_mscales(extra, want):
    assert rope_frequencies(64, 1e4, {**YARN, **extra})[1] == pytest.approx(want)


def test_yarn_takes_its_factor_from_the_lengths_where_it_is_not_given():
    scaling = {key: value for key, value in YARN.items() if key != "factor"}
    derived = rope_frequencies(64, 1e4, scaling, max_position=1024)
    assert np.array_equal(derived[0], rope_frequencies(64, 1e4, YARN)[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((7, 1e4), r"rope_dim must be even and at least 2, got 7"),
        ((8, 1.0), r"theta must be above 1, got 1.0"),
        ((8, 1e4, {"rope_type": "llama3"}), r"must be 'default' or 'yarn', got 'llama3'"),
        ((8, 1e4, {"rope_type": "yarn", "factor": 2.0}), r"original_max_position_embeddings"),
        ((8, 1e4, {**YARN, "factor": -4.0}), r"factor of yarn scaling must be positive, got -4"),
        ((8, 1e4, {**YARN, "beta_quick": 3}), r"unknown keys in the yarn scaling: beta_quick"),
    ],
)
def test_bad_frequencies_are_refused_with_a_reason(arguments, message):
    with pytest.raises(ValueError, match=message):
        rope_frequencies(*arguments)


def test_a_token_does_not_depend_on_its_neighbours(randn):
    x, positions, inv_freq = _operands(randn, torch.float32, rope_dim=6, shape=(3, 17, 2))
    together = rope(x, positions, inv_freq)
    for t in range(17):
        alone = rope(x[1:2, t : t + 1], positions[1:2, t : t + 1], inv_freq)
        assert torch.equal(alone[0, 0], together[1, t])

"""Claims about the filters and the draw: torch equals numpy, and the law is the stated one."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from longcat.serve import SamplingParams, probabilities, reference
from longcat.serve.sampling import Sampler, choose

ROWS = st.lists(st.integers(-40, 40), min_size=1, max_size=12)


def chosen(logits: torch.Tensor, params: SamplingParams, seed: int = 0) -> list[int]:
    """The tokens that logits [W,V] give at places 0 .. W-1 of one sequence."""
    sampler = Sampler.of([params], [seed], [0])
    return choose(sampler, logits[None], torch.arange(len(logits))[None])


@given(
    row=ROWS,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 1.7]),
    top_k=st.integers(0, 14),
    top_p=st.sampled_from([0.05, 0.5, 0.83, 0.999, 1.0]),
    min_p=st.sampled_from([0.0, 0.03, 0.4, 1.0]),
)
def test_torch_probabilities_equal_the_numpy_definition(
    row: list[int], temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    # Irrational steps keep cumulative masses off the thresholds; ties between tokens remain.
    logits = np.array(row) * 0.2718281828
    filters = {"top_k": top_k, "top_p": top_p, "min_p": min_p}
    want = reference.probabilities(logits, temperature, **filters)
    params = SamplingParams(temperature=temperature, **filters)
    got = probabilities(torch.tensor(np.stack([logits, logits])), params)
    assert got.dtype == torch.float64
    np.testing.assert_allclose(got[1].numpy(), want, rtol=0, atol=1e-13)
    assert want.sum() == pytest.approx(1.0, abs=1e-12)


def test_top_k_keeps_exactly_k_tokens_and_breaks_ties_by_lowest_id() -> None:
    p = reference.probabilities(np.zeros(5), top_k=2)
    np.testing.assert_array_equal(p, [0.5, 0.5, 0, 0, 0])
    params = SamplingParams(temperature=1.0, top_k=2)
    assert probabilities(torch.zeros(5), params).tolist() == [0.5, 0.5, 0, 0, 0]


def test_top_p_keeps_the_token_that_crosses_the_threshold() -> None:
    logits = np.log([0.5, 0.3, 0.15, 0.05])
    p = reference.probabilities(logits, top_p=0.6)
    np.testing.assert_allclose(p, [0.625, 0.375, 0, 0])


def test_min_p_is_relative_to_the_largest_probability() -> None:
    logits = np.log([0.5, 0.3, 0.15, 0.05])
    p = reference.probabilities(logits, min_p=0.25)
    np.testing.assert_allclose(p, np.array([0.5, 0.3, 0.15, 0]) / 0.95)


def test_temperature_zero_is_argmax_with_the_lowest_id_on_a_tie() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0, 2.0]])
    assert chosen(logits, SamplingParams()) == [1]
    assert reference.probabilities(logits[0].numpy(), 0.0).tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize("temperature", [1e-30, 1e-300, 5e-324])
def test_a_temperature_next_to_nothing_is_greedy_and_not_damaged(temperature: float) -> None:
    logits = torch.tensor([[1.0, 300.0, 300.0, -1e30]])
    params = SamplingParams(temperature=temperature)
    assert probabilities(logits, params).tolist() == [[0.0, 0.5, 0.5, 0.0]]
    with np.errstate(over="ignore"):  # to minus infinity, which is meant
        want = reference.probabilities(logits[0].double().numpy(), temperature)
    assert want.tolist() == [0.0, 0.5, 0.5, 0.0]


def test_choose_in_torch_is_choose_in_numpy() -> None:
    rng = np.random.default_rng(3)
    logits = rng.standard_normal((64, 11))
    params = SamplingParams(temperature=0.8, top_k=7, top_p=0.9)
    got = chosen(torch.tensor(logits), params, seed=5)
    want = [
        reference.choose(
            reference.probabilities(row, 0.8, top_k=7, top_p=0.9),
            reference.gumbel_noise(5, position, 11),
        )
        for position, row in enumerate(logits)
    ]
    assert got == want


def test_noise_depends_on_seed_and_position_only_and_looks_gumbel() -> None:
    noise = reference.gumbel_noise(1, 2, 50_000)
    np.testing.assert_array_equal(noise, reference.gumbel_noise(1, 2, 50_000))
    for other in (reference.gumbel_noise(1, 3, 50_000), reference.gumbel_noise(2, 2, 50_000)):
        assert abs(np.corrcoef(noise, other)[0, 1]) < 0.02
    # Mean is Euler's constant, variance pi^2 / 6.
    assert noise.mean() == pytest.approx(np.euler_gamma, abs=0.03)
    assert noise.var() == pytest.approx(np.pi**2 / 6, abs=0.06)
    assert np.isfinite(noise).all()


def test_neighbouring_positions_share_no_noise() -> None:
    """Philox counts blocks upwards: a position in the low counter word would overlap the next."""
    rows = [reference.gumbel_noise(0, position, 512) for position in range(8)]
    assert len({value for row in rows for value in row.tolist()}) == 8 * 512


def test_drawing_follows_the_probabilities_and_a_wrong_law_is_seen() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0, 0.5])
    params = SamplingParams(temperature=0.7, top_k=4)
    draws = 4000
    tokens = chosen(logits.expand(draws, 5), params, seed=9)
    observed = np.bincount(tokens, minlength=5)

    def chi_square(p: np.ndarray) -> float:
        kept = p > 0
        return float((((observed - draws * p) ** 2)[kept] / (draws * p[kept])).sum())

    p = reference.probabilities(logits.numpy(), 0.7, top_k=4)
    assert observed[3] == 0  # the fifth most probable token is outside the top 4
    assert chi_square(p) < 16.3  # 3 degrees of freedom, p = 0.001
    wrong = reference.probabilities(logits.numpy(), 0.8, top_k=4)
    assert chi_square(wrong) > 16.3


def test_coupled_acceptance_formula_is_the_measured_one_and_within_its_bounds() -> None:
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(6)), rng.dirichlet(np.ones(6))
    agree = [
        reference.choose(p, reference.gumbel_noise(4, i, 6))
        == reference.choose(q, reference.gumbel_noise(4, i, 6))
        for i in range(6000)
    ]
    exact = reference.coupled_acceptance(p, q)
    assert np.mean(agree) == pytest.approx(exact, abs=4 * 0.5 / 6000**0.5)
    distance = 0.5 * np.abs(p - q).sum()
    assert (1 - distance) / (1 + distance) <= exact <= 1 - distance
    assert reference.coupled_acceptance(p, p) == pytest.approx(1.0)
    # Independent noise, the mistake to guard against, agrees far less often.
    assert exact > 1.3 * float(p @ q)


def test_expected_tokens_per_step_is_one_plus_acceptance_for_one_draft() -> None:
    assert reference.expected_tokens_per_step(0.8, 1) == pytest.approx(1.8)
    assert reference.expected_tokens_per_step(0.5, 3) == pytest.approx((1 - 0.5**4) / 0.5)
    assert reference.expected_tokens_per_step(1.0, 3) == 4.0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", -0.1),
        ("max_tokens", 0),
        ("seed", -1),
        ("seed", 2**64),
    ],
)
def test_a_value_outside_its_range_is_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{field} must be .*; got {value}"):
        SamplingParams(**{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_refused(temperature: float, bad: float) -> None:
    with pytest.raises(ValueError, match="NaN or infinity"):
        chosen(torch.tensor([[0.0, bad]]), SamplingParams(temperature=temperature))

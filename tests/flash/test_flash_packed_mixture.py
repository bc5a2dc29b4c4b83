"""Claims about the packed mixture: few slots are sorted in Python, with the same results."""

import pytest
import torch

from longcat.flash.packed import ffn
from longcat.kernels.route import eager as route


def _all_ones(chosen: list[list[int]], gates: list[list[float]]) -> dict:
    return _BY_CHOICE(chosen, [[1.0] * len(row) for row in gates])


_BY_CHOICE = ffn._by_choice


@pytest.mark.parametrize("mutant", [None, _all_ones], ids=["as it is", "gates forgotten"])
@pytest.mark.parametrize("tokens", [0, 1, 2, 9, 40])
@pytest.mark.parametrize("case", ["base", "no identity experts", "identity experts only"])
@torch.inference_mode()
def test_few_slots_are_mixed_as_many_are(
    tiny_config, random_model, parity_cases, monkeypatch, case, tokens, mutant
):
    model = random_model(tiny_config(**parity_cases[case]), dtype=torch.float64).eval()
    mixture = ffn.PackedMixture(model.model.layers[0].mlp)
    u = torch.randn(tokens, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(ffn, "FEW", 0)
    wanted = mixture(u)
    monkeypatch.setattr(ffn, "FEW", 10**6)
    if mutant is not None:
        monkeypatch.setattr(ffn, "_by_choice", mutant)
    found = mixture(u)
    assert found.shape == wanted.shape
    alike = torch.allclose(found, wanted, rtol=0, atol=1e-12 * float(wanted.abs().sum()))
    assert alike == (mutant is None or not tokens)


@pytest.mark.parametrize("few", [10**6, 0], ids=["few", "many"])
def test_of_equal_scores_the_first_experts_are_chosen(monkeypatch, few):
    monkeypatch.setattr(ffn, "FEW", few)
    values = torch.tensor([[0.1, 0.4, 0.2, 0.4, 0.2], [0.5, 0.4, 0.3, 0.2, 0.1]])
    for count in range(1, 6):
        assert torch.equal(ffn._highest(values, count), route.highest(values, count))
    monkeypatch.setattr(route, "highest", lambda values, count: "the careful form")
    assert ffn._highest(values, 3) == "the careful form"
    assert ffn._highest(values[1:], 3).tolist() == [[0, 1, 2]]

"""Claims about the mean's own gain: drifting weights cost no compute, and no load rings for it."""

import numpy as np
import pytest
import torch

from longcat.router import BiasController, ControllerConfig, RouterConfig, reference

CONFIG = RouterConfig(
    hidden_size=16, n_routed_experts=8, zero_expert_num=8, top_k=4, expected_ffn_experts=3
)
LAYERS, STEPS, WARM, TOKENS = 1, 160, 60, 256


def test_torch_agrees_with_the_definition_in_every_layer():
    controller = BiasController(CONFIG, 2, ControllerConfig(mu=0.4, mu_mean=1.3, k_p=0.2, k_d=0.1))
    counts = np.random.default_rng(0).integers(0, 50, size=(6, 2, 16))
    bias, want = torch.zeros(2, 16, dtype=torch.float64), np.zeros((2, 16))
    errors = [np.zeros((2, 16)), np.zeros((2, 16))]
    for batch in counts:
        bias = controller.update(bias, torch.from_numpy(batch))
        errors.append(reference.expert_error(batch, n_ffn=8, top_k=4, target_ffn=3))
        history = (errors[-1], errors[-2], errors[-3])
        want = reference.controller_step(
            want, history, k_i=0.4, k_p=0.2, k_d=0.1, k_mean=1.3, n_ffn=8
        )
    np.testing.assert_allclose(bias.numpy(), want, atol=1e-14)
    assert (want[:, 8:] == 0).all()


def test_a_layer_without_tokens_keeps_its_bias():
    controller = BiasController(CONFIG, 2, ControllerConfig(mu=0.4, mu_mean=1.3))
    counts = torch.randint(1, 50, (2, 16), generator=torch.Generator().manual_seed(0))
    counts[1] = 0
    moved = controller.update(torch.full((2, 16), 0.25), counts)
    assert (moved[1] == 0.25).all()
    assert (moved[0, :8] != 0.25).all()


def test_a_gain_of_the_mean_that_equals_mu_is_the_published_law():
    counts = torch.randint(0, 50, (5, 1, 16), generator=torch.Generator().manual_seed(0))
    plain = BiasController(CONFIG, 1, ControllerConfig(mu=0.5))
    split = BiasController(CONFIG, 1, ControllerConfig(mu=0.5, mu_mean=0.5))
    a = b = torch.zeros(1, 16, dtype=torch.float64)
    for batch in counts:
        a, b = plain.update(a, batch), split.update(b, batch)
    torch.testing.assert_close(a, b, rtol=0, atol=1e-15)


def test_errors_that_cancel_leave_the_mean_alone():
    counts = torch.full((1, 16), 60)
    counts[0, :8] = torch.tensor([90, 90, 90, 90, 150, 30, 120, 60])  # 90 = K_e / (K N) of 960
    counts[0, 8:] = 30
    moved = [
        BiasController(CONFIG, 1, ControllerConfig(mu=0.1, mu_mean=gain)).update(
            torch.zeros(1, 16, dtype=torch.float64), counts
        )
        for gain in (0.1, 5.0)
    ]
    assert float(moved[0].abs().max()) > 0
    torch.testing.assert_close(moved[0], moved[1], rtol=0, atol=1e-14)


def drifting(law):
    """(FFN experts over the steps after warm-up / K_e - 1, mean of single steps' heaviest load).

    The FFN experts' logits rise together from step to step, as a router's do that learns to prefer
    computing, and every batch is fresh.
    """
    controller = BiasController(CONFIG, LAYERS, law)
    rng = np.random.default_rng(0)
    classifier = 0.3 * rng.normal(size=(16, 16))
    direction = rng.normal(size=16)
    direction /= np.linalg.norm(direction)
    bias = torch.zeros(1, 16, dtype=torch.float64)
    means, heaviest = [], []
    for step in range(STEPS):
        moved = classifier.copy()
        moved[:8] += 0.02 * step * direction
        tokens = rng.normal(size=(TOKENS, 16)) + direction
        counts = reference.route(
            tokens, moved, bias[0].numpy(), top_k=4, scale=1.0, n_ffn=8
        ).counts[None]
        bias = controller.update(bias, torch.from_numpy(counts))
        if step >= WARM:
            means.append(counts[0, :8].sum() / TOKENS)
            heaviest.append(counts[0, :8].max() / counts[0, :8].mean())
    return abs(np.mean(means) / 3 - 1), np.mean(heaviest)


def test_weights_that_drift_do_not_pull_the_mean_off_its_target():
    lag, even = drifting(ControllerConfig(mu=0.1))
    held, still_even = drifting(ControllerConfig(mu=0.1, mu_mean=1.0))
    assert lag > 0.03  # the mutant: one small gain for both
    assert held < 0.01
    assert still_even < 1.1 * even


@pytest.mark.parametrize("gain", [-1.0, -1e-3])
def test_a_negative_gain_of_the_mean_is_refused(gain):
    with pytest.raises(ValueError, match="mu_mean must not be negative"):
        ControllerConfig(mu_mean=gain)

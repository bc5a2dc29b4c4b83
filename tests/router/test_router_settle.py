"""Claims about settling: a gain that falls to 0 on frozen weights ends on the target."""

import numpy as np
import pytest
import torch

from longcat.router import BiasController, ControllerConfig, RouterConfig, reference, settle

# K_e/K differs from N/(N+Z), so that a rule that merely evens out all experts fails.
CONFIG = RouterConfig(
    hidden_size=16, n_routed_experts=8, zero_expert_num=8, top_k=4, expected_ffn_experts=3
)
SHAPE = {"n_ffn": 8, "top_k": 4, "target_ffn": 3.0}
CLASSIFIER = 0.3 * np.random.default_rng(0).normal(size=(16, 16))
MU, STEPS, TOKENS = 1.0, 80, 128


def counted(bias, rng, tokens=TOKENS):
    """Counts [1, E] of a fresh batch under biases [1, E]."""
    u = rng.normal(size=(tokens, 16))
    return reference.route(u, CLASSIFIER, bias[0], top_k=4, scale=1.0, n_ffn=8).counts[None]


def constant(router, bias, count, *, mu, steps):
    """The mutant: the gain of training, to the end."""
    controller = BiasController(router, 1, ControllerConfig(mu=mu))
    for _ in range(steps):
        bias = controller.update(bias, count(bias))
    return bias


def settled(seed, how=settle, steps=STEPS):
    rng = np.random.default_rng([seed, 1])

    def count(bias):
        return torch.from_numpy(counted(bias.numpy(), rng))

    return how(CONFIG, torch.zeros(1, 16, dtype=torch.float64), count, mu=MU, steps=steps)


def deviations(how):
    """Mean FFN experts / K_e - 1 on much other text, of several seeds."""
    rng, tokens = np.random.default_rng(99), 20_000
    counts = [counted(settled(seed, how).numpy(), rng, tokens) for seed in range(5)]
    return np.array([c[0, :8].sum() / tokens / 3 - 1 for c in counts])


def test_torch_settles_where_the_definition_does():
    rng = np.random.default_rng([3, 1])
    want = reference.settle(
        np.zeros((1, 16)), lambda bias: counted(bias, rng), steps=STEPS, mu=MU, **SHAPE
    )
    assert np.abs(settled(3).numpy() - want).max() < 1e-12
    assert np.abs(settled(3, constant).numpy() - want).max() > 1e-3


def test_settled_biases_hold_the_target_on_other_text_where_those_of_training_scatter():
    fell, stayed = deviations(settle), deviations(constant)
    assert np.abs(fell).max() < 0.01
    assert np.sqrt((stayed**2).mean()) > 2 * np.sqrt((fell**2).mean())


def test_identity_experts_keep_their_bias_and_one_step_is_a_step_of_the_law():
    assert not settled(0)[:, 8:].any()
    assert torch.equal(settled(0, steps=1), settled(0, constant, steps=1))
    with pytest.raises(ValueError, match="at least one step, got 0"):
        settled(0, steps=0)

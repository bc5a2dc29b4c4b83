"""Claims about the bias controller, at a shape where a wrong, uniform rule is seen to be wrong.

At the published shape K_e/K equals N/(N+Z), so steering every expert to the same share gives the
right number of FFN experts by accident. Here N=8, Z=8, K=4, K_e=3: uniform would give 2.
"""

import numpy as np
import pytest
import torch

from longcat.router import BiasController, ControllerConfig, Router, RouterConfig, reference

CONFIG = RouterConfig(
    hidden_size=16, n_routed_experts=8, zero_expert_num=8, top_k=4, expected_ffn_experts=3
)


def router_and_batches(seed: int = 0, n_tokens: int = 2048):
    generator = torch.Generator().manual_seed(seed)
    router = Router(CONFIG)
    with torch.no_grad():
        drawn = torch.randn(router.classifier.weight.shape, generator=generator)
        router.classifier.weight.copy_(0.3 * drawn)
    while True:
        yield router, torch.randn(n_tokens, 16, generator=generator)


def mean_ffn_experts(controller, steps=300, count_factor=1, seed=0, after=None):
    """FFN experts per token over the last 50 steps, and each expert's share of its target."""
    batches = router_and_batches(seed)
    total = torch.zeros(CONFIG.n_experts, dtype=torch.int64)
    n_tokens = 0
    for step in range(steps):
        router, u = next(batches)
        counts = router(u).counts * count_factor
        bias = controller.update(router.e_score_correction_bias[None], counts[None])[0]
        router.e_score_correction_bias.copy_(bias if after is None else after(bias))
        if step >= steps - 50:
            total += router(u).counts
            n_tokens += len(u)
    return float(total[:8].sum()) / n_tokens, total[:8] / n_tokens / (3 / 8)


@pytest.mark.parametrize("mu", [1.0, 0.3])
def test_the_published_law_brings_every_layer_to_k_e(mu):
    mean, load = mean_ffn_experts(BiasController(CONFIG, 1, ControllerConfig(mu=mu)))
    assert abs(mean - 3) < 0.03
    assert float(load.max()) < 1.1


def test_doubled_counts_change_nothing_because_the_sum_divides():
    law = ControllerConfig(mu=1.0)
    once = mean_ffn_experts(BiasController(CONFIG, 1, law), steps=100)
    twice = mean_ffn_experts(BiasController(CONFIG, 1, law), steps=100, count_factor=2)
    assert once[0] == twice[0]


class DividesByTokens(BiasController):
    """The mutant: normalises by K times the tokens it believes it saw."""

    def expert_error(self, counts):
        error = torch.full(counts.shape, 3 / (4 * 8), dtype=torch.float64)
        error = error - counts / (4 * 2048)
        error[:, 8:] = 0
        return error


class UniformTarget(BiasController):
    """The mutant: the same share for every one of the N+Z experts."""

    def expert_error(self, counts):
        return 1 / CONFIG.n_experts - counts / counts.sum(-1, keepdim=True).double()


def test_a_count_taken_twice_halves_the_compute_of_the_other_normalisation():
    mean, _ = mean_ffn_experts(DividesByTokens(CONFIG, 1), count_factor=2)
    assert abs(mean - 1.5) < 0.1


def test_a_uniform_target_is_rejected_at_this_shape():
    mean, _ = mean_ffn_experts(UniformTarget(CONFIG, 1))
    assert abs(mean - 2) < 0.1


def test_centring_the_bias_over_ffn_experts_loses_the_target():
    def centred(bias):
        bias = bias.clone()
        bias[:8] -= bias[:8].mean()
        return bias

    mean, _ = mean_ffn_experts(BiasController(CONFIG, 1), after=centred)
    assert abs(mean - 3) > 0.3


def test_identity_experts_are_never_touched():
    controller = BiasController(CONFIG, 2)
    counts = torch.randint(0, 100, (2, 16))
    bias = controller.update(torch.zeros(2, 16), counts)
    assert (bias[:, 8:] == 0).all()
    assert (bias[:, :8] != 0).any()


@pytest.mark.parametrize("gains", [(1.0, 0.0, 0.0), (0.0, 0.7, 0.0), (0.4, 0.2, 0.1)])
def test_torch_agrees_with_the_velocity_form(gains):
    k_i, k_p, k_d = gains
    law = ControllerConfig(mu=k_i, k_p=k_p, k_d=k_d)
    controller = BiasController(CONFIG, 1, law)
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 50, size=(6, 16))
    bias = torch.zeros(1, 16, dtype=torch.float64)
    want = np.zeros(16)
    errors = []
    for step in range(6):
        bias = controller.update(bias, torch.from_numpy(counts[step])[None])
        errors.append(reference.expert_error(counts[step], n_ffn=8, top_k=4, target_ffn=3))
        history = tuple([*reversed(errors), np.zeros(16), np.zeros(16)][:3])
        want = reference.controller_step(want, history, k_i=k_i, k_p=k_p, k_d=k_d)
    np.testing.assert_allclose(bias[0].numpy(), want, atol=1e-14)
    # Increments from a history of zeros add up to the textbook (position) form.
    position = k_i * sum(errors) + k_p * errors[-1] + k_d * (errors[-1] - errors[-2])
    np.testing.assert_allclose(want, position, atol=1e-14)


def test_the_published_law_is_the_integral_of_the_error():
    controller = BiasController(CONFIG, 1, ControllerConfig(mu=0.5))
    counts = torch.randint(1, 50, (1, 16))
    bias = torch.zeros(1, 16, dtype=torch.float64)
    for _ in range(3):
        bias = controller.update(bias, counts)
    torch.testing.assert_close(bias, 3 * 0.5 * controller.expert_error(counts))


def test_a_layer_without_tokens_keeps_its_bias_and_its_history():
    law = ControllerConfig(mu=0.5, k_p=0.3, k_d=0.2)
    skipped, alone = BiasController(CONFIG, 2, law), BiasController(CONFIG, 2, law)
    batches = torch.randint(1, 50, (3, 2, 16), generator=torch.Generator().manual_seed(0))
    empty = batches[1].clone()
    empty[0] = 0
    a = b = torch.full((2, 16), 0.25, dtype=torch.float64)
    a, b = skipped.update(a, batches[0]), alone.update(b, batches[0])
    paused = skipped.update(a, empty)
    assert torch.equal(paused[0], a[0])
    assert not torch.equal(paused[1], a[1])
    a, b = skipped.update(paused, batches[2]), alone.update(b, batches[2])
    assert torch.equal(a[0], b[0])  # as if the empty batch had not been


def test_errors_of_several_layers_agree_with_the_definition_even_if_one_is_empty():
    counts = np.random.default_rng(0).integers(0, 50, size=(3, 16))
    counts[1] = 0
    want = reference.expert_error(counts, n_ffn=8, top_k=4, target_ffn=3)
    got = BiasController(CONFIG, 3).expert_error(torch.from_numpy(counts))
    np.testing.assert_allclose(got.numpy(), want, atol=1e-15)
    assert (want[1] == 0).all()
    assert (want[[0, 2], :8] != 0).any(axis=1).all()


def test_without_ffn_experts_there_is_no_controller():
    config = RouterConfig(hidden_size=4, n_routed_experts=0, zero_expert_num=3, top_k=2)
    bias = torch.rand(1, 3)
    assert BiasController(config, 1).update(bias, torch.ones(1, 3, dtype=torch.int64)) is bias


def test_a_frozen_controller_keeps_the_bias_and_its_step():
    controller = BiasController(CONFIG, 1)
    controller.frozen = True
    bias = torch.rand(1, 16)
    assert controller.update(bias, torch.ones(1, 16, dtype=torch.int64)) is bias
    assert controller.step == 0


def test_mu_decays_linearly_to_its_final_value():
    law = ControllerConfig(mu=1.0, mu_final=0.2, decay_steps=4)
    controller = BiasController(CONFIG, 1, law)
    seen = []
    for _ in range(6):
        seen.append(controller.mu)
        controller.update(torch.zeros(1, 16), torch.ones(1, 16, dtype=torch.int64))
    assert seen == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2, 0.2])


def test_a_restored_controller_goes_on_bit_for_bit():
    law = ControllerConfig(mu=0.5, mu_final=0.1, decay_steps=5, k_p=0.3, k_d=0.1)
    generator = torch.Generator().manual_seed(0)
    counts = torch.randint(0, 50, (8, 1, 16), generator=generator)
    whole, first = BiasController(CONFIG, 1, law), BiasController(CONFIG, 1, law)
    a = b = torch.zeros(1, 16)
    for step in range(8):
        a = whole.update(a, counts[step])
        if step == 4:
            second = BiasController(CONFIG, 1, law)
            second.load_state_dict(first.state_dict())
            first = second
        b = first.update(b, counts[step])
    assert torch.equal(a, b)


def test_wrong_shapes_and_foreign_states_are_named():
    controller = BiasController(CONFIG, 2)
    with pytest.raises(ValueError, match=r"counts must be \[layers, experts\] = \(2, 16\)"):
        controller.update(torch.zeros(2, 16), torch.zeros(1, 16, dtype=torch.int64))
    with pytest.raises(ValueError, match="checkpoint is of another model"):
        controller.load_state_dict(BiasController(CONFIG, 1).state_dict())
    with pytest.raises(ValueError, match="must not be negative"):
        ControllerConfig(mu=-1.0)

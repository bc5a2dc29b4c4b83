"""Claims about the device-level balance loss and the gradient ratio R_g."""

import numpy as np
import pytest
import torch

from longcat.router import BalanceLoss, RouterConfig, balance_loss, reference, router_gradient_ratio

CONFIG = RouterConfig(
    hidden_size=4, n_routed_experts=8, zero_expert_num=8, top_k=4, expected_ffn_experts=3
)


def routed(config=CONFIG, n_tokens=21, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n_tokens, config.n_experts, generator=generator, dtype=torch.float64)
    scores = logits.softmax(-1).requires_grad_()
    return scores, scores.topk(config.top_k, dim=-1).indices


@pytest.mark.parametrize("groups", [1, 2, 4, 8])
@pytest.mark.parametrize("masked", [False, True])
def test_torch_agrees_with_the_definition(groups, masked):
    scores, indices = routed()
    mask = torch.arange(21) % 2 == 0 if masked else None
    loss, f = balance_loss(scores, indices, CONFIG, groups, mask)
    want = reference.balance_loss(
        scores.detach().numpy(),
        indices.numpy(),
        n_ffn=8,
        target_ffn=3,
        groups=groups,
        token_mask=None if mask is None else mask.numpy(),
    )
    assert loss.item() == pytest.approx(want.loss, rel=1e-12)
    np.testing.assert_allclose(f.numpy(), want.f, rtol=1e-12)


def test_every_f_is_one_at_exact_balance():
    # 16 tokens whose slots are 3 of 8 FFN experts and 1 of 8 identity experts, evenly.
    indices = torch.tensor([[t % 8, (t + 1) % 8, (t + 2) % 8, 8 + t % 8] for t in range(16)])
    scores = torch.full((16, 16), 1 / 16, dtype=torch.float64)
    for groups in (1, 2, 4, 8):
        loss, f = balance_loss(scores, indices, CONFIG, groups)
        np.testing.assert_allclose(f.numpy(), np.ones(groups + 1))
        assert float(loss) == pytest.approx(1.0)
    # The control: 2 of 4 slots to each kind is 2/3 of the FFN experts' share, twice the identity's.
    indices = torch.tensor([[t % 8, (t + 1) % 8, 8 + t % 8, 8 + (t + 1) % 8] for t in range(16)])
    _, f = balance_loss(scores, indices, CONFIG, 4)
    np.testing.assert_allclose(f.numpy(), [2 / 3] * 4 + [2.0])


def test_the_gradient_flows_through_mean_probabilities_only():
    scores, indices = routed()
    loss, f = balance_loss(scores, indices, CONFIG, 4)
    (gradient,) = torch.autograd.grad(loss, scores)
    group = reference.group_of_expert(8, 16, 4)
    want = f.numpy()[group] / len(scores)
    np.testing.assert_allclose(gradient.numpy(), np.broadcast_to(want, gradient.shape))


@pytest.mark.parametrize(
    "config",
    [
        RouterConfig(hidden_size=4, n_routed_experts=8, zero_expert_num=0, top_k=4),
        RouterConfig(
            hidden_size=4,
            n_routed_experts=8,
            zero_expert_num=4,
            top_k=4,
            expected_ffn_experts=4,
        ),
    ],
    ids=["no identity experts", "K_e equals K"],
)
def test_without_an_identity_share_there_is_no_extra_group(config):
    scores, indices = routed(config)
    _, f = balance_loss(scores, indices, config, 2)
    assert f.shape == (2,)
    want = reference.balance_loss(
        scores.detach().numpy(), indices.numpy(), n_ffn=8, target_ffn=config.target_ffn, groups=2
    )
    np.testing.assert_allclose(f.numpy(), want.f)


def test_without_ffn_experts_the_loss_is_zero():
    config = RouterConfig(hidden_size=4, n_routed_experts=0, zero_expert_num=4, top_k=2)
    scores, indices = routed(config)
    assert float(balance_loss(scores, indices, config, 1)[0]) == 0.0


def test_groups_must_divide_the_ffn_experts():
    with pytest.raises(ValueError, match="groups must divide n_routed_experts=8; got groups=3"):
        balance_loss(*routed(), CONFIG, 3)


def attached_gradient(balance, y_weight=1.0):
    scores, indices = routed()
    y = (scores.sum() * y_weight).view(1)
    y, value, _ = balance.attach(y, scores, indices, CONFIG)
    y.sum().backward()
    return scores.grad, float(value)


def test_attaching_equals_adding_the_loss():
    scores, indices = routed()
    loss, _ = balance_loss(scores, indices, CONFIG, 2)
    (scores.sum() + 0.25 * loss).backward()
    gradient, value = attached_gradient(BalanceLoss(alpha=0.25, groups=2))
    torch.testing.assert_close(gradient, scores.grad)
    assert value == pytest.approx(0.25 * loss.item())


def test_scale_and_pause_act_on_the_attached_gradient_alone():
    nothing, _ = attached_gradient(BalanceLoss(alpha=0.0))
    full, _ = attached_gradient(BalanceLoss(alpha=0.5))
    half, _ = attached_gradient(BalanceLoss(alpha=0.5, scale=0.5))
    torch.testing.assert_close(half - nothing, (full - nothing) / 2)
    paused = BalanceLoss(alpha=0.5)
    with paused.paused():
        torch.testing.assert_close(attached_gradient(paused)[0], nothing)
    assert not paused.is_paused


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("centred", [False, True])
def test_gradient_ratio_agrees_with_the_definition(groups, centred):
    scores, indices = routed()
    _, f = balance_loss(scores, indices, CONFIG, groups)
    lm = torch.randn(16, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    got = router_gradient_ratio(lm, f, CONFIG, alpha=0.01, groups=groups, centred=centred)
    want = reference.router_gradient_ratio(
        lm.numpy(), f.numpy(), alpha=0.01, n_ffn=8, groups=groups, centred=centred
    )
    assert got == pytest.approx(want, rel=1e-12)


def test_at_balance_the_numerator_is_alpha_times_the_root_of_the_experts():
    lm = torch.zeros(16, dtype=torch.float64)
    lm[0] = 1.0
    ratio = router_gradient_ratio(lm, torch.ones(5), CONFIG, alpha=0.1, groups=4)
    assert ratio == pytest.approx(0.1 * 4.0)
    centred = router_gradient_ratio(lm, torch.ones(5), CONFIG, alpha=0.1, groups=4, centred=True)
    assert centred == 0.0
    silent = router_gradient_ratio(torch.zeros(16), torch.ones(5), CONFIG, alpha=0.1, groups=4)
    assert silent == float("inf")


def test_the_router_feels_only_the_centred_part_of_a_gradient_on_the_scores():
    """Softmax cancels what all experts have in common, whatever is written beside R_g."""
    logits = torch.randn(5, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    pull = torch.randn(16, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def felt(direction):
        leaf = logits.clone().requires_grad_()
        (leaf.softmax(-1) @ direction).sum().backward()
        return leaf.grad

    torch.testing.assert_close(felt(pull - pull.mean()), felt(pull))
    assert float(felt(pull).abs().max()) > 1e-2

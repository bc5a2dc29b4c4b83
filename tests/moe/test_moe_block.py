"""Claims about the mixture and the shortcut-connected block."""

import numpy as np
import pytest
import torch
from torch import nn

from longcat.moe import MoE, MoEConfig, ScMoEBlock, StandardBlock, reference
from longcat.router import BalanceLoss, RouterConfig


def config(n=8, z=8, k=4, d=12, f=6, scale=2.5):
    router = RouterConfig(
        hidden_size=d, n_routed_experts=n, zero_expert_num=z, top_k=k, routed_scaling_factor=scale
    )
    return MoEConfig(router=router, expert_ffn_hidden_size=f)


def fill(module, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.4)
    return module


def made(cfg=None, seed=0, dtype=torch.float64, **options):
    return fill(MoE(cfg or config(), dtype=dtype, **options), seed)


def tokens(n=19, seed=1, d=12):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_definition(moe, u):
    routing = moe.router(u)
    return reference.mixture(
        u.numpy(),
        routing.indices.numpy(),
        routing.gates.detach().numpy(),
        moe.experts.gate_up_proj.detach().numpy(),
        moe.experts.down_proj.detach().numpy(),
    )


SIZES = [
    (8, 8, 4),
    (8, 8, 1),
    (3, 5, 8),  # K = N+Z
    (6, 0, 2),  # no identity experts
    (0, 4, 2),  # no FFN experts
    (2, 6, 3),  # Z > N
    (1, 0, 1),
]


@torch.no_grad()
@pytest.mark.parametrize(("n", "z", "k"), SIZES)
def test_torch_agrees_with_the_definition_at_every_shape(n, z, k):
    moe = made(config(n, z, k))
    u = tokens()
    y, record = moe(u)
    np.testing.assert_allclose(y.numpy(), by_definition(moe, u), atol=1e-12)
    assert record.routing.counts.sum() == 19 * k


@torch.no_grad()
def test_no_tokens_give_no_result_and_no_error():
    y, record = made()(tokens(0))
    assert y.shape == (0, 12)
    assert int(record.routing.counts.sum()) == 0


@torch.no_grad()
def test_identity_experts_return_their_input():
    moe = made()
    moe.router.e_score_correction_bias[8:] += 10.0
    u = tokens()
    y, record = moe(u)
    want = u * record.routing.gates.sum(-1, keepdim=True)
    torch.testing.assert_close(y, want, rtol=0, atol=1e-14)


@torch.no_grad()
def test_identity_experts_cost_nothing(monkeypatch):
    """Slots that chose the identity never reach the expert computation."""
    seen = []
    moe = made()
    run = moe.experts.forward
    monkeypatch.setattr(
        moe.experts, "forward", lambda x, offsets: (seen.append(len(x)), run(x, offsets))[1]
    )
    _, record = moe(tokens())
    assert seen == [int(record.routing.counts[:8].sum())]
    assert seen[0] < 19 * 4


@torch.no_grad()
def test_a_gate_from_the_biased_score_is_rejected(monkeypatch):
    """The mutant that lets the bias reach the gate is far outside the tolerance above."""
    moe, u = made(), tokens()
    want = by_definition(moe, u)
    route = moe.router.forward

    def biased(x, *more):
        routing = route(x, *more)
        extra = moe.router.e_score_correction_bias[routing.indices]
        object.__setattr__(routing, "gates", routing.gates + 2.5 * extra)
        return routing

    monkeypatch.setattr(moe.router, "forward", biased)
    assert np.abs(moe(u)[0].numpy() - want).max() > 1e-2


def test_gradients_equal_numerical_ones():
    moe = made(config(3, 2, 3, d=4, f=2))
    u = tokens(3, d=4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: moe(x)[0], (u,), atol=1e-6)
    weights = list(moe.parameters())
    assert torch.autograd.gradcheck(lambda *w: moe(u.detach())[0], weights, atol=1e-6)


def test_gradients_reach_router_and_every_chosen_expert():
    moe, u = made(), tokens(64)
    y, record = moe(u)
    y.square().sum().backward()
    assert float(moe.router.classifier.weight.grad.abs().sum()) > 0
    used = record.routing.counts[:8] > 0
    assert torch.equal(moe.experts.down_proj.grad.abs().sum((1, 2)) > 0, used)


def test_the_balance_gradient_arrives_without_being_added_to_the_loss():
    balance = BalanceLoss(alpha=0.1)
    moe = made(balance=balance)
    y, record = moe(tokens())
    (y.sum() * 0).backward()
    assert float(moe.router.classifier.weight.grad.abs().max()) > 0
    assert float(record.balance_loss) > 0
    silent = made()
    (silent(tokens())[0].sum() * 0).backward()
    assert float(silent.router.classifier.weight.grad.abs().max()) == 0  # the control


class Mixer(nn.Module):
    """A stand-in attention: the block must work with anything that has the two methods."""

    def __init__(self, width):
        super().__init__()
        self.proj = nn.Linear(width, width, bias=False, dtype=torch.float64)

    def project(self, x, positions):
        return self.proj(x)

    def attend(self, state, cache):
        return state.cumsum(dim=1)


def block_and_definition(seed=0):
    cfg = config()
    block = fill(ScMoEBlock((Mixer(12), Mixer(12)), cfg, 10, 1e-5, dtype=torch.float64), seed)

    def norm(module):
        weight = module.weight.detach().numpy()
        return lambda x: x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * weight

    def attention(module):
        weight = module.proj.weight.detach().numpy()
        return lambda x: (x @ weight.T).cumsum(axis=0)

    def ffn(module):
        parts = [
            getattr(module, f"{name}_proj").weight.detach().numpy()
            for name in ("gate", "up", "down")
        ]
        return lambda x: reference.swiglu_ffn(x, *parts)

    parts = {
        "attentions": tuple(attention(m) for m in block.self_attn),
        "ffns": tuple(ffn(m) for m in block.mlps),
        "moe": lambda u: by_definition(block.mlp, torch.from_numpy(u)),
        "input_norms": tuple(norm(m) for m in block.input_layernorm),
        "post_norms": tuple(norm(m) for m in block.post_attention_layernorm),
    }
    return block, parts


@torch.no_grad()
def test_the_block_agrees_with_the_definition():
    block, parts = block_and_definition()
    x = tokens()[None]
    y, _ = block(x, torch.arange(19)[None])
    want = reference.scmoe_block(x[0].numpy(), **parts)
    np.testing.assert_allclose(y[0].numpy(), want, atol=1e-11)


@torch.no_grad()
@pytest.mark.parametrize("mutant", ["added after FFN_0", "reads the residual stream"])
def test_another_placement_of_the_shortcut_is_rejected(mutant):
    block, p = block_and_definition()
    x = tokens().numpy()
    h1 = x + p["attentions"][0](p["input_norms"][0](x))
    u = p["post_norms"][0](h1)
    m = p["moe"](h1 if mutant == "reads the residual stream" else u)
    h2 = h1 + p["ffns"][0](u) + (m if mutant == "added after FFN_0" else 0)
    h3 = h2 + p["attentions"][1](p["input_norms"][1](h2))
    h4 = h3 + p["ffns"][1](p["post_norms"][1](h3))
    wrong = h4 if mutant == "added after FFN_0" else h4 + m
    y, _ = block(torch.from_numpy(x)[None], torch.arange(19)[None])
    assert np.abs(y[0].numpy() - wrong).max() > 1e-2


@torch.no_grad()
def test_the_standard_order_agrees_with_its_definition_and_not_with_the_shortcuts():
    block, parts = block_and_definition()
    x = tokens()[None]
    y, record = StandardBlock.of(block)(x, torch.arange(19)[None])
    want = reference.standard_block(x[0].numpy(), **parts)
    np.testing.assert_allclose(y[0].numpy(), want, atol=1e-11)
    assert int(record.routing.counts.sum()) == 19 * 4
    assert np.abs(reference.scmoe_block(x[0].numpy(), **parts) - want).max() > 1e-2


def test_the_standard_order_shares_every_parameter_of_its_block():
    block, _ = block_and_definition()
    standard = StandardBlock.of(block)
    assert list(standard.state_dict()) == list(block.state_dict())
    shared = zip(standard.parameters(), block.parameters(), strict=True)
    assert all(mine is its for mine, its in shared)
    assert type(block) is ScMoEBlock  # the block given is left as it was


@torch.no_grad()
def test_padding_is_excluded_from_counts_only():
    block, _ = block_and_definition()
    x = tokens()[None]
    mask = torch.ones(1, 19, dtype=torch.bool)
    mask[:, :4] = False
    y, record = block(x, torch.arange(19)[None], token_mask=mask)
    plain, all_counted = block(x, torch.arange(19)[None])
    assert torch.equal(y, plain)
    assert int(record.routing.counts.sum()) == 15 * 4
    assert int(all_counted.routing.counts.sum()) == 19 * 4


def test_an_impossible_expert_width_is_named():
    with pytest.raises(ValueError, match="expert_ffn_hidden_size must be positive"):
        config(f=0)


@torch.no_grad()
@pytest.mark.parametrize("standard", [False, True])
def test_inference_gives_the_layers_output_and_nothing_else(standard):
    block, _ = block_and_definition()
    if standard:
        block = StandardBlock.of(block)
    x, positions = tokens()[None], torch.arange(19)[None]
    torch.testing.assert_close(
        block.infer(x, positions, (None, None)), block(x, positions)[0], rtol=0, atol=0
    )

"""Controls: the usual mistakes in implementing LongCat-Flash, each caught by the parity check.

Every mutant differs from our model in one thing. The check of the parity tests (float32 logits
within 5e-5 of transformers') must pass without it and fail with it.
"""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from longcat.flash import FlashModel
from longcat.router import Routing

LOGITS = 5e-5
GRADIENT = 1e-4


def error(ours: FlashModel, theirs: Any) -> float:
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(4, 96, (2, 40), generator=generator)
    with torch.no_grad():
        return float((ours(ids).logits - theirs(ids).logits).abs().max())


def with_attention(model: FlashModel, **changes: Any) -> FlashModel:
    """The same weights under another attention config."""
    config = replace(model.config, attention=replace(model.config.attention, **changes))
    other = FlashModel(config)
    other.load_state_dict(model.state_dict())
    return other


def with_gates(change: Callable[..., torch.Tensor]) -> Callable[[FlashModel], FlashModel]:
    """A mutant whose routers' gates are change(gates, routing, bias, config)."""

    def mutate(model: FlashModel) -> FlashModel:
        def hook(router: Any, inputs: Any, routing: Routing) -> Routing:
            bias = router.e_score_correction_bias
            return replace(routing, gates=change(routing.gates, routing, bias, router.config))

        model = copy.deepcopy(model)
        for layer in model.model.layers:
            layer.mlp.router.register_forward_hook(hook)
        return model

    return mutate


def with_mixture(*, reads: str = "u", added: str = "end") -> Callable[[FlashModel], FlashModel]:
    """A mutant whose mixtures read h1, u or v and are added after the first FFN or at the end."""

    def forward(self, x, positions, caches=(None, None), token_mask=None):
        h1 = x + self.attention(0, x, positions, caches[0])
        u = self.post_attention_layernorm[0](h1)
        h2 = h1 + self.mlps[0](u)
        if reads != "v":
            m, record = self.mlp({"h1": h1, "u": u}[reads], token_mask)
        if added == "h2":
            h2 = h2 + m
        h3 = h2 + self.attention(1, h2, positions, caches[1])
        v = self.post_attention_layernorm[1](h3)
        if reads == "v":
            m, record = self.mlp(v, token_mask)
        h4 = h3 + self.mlps[1](v)
        return (h4 + m if added == "end" else h4), record

    def mutate(model: FlashModel) -> FlashModel:
        model = copy.deepcopy(model)
        for layer in model.model.layers:
            layer.forward = forward.__get__(layer)
        return model

    return mutate


@with_gates
def identity_experts_unscaled(gates, routing, bias, config):
    identity = routing.indices >= config.n_routed_experts
    return torch.where(identity, gates / config.routed_scaling_factor, gates)


@with_gates
def gates_from_biased_scores(gates, routing, bias, config):
    return gates + config.routed_scaling_factor * bias[routing.indices]


@with_gates
def gates_renormalised(gates, routing, bias, config):
    return config.routed_scaling_factor * gates / gates.sum(dim=-1, keepdim=True)


@with_gates
def gates_without_the_scaling_factor(gates, routing, bias, config):
    return gates / config.routed_scaling_factor


def bias_ignored_in_the_choice(model):
    model = copy.deepcopy(model)
    for layer in model.model.layers:
        layer.mlp.router.e_score_correction_bias.zero_()
    return model


def attentions(model):
    return [attention for layer in model.model.layers for attention in layer.self_attn]


@torch.no_grad()
def rotary_key_scaled(model):
    model = copy.deepcopy(model)
    for attention in attentions(model):
        c = attention.config
        attention.kv_a_proj_with_mqa.weight[c.kv_lora_rank :] *= c.alpha_kv
    return model


@torch.no_grad()
def halves_rotated_instead_of_pairs(model):
    """Ordering the rows so that dimension j is paired with j + R/2."""
    model = copy.deepcopy(model)
    for attention in attentions(model):
        c = attention.config
        r = c.qk_rope_head_dim
        order = torch.arange(r).view(2, -1).T.flatten()
        key = attention.kv_a_proj_with_mqa.weight[c.kv_lora_rank :]
        key.copy_(key[order])
        query = attention.q_b_proj.weight.view(c.num_heads, -1, c.q_lora_rank)[:, -r:]
        query.copy_(query[:, order])
    return model


@torch.no_grad()
def rotary_key_normed(model):
    """The latent norm taken over the rotary key as well: every latent is another."""
    model = copy.deepcopy(model)
    for attention in attentions(model):
        norm, project = attention.kv_a_layernorm, attention.kv_a_proj_with_mqa
        rank = attention.config.kv_lora_rank

        def hook(module, inputs, out, rank=rank, norm=norm):
            rms = (out.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
            return torch.cat([out[..., :rank], out[..., rank:] * rms], dim=-1)

        project.register_forward_hook(hook)
    return model


def no_alpha_q(model):
    return with_attention(model, scale_q_lora=False)


def no_alpha_kv(model):
    return with_attention(model, scale_kv_lora=False)


def another_rope_theta(model):
    return with_attention(model, rope_theta=2e4)


@torch.no_grad()
def small_latents(pair):
    """The same pair with latents of the size where their norms' epsilon is felt."""
    ours, theirs = copy.deepcopy(pair)
    for model in (ours, theirs):
        for attention in attentions(model):
            attention.q_a_proj.weight *= 0.05
            attention.kv_a_proj_with_mqa.weight *= 0.05
    return ours, theirs


MUTANTS = {
    "identity experts unscaled": identity_experts_unscaled,
    "gates from biased scores": gates_from_biased_scores,
    "gates renormalised": gates_renormalised,
    "gates without the scaling factor": gates_without_the_scaling_factor,
    "bias ignored in the choice": bias_ignored_in_the_choice,
    "rotary key scaled": rotary_key_scaled,
    "rotary key normed": rotary_key_normed,
    "halves rotated instead of pairs": halves_rotated_instead_of_pairs,
    "no alpha_q": no_alpha_q,
    "no alpha_kv": no_alpha_kv,
    "another rope theta": another_rope_theta,
    "mixture of the un-normed residual": with_mixture(reads="h1"),
    "mixture of the second attention's output": with_mixture(reads="v"),
    "mixture added after the first FFN": with_mixture(added="h2"),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_parity_check_rejects(parity_pair, mutant):
    ours, theirs = parity_pair("base")
    assert error(ours, theirs) < LOGITS
    assert error(MUTANTS[mutant](ours), theirs) > 100 * LOGITS


def test_the_block_restated_for_the_mutants_is_right_without_a_mutation(parity_pair):
    ours, theirs = parity_pair("base")
    assert error(with_mixture()(ours), theirs) < LOGITS


def test_the_parity_check_rejects_another_epsilon_in_the_latent_norms(parity_pair):
    ours, theirs = small_latents(parity_pair("base"))
    assert error(ours, theirs) < LOGITS
    assert error(with_attention(ours, latent_norm_eps=1e-5), theirs) > 10 * LOGITS


@pytest.mark.parametrize("left_out", ["mscale_all_dim", "factor"])
def test_the_parity_check_rejects_half_a_yarn(parity_pair, left_out):
    ours, theirs = parity_pair("yarn with mscale")
    assert error(ours, theirs) < LOGITS
    scaling = dict(ours.config.attention.rope_scaling)
    scaling[left_out] = {"mscale_all_dim": 0, "factor": 1.0}[left_out]
    assert error(with_attention(ours, rope_scaling=scaling), theirs) > 100 * LOGITS


def gradient_error(ours: FlashModel, theirs: Any) -> float:
    """The largest relative error of a router's gradient; 1 where there is none at all."""
    ids = torch.arange(4, 40).view(1, -1)
    errors = []
    for model in (ours, theirs):
        model.zero_grad()
        model(ids).logits.square().mean().backward()
    for mine, other in zip(ours.model.layers, theirs.model.layers, strict=True):
        wanted = other.mlp.router.classifier.weight.grad
        found = mine.mlp.router.classifier.weight.grad
        found = torch.zeros_like(wanted) if found is None else found
        errors.append(float((found - wanted).norm() / wanted.norm()))
    return max(errors)


def test_the_gradient_check_rejects_gates_without_gradient(parity_pair):
    """The logits cannot tell; the routers' gradients do."""
    ours, theirs = parity_pair("base")
    mutant = with_gates(lambda gates, *rest: gates.detach())(ours)
    assert error(mutant, theirs) < LOGITS
    assert gradient_error(ours, theirs) < GRADIENT
    assert gradient_error(mutant, theirs) > 100 * GRADIENT

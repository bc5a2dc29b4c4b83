"""Claims about routing: softmax over N+Z, bias only for the choice, gates never renormalised."""

import sys

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from longcat.router import Choice, Router, RouterConfig, reference

CONFIG = RouterConfig(
    hidden_size=12,
    n_routed_experts=8,
    zero_expert_num=8,
    top_k=4,
    routed_scaling_factor=2.5,
    expected_ffn_experts=3,
)


def made(config: RouterConfig = CONFIG, seed: int = 0, dtype=torch.float64) -> Router:
    generator = torch.Generator().manual_seed(seed)
    router = Router(config, dtype=dtype)
    with torch.no_grad():
        router.classifier.weight.copy_(
            torch.randn(router.classifier.weight.shape, generator=generator)
        )
        router.e_score_correction_bias.copy_(
            0.1 * torch.randn(config.n_experts, generator=generator)
        )
    return router


def tokens(n: int = 33, seed: int = 1, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(n, 12, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def expected(router: Router, u: torch.Tensor, mask=None) -> reference.Routing:
    return reference.route(
        u.numpy(),
        router.classifier.weight.detach().numpy(),
        router.e_score_correction_bias.numpy(),
        top_k=router.config.top_k,
        scale=router.config.routed_scaling_factor,
        n_ffn=router.config.n_routed_experts,
        token_mask=mask,
    )


def test_torch_agrees_with_the_definition():
    router, u = made(), tokens()
    got, want = router(u), expected(router, u)
    np.testing.assert_allclose(got.scores.detach().numpy(), want.scores, rtol=1e-12)
    np.testing.assert_array_equal(got.indices.numpy(), want.indices)
    np.testing.assert_allclose(got.gates.detach().numpy(), want.gates, rtol=1e-12)
    np.testing.assert_array_equal(got.counts.numpy(), want.counts)
    np.testing.assert_array_equal(got.ffn_per_token.numpy(), want.ffn_per_token)


def test_a_router_run_again_keeps_the_choice_it_made_first():
    router, choice = made(), Choice()
    first = router(tokens(), choice=choice)
    assert torch.equal(choice.indices, first.indices)
    other = tokens(seed=2)
    again = router(other, choice=choice)
    assert torch.equal(again.indices, first.indices)
    assert torch.equal(again.counts, first.counts)
    want = reference.route(
        other.numpy(),
        router.classifier.weight.detach().numpy(),
        router.e_score_correction_bias.numpy(),
        top_k=4,
        scale=2.5,
        n_ffn=8,
        chosen=first.indices.numpy(),
    )
    np.testing.assert_allclose(again.gates.detach().numpy(), want.gates, rtol=1e-12)
    assert not torch.equal(router(other).indices, first.indices)  # the control: a fresh choice


def test_the_bias_moves_choices_and_never_gates():
    router, u = made(), tokens()
    before = router(u)
    router.e_score_correction_bias[CONFIG.n_routed_experts :] += 10.0  # every identity expert wins
    after = router(u)
    assert (after.indices >= CONFIG.n_routed_experts).all()
    torch.testing.assert_close(after.scores, before.scores, rtol=0, atol=0)
    chosen = after.scores.gather(-1, after.indices)
    torch.testing.assert_close(after.gates, 2.5 * chosen, rtol=0, atol=0)


def test_gates_are_scaled_scores_of_all_chosen_experts_without_renormalisation():
    routing = made()(tokens())
    # A renormalised gate would sum to the factor; identity experts left unscaled would not match.
    sums = routing.gates.sum(-1)
    assert (sums < 2.5).all()
    torch.testing.assert_close(sums, 2.5 * routing.scores.gather(-1, routing.indices).sum(-1))


def test_padding_is_routed_but_not_counted():
    router, u = made(), tokens()
    mask = torch.arange(33) % 3 != 0
    masked = router(u, mask)
    np.testing.assert_array_equal(masked.counts.numpy(), expected(router, u, mask.numpy()).counts)
    assert masked.counts.sum() == 4 * int(mask.sum())
    assert router(u).counts.sum() == 4 * 33  # the control: without the mask every token counts


def test_counts_are_detached_int64_and_the_bias_gets_no_gradient():
    router, u = made(), tokens().requires_grad_()
    routing = router(u)
    assert routing.counts.dtype == torch.int64
    assert not routing.counts.requires_grad
    routing.gates.sum().backward()
    assert router.classifier.weight.grad is not None
    assert "e_score_correction_bias" not in dict(router.named_parameters())
    assert "e_score_correction_bias" in router.state_dict()


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_the_router_stays_float32_when_its_model_is_cast(half):
    model = torch.nn.Sequential(made(dtype=torch.float32))
    weight = model[0].classifier.weight.detach().clone()
    model.to(half)
    assert model[0].classifier.weight.dtype == torch.float32
    assert model[0].e_score_correction_bias.dtype == torch.float32
    # No detour through half precision either: the bits are those from before.
    assert torch.equal(model[0].classifier.weight, weight)
    assert model.double()[0].classifier.weight.dtype == torch.float64


def test_autocast_does_not_lower_the_logits():
    router = made(dtype=torch.float32)
    u = tokens(dtype=torch.float32)
    plain = router(u)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = router(u)
        lowered = torch.nn.functional.linear(u, router.classifier.weight)
    assert cast.scores.dtype == torch.float32
    assert torch.equal(cast.scores, plain.scores)
    assert lowered.dtype == torch.bfloat16  # what would happen without the guard


@pytest.fixture
def one_process_group(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.device_mesh.init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.parametrize("own_unit", [True, False])
def test_fsdp_mixed_precision_does_not_lower_the_logits(one_process_group, own_unit):
    router, u = made(dtype=torch.float32), tokens(dtype=torch.float32).bfloat16()
    plain = router(u)
    model = torch.nn.Sequential(router)
    if own_unit:
        fully_shard(router, mesh=one_process_group)
    fully_shard(
        model, mesh=one_process_group, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    )
    if own_unit:
        routing = model(u)
        assert routing.scores.dtype == torch.float32
        assert torch.equal(routing.scores, plain.scores)
    else:  # the control: the policy does cast, and is refused rather than followed
        with pytest.raises(ValueError, match=r"got torch.bfloat16.*fully_shard\(router\)"):
            model(u)


@given(n=st.integers(0, 6), z=st.integers(0, 6), data=st.data(), n_tokens=st.integers(0, 9))
def test_every_token_chooses_k_distinct_experts_at_any_size(n, z, data, n_tokens):
    if n + z == 0:
        n = 1
    k = data.draw(st.integers(1, n + z))
    config = RouterConfig(hidden_size=12, n_routed_experts=n, zero_expert_num=z, top_k=k)
    routing = made(config)(tokens(n_tokens))
    assert routing.indices.shape == (n_tokens, k)
    for row in routing.indices.tolist():
        assert len(set(row)) == k
    assert int(routing.counts.sum()) == n_tokens * k
    assert int(routing.counts[:n].sum()) == int(routing.ffn_per_token.sum())


def test_ties_go_to_the_lower_index():
    config = RouterConfig(hidden_size=12, n_routed_experts=4, zero_expert_num=2, top_k=3)
    router = Router(config, dtype=torch.float64)
    torch.nn.init.zeros_(router.classifier.weight)
    assert router(tokens(5)).indices.tolist() == [[0, 1, 2]] * 5


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"top_k": 17}, "top_k must lie between 1 and"),
        ({"top_k": 0}, "top_k must lie between 1 and"),
        ({"expected_ffn_experts": 5}, "K_e <= min"),
        ({"expected_ffn_experts": 0}, "0 < K_e"),
        ({"n_routed_experts": 0}, "0 < K_e"),
        ({"zero_expert_num": 0}, "top_k - K_e <= zero_expert_num"),
        ({"n_routed_experts": 0, "zero_expert_num": 0}, "at least one expert"),
        ({"hidden_size": 0}, "hidden_size must be positive"),
        ({"routed_scaling_factor": float("nan")}, "must be a positive number"),
        ({"routed_scaling_factor": -6.0}, "must be a positive number"),
    ],
)
def test_contradicting_sizes_are_named(change, words):
    with pytest.raises(ValueError, match=words):
        RouterConfig(**{**CONFIG.__dict__, **change})


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"hidden_size=12.*got \(3, 11\)"):
        made()(torch.zeros(3, 11, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"token_mask must be \(33,\)"):
        made()(tokens(), torch.ones(32, dtype=torch.bool))

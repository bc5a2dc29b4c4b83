"""Claims about MLA: two equal forms, both scale corrections, C+R numbers cached per token."""

import math

import numpy as np
import pytest
import torch

from longcat.attention import MLA, DenseLatentCache, KeyMask, MLAConfig, causal_mask, reference
from longcat.kernels import rope_frequencies

CONFIG = MLAConfig(
    hidden_size=32,
    num_heads=4,
    q_lora_rank=12,
    kv_lora_rank=10,
    qk_nope_head_dim=8,
    qk_rope_head_dim=6,
    v_head_dim=5,
    rope_theta=100.0,
    max_position=64,
)
YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}


def made(config=CONFIG, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    mla = MLA(config, dtype=dtype)
    with torch.no_grad():
        for parameter in mla.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return mla


def tokens(batch=2, n=17, seed=1, dtype=torch.float64):
    return torch.randn(batch, n, 32, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def positions(x, start=0):
    return torch.arange(start, start + x.shape[1]).expand(x.shape[:2])


def by_definition(mla, x):
    config = mla.config
    weights = {
        name.removesuffix(".weight"): tensor.numpy() for name, tensor in mla.state_dict().items()
    }
    inv_freq, factor = rope_frequencies(
        config.qk_rope_head_dim, config.rope_theta, config.rope_scaling, config.max_position
    )
    return np.stack(
        [
            reference.mla(
                row.numpy(),
                weights,
                num_heads=config.num_heads,
                qk_nope_head_dim=config.qk_nope_head_dim,
                v_head_dim=config.v_head_dim,
                inv_freq=inv_freq.astype(np.float64),
                positions=np.arange(len(row)),
                softmax_scale=config.softmax_scale,
                rope_factor=factor,
            )
            for row in x
        ]
    )


def cached(mla, x, chunks, valid=None):
    """The outputs of feeding x chunk by chunk through a latent cache."""
    cache = DenseLatentCache(1, len(x), x.shape[1], 10, 6, dtype=x.dtype, valid=valid)
    outputs, start = [], 0
    for size in chunks:
        part = x[:, start : start + size]
        outputs.append(mla(part, positions(part, start), cache.layers[0]))
        start += size
    return torch.cat(outputs, dim=1)


@pytest.mark.parametrize("changes", [{}, {"attention_bias": True}, {"rope_scaling": YARN}])
def test_torch_agrees_with_the_definition(changes):
    mla = made(MLAConfig(**{**CONFIG.__dict__, **changes}))
    x = tokens()
    with torch.no_grad():
        got = mla(x, positions(x)).numpy()
    np.testing.assert_allclose(got, by_definition(mla, x), atol=1e-10)


@torch.no_grad()
def test_the_absorbed_form_equals_the_training_form():
    mla, x = made(), tokens()
    whole = mla(x, positions(x))
    token_by_token = cached(mla, x, [1] * 17)
    torch.testing.assert_close(token_by_token, whole, rtol=0, atol=1e-12)
    # One token over many takes the absorbed form, many over as many the expanded one.
    assert mla.absorbed_is_cheaper(1, 17)
    assert not mla.absorbed_is_cheaper(17, 17)


@torch.no_grad()
@pytest.mark.parametrize("absorbed", [True, False])
def test_either_form_may_read_the_cache(absorbed, monkeypatch):
    mla, x = made(), tokens()
    monkeypatch.setattr(mla, "absorbed_is_cheaper", lambda *sizes: absorbed)
    whole = mla(x, positions(x))
    torch.testing.assert_close(cached(mla, x, [5, 1, 1, 10]), whole, rtol=0, atol=1e-12)


@torch.no_grad()
def test_float32_forms_agree_to_rounding():
    mla, x = made(dtype=torch.float32), tokens(dtype=torch.float32)
    whole = mla(x, positions(x))
    torch.testing.assert_close(cached(mla, x, [9, 1, 1, 1, 5]), whole, rtol=1e-4, atol=1e-4)


def test_the_cache_holds_c_plus_r_numbers_per_token():
    mla, x = made(), tokens()
    cache = DenseLatentCache(1, 2, 64, 10, 6, dtype=torch.float64)
    with torch.no_grad():
        mla(x, positions(x), cache.layers[0])
    latent, k_rope = cache.layers[0].read()
    assert latent.shape == (2, 17, 10)
    assert k_rope.shape == (2, 17, 6)
    assert cache.layers[0].store.shape[-1] == CONFIG.cache_numbers == 16


@torch.no_grad()
def test_cached_latents_are_normed_and_scaled_and_the_rotary_key_is_not():
    mla, x = made(), tokens()
    torch.nn.init.ones_(mla.kv_a_layernorm.weight)
    state = mla.project(x, positions(x))
    mean_square = (state.latent**2).mean(-1)
    torch.testing.assert_close(
        mean_square, torch.full_like(mean_square, 32 / 10), rtol=1e-4, atol=0
    )
    raw = mla.kv_a_proj_with_mqa(x)[..., 10:]
    torch.testing.assert_close(state.k_rope.norm(dim=-1), raw.norm(dim=-1))


@torch.no_grad()
@pytest.mark.parametrize("name", ["scale_q_lora", "scale_kv_lora"])
def test_each_scale_correction_matters(name):
    x = tokens()
    with_it, without = made(), made(MLAConfig(**{**CONFIG.__dict__, name: False}))
    difference = (with_it(x, positions(x)) - without(x, positions(x))).abs().max()
    assert float(difference) > 1e-2


def test_scale_corrections_are_two_and_root_twelve_at_the_released_size():
    released = MLAConfig(
        hidden_size=6144,
        num_heads=64,
        q_lora_rank=1536,
        kv_lora_rank=512,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
    )
    assert released.alpha_q == 2.0
    assert released.alpha_kv == pytest.approx(math.sqrt(12))
    assert released.softmax_scale == pytest.approx(192**-0.5)
    assert released.cache_numbers == 576


def test_queries_and_keys_have_comparable_variance_at_initialisation():
    # The reason for the corrections: without them the low-rank paths fall behind k_rope.
    torch.manual_seed(0)
    mla = MLA(
        MLAConfig(**{**CONFIG.__dict__, "hidden_size": 256, "q_lora_rank": 32, "kv_lora_rank": 16})
    )
    with torch.no_grad():
        for parameter in mla.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=256**-0.5)
        x = torch.randn(1, 256, 256)
        state = mla.project(x, positions(x))
        k_nope = mla.kv_b_proj(state.latent)
        variances = [float(t.var()) for t in (state.q_nope, k_nope, state.k_rope)]
    assert max(variances) / min(variances) < 1.5
    plain = float((k_nope / mla.config.alpha_kv).var())
    assert variances[2] / plain > 10  # the control


@torch.no_grad()
def test_left_padding_changes_nothing_for_real_tokens():
    mla, x = made(), tokens(batch=1)
    alone = mla(x, positions(x))
    padded = torch.cat([torch.full((1, 3, 32), 7.0, dtype=torch.float64), x], dim=1)
    valid = torch.ones(1, 20, dtype=torch.bool)
    valid[:, :3] = False
    shifted = torch.cat([torch.zeros(1, 3, dtype=torch.int64), positions(x)], dim=1)
    with_mask = mla(padded, shifted, KeyMask(valid))
    torch.testing.assert_close(with_mask[:, 3:], alone, rtol=0, atol=1e-12)
    assert with_mask.isfinite().all()
    without = mla(padded, shifted)
    assert float((without[:, 3:] - alone).abs().max()) > 1e-3  # the control
    cache = DenseLatentCache(1, 1, 20, 10, 6, dtype=torch.float64, valid=valid)
    outputs = [
        mla(padded[:, lo:hi], shifted[:, lo:hi], cache.layers[0])
        for lo, hi in ((0, 12), (12, 13), (13, 20))
    ]
    torch.testing.assert_close(torch.cat(outputs, 1)[:, 3:], alone, rtol=0, atol=1e-12)


def test_the_mask_is_causal_hides_padding_and_empties_no_row():
    valid = torch.tensor([[False, True, True]])
    assert causal_mask(valid, 3).int().tolist() == [[[1, 0, 0], [0, 1, 0], [0, 1, 1]]]
    assert causal_mask(valid, 1).int().tolist() == [[[0, 1, 1]]]


@torch.no_grad()
def test_rejected_tokens_are_overwritten():
    mla, x = made(), tokens(batch=1)
    cache = DenseLatentCache(1, 1, 32, 10, 6, dtype=torch.float64)
    layer = cache.layers[0]
    mla(x[:, :8], positions(x[:, :8]), layer)
    mla(torch.full((1, 4, 32), 3.0, dtype=torch.float64), positions(x[:, :4], 8), layer)
    cache.truncate(8)
    rest = mla(x[:, 8:], positions(x[:, 8:], 8), layer)
    torch.testing.assert_close(rest, mla(x, positions(x))[:, 8:], rtol=0, atol=1e-12)


def test_padding_marked_later_replaces_what_was_marked_before():
    cache = DenseLatentCache(1, 1, 4, 10, 6, dtype=torch.float64)
    cache.set_padding(torch.tensor([[False, True]]))
    assert cache.valid.tolist() == [[False, True, True, True]]
    cache.set_padding(torch.tensor([[True, True]]))
    assert cache.valid is None


def test_a_full_cache_says_so():
    cache = DenseLatentCache(1, 1, 4, 10, 6, dtype=torch.float64)
    with pytest.raises(ValueError, match="holds 4 tokens, 5 are needed"):
        cache.layers[0].write(torch.zeros(1, 5, 10), torch.zeros(1, 5, 6))


def test_gradients_equal_numerical_ones():
    small = MLAConfig(
        hidden_size=4,
        num_heads=2,
        q_lora_rank=3,
        kv_lora_rank=2,
        qk_nope_head_dim=2,
        qk_rope_head_dim=2,
        v_head_dim=3,
        rope_theta=10.0,
        max_position=8,
    )
    mla = made(small)
    x = torch.randn(1, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: mla(t, positions(t)), (x,), atol=1e-6)


@torch.no_grad()
def test_rope_constants_survive_a_cast_of_the_model():
    mla = made(dtype=torch.float32)
    before = mla._inv_freq.clone()
    assert torch.equal(mla.to(torch.bfloat16)._inv_freq, before)
    assert before.dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"qk_rope_head_dim": 7}, "must be even"),
        ({"num_heads": 0}, "num_heads must be a positive integer"),
        ({"rope_theta": -1.0}, "rope_theta must be positive"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "'yarn' needs a 'factor'"),
    ],
)
def test_impossible_sizes_are_named(change, words):
    with pytest.raises(ValueError, match=words):
        MLAConfig(**{**CONFIG.__dict__, **change})

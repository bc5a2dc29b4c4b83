"""Claims about the whole model: one numpy file defines it, caching and drafting change nothing."""

from functools import partial

import numpy as np
import pytest
import torch
from torch.utils.checkpoint import checkpoint

from longcat.flash import ConfigError, FlashConfig, FlashModel, count_parameters, reference
from longcat.kernels import exact, use_backend

TINY = {
    "vocab_size": 61,
    "hidden_size": 24,
    "num_layers": 2,
    "num_attention_heads": 3,
    "q_lora_rank": 10,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 6,
    "qk_rope_head_dim": 4,
    "v_head_dim": 5,
    "ffn_hidden_size": 20,
    "expert_ffn_hidden_size": 8,
    "n_routed_experts": 5,
    "zero_expert_num": 4,
    "moe_topk": 3,
    "routed_scaling_factor": 2.0,
    "rope_theta": 100.0,
    "max_position_embeddings": 96,
    "num_nextn_predict_layers": 1,
    "initializer_range": 0.3,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 24}


def made(dtype=torch.float64, seed=0, **changes):
    model = FlashModel(FlashConfig.from_hf({**TINY, **changes}), seed=seed).to(dtype)
    generator = torch.Generator().manual_seed(seed + 1)
    for name, buffer in model.named_buffers():
        assert name.endswith("e_score_correction_bias")
        buffer.copy_(0.05 * torch.randn(buffer.shape, generator=generator))
    return model.eval()


def ids(batch=2, n=21, seed=2):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(4, 61, (batch, n), generator=generator)


def arrays(model):
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


@torch.no_grad()
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"zero_expert_num": 0},
        {"n_routed_experts": 0, "moe_topk": 2},
        {"moe_topk": 9},
        {"moe_topk": 1},
        {"attention_bias": True, "rms_norm_eps": 1e-3, "latent_norm_eps": 1e-4},
        {"rope_scaling": YARN},
        {"rope_scaling": {**YARN, "mscale": 0.7, "mscale_all_dim": 1.0}},
        {"rope_scaling": {**YARN, "truncate": False}, "qk_rope_head_dim": 16},
    ],
    ids=str,
)
def test_the_model_agrees_with_the_numpy_file(changes):
    model, tokens = made(**changes), ids()
    output = model(tokens, output_router=True)
    drafted, _ = model.mtp(output.hidden[:, :-1], tokens[:, 1:])
    for row in range(2):
        want = reference.forward(arrays(model), model.config.to_hf(), tokens[row].numpy())
        np.testing.assert_allclose(output.logits[row].numpy(), want.logits, atol=1e-9)
        np.testing.assert_allclose(output.last_layer[row].numpy(), want.last_layer, atol=1e-9)
        for layer, routing in enumerate(output.router):
            got = routing.indices.view(2, 21, -1)[row].numpy()
            np.testing.assert_array_equal(got, want.choices[layer])
        want_draft = reference.draft(
            arrays(model), model.config.to_hf(), want.hidden[:-1], tokens[row, 1:].numpy()
        )
        np.testing.assert_allclose(drafted[row].numpy(), want_draft, atol=1e-9)


@torch.no_grad()
def test_the_numpy_backend_runs_the_same_model():
    model, tokens = made(), ids()
    with use_backend("numpy"):
        got = model(tokens).logits
    torch.testing.assert_close(got, model(tokens).logits, rtol=0, atol=1e-12)


@torch.no_grad()
def test_decoding_from_the_cache_equals_the_whole_pass():
    model, tokens = made(), ids()
    whole = model(tokens).logits
    cache = model.new_cache(2, 32)
    parts = [model(tokens[:, lo:hi], cache=cache).logits for lo, hi in ((0, 9), (9, 10), (10, 21))]
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-11)
    assert cache.length == 21


@torch.no_grad()
def test_in_exact_mode_a_row_does_not_depend_on_batch_or_chunks():
    model, tokens = made(torch.float32), ids(batch=3, n=70)
    with exact():
        whole = model(tokens).logits
        assert torch.equal(model(tokens[1:2]).logits, whole[1:2])
        for chunks in ([1] * 70, [13, 1, 2, 54]):
            cache, start, parts = model.new_cache(3, 70), 0, []
            for size in chunks:
                parts.append(model(tokens[:, start : start + size], cache=cache).logits)
                start += size
            assert torch.equal(torch.cat(parts, 1), whole)
    torch.testing.assert_close(model(tokens).logits, whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_drafting_changes_no_token(temperature):
    model, tokens = made(), ids()
    mask = torch.ones_like(tokens)
    mask[0, :5] = 0
    settings = {"max_new_tokens": 20, "temperature": temperature, "seed": 5, "ignore_eos": True}
    plain = model.generate(tokens, mask, speculative=False, **settings)
    drafted = model.generate(tokens, mask, **settings)
    assert torch.equal(plain, drafted)
    assert plain.shape == (2, 41)


def test_asking_for_drafts_without_a_head_warns_and_decodes():
    model = made(num_nextn_predict_layers=0)
    with pytest.warns(UserWarning, match="no MTP head"):
        out = model.generate(ids(), max_new_tokens=2, speculative=True, ignore_eos=True)
    assert out.shape == (2, 23)
    with pytest.raises(ConfigError, match="no MTP head"):
        model.mtp(torch.zeros(1, 1, 24, dtype=torch.float64), ids(1, 1))


@torch.no_grad()
def test_the_mtp_head_reads_the_next_token_and_the_normed_hidden_state():
    model, tokens = made(), ids()
    output = model(tokens)
    good, _ = model.mtp(output.hidden[:, :-1], tokens[:, 1:])
    shifted, _ = model.mtp(output.hidden[:, :-1], tokens[:, :-1])
    want = reference.forward(arrays(model), model.config.to_hf(), tokens[0].numpy())
    draft = reference.draft(
        arrays(model), model.config.to_hf(), want.hidden[:-1], tokens[0, 1:].numpy()
    )
    assert np.abs(good[0].numpy() - draft).max() < 1e-9
    assert np.abs(shifted[0].numpy() - draft).max() > 1e-2
    # hnorm hides a pure rescaling, so the weight of the final norm must differ from 1 to tell.
    torch.nn.init.uniform_(model.model.norm.weight, 0.5, 1.5)
    a, _ = model.mtp(model(tokens).hidden[:, :-1], tokens[:, 1:])
    b, _ = model.mtp(model(tokens).last_layer[:, :-1], tokens[:, 1:])
    assert float((a - b).abs().max()) > 1e-2


def test_routers_stay_float32_in_a_bfloat16_model_and_follow_float64():
    model = made(torch.bfloat16)
    router = model.model.layers[0].mlp.router
    assert router.classifier.weight.dtype == torch.float32
    assert router.e_score_correction_bias.dtype == torch.float32
    assert model.lm_head.weight.dtype == torch.bfloat16
    scores = model(ids(), output_router=True).router[0].scores
    assert scores.dtype == torch.float32
    assert made(torch.float64)(ids(), output_router=True).router[0].scores.dtype == torch.float64
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (
            made(torch.float32)(ids(), output_router=True).router[0].scores.dtype == torch.float32
        )


@pytest.mark.parametrize("reentrant", [False, True])
def test_counts_are_once_even_when_activations_are_recomputed(reentrant, monkeypatch):
    model, tokens = made(torch.float32), ids()
    plain = model(tokens).counts
    runs = []
    for layer in model.model.layers:
        layer.mlp.router.register_forward_hook(lambda *_: runs.append(1))
        monkeypatch.setattr(
            layer, "forward", partial(checkpoint, layer.forward, use_reentrant=reentrant)
        )
    output = model(tokens)
    output.logits.sum().backward()
    assert len(runs) == 4  # each of two routers ran twice, which an accumulator would count
    assert torch.equal(output.counts, plain)
    assert plain.shape == (2, 9)
    assert plain.dtype == torch.int64
    assert plain.sum(1).tolist() == [2 * 21 * 3] * 2


def test_every_parameter_gets_a_gradient():
    model, tokens = made(), ids(4, 32)
    output = model(tokens)
    drafted, _ = model.mtp(output.hidden[:, :-1], tokens[:, 1:])
    (output.logits.square().mean() + drafted.square().mean()).backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


def test_the_meta_device_counts_what_the_closed_form_counts():
    for name in ("nano", "bench", "longcat-flash"):
        config = FlashConfig.preset(name)
        model = FlashModel(config, device="meta")
        figures = count_parameters(config)
        total = sum(p.numel() for p in model.parameters())
        biases = config.num_layers * config.router.n_experts
        assert total + biases == figures.total_parameters + figures.mtp_parameters


def test_initialisation_is_reproducible_and_scales_with_fan_in():
    a, b, c = made(seed=0), made(seed=0), made(seed=1)
    assert torch.equal(a.lm_head.weight, b.lm_head.weight)
    assert not torch.equal(a.lm_head.weight, c.lm_head.weight)
    config = FlashConfig.preset("nano")
    model = FlashModel(config, seed=0)
    layer = model.model.layers[0]
    for weight, std in (
        (model.model.embed_tokens.weight, 1.0),
        (layer.mlps[0].gate_proj.weight, 0.7 / 128**0.5),
        (layer.mlps[0].down_proj.weight, 0.3 / 256**0.5),
        (layer.mlp.experts.down_proj, 0.3 / 64**0.5),
        (layer.mlp.router.classifier.weight, 0.7 / 128**0.5),
        (model.lm_head.weight, 0.02),
    ):
        assert weight.std().item() == pytest.approx(std, rel=0.05)
    assert (layer.input_layernorm[0].weight == 1).all()
    assert (layer.mlp.router.e_score_correction_bias == 0).all()


@pytest.mark.parametrize(
    ("tokens", "mask", "words"),
    [
        (torch.zeros(3, dtype=torch.int64), None, r"input_ids must be \[B,T\]"),
        (torch.zeros(1, 3), None, "input_ids must be integers; got torch.float32"),
        (torch.zeros(1, 97, dtype=torch.int64), None, "97 tokens are more than"),
        (torch.full((1, 2), 61), None, "token ids must lie in 0..60; got 61"),
        (torch.full((1, 2), -1), None, "got -1"),
        (torch.zeros(1, 4, dtype=torch.int64), torch.ones(1, 3), "attention_mask must be"),
    ],
)
def test_bad_input_is_named(tokens, mask, words):
    with pytest.raises(ValueError, match=words):
        made()(tokens, mask)

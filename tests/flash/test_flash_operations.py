"""Claims about the model operations of a training step."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from longcat.flash import FlashConfig, FlashModel, operations
from longcat.flash.operations import causal_pairs, training_operations

SIZES = {
    "vocab_size": 300,
    "hidden_size": 32,
    "num_layers": 2,
    "num_attention_heads": 2,
    "q_lora_rank": 16,
    "kv_lora_rank": 12,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    "ffn_hidden_size": 48,
    "expert_ffn_hidden_size": 16,
    "n_routed_experts": 8,
    "zero_expert_num": 4,
    "moe_topk": 6,
    "num_nextn_predict_layers": 1,
    "routed_scaling_factor": 2.0,
    "max_position_embeddings": 128,
}
SEQUENCES, SEQ_LEN = 3, 16


@pytest.fixture(scope="module", params=[0, 1], ids=["alone", "with a draft head"])
def config(request):
    return FlashConfig.from_hf({**SIZES, "num_nextn_predict_layers": request.param})


def definition(config, slots):
    """float64: every token times every weight it used, every score and value it read, 3 passes."""
    with torch.device("meta"):
        model = FlashModel(config)
    tokens = np.float64(SEQUENCES * SEQ_LEN)
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    one = sum(n for k, n in sizes.items() if ".experts." in k) / config.num_layers
    one /= config.router.n_routed_experts
    biases = sum(b.numel() for k, b in model.named_buffers() if k.endswith("correction_bias"))
    used = sum(n for k, n in sizes.items() if ".experts." not in k and "embed_tokens" not in k)
    used += biases * (not any(k.endswith("correction_bias") for k in sizes))
    if config.has_mtp:
        used += sizes["lm_head.weight"]
    allowed = np.tril(np.ones((SEQ_LEN, SEQ_LEN))).sum() * SEQUENCES
    attentions = 2 * config.num_layers + config.has_mtp
    a = config.attention
    reads = allowed * attentions * a.num_heads * (a.qk_head_dim + a.v_head_dim)
    return 3 * 2 * (tokens * used + slots.sum() * one + reads)


def stated(config, slots):
    return training_operations(
        config,
        tokens=SEQUENCES * SEQ_LEN,
        pairs=causal_pairs(SEQUENCES, SEQ_LEN),
        ffn_slots=float(slots.sum()),
    )


@pytest.fixture
def slots():
    """[layers, tokens] FFN experts of each token, of 2 to 6."""
    return np.random.default_rng(0).integers(2, 7, size=(2, SEQUENCES * SEQ_LEN))


def test_the_closed_form_is_the_definition(config, slots):
    assert stated(config, slots) == pytest.approx(definition(config, slots), rel=1e-12)


@pytest.mark.parametrize("mutant", ["all pairs", "all slots", "total parameters"])
def test_another_count_is_rejected(config, slots, mutant, monkeypatch):
    wanted = definition(config, slots)
    if mutant == "all pairs":
        monkeypatch.setitem(globals(), "causal_pairs", lambda rows, length: rows * length**2)
    elif mutant == "all slots":  # identity experts counted as if they multiplied
        slots = np.full_like(slots, config.router.top_k)
    else:
        honest = operations.count_parameters

        def total(config):
            counted = honest(config)
            return replace(counted, activated_min=counted.total_parameters)

        monkeypatch.setattr(operations, "count_parameters", total)
    assert stated(config, slots) != pytest.approx(wanted, rel=1e-3)


def test_an_untrained_draft_head_does_not_count():
    both = {n: FlashConfig.from_hf({**SIZES, "num_nextn_predict_layers": n}) for n in (0, 1)}
    figures = {"tokens": 48.0, "pairs": 408.0, "ffn_slots": 300.0}
    without = training_operations(both[0], **figures)
    assert training_operations(both[1], **figures, draft_head=False) == without
    assert training_operations(both[1], **figures) > without


def test_a_draft_head_with_experts_counts_those_that_a_token_uses():
    config = FlashConfig.from_hf({**SIZES, "nextn_use_scmoe": True})
    more = FlashConfig.from_hf(
        {**SIZES, "nextn_use_scmoe": True, "n_routed_experts": 8, "expected_ffn_experts": 2}
    )
    figures = {"tokens": 48.0, "pairs": 408.0, "ffn_slots": 300.0}
    apart = config.router.target_ffn - more.router.target_ffn
    expert = 3 * config.hidden_size * config.moe.expert_ffn_hidden_size
    gap = training_operations(config, **figures) - training_operations(more, **figures)
    assert gap == pytest.approx(6 * 48 * apart * expert)

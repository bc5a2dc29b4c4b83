"""What a training step is worth, in model operations: those the mathematics asks for."""

from __future__ import annotations

from longcat.flash import FlashConfig
from longcat.flash.accounting import count_parameters


def training_operations(
    config: FlashConfig, *, sequences: int, seq_len: int, ffn_slots: float
) -> float:
    """Operations of forward and backward over `sequences` of `seq_len` tokens.

    6 per token and weight that the token used (identity experts use none), and the causal half of
    the attention's scores, three times for the two passes; not the optimizer. Also for a draft
    head, which uses the output head a second time.

    Args:
        ffn_slots: FFN experts used, summed over tokens and layers.
    """
    a, counted = config.attention, count_parameters(config)
    tokens = sequences * seq_len
    always = counted.activated_min - config.num_layers * counted.expert_parameters * max(
        0, config.router.top_k - config.router.zero_expert_num
    )
    attentions = 2 * config.num_layers
    if config.has_mtp:
        always += counted.mtp_parameters + config.vocab_size * config.hidden_size
        attentions += 1
    pairs = attentions * sequences * a.num_heads * seq_len * (seq_len + 1) / 2
    weights = always * tokens + counted.expert_parameters * ffn_slots
    return 6 * weights + 6 * pairs * (a.qk_head_dim + a.v_head_dim)

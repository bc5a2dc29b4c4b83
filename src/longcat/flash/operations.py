"""What a training step is worth, in model operations: those the mathematics asks for.

A product of two numbers and its sum are two operations. A token uses every weight outside the
experts, the FFN experts that the router chose for it, and, in each attention, one score and one
weighted value per head and token that it attends to. The backward pass computes each product twice
more. Not counted: the optimizer, norms of activations, softmax, and anything computed again.

Source: report sections 1 and 2.4 (what a token activates); derived from the tensor shapes.
"""

from longcat.flash.accounting import count_parameters
from longcat.flash.config import FlashConfig


def training_operations(
    config: FlashConfig,
    *,
    tokens: float,
    pairs: float,
    ffn_slots: float,
    draft_head: bool | None = None,
) -> float:
    """Operations of the forward and backward passes of one step.

    Args:
        tokens: how many were trained on, padding not among them.
        pairs: of a token and one that it attends to, itself included, in one head of one attention;
            `causal_pairs` counts them where documents of a window see each other.
        ffn_slots: FFN experts used, summed over tokens and ScMoE layers (identity experts use
            none).
        draft_head: whether the MTP head is trained; None where there is one. It uses the output
            head a second time, and in its form with experts as many as the target says.
    """
    a, counted = config.attention, count_parameters(config)
    always = counted.activated_min - config.num_layers * counted.expert_parameters * max(
        0, config.router.top_k - config.router.zero_expert_num
    )
    attentions = 2 * config.num_layers
    if config.has_mtp if draft_head is None else draft_head:
        always += counted.mtp_activated_mean + config.vocab_size * config.hidden_size
        attentions += 1 if config.mtp_layer == "dense" else 2
    weights = always * tokens + counted.expert_parameters * ffn_slots
    return 6 * weights + 6 * attentions * a.num_heads * pairs * (a.qk_head_dim + a.v_head_dim)


def causal_pairs(sequences: int, seq_len: int) -> float:
    """Pairs in windows where each token attends to itself and all before it."""
    return sequences * seq_len * (seq_len + 1) / 2

"""How many parameters a configuration has, and how many of them one token uses.

Convention, fixed by the published figures (18.6 to 31.3 B activated): the output head counts,
the input embedding does not, everything else does; the MTP head is reported apart.

Source: report sections 1 and 2.4; closed form derived from the tensor shapes.
"""

from dataclasses import dataclass

from longcat.flash.config import FlashConfig


@dataclass(frozen=True, kw_only=True)
class Accounting:
    """Parameter and cache figures of one configuration.

    total_parameters         router biases counted, MTP head not
    activated_min            with 0 or K-Z FFN experts (whichever is more) per token in every layer
    activated_mean           with K_e
    activated_max            with min(K, N)
    expert_parameters        one FFN expert of one layer
    mtp_parameters           the draft head without its copy of the embedding
    mtp_activated_mean       what a token uses of it with K_e FFN experts; all of a dense head
    mtp_activated_max        the same with min(K, N)
    cache_numbers_per_token  numbers cached per token, draft head excluded
    """

    total_parameters: int
    activated_min: int
    activated_mean: int
    activated_max: int
    expert_parameters: int
    mtp_parameters: int
    mtp_activated_mean: int
    mtp_activated_max: int
    cache_numbers_per_token: int

    def cache_bytes_per_token(self, bytes_per_number: int = 2) -> int:
        """Bytes per token of the latent cache; 2 bytes per number is bfloat16."""
        return self.cache_numbers_per_token * bytes_per_number


def attention_parameters(config: FlashConfig) -> int:
    """Parameters of one MLA."""
    a = config.attention
    count = (
        a.hidden_size * a.q_lora_rank
        + a.q_lora_rank
        + a.q_lora_rank * a.num_heads * a.qk_head_dim
        + a.hidden_size * a.cache_numbers
        + a.kv_lora_rank
        + a.kv_lora_rank * a.num_heads * (a.qk_nope_head_dim + a.v_head_dim)
        + a.num_heads * a.v_head_dim * a.hidden_size
    )
    if a.attention_bias:
        count += a.q_lora_rank + a.cache_numbers + a.hidden_size
    return count


def count_parameters(config: FlashConfig) -> Accounting:
    """Closed-form counts; equal to those of a model built on the meta device."""
    d, layers, router = config.hidden_size, config.num_layers, config.router
    attention, ffn = attention_parameters(config), 3 * d * config.ffn_hidden_size
    expert = 3 * d * config.moe.expert_ffn_hidden_size
    routing = router.n_experts * (d + 1)
    always = layers * (2 * attention + 2 * ffn + routing + 4 * d) + d
    embedding = config.vocab_size * d

    def activated(ffn_experts: float) -> int:
        return always + embedding + round(layers * ffn_experts * expert)

    # eh_proj and the norms around the head's layer, then that layer.
    entry = 2 * d * d + 3 * d
    if not config.has_mtp:
        head, experts = 0, 0
    elif config.mtp_layer == "dense":
        head, experts = entry + attention + ffn + 2 * d, 0
    else:
        head, experts = entry + 2 * attention + 2 * ffn + routing + 4 * d, expert

    return Accounting(
        total_parameters=always + layers * router.n_routed_experts * expert + 2 * embedding,
        activated_min=activated(max(0, router.top_k - router.zero_expert_num)),
        activated_mean=activated(router.target_ffn),
        activated_max=activated(min(router.top_k, router.n_routed_experts)),
        expert_parameters=expert,
        mtp_parameters=head + router.n_routed_experts * experts,
        mtp_activated_mean=head + round(router.target_ffn * experts),
        mtp_activated_max=head + min(router.top_k, router.n_routed_experts) * experts,
        cache_numbers_per_token=2 * layers * config.attention.cache_numbers,
    )

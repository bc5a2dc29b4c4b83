"""Named sizes, written as a released config.json would be."""

from typing import Any

# Trains on two CPU cores in minutes; K_e equals the uniform share 6*16/24 = 4.
_NANO: dict[str, Any] = {
    "vocab_size": 2048,
    "hidden_size": 128,
    "num_layers": 2,
    "num_attention_heads": 4,
    "q_lora_rank": 64,
    "kv_lora_rank": 48,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
    "ffn_hidden_size": 256,
    "expert_ffn_hidden_size": 64,
    "n_routed_experts": 16,
    "zero_expert_num": 8,
    "moe_topk": 6,
    "routed_scaling_factor": 4.0,
    "rope_theta": 1e4,
    "max_position_embeddings": 2048,
    "num_nextn_predict_layers": 1,
}

PRESETS: dict[str, dict[str, Any]] = {
    "nano": _NANO,
    # The same layers over bytes: 256 of them and 4 control tokens, no merges.
    "nano-bytes": {**_NANO, "vocab_size": 260},
    # The size speed is compared at: 48 M parameters.
    "bench": {
        "vocab_size": 4096,
        "hidden_size": 512,
        "num_layers": 4,
        "num_attention_heads": 8,
        "q_lora_rank": 192,
        "kv_lora_rank": 128,
        "qk_nope_head_dim": 64,
        "qk_rope_head_dim": 32,
        "v_head_dim": 64,
        "ffn_hidden_size": 1024,
        "expert_ffn_hidden_size": 256,
        "n_routed_experts": 16,
        "zero_expert_num": 8,
        "moe_topk": 6,
        "routed_scaling_factor": 4.0,
        "rope_theta": 1e5,
        "max_position_embeddings": 4096,
        "num_nextn_predict_layers": 1,
    },
    # The released model (report section 2.4).
    "longcat-flash": {
        "vocab_size": 131072,
        "hidden_size": 6144,
        "num_layers": 28,
        "num_attention_heads": 64,
        "q_lora_rank": 1536,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "ffn_hidden_size": 12288,
        "expert_ffn_hidden_size": 2048,
        "n_routed_experts": 512,
        "zero_expert_num": 256,
        "moe_topk": 12,
        "routed_scaling_factor": 6.0,
        "rope_theta": 1e7,
        "max_position_embeddings": 131072,
        "num_nextn_predict_layers": 1,
    },
}

"""Small models with weights that exercise every path, shared by the tests of longcat.flash."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from longcat.flash import FlashConfig, FlashModel
from longcat.flash.checkpoint import export_checkpoint

TINY: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "num_layers": 2,
    "num_attention_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 12,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "ffn_hidden_size": 48,
    "expert_ffn_hidden_size": 16,
    "n_routed_experts": 6,
    "zero_expert_num": 3,
    "moe_topk": 4,
    "routed_scaling_factor": 2.5,
    "rope_theta": 1e4,
    "max_position_embeddings": 256,
    "num_nextn_predict_layers": 1,
    "pad_token_id": 3,
}


def make_tiny_config(**changes: Any) -> FlashConfig:
    return FlashConfig.from_hf({**TINY, **changes})


def make_random_model(
    config: FlashConfig, seed: int = 0, dtype: torch.dtype = torch.float32
) -> FlashModel:
    """Weights that keep activations near one, and router biases that change the choice."""
    model = FlashModel(config, dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
            if name.endswith("e_score_correction_bias"):
                value = noise * 0.5 / len(noise)
            elif name.endswith(".bias"):
                value = noise * 0.1
            elif tensor.ndim == 1:
                value = 1 + 0.2 * noise
            elif "embed_tokens" in name:
                value = noise
            else:
                value = noise / math.sqrt(tensor.shape[-1])
            if not name.startswith("model.mtp.embed_tokens"):
                tensor.copy_(value)
    return model


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., FlashConfig]:
    """Make a tiny FlashConfig; keyword arguments are config.json fields."""
    return make_tiny_config


@pytest.fixture(scope="session")
def served_config() -> Callable[[int], FlashConfig]:
    """Make the config of a small model that the engine serves, of so many words."""

    def make(vocab_size: int) -> FlashConfig:
        return FlashConfig.preset(
            "nano",
            vocab_size=vocab_size,
            hidden_size=64,
            num_layers=1,
            q_lora_rank=32,
            kv_lora_rank=16,
            ffn_hidden_size=64,
            expert_ffn_hidden_size=16,
            n_routed_experts=4,
            zero_expert_num=2,
            moe_topk=2,
        )

    return make


@pytest.fixture(scope="session")
def random_model() -> Callable[..., FlashModel]:
    """Make a model of a config with seeded weights."""
    return make_random_model


YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
}

# Each changes something that an implementation can get wrong; all have biases that decide.
PARITY_CASES: dict[str, dict[str, Any]] = {
    "base": {},
    "no identity experts": {"n_routed_experts": 8, "zero_expert_num": 0, "moe_topk": 2},
    "more identity than ffn experts": {
        "n_routed_experts": 4,
        "zero_expert_num": 9,
        "moe_topk": 5,
        "routed_scaling_factor": 6.0,
    },
    "twelve choices": {"n_routed_experts": 12, "zero_expert_num": 6, "moe_topk": 12},
    "every expert chosen": {"n_routed_experts": 5, "zero_expert_num": 3, "moe_topk": 8},
    "identity experts only": {"n_routed_experts": 0, "zero_expert_num": 4, "moe_topk": 3},
    "one layer, one head": {
        "num_layers": 1,
        "num_attention_heads": 1,
        "q_lora_rank": 48,
        "kv_lora_rank": 40,
    },
    "three layers, unequal heads": {
        "num_layers": 3,
        "num_attention_heads": 6,
        "qk_nope_head_dim": 10,
        "v_head_dim": 6,
        "qk_rope_head_dim": 4,
        "rope_theta": 1e7,
    },
    "attention bias": {"attention_bias": True, "moe_topk": 3},
    "yarn": {"rope_scaling": YARN, "qk_rope_head_dim": 16},
    "yarn with mscale": {
        "rope_scaling": {**YARN, "mscale": 0.8, "mscale_all_dim": 1.2, "factor": 8.0},
        "qk_rope_head_dim": 16,
    },
    "coarse epsilon": {"rms_norm_eps": 1e-2},
    "wide model, narrow experts": {
        "hidden_size": 80,
        "q_lora_rank": 20,
        "kv_lora_rank": 8,
        "ffn_hidden_size": 36,
        "expert_ffn_hidden_size": 8,
        "rope_theta": 5e5,
        "routed_scaling_factor": 1.0,
    },
}


@pytest.fixture(scope="session")
def parity_pair(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], tuple[FlashModel, Any]]:
    """(our model, transformers' model of the same weights), which went through files of both."""
    transformers = pytest.importorskip("transformers", minversion="5.0")
    made: dict[str, tuple[FlashModel, Any]] = {}

    def pair(case: str) -> tuple[FlashModel, Any]:
        if case not in made:
            directory = tmp_path_factory.mktemp("pair")
            config = make_tiny_config(**PARITY_CASES[case])
            ours = make_random_model(config, seed=sorted(PARITY_CASES).index(case))
            ours.save_pretrained(directory / "hub")
            export_checkpoint(directory / "hub", directory / "t5", format="transformers5")
            theirs = transformers.LongcatFlashForCausalLM.from_pretrained(
                directory / "t5", dtype=torch.float32
            )
            made[case] = ours, theirs.eval()
        return made[case]

    return pair


@pytest.fixture(scope="session")
def parity_cases() -> dict[str, dict[str, Any]]:
    """Name -> config.json fields that differ from the tiny config."""
    return PARITY_CASES

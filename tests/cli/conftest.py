"""A checkpoint small enough to make in a blink, with a tokenizer, for the commands to open."""

from pathlib import Path

import pytest

TINY = {
    "vocab_size": 300,
    "hidden_size": 32,
    "num_layers": 1,
    "num_attention_heads": 2,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "ffn_hidden_size": 32,
    "expert_ffn_hidden_size": 16,
    "n_routed_experts": 4,
    "zero_expert_num": 2,
    "moe_topk": 2,
    "max_position_embeddings": 256,
}


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with config.json, random weights (MTP head included) and tokenizer.json."""
    from longcat.flash import FlashConfig, FlashModel
    from longcat.flash.tokenizer import Tokenizer

    directory = tmp_path_factory.mktemp("tiny") / "checkpoint"
    FlashModel(FlashConfig.preset("nano", **TINY), seed=1).save_pretrained(directory)
    Tokenizer.train_bpe(["hello world, def main(): return 1\n"] * 10, 300).save(directory)
    return directory

"""A model and a text small enough that a training step takes milliseconds."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from longcat.flash import FlashConfig
from longcat.train.corpus import Corpus, Document
from longcat.train.settings import TrainSettings
from longcat.train.trainer import Trainer

# K_e / K = 3/4 differs from N / (N+Z) = 1/2: a rule that merely evens out all experts fails here.
TINY: dict[str, Any] = {
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
    "zero_expert_num": 8,
    "moe_topk": 4,
    "expected_ffn_experts": 3,
    "routed_scaling_factor": 2.0,
    "rope_theta": 1e4,
    "max_position_embeddings": 128,
    "num_nextn_predict_layers": 1,
}


def make_config(**changes: Any) -> FlashConfig:
    return FlashConfig.from_hf({**TINY, **changes})


def make_text(seed: int, lines: int) -> str:
    """Lines with structure to learn: names, calls, numbers."""
    rng = np.random.default_rng(seed)
    names = ["alpha", "beta", "gamma", "delta", "count", "value"]
    return "".join(
        f"def {names[rng.integers(6)]}_{rng.integers(10)}(self, {names[rng.integers(6)]}):\n"
        f"    return {names[rng.integers(6)]} + {rng.integers(100)}\n"
        for _ in range(lines)
    )


def make_corpus(documents: int = 6, lines: int = 60) -> Corpus:
    return Corpus(
        train=tuple(Document(name=f"t{i}", text=make_text(i, lines)) for i in range(documents)),
        held_out=(
            Document(name="h0", text=make_text(100, 20)),
            Document(name="h1", text=make_text(101, 7)),
        ),
        source="made for a test",
        licence="none",
    )


def make_settings(**changes: Any) -> TrainSettings:
    defaults: dict[str, Any] = {
        "steps": 8,
        "batch_size": 4,
        "micro_batches": 2,
        "seq_len": 24,
        "vocab_size": 300,
        "warmup_steps": 2,
        "precision": "float32",
        "measure_every": 2,
        "save_every": 1000,
        "z_loss_weight": 1e-6,
    }
    return TrainSettings(**{**defaults, **changes})


def make_ids(seed: int = 0, count: int = 4000) -> np.ndarray:
    return np.random.default_rng(seed).integers(4, 300, size=count)


def make_trainer(settings: TrainSettings | None = None, **changes: Any) -> Trainer:
    settings = settings or make_settings()
    arguments: dict[str, Any] = {
        "config": make_config(),
        "tokens": make_ids(),
        "token_bytes": np.ones(300, dtype=np.int64),
    }
    return Trainer(settings=replace(settings), **{**arguments, **changes})


@pytest.fixture(scope="session")
def kit() -> SimpleNamespace:
    """The makers above, for tests: pytest's import mode gives them no module to import from."""
    return SimpleNamespace(
        config=make_config,
        corpus=make_corpus,
        ids=make_ids,
        settings=make_settings,
        text=make_text,
        trainer=make_trainer,
    )

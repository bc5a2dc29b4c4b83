"""A text of known structure, and models that learn it while one watches.

The text: each token has eight possible successors, and which four of them may come is decided by
the token before it. So a model first learns pairs (a loss of about ln 8 = 2.1 nats) and then, with
attention, triples (about ln 4 = 1.4).

Notable:
- what trains is `longcat.train.trainer.Trainer`, the trainer behind `longcat train`, with all of
  the router's machinery; only the sizes and the text are toys;
- K_e = 3 of K = 4 with 8 FFN and 8 identity experts, as in `laws.py`;
- a step of the smallest model takes about ten milliseconds.
"""

from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy

from longcat.flash import FlashConfig, FlashModel
from longcat.train import TrainSettings
from longcat.train.exchange import Exchange
from longcat.train.trainer import Trainer

VOCABULARY = 48
WINDOW = 32
WIDTH = 32  # where the output head's deviation is 0.02
_TEXT, _HELD_OUT = 40_000, 1_024  # tokens


@cache
def text(seed: int) -> NDArray[np.int64]:
    """The training text, then the held-out text after it: another stretch of the same source."""
    rng = np.random.default_rng(seed)
    successors = rng.integers(0, VOCABULARY, size=(VOCABULARY, 2, 4))
    picks = rng.integers(0, 4, size=_TEXT + _HELD_OUT)
    ids = np.zeros(_TEXT + _HELD_OUT, dtype=np.int64)
    before, last = 0, 0
    for i, pick in enumerate(picks):
        before, last = last, int(successors[last, before % 2, pick])
        ids[i] = last
    return ids


def tiny_config(width: int = WIDTH, layers: int = 1) -> FlashConfig:
    """A whole LongCat-Flash of that width and depth, without a draft head."""
    return FlashConfig.from_hf(
        {
            "vocab_size": VOCABULARY,
            "hidden_size": width,
            "num_layers": layers,
            "num_attention_heads": width // 16,
            "q_lora_rank": width // 2,
            "kv_lora_rank": width // 2,
            "qk_nope_head_dim": 16,
            "qk_rope_head_dim": 8,
            "v_head_dim": 16,
            "ffn_hidden_size": 2 * width,
            "expert_ffn_hidden_size": width // 2,
            "n_routed_experts": 8,
            "zero_expert_num": 8,
            "moe_topk": 4,
            "expected_ffn_experts": 3,
            "routed_scaling_factor": 2.0,
            "rope_theta": 1e4,
            "max_position_embeddings": 64,
            "initializer_range": 0.02 * (WIDTH / width) ** 0.5,
            "bos_token_id": None,
            "eos_token_id": None,
            "pad_token_id": None,
        }
    )


def tiny_trainer(
    width: int = WIDTH, layers: int = 1, exchange: Exchange | None = None, /, **changes: Any
) -> Trainer:
    """A trainer at step 0 on one thread.

    Args:
        exchange: the other processes, if there are any. changes: fields of `TrainSettings`.
    """
    torch.set_num_threads(1)  # tensors this small gain nothing from more
    settings: dict[str, Any] = {
        "batch_size": 8,
        "micro_batches": 1,
        "seq_len": WINDOW,
        "vocab_size": VOCABULARY,
        "lr": 1e-2,
        "warmup_steps": 5,
        "mtp_weight": 0.0,
        "mu_steps": 60,
        "measure_every": 5,
        "hold_balance": False,  # a walkthrough shows what a weight does; nobody may lower it
        "precision": "float32",
    }
    made = TrainSettings(**{**settings, **changes})
    ids = text(made.seed)[:_TEXT]
    token_bytes = np.ones(VOCABULARY, dtype=np.int64)
    return Trainer(tiny_config(width, layers), made, ids, token_bytes, exchange)


def train(trainer: Trainer, name: str = "loss") -> list[float]:
    """Train to the end; returns one figure of each step's metrics."""
    return [trainer.train_step()[name] for _ in range(trainer.settings.steps or 0)]


@torch.no_grad()
def held_out_loss(model: FlashModel, seed: int = 0) -> float:
    """Cross entropy per token on the held-out text, in nats."""
    ids = torch.from_numpy(text(seed)[_TEXT:]).view(-1, WINDOW)
    logits = model(ids).logits[:, :-1]
    return float(cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()))

"""The models that serving speed is measured on, and what a pass of them is worth.

Both have random weights: speed does not depend on what they say, and their routing is as balanced
as it begins.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import nn

from longcat.flash import FlashConfig, FlashModel
from longcat.flash.accounting import count_parameters
from longcat.flash.operations import causal_pairs, training_operations
from longcat.moe import MoE

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SERVED = (*PRECISIONS, "int8")  # weights of 8 bits, computing in bfloat16


def shapes() -> dict[str, FlashConfig]:
    """The `bench` preset, and the same with four times the experts, by name and size."""
    sparse = FlashConfig.preset("bench", n_routed_experts=64, zero_expert_num=32)
    return {_named("bench", FlashConfig.preset("bench")): FlashConfig.preset("bench")} | {
        _named("sparse", sparse): sparse
    }


def _named(name: str, config: FlashConfig) -> str:
    return f"{name}, {count_parameters(config).total_parameters / 1e6:.0f} M"


@dataclass(frozen=True, kw_only=True)
class Experts:
    """FFN experts that one pass uses: once per token and layer, and once per layer."""

    slots: int
    unique: int


class ExpertCount:
    """Counts the FFN experts of every pass of a model while it is watched."""

    def __init__(self, model: FlashModel) -> None:
        self.passes: list[Experts] = []
        self._slots, self._unique, self._left = 0, 0, len(model.model.layers)
        self._layers = len(model.model.layers)
        experts = [m.experts for m in model.model.layers.modules() if isinstance(m, MoE)]
        self._handles = [module.register_forward_hook(self._note) for module in experts]

    def __enter__(self) -> ExpertCount:
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _note(self, experts: nn.Module, inputs: Any, output: Any) -> None:
        rows, ends = inputs
        self._slots += len(rows)
        self._unique += int((ends.diff(prepend=ends.new_zeros(1)) > 0).sum())
        self._left -= 1
        if not self._left:
            self.passes.append(Experts(slots=self._slots, unique=self._unique))
            self._slots, self._unique, self._left = 0, 0, self._layers


def prefill_operations(config: FlashConfig, tokens: int, slots: float) -> float:
    """Model operations of a prompt of which only the last token's logits are wanted."""
    forward = training_operations(
        config,
        tokens=tokens,
        pairs=causal_pairs(1, tokens),
        ffn_slots=slots,
        draft_head=False,
    )
    return forward / 3 - 2 * config.vocab_size * config.hidden_size * (tokens - 1)


def touched_bytes(model: FlashModel, unique_experts: float) -> float:
    """Bytes of the weights that a decoding pass reads: all but the draft head, the embedding, and
    the experts that no token chose. Weights of 8 bits are buffers; their
    scales are left out.
    """
    read = 0.0
    in_8_bits = [(name, b) for name, b in model.named_buffers() if b.dtype == torch.int8]
    for name, weight in chain(model.named_parameters(), in_8_bits):
        if ".mtp." in name or "embed_tokens" in name:
            continue
        size: float = weight.numel() * weight.element_size()
        if ".experts." in name:
            size *= unique_experts / (len(model.model.layers) * weight.shape[0])
        read += size
    return read

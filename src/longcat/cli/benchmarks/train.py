"""One training step, ours against transformers' LongcatFlashForCausalLM, on a CPU.

A step is forward, backward and a fused AdamW. Both models start from the same weights and must
compute the same loss before anything is timed; then they take turns on the same batches, a fresh
one every step, each in a process of its own (`longcat.cli.benchmarks.apart`). Ours ends in the
cross entropy that `longcat train` uses. transformers runs at its best: fused attention (sdpa), no
cache, and in bfloat16 whichever of its two ways is faster: autocast over float32 weights, or
everything in bfloat16. It has no MTP head, so neither model has one here.

What a step is worth is counted in model operations (`longcat.flash.operations`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longcat.flash import FlashConfig, FlashModel
from longcat.flash.operations import causal_pairs, training_operations
from longcat.flash.recompute import Recompute
from longcat.kernels import cross_entropy
from longcat.optim import adamw
from longcat.train.peak import square_products

BATCH, TOKENS = 8, 256
SIZE = 2048  # of the square products that show the peak
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# The rate changes no time. It is small, so that the routing stays as balanced as it begins.
SETTINGS: dict[str, Any] = {"lr": 1e-6, "betas": (0.9, 0.95), "eps": 1e-16, "weight_decay": 0.1}
SAME_LOSS = {"float32": 1e-5, "bfloat16": 1e-2}  # relative


def shapes() -> dict[str, FlashConfig]:
    """The `bench` preset, and the same at half its widths with four times the experts."""
    many = {
        "hidden_size": 256,
        "num_attention_heads": 4,
        "q_lora_rank": 96,
        "kv_lora_rank": 64,
        "ffn_hidden_size": 512,
        "expert_ffn_hidden_size": 128,
        "n_routed_experts": 64,
        "zero_expert_num": 32,
        "moe_topk": 12,
    }
    return {
        "bench": FlashConfig.preset("bench", num_nextn_predict_layers=0),
        "many experts": FlashConfig.preset("bench", num_nextn_predict_layers=0, **many),
    }


def transformers_missing() -> str | None:
    """One sentence when transformers 5 is not there to compare with, else None."""
    try:
        found = version("transformers")
    except PackageNotFoundError:
        found = "none"
    if found.partition(".")[0].isdigit() and int(found.partition(".")[0]) >= 5:
        return None
    return (
        "bench: comparing needs transformers 5 or newer, found "
        f"{found}: only our own steps are measured (pip install transformers adds the others)"
    )


@dataclass(frozen=True, kw_only=True)
class Form:
    """Whose model, its weights' dtype, whether in bfloat16 autocast; ours may also recompute."""

    ours: bool
    weights: torch.dtype
    autocast: bool
    recompute: Recompute = "none"

    def recomputing(self, kind: Recompute) -> Form:
        """The same with another kind of recomputation."""
        return replace(self, recompute=kind)

    def build(self, config: FlashConfig) -> nn.Module:
        """The model with weights of its own."""
        if self.ours:
            ours = FlashModel(config, seed=0, dtype=self.weights)
            ours.recompute = self.recompute
            return ours
        hf = _transformers()
        settings = hf.LongcatFlashConfig(**config.to_hf("transformers5"))
        model: nn.Module = hf.AutoModelForCausalLM.from_config(settings, attn_implementation="sdpa")
        return model.to(self.weights)

    def load(self, directory: str) -> nn.Module:
        """The model with the weights of a checkpoint in transformers' form."""
        if self.ours:
            return FlashModel.from_pretrained(directory, dtype=self.weights)
        model: nn.Module = _transformers().LongcatFlashForCausalLM.from_pretrained(
            directory, dtype=self.weights, attn_implementation="sdpa"
        )
        return model


def forms(precision: str, *, compare: bool) -> dict[str, Form]:
    """What takes turns in one precision, ours first."""
    single, half = PRECISIONS["float32"], PRECISIONS["bfloat16"]
    if precision == "float32":
        ours = {"longcat": Form(ours=True, weights=single, autocast=False)}
        theirs = {"transformers": Form(ours=False, weights=single, autocast=False)}
    else:
        ours = {"longcat, autocast": Form(ours=True, weights=single, autocast=True)}
        theirs = {
            "transformers, autocast": Form(ours=False, weights=single, autocast=True),
            "transformers, all bfloat16": Form(ours=False, weights=half, autocast=False),
        }
    return ours | (theirs if compare else {})


class Step:
    """A model with its optimizer; a call is one step on the next batch."""

    def __init__(self, model: nn.Module, form: Form, vocab_size: int) -> None:
        self.model, self.form, self.vocab_size = model.train(), form, vocab_size
        if form.ours:
            self.optimizer = adamw(model, **SETTINGS)
        else:
            self.optimizer = torch.optim.AdamW(model.parameters(), fused=True, **SETTINGS)
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self) -> float:
        loss = self.loss(batch(self.vocab_size, self.generator))
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(loss.detach())

    def loss(self, ids: Tensor) -> Tensor:
        """Mean cross entropy of ids [B, T+1]."""
        extra = {} if self.form.ours else {"use_cache": False}
        with torch.autocast("cpu", torch.bfloat16, enabled=self.form.autocast):
            logits = self.model(ids[:, :-1], **extra).logits.flatten(0, 1)
            targets = ids[:, 1:].flatten()
            if self.form.ours:
                return cross_entropy(logits, targets) / len(targets)
            return F.cross_entropy(logits.float(), targets)


def check_same_loss(losses: Mapping[str, float], precision: str) -> None:
    """Of the forms on one batch, from the same weights.

    Raises:
        ValueError: a form's loss differs; then the forms do not do the same work.
    """
    first, *others = losses.values()
    if any(abs(loss - first) > SAME_LOSS[precision] * first for loss in others):
        raise ValueError(
            f"bench: the models must compute the same loss from the same weights, got {losses}; "
            "no time is measured of work that differs"
        )


def batch(vocab_size: int, generator: torch.Generator) -> Tensor:
    """[B, T+1] random ids."""
    return torch.randint(4, vocab_size, (BATCH, TOKENS + 1), generator=generator)


def model_operations(config: FlashConfig, model: FlashModel) -> float:
    """Operations of one step, with the FFN experts that the router chooses for one batch."""
    ids = batch(config.vocab_size, torch.Generator().manual_seed(1))
    with torch.no_grad():
        counts = model(ids[:, :-1]).counts
    chosen = float(counts[:, : config.router.n_routed_experts].sum())
    return training_operations(
        config,
        tokens=BATCH * TOKENS,
        pairs=causal_pairs(BATCH, TOKENS),
        ffn_slots=chosen,
    )


def products(precision: str) -> dict[str, Callable[[], object]]:
    """The square products whose speed is the peak: torch's own and, in float32, oneDNN's."""
    return square_products(PRECISIONS[precision], SIZE)


def _transformers() -> Any:
    hf = import_module("transformers")
    hf.utils.logging.set_verbosity_error()
    hf.utils.logging.disable_progress_bar()
    return hf

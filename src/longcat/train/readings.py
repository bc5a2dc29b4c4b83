"""One step's metrics line, from the sums of the global batch.

Names are those of metrics.jsonl. Everything is a ratio of sums, so that the line is the same
however the batch was cut into micro-batches and processes.

Source: report sections 2.1.1, 2.1.2, 3.1.3.
"""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from longcat.flash.operations import training_operations
from longcat.optim import GradientReading
from longcat.router import router_gradient_ratio, router_similarity
from longcat.train.metrics import Record

if TYPE_CHECKING:
    from longcat.train.trainer import Trainer


def record(
    trainer: "Trainer",
    reading: GradientReading,
    *,
    lr: float,
    took: float,
    measured: bool,
    pairs: float,
) -> Record:
    """The metrics line of the step that was just made.

    Args:
        reading: the gradient's norm and scale. lr: learning rate used. took: seconds of wall time.
        measured: whether R_g and the draft head's agreement were measured on this step.
        pairs: of tokens that attend to each other, in one head of one attention.
    """
    tally, settings = trainer.tally, trainer.settings
    tokens, router = tally["tokens"], trainer.config.router
    mean = tally.ffn / tokens
    variance = (tally.ffn_squared / tokens - mean**2).clamp(min=0)
    load = tally.counts[:, : max(1, router.n_routed_experts)]
    loss = tally["nll"] / tally["targets"]
    has_mtp = bool(settings.mtp_weight)
    return {
        "step": trainer.step,
        "tokens": trainer.tokens_seen,
        "loss": loss,
        "bits_per_byte": tally["nll"] / math.log(2) / max(1.0, tally["bytes"]),
        "lr": lr,
        "tokens_per_s": tokens / took if took > 0 else None,
        "mfu": _mfu(trainer, took, pairs),
        "ffn_experts_mean": mean.tolist(),
        "ffn_experts_std": variance.sqrt().tolist(),
        "expert_load_max": (load.amax(dim=1) / load.mean(dim=1).clamp(min=1e-9)).tolist(),
        "expert_load": _load(load),
        "r_g": _r_g(trainer) if measured else None,
        "r_g_centred": _r_g(trainer, centred=True) if measured else None,
        "balance_alpha": trainer.model.balance.alpha,
        "router_similarity": _similarity(trainer) if measured else None,
        "grad_norm": reading.norm,
        "grad_rms": reading.rms,
        "epsilon_meets_gradient": reading.epsilon_meets_gradient,
        "hidden_rms": math.sqrt(tally["hidden_squared"] / tally["hidden_count"]),
        "z_loss": tally["z"] / settings.micro_batches,
        "balance_loss": (tally.balance / settings.micro_batches).tolist(),
        "mtp_loss": tally["mtp_nll"] / max(1, tally["mtp_targets"]) if has_mtp else None,
        "mtp_acceptance": tally["agreed"] / settings.micro_batches
        if has_mtp and measured
        else None,
        "mtp_ffn_experts_mean": _draft_experts(trainer),
        "memory_peak": tally["memory"],
        "seconds": trainer.seconds,
        "cpu_seconds": trainer.cpu_seconds,
    }


def _mfu(trainer: "Trainer", took: float, pairs: float) -> float | None:
    """The step's model operations over what was possible in its time; None where that is unknown.

    The FFN experts are those that this step's tokens used.
    """
    if trainer.peak is None or took <= 0:
        return None
    drafted = trainer.tally.draft_counts[: trainer.config.router.n_routed_experts]
    operations = training_operations(
        trainer.config,
        tokens=trainer.tally["tokens"],
        pairs=pairs,
        ffn_slots=float(trainer.tally.ffn.sum() + drafted.sum()),
        draft_head=bool(trainer.settings.mtp_weight),
    )
    return operations / took / trainer.peak


def _draft_experts(trainer: "Trainer") -> float | None:
    """FFN experts per token in the draft head's mixture; None where it has none."""
    if len(trainer.routers) == len(trainer.layers):
        return None
    ffn = trainer.tally.draft_counts[: trainer.config.router.n_routed_experts]
    return float(ffn.sum()) / trainer.tally["tokens"]


def _load(load: Tensor) -> list[list[float]]:
    """[L,N] counts as loads, mean 1, to four digits: these are most of a line's length."""
    rows: list[list[float]] = (load / load.mean(dim=1, keepdim=True).clamp(min=1e-9)).tolist()
    return [[round(value, 4) for value in row] for row in rows]


def _similarity(trainer: "Trainer") -> list[float]:
    """Per layer: how alike the experts' rows of the router are."""
    weights = [layer.mlp.router.classifier.weight for layer in trainer.layers]
    # Under FSDP every process holds some rows; all of them come by here on the same steps.
    whole = [w.full_tensor() if hasattr(w, "full_tensor") else w for w in weights]
    found = torch.tensor(
        [router_similarity(w) if w.numel() else 0.0 for w in whole], dtype=torch.float64
    )
    if trainer.exchange.layout.pipeline:  # a layer's router is in one process
        trainer.exchange.sum_(found)
    similarity: list[float] = found.tolist()
    return similarity


def _r_g(trainer: "Trainer", *, centred: bool = False) -> list[float] | None:
    """Per layer; None without FFN experts or without a balance loss.

    centred leaves out the gradients' mean components, which softmax cancels.
    """
    router, settings = trainer.config.router, trainer.settings
    alpha = trainer.model.balance.alpha
    if router.n_routed_experts == 0 or not alpha:
        return None
    groups = settings.balance_groups
    with_identity = router.zero_expert_num > 0 and router.target_ffn < router.top_k
    frequency = trainer.tally.balance_f[:, : groups + with_identity] / settings.micro_batches
    return [
        router_gradient_ratio(pull, f, router, alpha=alpha, groups=groups, centred=centred)
        for pull, f in zip(trainer.tally.pull, frequency, strict=True)
    ]

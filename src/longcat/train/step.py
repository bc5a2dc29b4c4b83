"""Forward and backward of one micro-batch: the losses, and the sums a metrics line is made of.

    L = CE(next token) + w_mtp CE(token after next) + hidden z-loss + balance loss

Each cross entropy is a sum divided by the number of targets of the whole global batch, so adding
up gradients over micro-batches and processes gives the same mean however the batch is cut. The
balance loss is attached inside the model, micro-batch by micro-batch as the report defines it.

Source: report sections 2.1.2, 2.4, 3.1.3.
"""

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from longcat.flash import FlashConfig, FlashModel, FlashOutput
from longcat.kernels import cross_entropy
from longcat.optim import hidden_z_loss
from longcat.train.batches import Batch
from longcat.train.device import sent
from longcat.train.settings import TrainSettings
from longcat.train.tally import Tally

IGNORED = -100  # a target that is in no loss


@dataclass(frozen=True, kw_only=True)
class Targets:
    """How many predictions the global batch holds, for the denominators of the losses."""

    main: int
    mtp: int


def count_targets(batch: Batch, bos: int) -> Targets:
    """Targets of a whole batch; <s> is never one, since it opens another document."""
    return Targets(
        main=int(np.count_nonzero(batch.targets(bos) != bos)),
        mtp=int(np.count_nonzero(batch.after_next != bos)),
    )


def document_start(config: FlashConfig) -> int:
    """The id that opens a document; -1, which is no id, where the model has none."""
    return -1 if config.bos_token_id is None else config.bos_token_id


def arithmetic(settings: TrainSettings, device: torch.device) -> AbstractContextManager[object]:
    """The context a forward pass runs in: bfloat16 autocast or nothing."""
    if settings.precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


def parameter_dtype(settings: TrainSettings) -> torch.dtype:
    """Weights are float32 under autocast too; float64 is for comparisons."""
    return torch.float64 if settings.precision == "float64" else torch.float32


def forward_backward(
    model: FlashModel,
    batch: Batch,
    targets: Targets,
    settings: TrainSettings,
    tally: Tally,
    *,
    token_bytes: Tensor,
    measure: bool,
) -> None:
    """Add one micro-batch's gradients to the parameters and its sums to the tally.

    Nothing here waits for the device: not even a number of tokens is read back.

    Args:
        tally: lies on the model's device. targets: of the global batch.
        token_bytes: [V] int64 bytes each id stands for, on the device too.
        measure: also take the gradient of the main loss with respect to the router scores (R_g),
            and how often the MTP head's choice is the main model's own.
    """
    bos = document_start(model.config)
    device = tally.row.device
    inputs, next_ids = sent(batch.inputs, device), sent(batch.next_ids, device)
    after_next, wanted = sent(batch.after_next, device), sent(batch.targets(bos), device)
    documents = None if batch.document_ids is None else sent(batch.document_ids, device)
    # R_g is measured by torch.autograd.grad, which the reentrant kind cannot give.
    model.recompute = "layer" if measure and settings.recompute != "none" else settings.recompute
    with arithmetic(settings, device):
        output = model(inputs, output_router=True, document_ids=documents)
        drafts = (
            model.mtp(output.hidden, next_ids, document_ids=documents)[0]
            if settings.mtp_weight
            else None
        )
        loss, total = add_losses(
            (output.logits, output.last_layer, drafts),
            (wanted, after_next),
            targets,
            settings,
            tally,
            bos=bos,
            token_bytes=token_bytes,
            documents=documents,
            in_place=not measure,
        )
    if measure:
        _measure(model, output, loss, tally)
        if drafts is not None:
            tally.add("agreed", agreement(output.logits, drafts, documents))
    add_draft_counts(model, tally)
    total.backward()
    _add_sums(output, documents, tally)


def add_losses(
    outputs: tuple[Tensor, Tensor, Tensor | None],
    wanted: tuple[Tensor, Tensor],
    targets: Targets,
    settings: TrainSettings,
    tally: Tally,
    *,
    bos: int,
    token_bytes: Tensor,
    documents: Tensor | None = None,
    in_place: bool = False,
) -> tuple[Tensor, Tensor]:
    """(main loss, all losses but the balance loss) of one micro-batch, whose sums are tallied.

    Args:
        outputs: logits [B,T,V], last layer [B,T,D] and draft logits [B,T,V], or None for these.
        wanted: [B,T] each, what the model and what the draft head are to predict; bos is nothing.
        in_place: the logits' gradients take their memory; nobody may look at them afterwards.
    """
    (logits, last_layer, drafts), (main, after_next) = outputs, wanted
    nll = _summed(logits, main, bos, in_place)
    real = None if documents is None else documents >= 0
    z = hidden_z_loss(last_layer, settings.z_loss_weight, real)
    loss = nll / targets.main
    total = loss + z / settings.micro_batches
    if drafts is not None:
        mtp_nll = _summed(drafts, after_next, bos, in_place)
        total = total + settings.mtp_weight * mtp_nll / max(1, targets.mtp)
        tally.add("mtp_nll", mtp_nll.detach())
        tally.add("mtp_targets", (after_next != bos).sum())
    told = main != bos
    tally.add("nll", nll.detach())
    tally.add("targets", told.sum())
    tally.add("bytes", token_bytes[main].where(told, 0).sum())
    tally.add("z", z.detach())
    hidden = _without_padding(last_layer.detach().double(), real)
    tokens = math.prod(hidden.shape[:-1]) if real is None else real.sum()
    tally.add("hidden_squared", hidden.square().sum())
    tally.add("hidden_count", tokens * hidden.shape[-1])
    tally.add("tokens", tokens)
    return loss, total


def add_draft_counts(model: FlashModel, tally: Tally) -> None:
    """Tally the slots of the draft head's pass just made, where its layer has a mixture."""
    head = model.model.mtp
    counts = None if head is None else getattr(head.layers[0], "counts", None)
    if counts is not None:
        tally.draft_counts += counts


def agreement(logits: Tensor, drafts: Tensor, documents: Tensor | None = None) -> Tensor:
    """How often the draft head's choice is the model's own.

    Both look at the token two places after position i: the head from i, the model from i+1.
    """
    same = drafts[:, :-1].argmax(dim=-1) == logits[:, 1:].argmax(dim=-1)
    if documents is None:
        return same.sum().double() / max(1, same.numel())
    asked = (documents[:, 1:] == documents[:, :-1]) & (documents[:, 1:] >= 0)
    return (same & asked).sum().double() / asked.sum().clamp(min=1)


def add_ffn(tally: Tally, layer: int, used: Tensor) -> None:
    """Tally how many FFN experts each token of a layer used."""
    used = used.double()
    tally.ffn[layer] += used.sum()
    tally.ffn_squared[layer] += (used * used).sum()


def _summed(logits: Tensor, ids: Tensor, bos: int, in_place: bool) -> Tensor:
    """Cross entropy summed over targets, in float32 (float64 for a float64 model)."""
    wanted = ids.masked_fill(ids == bos, IGNORED).flatten()
    return cross_entropy(logits.flatten(0, 1), wanted, IGNORED, in_place=in_place)


def _without_padding(values: Tensor, real: Tensor | None) -> Tensor:
    """values [B,T] or [B,T,D] with zeros where a token is padding.

    Taking the real ones out would need their number, and so a wait for the device.
    """
    if real is None:
        return values
    return values * (real if values.dim() == 2 else real[..., None])


def _measure(model: FlashModel, output: FlashOutput, loss: Tensor, tally: Tally) -> None:
    assert output.router is not None
    if model.config.router.n_routed_experts:
        scores = [routing.scores for routing in output.router]
        with model.balance.paused():
            gradients = torch.autograd.grad(loss, scores, retain_graph=True, allow_unused=True)
        for layer, gradient in enumerate(gradients):
            if gradient is not None:
                tally.pull[layer] += gradient.sum(dim=0)


def _add_sums(output: FlashOutput, documents: Tensor | None, tally: Tally) -> None:
    assert output.router is not None
    tally.counts += output.counts
    real = None if documents is None else documents >= 0
    for layer, routing in enumerate(output.router):
        used = routing.ffn_per_token.view(output.logits.shape[:-1])
        add_ffn(tally, layer, _without_padding(used, real))
    tally.balance += output.balance_loss
    tally.balance_f[:, : output.balance_f.shape[1]] += output.balance_f

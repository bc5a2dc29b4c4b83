"""Losses, the optimizer's step, and what serving does with probabilities."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

import longcat.kernels as kernels
from longcat.cli.benchmarks.kernels.case import Case, Maker, both_ways
from longcat.flash.config import FlashConfig


def cases(config: FlashConfig, make: Maker) -> Iterator[Case]:
    """Every case of this file."""
    yield _cross_entropy(config, make)
    yield _z_loss(config, make)
    if make.dtype == torch.float32:  # masters and probabilities are, whatever the model is in
        yield _adamw(config, make)
        yield _keep_top(config, make)
        yield _verify(config, make)


def _cross_entropy(config: FlashConfig, make: Maker) -> Case:
    rows, vocabulary = make.sizes.rows, config.vocab_size
    logits = make(rows, vocabulary)
    targets = torch.randint(vocabulary, (rows,), generator=make.generator).to(make.device)
    return make.case(
        "cross_entropy both ways",
        f"{rows}x{vocabulary}",
        {
            "F.cross_entropy": both_ways(
                lambda logits: F.cross_entropy(logits.float(), targets, reduction="sum"), logits
            ),
            "ours": both_ways(lambda logits: kernels.cross_entropy(logits, targets), logits),
        },
        numbers=2 * logits.numel(),
        flops=9 * logits.numel(),
    )


def _z_loss(config: FlashConfig, make: Maker) -> Case:
    z = make(make.sizes.rows, config.hidden_size)

    def plain(z: Tensor) -> Tensor:
        return torch.logsumexp(z.float().abs(), dim=-1).square().mean()

    return make.case(
        "hidden_z_loss both ways",
        f"{z.shape[0]}x{z.shape[1]}",
        {
            "logsumexp": both_ways(plain, z),
            "ours": both_ways(lambda z: kernels.hidden_z_loss(z, 1.0), z),
        },
        numbers=3 * z.numel(),
        flops=10 * z.numel(),
    )


def _adamw(config: FlashConfig, make: Maker) -> Case:
    """A step over one layer's dense FFN, against torch.optim.AdamW as it comes."""
    shape = (2 * config.ffn_hidden_size, config.hidden_size)
    weights = [make.constant(*shape) for _ in range(2)]
    gradients = [make.constant(*shape) for _ in weights]
    first, second = ([torch.zeros_like(weight) for weight in weights] for _ in range(2))
    theirs = [torch.nn.Parameter(weight.clone()) for weight in weights]
    for weight, gradient in zip(theirs, gradients, strict=True):
        weight.grad = gradient
    optimizer = torch.optim.AdamW(theirs, lr=1e-3, betas=(0.9, 0.95), eps=1e-16, weight_decay=0.1)

    def ours() -> list[Tensor]:
        kernels.adamw_step(weights, gradients, first, second, 1, lr=1e-3)
        return weights

    def plain() -> list[torch.nn.Parameter]:
        optimizer.step()
        return theirs

    numbers = sum(weight.numel() for weight in weights)
    return make.case(
        "adamw_step",
        f"2 tensors of {shape[0]}x{shape[1]}",
        {"torch.optim.AdamW": plain, "ours": ours},
        numbers=7 * numbers,
        flops=12 * numbers,
    )


def _probabilities(config: FlashConfig, make: Maker, *shape: int) -> Tensor:
    return torch.softmax(3 * make.constant(*shape, config.vocab_size), dim=-1)


def _keep_top(config: FlashConfig, make: Maker) -> Case:
    rows = make.sizes.batch
    p = _probabilities(config, make, rows)
    top_k, top_p = torch.full((rows,), 50), torch.full((rows,), 0.9)
    top_k, top_p = top_k.to(make.device), top_p.to(make.device)

    def plain() -> Tensor:
        ordered, order = torch.sort(p, dim=-1, descending=True)
        place = torch.arange(p.shape[-1], device=p.device)
        ordered = torch.where(place < top_k[:, None], ordered, 0)
        mass = ordered / ordered.sum(-1, keepdim=True)
        ordered = torch.where(mass.cumsum(-1) - mass < top_p[:, None], ordered, 0)
        kept = torch.zeros_like(p).scatter(-1, order, ordered)
        return kept / kept.sum(-1, keepdim=True)

    return make.case(
        "keep_top",
        f"{rows}x{p.shape[1]} top 50, 0.9",
        {"sort": plain, "ours": lambda: kernels.keep_top(p, top_k, top_p)},
        numbers=2 * p.numel(),
        flops=3 * p.numel(),
        serving=True,
    )


def _verify(config: FlashConfig, make: Maker) -> Case:
    rows, vocabulary = make.sizes.batch, config.vocab_size
    p, q = _probabilities(config, make, rows, 2), _probabilities(config, make, rows, 1)
    drafts = torch.randint(vocabulary, (rows, 1), generator=make.generator).to(make.device)
    chance = torch.rand(rows, 1, generator=make.generator).to(make.device)

    def plain() -> tuple[Tensor, Tensor]:
        of_p, of_q = (x[:, 0].gather(-1, drafts) for x in (p, q))
        accepted = chance * of_q < of_p
        left = (p[:, 0] - q[:, 0]).clamp(min=0)
        rest = torch.where(accepted, p[:, 1], left / left.sum(-1, keepdim=True))
        return accepted.sum(1), rest

    return make.case(
        "verify",
        f"{rows} requests, 1 draft, V={vocabulary}",
        {"one draft": plain, "ours": lambda: kernels.verify(p, q, drafts, chance)},
        numbers=2 * rows * vocabulary,
        flops=3 * rows * vocabulary,
        serving=True,
    )

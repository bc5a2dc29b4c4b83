"""The Triton kernels of training beside torch, both ways, at LongCat-Flash's shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import longcat.kernels as kernels
from longcat.cli.benchmarks import training_mixture
from longcat.cli.benchmarks.graphs import Case, Maker, both_ways, in_triton

HEADS, WIDTH, VALUES = 64, 192, 128
VOCABULARY, MODEL, DENSE = 131072, 6144, 12288


def cases(device: str, *, toy: bool) -> Iterator[Case]:
    """Every case; at toy sizes one of each kind."""
    make = Maker(device, toy)
    for tokens in (37,) if toy else (2048, 8192):
        yield _attention(make, tokens)
    yield _cross_entropy(make, 5 if toy else 4096, in_place=False)
    yield _cross_entropy(make, 5 if toy else 4096, in_place=True)
    tokens = 5 if toy else 8192
    yield from training_mixture.cases(make, tokens)
    yield _rope(make, tokens)
    yield from _elementwise(make, tokens)
    yield _adamw(make, 3 if toy else 16)


def _attention(make: Maker, tokens: int) -> Case:
    heads, width, values = (2, 24, 16) if make.toy else (HEADS, WIDTH, VALUES)
    copies = make.copies(2 * tokens * heads * (2 * width + values))
    sets = [
        [make.leaf(1, tokens, heads, size) for size in (width, width, values)]
        for _ in range(copies)
    ]
    scale = 4.0 * width**0.5  # the operands are divided by the root of their width
    ours, theirs = both_ways(lambda q, k, v: kernels.mla_prefill(q, k, v, scale), sets)
    return Case(
        op="mla_prefill both ways",
        shape=f"T={tokens} H={heads} {width}|{values}",
        ours=ours,
        theirs=theirs,
        copies=copies,
        bytes=2 * tokens * heads * (6 * width + 6 * values),
        flops=tokens**2 * heads * (4 * width + 3 * values),  # half of all pairs; 2 and 5 products
    )


def _cross_entropy(make: Maker, tokens: int, *, in_place: bool) -> Case:
    vocabulary = make.width(VOCABULARY)
    values = 40 * make(tokens, vocabulary)
    targets = torch.arange(tokens, device=make.device) * 7919 % vocabulary
    # Each form overwrites logits of its own; a view is no leaf, so it may be overwritten.
    mine, other = (values.clone().requires_grad_() for _ in range(2))

    def loss(logits: Tensor) -> Tensor:
        return kernels.cross_entropy(logits.view_as(logits), targets, in_place=in_place)

    return Case(
        op=f"cross_entropy both ways{', in place' if in_place else ''}",
        shape=f"{tokens}x{vocabulary}",
        ours=both_ways(loss, [[mine]])[0],
        theirs=both_ways(loss, [[other]])[1],
        copies=1,  # a gigabyte
        bytes=2 * 2 * tokens * vocabulary,
        flops=9 * tokens * vocabulary,
    )


def _rope(make: Maker, tokens: int) -> Case:
    heads, width = (3, 8) if make.toy else (HEADS, 64)
    inv_freq, factor = kernels.rope_frequencies(width, 1e7)
    frequencies = torch.from_numpy(inv_freq).to(make.device)
    positions = torch.arange(tokens, device=make.device)[None]
    numbers = tokens * heads * width
    copies = make.copies(2 * numbers)
    ours, theirs = both_ways(
        lambda x: kernels.rope(x, positions, frequencies, factor),
        [[make.leaf(1, tokens, heads, width)] for _ in range(copies)],
    )
    return Case(
        op="rope both ways",
        shape=f"T={tokens} H={heads} R={width}",
        ours=ours,
        theirs=theirs,
        copies=copies,
        bytes=2 * 4 * numbers,
        flops=6 * numbers,
    )


# (name, operation, rows it takes, weights it takes, numbers it moves a row, its arithmetic)
Row = tuple[str, Callable[..., Tensor | tuple[Tensor, ...]], int, int, int, int]
ELEMENTWISE: tuple[Row, ...] = (
    ("rmsnorm", lambda x, w: kernels.rmsnorm(x, w, 1e-5), 1, 1, 5, 12),
    ("add_rmsnorm", lambda x, r, w: kernels.add_rmsnorm(x, r, w, 1e-5), 2, 1, 8, 27),
    ("swiglu", kernels.swiglu, 2, 0, 8, 15),
    ("hidden_z_loss", lambda z: kernels.hidden_z_loss(z, 1.0), 1, 0, 3, 10),
)


def _elementwise(make: Maker, tokens: int) -> Iterator[Case]:
    for op, function, n_rows, n_weights, moved, flops in ELEMENTWISE:
        width = make.width(DENSE if op == "swiglu" else MODEL)
        copies = make.copies(2 * n_rows * tokens * width)
        shapes = [(tokens, width)] * n_rows + [(width,)] * n_weights
        sets = [[make.leaf(*shape) for shape in shapes] for _ in range(copies)]
        ours, theirs = both_ways(function, sets)
        yield Case(
            op=f"{op} both ways",
            shape=f"{tokens}x{width}",
            ours=ours,
            theirs=theirs,
            copies=copies,
            bytes=2 * moved * tokens * width,
            flops=flops * tokens * width,
        )


def _adamw(make: Maker, tensors: int) -> Case:
    """Against torch's fused step and a copy after it, which reads the weights once more."""
    width = make.width(MODEL)
    weights = [make(width, width).float() for _ in range(tensors)]
    gradients = [make(width, width).float() for _ in weights]
    rates: dict[str, Any] = {"lr": 1e-3, "weight_decay": 0.1, "eps": 1e-16}

    def state() -> tuple[list[Tensor], ...]:
        moments = ([torch.zeros_like(weight) for weight in weights] for _ in range(2))
        copies = [weight.bfloat16() for weight in weights]
        return [weight.clone() for weight in weights], *moments, copies

    mine, firsts, seconds, copies = state()
    theirs, first, second, copied = state()
    steps = [torch.ones((), device=make.device) for _ in weights]

    def ours(copy: int) -> object:
        lists = mine, gradients, firsts, seconds
        in_triton(lambda: kernels.adamw_step(*lists, 1, **rates, copies=copies))
        return [*mine, *copies]

    def fused(copy: int) -> object:
        torch._fused_adamw_(
            theirs, gradients, first, second, [], steps, **rates,
            beta1=0.9, beta2=0.95, amsgrad=False, maximize=False,
        )  # fmt: skip
        for target, weight in zip(copied, theirs, strict=True):
            target.copy_(weight)
        return [*theirs, *copied]

    numbers = tensors * width * width
    return Case(
        op="adamw_step with bfloat16 copies",
        shape=f"{tensors} tensors of {width}x{width}",
        ours=ours,
        theirs=fused,
        copies=1,
        bytes=30 * numbers,
        flops=12 * numbers,
    )

"""The mixture's kernels of training beside torch, both ways, at LongCat-Flash's shapes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

import longcat.kernels as kernels
from longcat.cli.benchmarks.graphs import Case, Maker, both_ways, in_triton

MODEL, FFN, VOCABULARY = 6144, 2048, 131072
N_FFN, IDENTITY, TOP_K = 512, 256, 12
HELD = 64  # experts of one GPU, where 8 share them


def cases(make: Maker, tokens: int) -> Iterator[Case]:
    """Every case of this file."""
    yield _experts(make, tokens)
    yield _combine(make, tokens)
    yield _permute(make, tokens)
    yield _route(make, tokens)
    yield _scatter_add(make, tokens)


def _experts(make: Maker, tokens: int) -> Case:
    n_ffn, top_k = (4, 2) if make.toy else (HELD, TOP_K * HELD // (N_FFN + IDENTITY))
    width, inner = make.width(MODEL), make.width(FFN)
    indices = make(tokens, n_ffn).float().topk(top_k, dim=1).indices
    x = make.leaf(tokens, width)
    _, plan = kernels.permute(x.detach(), indices, n_ffn)
    gate_up, down = make.leaf(n_ffn, 2 * inner, width), make.leaf(n_ffn, width, inner)
    slots = tokens * top_k
    ours, theirs = both_ways(
        lambda x, g, d: kernels.experts(x, g, d, plan.offsets, plan.tokens), [(x, gate_up, down)]
    )
    return Case(
        op="experts both ways",
        shape=f"{slots} rows, {n_ffn} experts, D={width} F={inner}",
        ours=ours,
        theirs=theirs,
        copies=1,  # gigabytes of weights
        bytes=2 * (3 * 3 * n_ffn * width * inner + 4 * slots * width),
        flops=18 * slots * width * inner,
    )


def _logits(make: Maker, tokens: int) -> tuple[Tensor, int, int]:
    n_ffn, experts, top_k = (4, 6, 3) if make.toy else (N_FFN, N_FFN + IDENTITY, TOP_K)
    return 40 * make(tokens, experts).float(), n_ffn, top_k


def _combine(make: Maker, tokens: int) -> Case:
    logits, n_ffn, top_k = _logits(make, tokens)
    _, indices, gates = kernels.route(logits, torch.zeros_like(logits[0]), top_k, 6.0)
    x = make.leaf(tokens, make.width(MODEL))
    rows, plan = kernels.permute(x.detach(), indices, n_ffn)
    y, slots = rows.clone().requires_grad_(), int((indices < n_ffn).sum())
    ours, theirs = both_ways(
        lambda y, g, x: kernels.combine(y, plan, g, indices, x, n_ffn),
        [(y, gates.detach().requires_grad_(), x)],
    )
    return Case(
        op="combine both ways",
        shape=f"{slots} rows, {tokens}x{x.shape[1]}",
        ours=ours,
        theirs=theirs,
        copies=1,  # hundreds of megabytes
        bytes=2 * (3 * slots + 5 * tokens) * x.shape[1],
        flops=(6 * slots + 6 * tokens) * x.shape[1],
    )


def _permute(make: Maker, tokens: int) -> Case:
    """Rows of FFN experts alone: torch leaves those of identity experts in, behind the others."""
    logits, n_ffn, top_k = _logits(make, tokens)
    indices = kernels.route(logits, torch.zeros_like(logits[0]), top_k, 6.0)[1]
    slots, width = int((indices < n_ffn).sum()), make.width(MODEL)
    ours, theirs = both_ways(
        lambda x: kernels.permute(x, indices, n_ffn)[0][:slots], [[make.leaf(tokens, width)]]
    )
    return Case(
        op="permute both ways",
        shape=f"{tokens} tokens, {slots} rows, D={width}",
        ours=ours,
        theirs=theirs,
        copies=1,  # hundreds of megabytes
        bytes=4 * (tokens + slots) * width + 24 * tokens * top_k,
        flops=slots * width,
        captured=False,  # the kernel asks how many rows there are
    )


def _route(make: Maker, tokens: int) -> Case:
    logits, n_ffn, top_k = _logits(make, tokens)
    experts = logits.shape[1]
    copies = make.copies(logits.nbytes)
    sets = [[_logits(make, tokens)[0].requires_grad_()] for _ in range(copies)]
    bias = torch.zeros(experts, device=make.device)
    ours, theirs = both_ways(
        lambda logits: kernels.fused_route(logits, bias, top_k, 6.0, n_ffn), sets
    )
    return Case(
        op="fused_route both ways",
        shape=f"{tokens}x{experts} top {top_k}",
        ours=ours,
        theirs=theirs,
        copies=copies,
        bytes=tokens * (20 * experts + 28 * top_k),
        flops=tokens * experts * (9 + 3 * top_k),
    )


def _scatter_add(make: Maker, tokens: int) -> Case:
    """The gradient of an embedding; torch's own on a GPU adds atomically, in any order."""
    width, size = make.width(MODEL), make.width(VOCABULARY)
    values = make(tokens, width)
    index = torch.arange(tokens, device=make.device) * 7919 % size

    def add() -> Tensor:
        return kernels.scatter_add(values, index, size)

    return Case(
        op="scatter_add",
        shape=f"{tokens}x{width} to {size} rows",
        ours=lambda copy: in_triton(add),
        theirs=lambda copy: add(),
        copies=1,  # a gigabyte of results
        bytes=2 * (tokens + size) * width,
        flops=tokens * width,
    )

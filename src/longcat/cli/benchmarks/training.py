"""The Triton kernels of training beside torch, both ways, at LongCat-Flash's shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

import longcat.kernels as kernels
from longcat.cli.benchmarks.graphs import Case, Form, Maker, in_triton

HEADS, WIDTH, VALUES = 64, 192, 128
VOCABULARY, MODEL, FFN = 131072, 6144, 2048
N_FFN, IDENTITY, TOP_K = 512, 256, 12
HELD = 64  # experts of one GPU, where 8 share them


def cases(device: str, *, toy: bool) -> Iterator[Case]:
    """Every case; at toy sizes one of each kind."""
    make = Maker(device, toy)
    for tokens in (37,) if toy else (2048, 8192):
        yield _attention(make, tokens)
    yield _cross_entropy(make, 5 if toy else 4096, in_place=False)
    yield _cross_entropy(make, 5 if toy else 4096, in_place=True)
    yield _experts(make, 9 if toy else 8192)
    tokens = 5 if toy else 8192
    yield _combine(make, tokens)
    yield _route(make, tokens)
    yield _rope(make, tokens)
    yield _norm(make, tokens)
    yield _z_loss(make, tokens)
    yield _adamw(make, 3 if toy else 16)


def _both_ways(
    function: Callable[..., Tensor | tuple[Tensor, ...]], operands: Sequence[Tensor]
) -> tuple[Form, Form]:
    """(by Triton, by torch): the outputs and the gradients of their sum."""

    def run() -> object:
        made = function(*operands)
        outputs = [made] if isinstance(made, Tensor) else [out for out in made if out.requires_grad]
        pulls = [torch.ones_like(out) for out in outputs]
        return [*outputs, *torch.autograd.grad(outputs, operands, pulls)]

    return lambda copy: in_triton(run), lambda copy: run()


def _attention(make: Maker, tokens: int) -> Case:
    heads, width, values = (2, 24, 16) if make.toy else (HEADS, WIDTH, VALUES)
    q, k = make.leaf(1, tokens, heads, width), make.leaf(1, tokens, heads, width)
    v = make.leaf(1, tokens, heads, values)
    scale = 4.0 * width**0.5  # the operands are divided by the root of their width
    ours, theirs = _both_ways(lambda q, k, v: kernels.mla_prefill(q, k, v, scale), (q, k, v))
    return Case(
        op="mla_prefill both ways",
        shape=f"T={tokens} H={heads} {width}|{values}",
        ours=ours,
        theirs=theirs,
        copies=1,
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
        ours=_both_ways(loss, [mine])[0],
        theirs=_both_ways(loss, [other])[1],
        copies=1,
        bytes=2 * 2 * tokens * vocabulary,
        flops=9 * tokens * vocabulary,
    )


def _experts(make: Maker, tokens: int) -> Case:
    n_ffn, top_k = (4, 2) if make.toy else (HELD, TOP_K * HELD // (N_FFN + IDENTITY))
    width, inner = make.width(MODEL), make.width(FFN)
    indices = make(tokens, n_ffn).float().topk(top_k, dim=1).indices
    x = make.leaf(tokens, width)
    _, plan = kernels.permute(x.detach(), indices, n_ffn)
    gate_up, down = make.leaf(n_ffn, 2 * inner, width), make.leaf(n_ffn, width, inner)
    slots = tokens * top_k
    ours, theirs = _both_ways(
        lambda x, g, d: kernels.experts(x, g, d, plan.offsets, plan.tokens), (x, gate_up, down)
    )
    return Case(
        op="experts both ways",
        shape=f"{slots} rows, {n_ffn} experts, D={width} F={inner}",
        ours=ours,
        theirs=theirs,
        copies=1,
        bytes=2 * (3 * 3 * n_ffn * width * inner + 4 * slots * width),
        flops=18 * slots * width * inner,
    )


def _routing(make: Maker, tokens: int) -> tuple[Tensor, int, int]:
    n_ffn, experts, top_k = (4, 6, 3) if make.toy else (N_FFN, N_FFN + IDENTITY, TOP_K)
    return 40 * make(tokens, experts).float(), n_ffn, top_k


def _combine(make: Maker, tokens: int) -> Case:
    logits, n_ffn, top_k = _routing(make, tokens)
    _, indices, gates = kernels.route(logits, torch.zeros_like(logits[0]), top_k, 6.0)
    x = make.leaf(tokens, make.width(MODEL))
    rows, plan = kernels.permute(x.detach(), indices, n_ffn)
    y, slots = rows.clone().requires_grad_(), int((indices < n_ffn).sum())
    ours, theirs = _both_ways(
        lambda y, g, x: kernels.combine(y, plan, g, indices, x, n_ffn),
        (y, gates.detach().requires_grad_(), x),
    )
    return Case(
        op="combine both ways",
        shape=f"{slots} rows, {tokens}x{x.shape[1]}",
        ours=ours,
        theirs=theirs,
        copies=1,
        bytes=2 * (3 * slots + 5 * tokens) * x.shape[1],
        flops=(6 * slots + 6 * tokens) * x.shape[1],
    )


def _route(make: Maker, tokens: int) -> Case:
    logits, n_ffn, top_k = _routing(make, tokens)
    bias = torch.zeros_like(logits[0])
    ours, theirs = _both_ways(
        lambda logits: kernels.fused_route(logits, bias, top_k, 6.0, n_ffn),
        [logits.requires_grad_()],
    )
    return Case(
        op="fused_route both ways",
        shape=f"{tokens}x{logits.shape[1]} top {top_k}",
        ours=ours,
        theirs=theirs,
        copies=1,
        bytes=tokens * (20 * logits.shape[1] + 28 * top_k),
        flops=tokens * logits.shape[1] * (9 + 3 * top_k),
    )


def _rope(make: Maker, tokens: int) -> Case:
    heads, width = (3, 8) if make.toy else (HEADS, 64)
    inv_freq, factor = kernels.rope_frequencies(width, 1e7)
    frequencies = torch.from_numpy(inv_freq).to(make.device)
    positions = torch.arange(tokens, device=make.device)[None]
    x = make.leaf(1, tokens, heads, width)
    ours, theirs = _both_ways(lambda x: kernels.rope(x, positions, frequencies, factor), [x])
    return Case(
        op="rope both ways",
        shape=f"T={tokens} H={heads} R={width}",
        ours=ours,
        theirs=theirs,
        copies=1,
        bytes=2 * 4 * x.numel(),
        flops=6 * x.numel(),
    )


def _norm(make: Maker, tokens: int) -> Case:
    width = make.width(MODEL)
    operands = make.leaf(tokens, width), make.leaf(tokens, width), make.leaf(width)
    ours, theirs = _both_ways(lambda x, r, w: kernels.add_rmsnorm(x, r, w, 1e-5), operands)
    return Case(
        op="add_rmsnorm both ways",
        shape=f"{tokens}x{width}",
        ours=ours,
        theirs=theirs,
        copies=1,
        bytes=2 * 8 * tokens * width,
        flops=27 * tokens * width,
    )


def _z_loss(make: Maker, tokens: int) -> Case:
    z = make.leaf(tokens, make.width(MODEL))
    ours, theirs = _both_ways(lambda z: kernels.hidden_z_loss(z, 1.0), [z])
    return Case(
        op="hidden_z_loss both ways",
        shape=f"{tokens}x{z.shape[1]}",
        ours=ours,
        theirs=theirs,
        copies=1,
        bytes=2 * 3 * z.numel(),
        flops=10 * z.numel(),
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

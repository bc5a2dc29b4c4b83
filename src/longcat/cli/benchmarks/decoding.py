"""The Triton kernels of decoding beside torch, at LongCat-Flash's shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F

import longcat.kernels as kernels
from longcat.cli.benchmarks.graphs import Case, Maker, in_triton
from longcat.kernels.experts import eager as experts_eager


def _served(call: Callable[[], object]) -> object:
    with torch.no_grad():
        return in_triton(call)


MATRICES = {
    "q_a": (1536, 6144), "kv_a": (576, 6144), "q_b": (12288, 1536), "o": (6144, 8192),
    "dense gate_up": (24576, 6144), "dense down": (6144, 12288), "lm_head": (131072, 6144),
}  # fmt: skip
TOKENS = (1, 8, 16, 32, 64)


def cases(device: str, *, toy: bool) -> Iterator[Case]:
    """Every case; at toy sizes a few of each kind."""
    make = Maker(device, toy)
    for name in ("q_a", "o") if toy else MATRICES:
        for tokens in (3, 16) if toy else TOKENS:
            yield _linear(make, name, tokens)
    for tokens in (5,) if toy else (16, 64, 256):
        yield _experts(make, tokens)
    for batch, length in ((2, 40),) if toy else ((1, 4096), (32, 4096), (128, 8192)):
        yield _attention(make, batch, length)
    for tokens in (5,) if toy else (64, 8192):
        yield _norm(make, tokens)
        yield _route(make, tokens)


def _linear(make: Maker, name: str, tokens: int) -> Case:
    outputs, inner = (make.width(size) for size in MATRICES[name])
    copies = make.copies(2 * outputs * inner)
    x, weights = make(tokens, inner), [make(outputs, inner) for _ in range(copies)]
    return Case(
        op=f"linear {name}",
        shape=f"{tokens}x{inner} by {outputs}",
        ours=lambda i: _served(lambda: kernels.linear(x, weights[i])),
        theirs=lambda i: F.linear(x, weights[i]),
        copies=copies,
        bytes=2 * (outputs * inner + tokens * (outputs + inner)),
        flops=2 * tokens * outputs * inner,
    )


def _experts(make: Maker, tokens: int) -> Case:
    n_ffn, identity, top_k = (8, 4, 3) if make.toy else (512, 256, 12)
    width, inner = make.width(6144), make.width(2048)
    logits = make(tokens, n_ffn + identity).float()
    indices = kernels.route(logits, torch.zeros_like(logits[0]), top_k, 1.0)[1]
    x = make(tokens, width)
    _, plan = kernels.permute(x, indices, n_ffn)
    gate_up, down = make(n_ffn, 2 * inner, width), make(n_ffn, width, inner)
    chosen = len(indices[indices < n_ffn].unique())
    slots = len(plan.tokens)
    operands = (x, gate_up, down, plan.offsets, plan.tokens)
    return Case(
        op="experts",
        shape=f"{tokens} tokens, {chosen} of {n_ffn} experts, D={width} F={inner}",
        ours=lambda i: _served(lambda: kernels.experts(*operands)),
        theirs=lambda i: experts_eager.experts(*operands),
        copies=1,  # gigabytes: none of it stays in the cache
        bytes=2 * (3 * chosen * width * inner + slots * (2 * width + 2 * inner)),
        flops=6 * slots * width * inner,
    )


def _attention(make: Maker, batch: int, length: int) -> Case:
    heads, latent, rope = (3, 32, 16) if make.toy else (64, 512, 64)
    page = 16 if make.toy else 64
    pages = -(-length // page)
    store = make(batch * pages, page, latent + rope)
    table = torch.arange(batch * pages, device=make.device).view(batch, pages)
    lengths = torch.full((batch,), length, device=make.device)
    q = make(batch, 1, heads, latent + rope)
    operands = (q[..., :latent], q[..., latent:], store, table, lengths, 0.1)
    return Case(
        op="paged_mla",
        shape=f"B={batch} L={length} H={heads} {latent}+{rope}",
        ours=lambda i: _served(lambda: kernels.paged_mla(*operands)),
        theirs=lambda i: kernels.paged_mla(*operands),
        copies=1,
        bytes=2 * batch * (length * (latent + rope) + heads * (2 * latent + rope)),
        flops=2 * batch * heads * length * (2 * latent + rope),
    )


def _norm(make: Maker, tokens: int) -> Case:
    width = make.width(6144)
    copies = make.copies(8 * tokens * width)
    xs, residuals = ([make(tokens, width) for _ in range(copies)] for _ in range(2))
    weight = make(width)
    return Case(
        op="add_rmsnorm",
        shape=f"{tokens}x{width}",
        ours=lambda i: _served(lambda: kernels.add_rmsnorm(xs[i], residuals[i], weight, 1e-5)[0]),
        theirs=lambda i: F.rms_norm(xs[i] + residuals[i], (width,), weight, 1e-5),
        copies=copies,
        bytes=8 * tokens * width,
        flops=13 * tokens * width,
    )


def _route(make: Maker, tokens: int) -> Case:
    experts, top_k = (12, 3) if make.toy else (768, 12)
    logits, bias = 40 * make(tokens, experts).float(), torch.zeros(experts, device=make.device)
    return Case(
        op="fused_route",
        shape=f"{tokens}x{experts} top {top_k}",
        ours=lambda i: _served(
            lambda: kernels.fused_route(logits, bias, top_k, 6.0, experts // 2)[2]
        ),
        theirs=lambda i: kernels.fused_route(logits, bias, top_k, 6.0, experts // 2)[2],
        copies=1,
        bytes=tokens * (8 * experts + 12 * top_k),
        flops=tokens * experts * (4 + 3 * top_k),
    )

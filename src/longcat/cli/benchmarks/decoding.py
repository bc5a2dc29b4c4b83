"""The Triton kernels of decoding beside torch, at LongCat-Flash's shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

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
        yield _permute(make, tokens)
        yield _write(make, tokens)
    yield from _sampling(make, 2 if make.toy else 64)
    yield from _fp8(make, 5 if make.toy else 64)


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
    copies = make.copies(2 * batch * length * (latent + rope))
    stores = [make(batch * pages, page, latent + rope) for _ in range(copies)]
    table = torch.arange(batch * pages, device=make.device).view(batch, pages)
    lengths = torch.full((batch,), length, device=make.device)
    q = make(batch, 1, heads, latent + rope)

    def attend(copy: int) -> Tensor:
        q_latent, q_rope = q[..., :latent], q[..., latent:]
        return kernels.paged_mla(q_latent, q_rope, stores[copy], table, lengths, 0.1)

    return Case(
        op="paged_mla",
        shape=f"B={batch} L={length} H={heads} {latent}+{rope}",
        ours=lambda i: _served(lambda: attend(i)),
        theirs=attend,
        copies=copies,
        bytes=2 * batch * (length * (latent + rope) + heads * (2 * latent + rope)),
        flops=2 * batch * heads * length * (2 * latent + rope),
    )


def _write(make: Maker, tokens: int) -> Case:
    latent, rope = (32, 16) if make.toy else (512, 64)
    width = latent + rope
    copies = make.copies(4 * tokens * width)
    compressed = [make(tokens, width) for _ in range(copies)]
    store, weight = make(2 * copies * tokens, width), make(latent)
    frequencies = torch.from_numpy(kernels.rope_frequencies(rope, 1e7)[0]).to(make.device)
    positions = torch.arange(tokens, device=make.device)
    order = torch.randperm(len(store), generator=make.generator, device=make.device)
    slots = order[: copies * tokens].view(copies, tokens)

    def write(copy: int) -> Tensor:
        operands = (compressed[copy], weight, 1e-6, 3.4, positions, frequencies, slots[copy], store)
        return kernels.latent_write(*operands)

    return Case(
        op="latent_write",
        shape=f"T={tokens} {latent}+{rope}",
        ours=lambda i: _served(lambda: write(i)),
        theirs=write,
        copies=copies,
        bytes=tokens * (4 * width + 16),
        flops=tokens * (5 * latent + 6 * rope),
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


def _routing(make: Maker, tokens: int) -> tuple[list[Tensor], Tensor, int, int]:
    """(logits of each copy, bias, top k, FFN experts)."""
    experts, n_ffn, top_k = (12, 8, 3) if make.toy else (768, 512, 12)
    copies = make.copies(4 * tokens * experts)
    logits = [40 * make(tokens, experts).float() for _ in range(copies)]
    return logits, torch.zeros(experts, device=make.device), top_k, n_ffn


def _route(make: Maker, tokens: int) -> Case:
    logits, bias, top_k, n_ffn = _routing(make, tokens)
    experts = len(bias)

    def route(copy: int) -> Tensor:
        return kernels.fused_route(logits[copy], bias, top_k, 6.0, n_ffn)[2]

    return Case(
        op="fused_route",
        shape=f"{tokens}x{experts} top {top_k}",
        ours=lambda i: _served(lambda: route(i)),
        theirs=route,
        copies=len(logits),
        bytes=tokens * (8 * experts + 12 * top_k),
        flops=tokens * experts * (4 + 3 * top_k),
    )


def _permute(make: Maker, tokens: int) -> Case:
    """Rows of FFN experts alone: torch leaves those of identity experts in, behind the others."""
    logits, bias, top_k, n_ffn = _routing(make, tokens)
    indices = kernels.route(logits[0], bias, top_k, 6.0)[1]
    slots, width = int((indices < n_ffn).sum()), make.width(6144)
    copies = make.copies(2 * (tokens + slots) * width)
    xs = [make(tokens, width) for _ in range(copies)]

    def permute(copy: int) -> Tensor:
        return kernels.permute(xs[copy], indices, n_ffn)[0][:slots]

    return Case(
        op="permute",
        shape=f"{tokens} tokens, {slots} rows, D={width}",
        ours=lambda i: _served(lambda: permute(i)),
        theirs=permute,
        copies=copies,
        bytes=2 * (tokens + slots) * width + 24 * tokens * top_k,
        flops=0,
        captured=False,  # the kernel asks how many rows there are
    )


def _sampling(make: Maker, requests: int) -> Iterator[Case]:
    vocabulary = make.width(131072)
    copies = make.copies(8 * requests * vocabulary)
    shape = (requests, vocabulary)
    p = [torch.softmax(900 * make(*shape).float(), dim=-1) for _ in range(copies)]
    top_k = torch.full((requests,), 50, device=make.device)
    top_p = torch.full((requests,), 0.9, device=make.device)
    yield Case(
        op="keep_top",
        shape=f"{requests}x{vocabulary} top 50, 0.9",
        ours=lambda i: _served(lambda: kernels.keep_top(p[i], top_k, top_p)),
        theirs=lambda i: kernels.keep_top(p[i], top_k, top_p),
        copies=copies,
        bytes=8 * requests * vocabulary,
        flops=3 * requests * vocabulary,
    )
    both = [torch.stack([one, one], dim=1) for one in p]
    drawn = [torch.softmax(900 * make(*shape).float(), dim=-1)[:, None] for _ in range(copies)]
    drafts = torch.arange(requests, device=make.device)[:, None] % vocabulary
    chance = torch.full((requests, 1), 0.5, device=make.device)
    yield Case(
        op="verify",
        shape=f"{requests} requests, 1 draft, V={vocabulary}",
        ours=lambda i: _served(lambda: kernels.verify(both[i], drawn[i], drafts, chance)[1]),
        theirs=lambda i: kernels.verify(both[i], drawn[i], drafts, chance)[1],
        copies=copies,
        bytes=12 * requests * vocabulary,  # one place of each, and the rest
        flops=3 * requests * vocabulary,
    )


def _fp8(make: Maker, tokens: int) -> Iterator[Case]:
    """The product against bfloat16's of the same numbers, which reads twice the bytes."""
    outputs, inner = (make.width(size) for size in MATRICES["dense gate_up"])
    copies = make.copies(outputs * inner)
    numbers, scales = kernels.quantise_rows(make(tokens, inner))
    weights = [kernels.quantise_blocks(make(outputs, inner)) for _ in range(copies)]
    # A product with the identity is what the numbers stand for.
    one = torch.eye(inner, device=make.device)
    x = kernels.fp8_linear(numbers, scales, *kernels.quantise_blocks(one)).bfloat16()
    identity = kernels.quantise_rows(one)
    wide = [kernels.fp8_linear(*identity, *weight).mT.contiguous().bfloat16() for weight in weights]
    yield Case(
        op="fp8_linear dense gate_up",
        shape=f"{tokens}x{inner} by {outputs}",
        ours=lambda i: _served(lambda: kernels.fp8_linear(numbers, scales, *weights[i])),
        theirs=lambda i: F.linear(x, wide[i]),
        copies=copies,
        bytes=outputs * inner + tokens * (inner + 4 * outputs),
        flops=2 * tokens * outputs * inner,
    )
    many = make.copies(3 * tokens * inner)
    rows = [make(tokens, inner) for _ in range(many)]
    yield Case(
        op="quantise_rows",
        shape=f"{tokens}x{inner}",
        ours=lambda i: _served(lambda: kernels.quantise_rows(rows[i])[1]),
        theirs=lambda i: kernels.quantise_rows(rows[i])[1],
        copies=many,
        bytes=tokens * (3 * inner + inner // 32),
        flops=3 * tokens * inner,
    )

"""Attention: positions, prompts, decoding over a cache and over pages, the write into it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

import longcat.kernels as kernels
from longcat.cli.benchmarks.kernels.case import Call, Case, Maker, both_ways
from longcat.flash.config import FlashConfig
from longcat.kernels.mla_prefill import eager as prefill_eager

PAGE = 64  # tokens of a page
EPS = 1e-6


def cases(config: FlashConfig, make: Maker) -> Iterator[Case]:
    """Every case of this file."""
    yield _rope(config, make)
    yield _prefill(config, make)
    yield _decode(config, make)
    yield _paged(config, make)
    yield _write(config, make)


def _frequencies(config: FlashConfig, make: Maker) -> Tensor:
    width = config.attention.qk_rope_head_dim
    return torch.from_numpy(kernels.rope_frequencies(width, 1e5)[0]).to(make.device)


def _turned(x: Tensor, positions: Tensor, frequencies: Tensor) -> Tensor:
    """Rotary positions as they are written down, on the even and the odd half apart."""
    angle = positions.float()[..., None, None] * frequencies
    cos, sin = angle.cos(), angle.sin()
    even, odd = x[..., 0::2].float(), x[..., 1::2].float()
    return torch.cat([even * cos - odd * sin, even * sin + odd * cos], dim=-1).to(x.dtype)


def _rope(config: FlashConfig, make: Maker) -> Case:
    batch, tokens = make.sizes.batch, make.sizes.tokens
    heads, width = config.attention.num_heads, config.attention.qk_rope_head_dim
    x, frequencies = make(batch, tokens, heads, width), _frequencies(config, make)
    positions = torch.arange(tokens, device=make.device).expand(batch, -1)
    return make.case(
        "rope both ways",
        f"B={batch} T={tokens} H={heads} R={width}",
        {
            "cos and sin apart": both_ways(lambda x: _turned(x, positions, frequencies), x),
            "ours": both_ways(lambda x: kernels.rope(x, positions, frequencies), x),
        },
        numbers=4 * x.numel(),
        flops=6 * x.numel(),
    )


def _prefill(config: FlashConfig, make: Maker) -> Case:
    mla, heads = config.attention, config.attention.num_heads
    batch, tokens = make.sizes.batch, make.sizes.tokens
    width, values = mla.qk_nope_head_dim + mla.qk_rope_head_dim, mla.v_head_dim
    q, k = make(batch, tokens, heads, width), make(batch, tokens, heads, width)
    v = make(batch, tokens, heads, values)
    scale = width**-0.5

    def unequal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
        return out.transpose(1, 2)

    def padded(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return prefill_eager.fused(q, k, v, scale, None)

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return kernels.mla_prefill(q, k, v, scale)

    pairs = batch * heads * tokens * (tokens + 1) / 2
    return make.case(
        "mla_prefill both ways",
        f"B={batch} T={tokens} H={heads} {width}|{values}",
        {
            "torch's attention": both_ways(unequal, q, k, v),
            "its values padded": both_ways(padded, q, k, v),
            "ours": both_ways(ours, q, k, v),
        },
        numbers=batch * tokens * heads * (6 * width + 5 * values),
        flops=6 * pairs * (width + values),
    )


def _einsum(q_latent: Tensor, q_rope: Tensor, latent: Tensor, k_rope: Tensor, scale: float) -> Call:
    def run() -> Tensor:
        scores = torch.einsum("bthc,bsc->bhts", q_latent, latent)
        scores = scores + torch.einsum("bthr,bsr->bhts", q_rope, k_rope)
        weights = (scores.float() * scale).softmax(-1).to(latent.dtype)
        return torch.einsum("bhts,bsc->bthc", weights, latent)

    return run


def _decode(config: FlashConfig, make: Maker) -> Case:
    mla, heads, batch = config.attention, config.attention.num_heads, make.sizes.batch
    wide, rope, context = mla.kv_lora_rank, mla.qk_rope_head_dim, make.sizes.context
    q = (make.constant(batch, 1, heads, wide), make.constant(batch, 1, heads, rope))
    cache = make.constant(batch, context, wide), make.constant(batch, context, rope)
    scale = (mla.qk_nope_head_dim + rope) ** -0.5
    width = wide + rope
    return make.case(
        "mla_decode",
        f"B={batch} S={context} H={heads} {wide}+{rope}",
        {
            "einsum": _einsum(*q, *cache, scale),
            "ours": lambda: kernels.mla_decode(*q, *cache, scale),
        },
        numbers=batch * context * width + batch * heads * (width + wide),
        flops=2 * batch * heads * context * (width + wide),
        serving=True,
        has_kernel=False,
    )


def _paged(config: FlashConfig, make: Maker) -> Case:
    mla, heads, batch = config.attention, config.attention.num_heads, make.sizes.batch
    wide, rope = mla.kv_lora_rank, mla.qk_rope_head_dim
    pages = -(-make.sizes.context // PAGE)
    context = pages * PAGE
    q_latent, q_rope = make.constant(batch, 1, heads, wide), make.constant(batch, 1, heads, rope)
    store = make.constant(batch * pages, PAGE, wide + rope)
    order = torch.randperm(batch * pages, generator=make.generator)
    table = order.view(batch, pages).to(make.device)
    lengths = torch.full((batch,), context, device=make.device)
    scale = (mla.qk_nope_head_dim + rope) ** -0.5

    def plain() -> object:
        latents = store[table].flatten(1, 2)
        return _einsum(q_latent, q_rope, latents[..., :wide], latents[..., wide:], scale)()

    operands = (q_latent, q_rope, store, table, lengths, scale)
    width = wide + rope
    return make.case(
        "paged_mla",
        f"B={batch} L={context} H={heads} {wide}+{rope}",
        {"gather, einsum": plain, "ours": lambda: kernels.paged_mla(*operands)},
        numbers=batch * context * width + batch * heads * (width + wide),
        flops=2 * batch * heads * context * (width + wide),
        serving=True,
    )


def _write(config: FlashConfig, make: Maker) -> Case:
    mla, rows = config.attention, make.sizes.rows
    wide, rope = mla.kv_lora_rank, mla.qk_rope_head_dim
    compressed, weight = make.constant(rows, wide + rope), make.constant(wide)
    frequencies, alpha = _frequencies(config, make), 2.0
    positions = torch.arange(rows, device=make.device)
    slots = torch.randperm(2 * rows, generator=make.generator)[:rows].to(make.device)
    store = make.constant(2 * rows, wide + rope)

    def plain() -> Tensor:
        latent, key = compressed.split([wide, rope], dim=-1)
        turned = _turned(key[None, :, None], positions[None], frequencies)[0, :, 0]
        normed = F.rms_norm(latent, (wide,), weight, EPS) * alpha
        store[slots] = torch.cat([normed, turned], dim=-1)
        return store

    operands = (compressed, weight, EPS, alpha, positions, frequencies, slots, store)
    return make.case(
        "latent_write",
        f"T={rows} {wide}+{rope}",
        {
            "norm, rope, put": plain,
            "ours": lambda: kernels.latent_write(*operands),
        },
        numbers=2 * compressed.numel(),
        more_bytes=16 * rows,
        flops=rows * (5 * wide + 6 * rope),
        serving=True,
    )

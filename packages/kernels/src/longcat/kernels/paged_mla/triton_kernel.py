"""Absorbed attention over pages: split over the keys, then merged by log-sum-exp.

All W*H queries of a sequence share its latents, which are read once: as keys with all C+R numbers,
as values with the first C of the same tile. The queries are the columns of the tensor core (heads
on n, like SwapAB) while they are few, its rows when there are 64.
"""

# Kernels are read by Triton's compiler, not by mypy.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch
import triton
import triton.language as tl
from torch import Tensor

from longcat.kernels.operands import check_rows
from longcat.kernels.paged_mla.tiles import (
    LARGE,
    MOST_SPLITS,
    ROWS,
    Tile,
    choose_tile,
    splits_for,
)
from longcat.kernels.proof.configuration import Configuration

LOG2_E = 1.4426950408889634
MERGE = 512  # columns that one program of the merge handles
# Bytes that Triton 3.6 spills of the plain form over pages smaller than a tile; 3.7 none.
SPILLED = 8 if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 7) else 0


@triton.jit
def _attend(
    q_latent_ptr,
    q_rope_ptr,
    store_ptr,
    table_ptr,
    lengths_ptr,
    out_ptr,
    lse_ptr,
    scale,
    n_queries,
    n_new,
    n_heads,
    page_size,
    pages_per_row,
    SWAP: tl.constexpr,
    WHOLE: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_S: tl.constexpr,
    C: tl.constexpr,
    R: tl.constexpr,
):
    # Queries are numbered w*H + h; scale holds log2(e), so that exp2 serves.
    batch = tl.program_id(0).to(tl.int64)
    query = tl.program_id(1) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    split, splits = tl.program_id(2), tl.num_programs(2)
    real = query < n_queries
    c, r = tl.arange(0, C), tl.arange(0, R)
    row = batch * n_queries + query
    q_latent = tl.load(q_latent_ptr + row[:, None] * C + c[None, :], mask=real[:, None], other=0.0)
    q_rope = tl.load(q_rope_ptr + row[:, None] * R + r[None, :], mask=real[:, None], other=0.0)
    length = tl.load(lengths_ptr + batch).to(tl.int32)
    seen = length - n_new + 1 + query // n_heads
    share = tl.cdiv(tl.cdiv(length, BLOCK_S), splits) * BLOCK_S
    start = split * share
    end = tl.minimum(start + share, length)
    top = tl.full([BLOCK_Q], -float("inf"), dtype=tl.float32)
    mass = tl.zeros([BLOCK_Q], dtype=tl.float32)
    if SWAP:
        total = tl.zeros([C, BLOCK_Q], dtype=tl.float32)
    else:
        total = tl.zeros([BLOCK_Q, C], dtype=tl.float32)
    for first in range(start, end, BLOCK_S):
        s = first + tl.arange(0, BLOCK_S)
        inside = s < end
        pages = table_ptr + batch * pages_per_row
        if WHOLE:
            # The tile lies in one page: one look at the table, and rows that follow one another.
            page = tl.load(pages + first // page_size).to(tl.int64)
            keys = store_ptr + (page * page_size + first % page_size) * (C + R)
            keys += tl.arange(0, BLOCK_S)[:, None] * (C + R)
        else:
            page = tl.load(pages + s // page_size, mask=inside, other=0).to(tl.int64)
            keys = store_ptr + ((page * page_size + s % page_size) * (C + R))[:, None]
        latent = tl.load(keys + c[None, :], mask=inside[:, None], other=0.0)
        k_rope = tl.load(keys + C + r[None, :], mask=inside[:, None], other=0.0)
        if SWAP:
            scores = tl.dot(latent, tl.trans(q_latent))
            scores = tl.dot(k_rope, tl.trans(q_rope), scores) * scale
            shown = inside[:, None] & (s[:, None] < seen[None, :])
            scores = tl.where(shown, scores, -float("inf"))
            higher = tl.maximum(top, tl.max(scores, axis=0))
        else:
            scores = tl.dot(q_latent, tl.trans(latent))
            scores = tl.dot(q_rope, tl.trans(k_rope), scores) * scale
            shown = inside[None, :] & (s[None, :] < seen[:, None])
            scores = tl.where(shown, scores, -float("inf"))
            higher = tl.maximum(top, tl.max(scores, axis=1))
        # A query that has seen no key yet keeps weights of 0 instead of exp2(-inf + inf).
        base = tl.where(higher == -float("inf"), 0.0, higher)
        shrink = tl.exp2(top - base)
        if SWAP:
            weights = tl.exp2(scores - base[None, :])
            mass = mass * shrink + tl.sum(weights, axis=0)
            total = tl.dot(tl.trans(latent), weights.to(latent.dtype), total * shrink[None, :])
        else:
            weights = tl.exp2(scores - base[:, None])
            mass = mass * shrink + tl.sum(weights, axis=1)
            total = tl.dot(weights.to(latent.dtype), latent, total * shrink[:, None])
        top = higher
    divisor = tl.where(mass == 0.0, 1.0, mass)
    if SWAP:
        total = tl.trans(total / divisor[None, :])
    else:
        total = total / divisor[:, None]
    part = (batch * splits + split) * n_queries + query
    tl.store(out_ptr + part[:, None] * C + c[None, :], total, mask=real[:, None])
    lse = tl.where(mass == 0.0, -float("inf"), top + tl.log2(divisor))
    tl.store(lse_ptr + part, lse, mask=real)


@triton.jit
def _merge(
    parts_ptr, lse_ptr, out_ptr, n_queries, n_splits, width,
    SPLITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # out = sum_i 2^lse_i part_i / sum_i 2^lse_i, in the order of the splits.
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    batch, query = row // n_queries, row % n_queries
    splits = tl.arange(0, SPLITS)
    first = batch * n_splits * n_queries + query
    lse = tl.load(lse_ptr + first + splits * n_queries, mask=splits < n_splits, other=-float("inf"))
    top = tl.max(lse, axis=0)
    top = tl.where(top == -float("inf"), 0.0, top)
    mass = tl.sum(tl.exp2(lse - top), axis=0)
    mass = tl.where(mass == 0.0, 1.0, mass)
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for split in range(0, n_splits):
        part = first + split * n_queries
        weight = tl.exp2(tl.load(lse_ptr + part) - top) / mass
        total += weight * tl.load(parts_ptr + part * width + columns, mask=inside, other=0.0)
    tl.store(out_ptr + row * width + columns, total.to(out_ptr.dtype.element_ty), mask=inside)


def paged_mla(
    q_latent: Tensor, q_rope: Tensor, store: Tensor, table: Tensor, lengths: Tensor, scale: float
) -> Tensor:
    """`mla_decode` over pages, see reference.py. -> [B, W, H, C]; no gradients."""
    n_batch, n_new, n_heads, _ = q_latent.shape
    tile = choose_tile(n_new * n_heads)
    blocks = n_batch * -(-n_new * n_heads // tile.queries)
    splits = splits_for(blocks, table.shape[1] * store.shape[1])
    return with_tile(q_latent, q_rope, store, table, lengths, scale, tile, splits)


def with_tile(
    q_latent: Tensor,
    q_rope: Tensor,
    store: Tensor,
    table: Tensor,
    lengths: Tensor,
    scale: float,
    tile: Tile,
    splits: int,
) -> Tensor:
    """`paged_mla` by the given tile, its keys shared among `splits` programs.

    Raises:
        ValueError: a store that is not contiguous; a copy of the cache would go unseen.
    """
    check_rows("paged_mla", store=store, q_latent=q_latent, q_rope=q_rope)
    if not store.is_contiguous():
        raise ValueError(
            f"paged_mla: store must be contiguous for the Triton kernel, got strides "
            f"{list(store.stride())}; attend over the whole store and select pages by the table"
        )
    n_batch, n_new, n_heads, width = q_latent.shape
    n_queries = n_new * n_heads
    out = torch.empty_like(q_latent, memory_format=torch.contiguous_format)
    if not out.numel():
        return out
    parts = torch.empty(
        n_batch, splits, n_queries, width, dtype=torch.float32, device=q_latent.device
    )
    lse = torch.empty(n_batch, splits, n_queries, dtype=torch.float32, device=q_latent.device)
    with torch.cuda.device_of(q_latent):
        _attend[(n_batch, triton.cdiv(n_queries, tile.queries), splits)](
            q_latent.contiguous(), q_rope.contiguous(), store, table.contiguous(),
            lengths.contiguous(), parts, lse, scale * LOG2_E, n_queries, n_new, n_heads,
            store.shape[1], table.shape[1],
            **_constants(tile, width, q_rope.shape[-1], store.shape[1]),
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
        _merge[(n_batch * n_queries, triton.cdiv(width, MERGE))](
            parts, lse, out, n_queries, splits, width,
            SPLITS=triton.next_power_of_2(splits), BLOCK=MERGE,
        )  # fmt: skip
    return out


def _constants(tile: Tile, width: int, rope: int, page_size: int) -> dict[str, int | bool]:
    return {
        "SWAP": tile.swap,
        "WHOLE": page_size % tile.keys == 0,
        "BLOCK_Q": tile.queries,
        "BLOCK_S": tile.keys,
        "C": width,
        "R": rope,
    }


def configurations() -> Iterator[Configuration]:
    """Every tile at 512 + 64 numbers per token, in pages of 64 tokens and of 16; the merge."""
    types = {
        "table_ptr": "*i32", "lengths_ptr": "*i32", "lse_ptr": "*fp32", "parts_ptr": "*fp32",
        "scale": "fp32",
    }  # fmt: skip
    for tile, page_size in product((*(tile for _, tile in ROWS), LARGE), (64, 16)):
        n = f"n{tile.queries}" if tile.swap else "plain"
        yield Configuration(
            kernel=_attend,
            name=f"paged_mla heads {n} {tile.queries} queries x {tile.keys} keys"
            + ("" if page_size == 64 else f", pages of {page_size}"),
            types=types | {"out_ptr": "*fp32"},
            constants=_constants(tile, 512, 64, page_size),
            divisible=("page_size",),
            warps=tile.warps,
            stages=tile.stages,
            needs=("HGMMA.64x",),
            forbids=("HMMA",),
            stack=0 if tile.swap or page_size == 64 else SPILLED,
        )
    for splits in (2**power for power in range(MOST_SPLITS.bit_length())):
        yield Configuration(
            kernel=_merge,
            name=f"paged_mla merge {splits}",
            types=types,
            constants={"SPLITS": splits, "BLOCK": MERGE},
            divisible=("width",),
            needs=("LDG.E.128",),
        )

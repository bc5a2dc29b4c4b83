"""MLA for decoding over a paged cache: absorbed attention that reads the pages where they lie."""

from __future__ import annotations

import torch
from torch import Tensor

from longcat.kernels.dispatch import choose, through_numpy
from longcat.kernels.operands import (
    check_dtype,
    check_floating,
    check_same_dtype,
    check_shape,
    check_together,
)
from longcat.kernels.paged_mla import eager, reference

__all__ = ["paged_mla"]


def paged_mla(
    q_latent: Tensor, q_rope: Tensor, store: Tensor, table: Tensor, lengths: Tensor, scale: float
) -> Tensor:
    """Attention of W new tokens of each of B sequences over their latents, which lie in pages.

    Token s of sequence b lies in row s % P of page table[b, s // P]. New token w sees the tokens
    before lengths[b] - W + 1 + w: the last one sees all, W above 1 verifies drafts.

    Args:
        q_latent: [B, W, H, C], the queries with W_UK absorbed.
        q_rope: [B, W, H, R], rotated.
        store: [pages, P, C+R], latents (normed and scaled), then rotated keys.
        table: [B, n] int32 or int64, the pages of each sequence; entries beyond a sequence's
            length are not read by the kernel, and must name some page for the other forms.
        lengths: [B] int32 or int64, tokens of each sequence, the new ones included; at most n P.
        scale: multiplies the scores.

    Returns:
        [B, W, H, C] in q_latent's dtype. A token that sees none gets zeros.

    Raises:
        ValueError: an operand of the wrong shape, dtype or device.

    Source: report eq. 6 and 7; absorption as in its section on inference.
    """
    op = "paged_mla"
    floating = {"q_latent": q_latent, "q_rope": q_rope, "store": store}
    check_together(op, **floating, table=table, lengths=lengths)
    check_floating(op, **floating)
    check_same_dtype(op, **floating)
    check_dtype(op, "table", table, torch.int32, torch.int64)
    check_dtype(op, "lengths", lengths, torch.int32, torch.int64)
    sizes: dict[str, int] = {}
    check_shape(op, "q_latent", q_latent, "B W H C", sizes)
    check_shape(op, "q_rope", q_rope, "B W H R", sizes)
    check_shape(op, "store", store, "pages P C+R", sizes)
    check_shape(op, "table", table, "B n", sizes)
    check_shape(op, "lengths", lengths, "B", sizes)
    if sizes["C+R"] != sizes["C"] + sizes["R"]:
        raise ValueError(
            f"{op}: store must hold C+R = {sizes['C'] + sizes['R']} numbers per token, "
            f"got {sizes['C+R']}"
        )
    operands = (q_latent, q_rope, store, table, lengths, scale)
    fits = q_latent.dtype in (torch.bfloat16, torch.float16) and all(
        sizes[width] >= 16 and sizes[width] & (sizes[width] - 1) == 0 for width in "CR"
    )
    match choose(op, q_latent, q_rope, store, has_kernel=fits, inference_only=True):
        case "numpy":
            result: Tensor = through_numpy(reference.paged_mla, *operands, like=q_latent)
            return result
        case "triton":
            from longcat.kernels.paged_mla import triton_kernel

            return triton_kernel.paged_mla(*operands)
        case _:
            return eager.paged_mla(*operands)

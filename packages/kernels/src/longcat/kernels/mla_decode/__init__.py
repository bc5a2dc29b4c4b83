"""MLA for decoding: absorbed attention straight over the cached latents."""

from __future__ import annotations

import torch
from torch import Tensor

from longcat.kernels.dispatch import choose, or_unchecked, through_numpy
from longcat.kernels.mla_decode import eager, exact, reference
from longcat.kernels.operands import (
    autocast_dtype,
    check_dtype,
    check_floating,
    check_same_dtype,
    check_shape,
    check_together,
)

__all__ = ["mla_decode"]


@or_unchecked(eager.mla_decode)
def mla_decode(
    q_latent: Tensor,
    q_rope: Tensor,
    latent: Tensor,
    k_rope: Tensor,
    scale: float,
    mask: Tensor | None = None,
) -> Tensor:
    """Attention of every head over one shared latent: softmax(scale (q_c c^T + q_r k_r^T)) c.

    Args:
        q_latent: [B, T, H, C], the queries with W_UK absorbed.
        q_rope: [B, T, H, R], rotated.
        latent: [B, S, C], the cached (normed and scaled) latents.
        k_rope: [B, S, R], the cached rotated keys.
        scale: multiplies the scores.
        mask: [B, T, S] bool, True where query t may see key s. None: causal, aligned at the end,
            with T <= S.

    Returns:
        [B, T, H, C] in q_latent's dtype; the caller applies W_UV. A query that may see no key gets
        zeros.

    Raises:
        ValueError: an operand of the wrong shape, dtype or device, or T > S without a mask.

    Source: report eq. 6 and 7; absorption as in section 5 (inference).
    """
    op = "mla_decode"
    check_together(op, q_latent=q_latent, q_rope=q_rope, latent=latent, k_rope=k_rope, mask=mask)
    check_floating(op, q_latent=q_latent, q_rope=q_rope, latent=latent, k_rope=k_rope)
    dtype = autocast_dtype(q_latent)
    if dtype is None:
        check_same_dtype(op, q_latent=q_latent, q_rope=q_rope, latent=latent, k_rope=k_rope)
    else:
        q_latent, q_rope = q_latent.to(dtype), q_rope.to(dtype)
        latent, k_rope = latent.to(dtype), k_rope.to(dtype)
    sizes: dict[str, int] = {}
    check_shape(op, "q_latent", q_latent, "B T H C", sizes)
    check_shape(op, "q_rope", q_rope, "B T H R", sizes)
    check_shape(op, "latent", latent, "B S C", sizes)
    check_shape(op, "k_rope", k_rope, "B S R", sizes)
    if mask is not None:
        check_dtype(op, "mask", mask, torch.bool)
        check_shape(op, "mask", mask, "B T S", sizes)
    elif sizes["T"] > sizes["S"]:
        raise ValueError(
            f"{op}: causal attention needs T <= S, got T={sizes['T']} queries and S={sizes['S']} "
            "keys; write the queries' own latents to the cache first, or pass a mask"
        )
    match choose(op, q_latent, q_rope, latent, k_rope):
        case "numpy":
            result: Tensor = through_numpy(
                reference.mla_decode, q_latent, q_rope, latent, k_rope, scale, mask, like=q_latent
            )
            return result
        case "exact":
            return exact.mla_decode(q_latent, q_rope, latent, k_rope, scale, mask)
        case _:
            return eager.mla_decode(q_latent, q_rope, latent, k_rope, scale, mask)

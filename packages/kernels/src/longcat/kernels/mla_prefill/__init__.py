"""MLA for training and prefill: attention with the latent expanded to every head."""

from __future__ import annotations

import torch
from torch import Tensor

from longcat.kernels.dispatch import choose, or_unchecked, through_numpy
from longcat.kernels.mla_prefill import eager, exact, reference
from longcat.kernels.operands import (
    autocast_dtype,
    check_dtype,
    check_floating,
    check_same_dtype,
    check_shape,
    check_together,
)

__all__ = ["mla_prefill"]


@or_unchecked(eager.mla_prefill)
def mla_prefill(
    q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None = None
) -> Tensor:
    """Attention per head: softmax(scale * q k^T) v.

    Args:
        q: [B, T, H, dn+dr].
        k: [B, S, H, dn+dr].
        v: [B, S, H, dv].
        scale: multiplies the scores; (dn+dr)^-1/2 in the released model.
        mask: [B, T, S] bool, True where query t may see key s. None: causal, aligned at the end
            (the last query sees all S keys), with T <= S.

    Returns:
        [B, T, H, dv] in q's dtype. A query that may see no key gets zeros.

    Raises:
        ValueError: an operand of the wrong shape, dtype or device, or T > S without a mask.

    Source: report eq. 6 and 7, section 2.3.1.
    """
    op = "mla_prefill"
    check_together(op, q=q, k=k, v=v, mask=mask)
    check_floating(op, q=q, k=k, v=v)
    dtype = autocast_dtype(q)
    if dtype is None:
        check_same_dtype(op, q=q, k=k, v=v)
    else:
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    sizes: dict[str, int] = {}
    check_shape(op, "q", q, "B T H Q", sizes)
    check_shape(op, "k", k, "B S H Q", sizes)
    check_shape(op, "v", v, "B S H V", sizes)
    if mask is not None:
        check_dtype(op, "mask", mask, torch.bool)
        check_shape(op, "mask", mask, "B T S", sizes)
    elif sizes["T"] > sizes["S"]:
        raise ValueError(
            f"{op}: causal attention needs T <= S, got T={sizes['T']} queries and S={sizes['S']} "
            "keys; pass the keys of the queries too, or a mask"
        )
    half = q.dtype in (torch.bfloat16, torch.float16)
    fits = half and q.numel() > 0 and k.numel() > 0 and v.numel() > 0
    match choose(op, q, k, v, has_kernel=fits, on_request=True):
        case "numpy":
            result: Tensor = through_numpy(reference.mla_prefill, q, k, v, scale, mask, like=q)
            return result
        case "triton":
            from longcat.kernels.mla_prefill import triton_kernel

            return triton_kernel.mla_prefill(q, k, v, scale, mask)
        case "exact":
            return exact.mla_prefill(q, k, v, scale, mask)
        case _:
            return eager.mla_prefill(q, k, v, scale, mask)

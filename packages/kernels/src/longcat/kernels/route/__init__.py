"""Routing: which experts each token uses, with what gate, and how often each was used."""

from __future__ import annotations

import torch
from torch import Tensor

from longcat.kernels.dispatch import choose, or_unchecked, through_numpy
from longcat.kernels.operands import (
    check_dtype,
    check_rows,
    check_same_dtype,
    check_shape,
    check_together,
)
from longcat.kernels.route import eager, reference

__all__ = ["expert_counts", "fused_route", "route"]


@or_unchecked(eager.route)
def route(
    logits: Tensor, bias: Tensor, top_k: int, scale: float, chosen: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Choose top_k of E experts per token by softmax score plus bias.

    scores = softmax(logits); indices = the top_k of scores + bias; gates = scale * scores[indices].
    The bias steers the choice and never touches a gate; the gates are not renormalised. Experts
    come in descending order of score + bias, of equals the lowest index first.

    Args:
        logits: [T, E], float32 or float64 (routing is never computed lower).
        bias: [E], same dtype.
        top_k: K, 1 to E.
        scale: the routed scaling factor.
        chosen: [T, K] int64, a choice made before that is to stand; only scores and gates are then
            computed. Recomputed logits can differ in their last bits and flip near-ties.

    Returns:
        (scores [T, E], indices [T, K] int64, gates [T, K]); gradients flow to the logits through
        scores and gates, none to the bias.

    Raises:
        ValueError: an operand of the wrong shape, dtype or device, or top_k out of range.

    Source: report eq. 1 and section 2.1.1.
    """
    check_together("route", logits=logits, bias=bias, chosen=chosen)
    check_dtype("route", "logits", logits, torch.float32, torch.float64)
    check_dtype("route", "bias", bias, torch.float32, torch.float64)
    sizes: dict[str, int] = {}
    check_shape("route", "logits", logits, "T E", sizes)
    check_shape("route", "bias", bias, "E", sizes)
    if not 1 <= top_k <= sizes["E"]:
        raise ValueError(f"route: top_k must be between 1 and E={sizes['E']}, got {top_k}")
    if chosen is not None:
        check_dtype("route", "chosen", chosen, torch.int64)
        check_shape("route", "chosen", chosen, "T K", sizes | {"K": top_k})
    fits = chosen is None and logits.dtype == bias.dtype == torch.float32
    match choose("route", logits, has_kernel=fits, on_request=True):
        case "numpy":
            result: tuple[Tensor, Tensor, Tensor] = through_numpy(
                reference.route, logits, bias, top_k, scale, chosen, like=logits
            )
            return result
        case "triton":
            from longcat.kernels.route import triton_kernel

            check_rows("route", logits=logits)
            return triton_kernel.fused_route(logits, bias, top_k, scale, sizes["E"])[:3]
        case _:  # rows never meet, so exact mode needs no form of its own
            return eager.route(logits, bias, top_k, scale, chosen)


@or_unchecked(eager.fused_route)
def fused_route(
    logits: Tensor,
    bias: Tensor,
    top_k: int,
    scale: float,
    n_ffn: int,
    token_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """All that a layer wants to know of its router, in one pass over the logits.

    `route`, `expert_counts`, and each token's summed gate of identity experts.

    Args:
        logits: [T, E], float32 or float64.
        bias: [E], same dtype.
        top_k: K, 1 to E.
        scale: the routed scaling factor.
        n_ffn: N; experts from N on return their input.
        token_mask: [T] bool, False for padding, which is not counted.

    Returns:
        (scores [T, E], indices [T, K], gates [T, K], identity gate [T], counts [E] int64).

    Raises:
        ValueError: an operand of the wrong shape, dtype or device, or top_k out of range.

    Source: report eq. 1 and section 2.1.
    """
    op = "fused_route"
    check_together(op, logits=logits, bias=bias, token_mask=token_mask)
    check_dtype(op, "logits", logits, torch.float32, torch.float64)
    check_same_dtype(op, logits=logits, bias=bias)
    sizes: dict[str, int] = {}
    check_shape(op, "logits", logits, "T E", sizes)
    check_shape(op, "bias", bias, "E", sizes)
    if not 1 <= top_k <= sizes["E"]:
        raise ValueError(f"{op}: top_k must be between 1 and E={sizes['E']}, got {top_k}")
    if token_mask is not None:
        check_dtype(op, "token_mask", token_mask, torch.bool)
        check_shape(op, "token_mask", token_mask, "T", sizes)
    operands = (logits, bias, top_k, scale, n_ffn, token_mask)
    fits = logits.dtype == torch.float32
    match choose(op, logits, has_kernel=fits, on_request=True):
        case "numpy":
            result: tuple[Tensor, Tensor, Tensor, Tensor, Tensor] = through_numpy(
                reference.fused_route, *operands, like=logits
            )
            return result
        case "triton":
            from longcat.kernels.route import triton_kernel

            check_rows(op, logits=logits)
            return triton_kernel.fused_route(*operands)
        case _:
            return eager.fused_route(*operands)


@or_unchecked(eager.expert_counts)
def expert_counts(indices: Tensor, n_experts: int, token_mask: Tensor | None = None) -> Tensor:
    """How many slots chose each expert.

    Args:
        indices: [T, K], int64, values below n_experts.
        n_experts: E = N + Z.
        token_mask: [T] bool, False for padding, which is not counted; None counts every token.

    Returns:
        int64 [E], detached.

    Raises:
        ValueError: an operand of the wrong shape, dtype or device.
    """
    check_together("expert_counts", indices=indices, token_mask=token_mask)
    check_dtype("expert_counts", "indices", indices, torch.int64)
    sizes: dict[str, int] = {}
    check_shape("expert_counts", "indices", indices, "T K", sizes)
    if token_mask is not None:
        check_dtype("expert_counts", "token_mask", token_mask, torch.bool)
        check_shape("expert_counts", "token_mask", token_mask, "T", sizes)
    if choose("expert_counts", indices) == "numpy":
        result: Tensor = through_numpy(
            reference.expert_counts, indices, n_experts, token_mask, like=indices
        )
        return result
    return eager.expert_counts(indices, n_experts, token_mask)

"""Permute and combine: tokens to their experts and back, identity experts for nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from longcat.kernels.dispatch import choose, or_unchecked, through_numpy, to_numpy
from longcat.kernels.operands import check_dtype, check_floating, check_shape, check_together
from longcat.kernels.permute import eager, reference
from longcat.kernels.permute.reference import PermutePlan

__all__ = ["PermutePlan", "combine", "permute"]


@or_unchecked(eager.permute)
def permute(x: Tensor, indices: Tensor, n_ffn: int) -> tuple[Tensor, PermutePlan[Tensor]]:
    """Copy each token once per FFN expert it chose, sorted by expert, then by slot.

    Args:
        x: [T, D].
        indices: [T, K] int64; an index of n_ffn or above is an identity expert, whose slots are
            dropped before the sort.
        n_ffn: N, the number of FFN experts; 0 is allowed.

    Returns:
        (x_sorted [S, D], plan) with S the number of FFN slots; x_sorted has x's dtype
        (torch.autocast's inside autocast). Off the CPU eager torch returns S = T*K rows, the
        identity slots' behind `plan.offsets[-1]` (`plan.has_every_slot`): a shape that is known
        without waiting for the device.

    Raises:
        ValueError: an operand of the wrong shape, dtype or device.

    Source: report section 2.1.
    """
    check_together("permute", x=x, indices=indices)
    check_floating("permute", x=x)
    check_dtype("permute", "indices", indices, torch.int64)
    sizes: dict[str, int] = {}
    check_shape("permute", "x", x, "T D", sizes)
    check_shape("permute", "indices", indices, "T K", sizes)
    form = choose("permute", x, has_kernel=_has_kernel(x), on_request=True)
    if form == "triton":
        from longcat.kernels.permute import triton_kernel

        return triton_kernel.permute(x, indices, n_ffn)
    if form == "numpy":
        rows, plan = reference.permute(to_numpy(x), to_numpy(indices), n_ffn)
        tensors = PermutePlan(
            slots=torch.from_numpy(plan.slots).to(x.device),
            tokens=torch.from_numpy(plan.tokens).to(x.device),
            offsets=torch.from_numpy(plan.offsets).to(x.device, torch.int32),
            n_tokens=plan.n_tokens,
            top_k=plan.top_k,
        )
        return torch.from_numpy(rows).to(x.device, x.dtype), tensors
    return eager.permute(x, indices, n_ffn)


@or_unchecked(eager.combine)
def combine(
    y_sorted: Tensor,
    plan: PermutePlan[Tensor],
    gates: Tensor,
    indices: Tensor,
    x: Tensor,
    n_ffn: int,
) -> Tensor:
    """Weight the expert outputs, add them per token, and add the identity experts' share.

    out_t = sum over FFN slots of gates * y + x_t * (sum of the gates of identity slots), added in
    slot order: deterministic, without atomics. Weights and sums are float32 (float64 for float64 x)
    and rounded once to x.dtype.

    Args:
        y_sorted: [S, D], the experts' outputs in the order of `permute`.
        plan: from `permute` on the same indices.
        gates: [T, K].
        indices: [T, K] int64.
        x: [T, D], what an identity expert returns.
        n_ffn: N.

    Returns:
        [T, D] in x's dtype.

    Raises:
        ValueError: an operand of the wrong shape, dtype or device, or a plan of another batch.

    Source: report eq. 1.
    """
    if not isinstance(plan, PermutePlan):
        raise TypeError(f"combine: plan must be what permute returned, got {type(plan).__name__}")
    check_together(
        "combine",
        **{"y_sorted": y_sorted, "gates": gates, "indices": indices, "x": x},
        **{"plan.slots": plan.slots},
    )
    check_floating("combine", y_sorted=y_sorted, gates=gates, x=x)
    check_dtype("combine", "indices", indices, torch.int64)
    sizes: dict[str, int] = {}
    check_shape("combine", "x", x, "T D", sizes)
    check_shape("combine", "y_sorted", y_sorted, "S D", sizes)
    check_shape("combine", "gates", gates, "T K", sizes)
    check_shape("combine", "indices", indices, "T K", sizes)
    planned = (plan.n_tokens, plan.top_k, plan.slots.shape[0])
    if planned != (sizes["T"], sizes["K"], sizes["S"]):
        raise ValueError(
            f"combine: plan was made for T, K, S = {planned}, got gates and y_sorted of "
            f"{(sizes['T'], sizes['K'], sizes['S'])}; pass the plan that permute returned for them"
        )
    operands = (y_sorted, gates, x)
    form = choose("combine", *operands, has_kernel=_has_kernel(x), on_request=True)
    if form == "triton":
        from longcat.kernels.permute import triton_kernel

        return triton_kernel.combine(y_sorted, plan, gates, indices, x, n_ffn)
    if form == "numpy":
        arrays = PermutePlan(
            slots=to_numpy(plan.slots),
            tokens=to_numpy(plan.tokens),
            offsets=to_numpy(plan.offsets),
            n_tokens=plan.n_tokens,
            top_k=plan.top_k,
        )
        result: Tensor = through_numpy(
            reference.combine, y_sorted, arrays, gates, indices, x, n_ffn, like=x
        )
        return result
    # Every token's sum runs over its own slots in their order: exact mode needs no other form.
    return eager.combine(y_sorted, plan, gates, indices, x, n_ffn)


def _has_kernel(x: Tensor) -> bool:
    return x.dtype in (torch.float32, torch.bfloat16, torch.float16)

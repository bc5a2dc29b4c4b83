"""Cross entropy summed over rows, of targets or of whole distributions."""

from __future__ import annotations

import torch
from torch import Tensor

from longcat.kernels.cross_entropy import eager, reference
from longcat.kernels.dispatch import choose, through_numpy
from longcat.kernels.operands import check_dtype, check_floating, check_shape, check_together

__all__ = ["cross_entropy"]


def cross_entropy(
    logits: Tensor,
    targets: Tensor,
    ignored: int = -100,
    z_weight: float = 0.0,
    in_place: bool = False,
) -> Tensor:
    """Sum over rows of Z - sum_v q_v l_v + z_weight Z^2, with Z = log(sum_v exp l_v).

    Args:
        logits: [T, V], any floating dtype; computed in float32 (float64 for float64 logits).
        targets: [T] int64, the place where q is 1; or [T, V] floating, q itself.
        ignored: a target that leaves its row out of the sum.
        z_weight: of the logit z-loss, which keeps Z near 0; the report's z-loss is another one, on
            hidden states (`hidden_z_loss`).
        in_place: the gradient takes the memory of the logits, which hold no logits afterwards;
            one backward pass only. Without a gradient nothing is written.

    Returns:
        float32 (float64) scalar; the gradient flows to the logits alone.

    Raises:
        ValueError: an operand of the wrong shape, dtype or device, a target outside 0..V-1, or
            in place logits that are a leaf or whose rows overlap.

    Source: report section 2.4 (next-token and multi-token objectives).
    """
    op = "cross_entropy"
    check_together(op, logits=logits, targets=targets)
    check_floating(op, logits=logits)
    sizes: dict[str, int] = {}
    check_shape(op, "logits", logits, "T V", sizes)
    if targets.is_floating_point():
        check_shape(op, "targets", targets, "T V", sizes)
    else:
        check_dtype(op, "targets", targets, torch.int64)
        check_shape(op, "targets", targets, "T", sizes)
        _check_range(targets, sizes["V"], ignored)
    if in_place and logits.is_leaf and logits.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            f"{op}: in_place=True overwrites the logits, and these are a leaf that requires a "
            "gradient; pass what a product returned, or in_place=False"
        )
    if in_place and len(logits) > 1 and logits.stride(0) < sizes["V"]:
        raise ValueError(
            f"{op}: in_place=True needs rows that lie apart in memory, got logits with strides "
            f"{list(logits.stride())}; pass in_place=False"
        )
    operands = (logits, targets, ignored, z_weight)
    fits = logits.dtype != torch.float64
    match choose(op, logits, targets, has_kernel=fits, on_request=True):
        case "numpy":
            result: Tensor = through_numpy(reference.cross_entropy, *operands, like=logits)
            return result
        case "triton":
            from longcat.kernels.cross_entropy import triton_kernel

            return triton_kernel.cross_entropy(*operands, in_place)
        case _:
            return eager.cross_entropy(*operands, in_place)


def _check_range(targets: Tensor, vocabulary: int, ignored: int) -> None:
    if targets.device.type != "cpu":
        return  # looking would make the host wait; torch's gather asserts on the device
    wrong = ((targets < 0) | (targets >= vocabulary)) & (targets != ignored)
    if wrong.any():
        raise ValueError(
            f"cross_entropy: targets must lie in 0..{vocabulary - 1} or be {ignored}; "
            f"got {int(targets[wrong][0])}"
        )

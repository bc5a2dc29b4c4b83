"""What a serving step does with probabilities: top-k and top-p, and the verification of drafts."""

from __future__ import annotations

import torch
from torch import Tensor

from longcat.kernels.dispatch import choose, through_numpy
from longcat.kernels.operands import (
    check_dtype,
    check_same_dtype,
    check_shape,
    check_together,
)
from longcat.kernels.sampling import eager, reference

__all__ = ["keep_top", "verify"]


def keep_top(p: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Keep the top_k most probable tokens, then of these the fewest that hold top_p of the mass.

    Of equals the lowest token comes first; what is kept sums to 1 again.

    Args:
        p: [R, V] float32 or float64, probabilities.
        top_k: [R] int64, 0 keeps all.
        top_p: [R], same dtype as p, above 0; 1 keeps all.

    Returns:
        [R, V]. The Triton kernel searches for the threshold and sorts nothing.

    Raises:
        ValueError: an operand of the wrong shape, dtype or device.

    Source: Holtzman et al. 2019; the order of ties is this project's contract.
    """
    op = "keep_top"
    check_together(op, p=p, top_k=top_k, top_p=top_p)
    check_dtype(op, "p", p, torch.float32, torch.float64)
    check_same_dtype(op, p=p, top_p=top_p)
    check_dtype(op, "top_k", top_k, torch.int64)
    sizes: dict[str, int] = {}
    check_shape(op, "p", p, "R V", sizes)
    check_shape(op, "top_k", top_k, "R", sizes)
    check_shape(op, "top_p", top_p, "R", sizes)
    fits = p.dtype == torch.float32
    match choose(op, p, top_p, has_kernel=fits, inference_only=True):
        case "numpy":
            result: Tensor = through_numpy(reference.keep_top, p, top_k, top_p, like=p)
            return result
        case "triton":
            from longcat.kernels.sampling import triton_kernel

            return triton_kernel.keep_top(p, top_k, top_p)
        case _:
            return eager.keep_top(p, top_k, top_p)


def verify(p: Tensor, q: Tensor, drafts: Tensor, chance: Tensor) -> tuple[Tensor, Tensor]:
    """How many leading drafts stand, and the distribution of the token after them.

    A draft stands when chance * q < p, which is with probability min(1, p/q). What follows is
    max(p - q, 0), normalised, at the first that does not, or p of the place behind the last.

    Args:
        p: [R, g+1, V] float32 or float64, the target's distributions.
        q: [R, g, V] same dtype, what the drafts were drawn from.
        drafts: [R, g] int64.
        chance: [R, g] same dtype, uniform in [0, 1).

    Returns:
        (accepted [R] int64, rest [R, V]).

    Raises:
        ValueError: an operand of the wrong shape, dtype or device.

    Source: Leviathan et al. 2022; report section 2.4 (the draft head).
    """
    op = "verify"
    check_together(op, p=p, q=q, drafts=drafts, chance=chance)
    check_dtype(op, "p", p, torch.float32, torch.float64)
    check_same_dtype(op, p=p, q=q, chance=chance)
    check_dtype(op, "drafts", drafts, torch.int64)
    sizes: dict[str, int] = {}
    check_shape(op, "q", q, "R g V", sizes)
    check_shape(op, "drafts", drafts, "R g", sizes)
    check_shape(op, "chance", chance, "R g", sizes)
    check_shape(op, "p", p, "R g+1 V", sizes)
    if sizes["g+1"] != sizes["g"] + 1:
        raise ValueError(
            f"{op}: p must hold g+1 = {sizes['g'] + 1} places for the {sizes['g']} drafts of q, "
            f"got {sizes['g+1']}"
        )
    fits = p.dtype == torch.float32
    match choose(op, p, q, has_kernel=fits, inference_only=True):
        case "numpy":
            result: tuple[Tensor, Tensor] = through_numpy(
                reference.verify, p, q, drafts, chance, like=p
            )
            return result
        case "triton":
            from longcat.kernels.sampling import triton_kernel

            return triton_kernel.verify(p, q, drafts, chance)
        case _:
            return eager.verify(p, q, drafts, chance)

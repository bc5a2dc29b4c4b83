"""RMSNorm: y = weight * x / sqrt(mean(x^2) + eps)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from longcat.kernels.dispatch import choose, or_unchecked, through_numpy
from longcat.kernels.operands import check_floating, check_shape, check_together
from longcat.kernels.rmsnorm import eager, reference

__all__ = ["RMSNorm", "rmsnorm"]


@or_unchecked(eager.rmsnorm)
def rmsnorm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Divide each row by its root mean square, then multiply by `weight`.

    y = weight * round(x / sqrt(mean(x^2) + eps)), with the mean in float32 (float64 for float64 x)
    and `round` to x.dtype.

    Args:
        x: [..., D].
        weight: [D].
        eps: added to the mean square; 1e-5 in the blocks, 1e-6 on the latents.

    Returns:
        [..., D] in the promoted dtype of x and weight.

    Raises:
        ValueError: an operand of the wrong shape, dtype or device.

    Source: report section 2.4 (model configuration) and the released model code.
    """
    check_together("rmsnorm", x=x, weight=weight)
    check_floating("rmsnorm", x=x, weight=weight)
    sizes: dict[str, int] = {}
    check_shape("rmsnorm", "x", x, "... D", sizes)
    check_shape("rmsnorm", "weight", weight, "D", sizes)
    match choose("rmsnorm", x, weight, has_kernel=True):
        case "numpy":
            like = torch.empty(0, dtype=torch.promote_types(x.dtype, weight.dtype), device=x.device)
            result: Tensor = through_numpy(reference.rmsnorm, x, weight, eps, like=like)
            return result
        case "triton":
            from longcat.kernels.rmsnorm import triton_kernel

            return triton_kernel.rmsnorm(x, weight, eps)
        case _:  # eager rows never meet, so exact mode needs no form of its own
            return eager.rmsnorm(x, weight, eps)


class RMSNorm(nn.Module):
    """RMSNorm with its weight [dim], which starts at one."""

    def __init__(
        self,
        dim: int,
        eps: float,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if dim < 1:
            raise ValueError(f"RMSNorm: dim must be at least 1, got {dim}")
        if not eps >= 0:
            raise ValueError(f"RMSNorm: eps must not be negative, got {eps}")
        self.dim = dim
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        """Set the weight to one."""
        nn.init.ones_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., dim] -> [..., dim]."""
        return rmsnorm(x, self.weight, self.eps)

    def extra_repr(self) -> str:
        return f"{self.dim}, eps={self.eps}"

"""Gradient norm, gradient RMS, and how close Adam's epsilon has come to it.

Source: report section 3.1.3 (the loss deteriorates once epsilon reaches the range of gradient
RMS values: about 2e-6 to 8e-5 for a model of 400 M parameters).
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class GradientReading:
    """Figures of one step.

    Attributes:
        norm: L2 norm over all gradients. rms: norm / sqrt(number of elements).
        smallest_rms: the smallest RMS of any one tensor that has a gradient other than zero.
        epsilon_meets_gradient: True when epsilon exceeds a tenth of `smallest_rms`.
    """

    norm: float
    rms: float
    smallest_rms: float
    epsilon_meets_gradient: bool


class GradientMonitor:
    """Reads the gradients of a step before the optimizer uses them.

    Args:
        eps: the optimizer's epsilon.
    """

    def __init__(self, eps: float = 1e-16) -> None:
        self.eps = eps

    @torch.no_grad()
    def read(self, parameters: Iterable[nn.Parameter]) -> GradientReading:
        """Norm and RMS over all parameters that have a gradient."""
        gradients: list[Tensor] = [p.grad for p in parameters if p.grad is not None]
        if not gradients:
            return GradientReading(
                norm=0.0, rms=0.0, smallest_rms=0.0, epsilon_meets_gradient=False
            )
        norms = torch.stack(torch._foreach_norm(gradients)).to(torch.float64)
        return self.of(norms, torch.tensor([g.numel() for g in gradients]))

    def of(self, norms: Tensor, sizes: Tensor) -> GradientReading:
        """The same from the norm [P] and the number of elements [P] of each tensor.

        For tensors whose pieces lie in several processes, which have summed their squares.
        """
        sizes = sizes.to(torch.float64)
        norm = float(norms.norm())
        per_tensor = norms.cpu() / sizes.sqrt()
        # Exact zeros belong to experts nobody chose, not to a vanishing gradient.
        alive = per_tensor[per_tensor > 0]
        smallest = float(alive.min()) if alive.numel() else 0.0
        return GradientReading(
            norm=norm,
            rms=norm / float(sizes.sum().sqrt()),
            smallest_rms=smallest,
            epsilon_meets_gradient=0 < smallest < 10 * self.eps,
        )

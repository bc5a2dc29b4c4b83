"""Gradient norm, gradient RMS, and how close Adam's epsilon has come to it.

`GradientMonitor` looks at whole tensors before a step, `epsilon_share` at single coordinates after
it.

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


def epsilon_share(optimizer: torch.optim.Optimizer) -> float:
    """Share of coordinates in whose last step epsilon is over a tenth of Adam's denominator.

    $$\\epsilon > \\tfrac{1}{10} (\\sqrt{\\hat v} + \\epsilon)$$

    There epsilon, not the gradient, begins to decide how far a weight moves. Coordinates that
    never had a gradient (an expert nobody chose) do not move at all and are left out.

    Args:
        optimizer: an Adam or AdamW of torch.

    Returns:
        0 to 1; 0 before the first step. See `reference.epsilon_share`.
    """
    reached, alive = 0, 0
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state.get(parameter)
            if not state:
                continue
            correction = 1 - group["betas"][1] ** float(state["step"])
            root = (state["exp_avg_sq"] / correction).sqrt()
            alive += int((root > 0).sum())
            reached += int(((root > 0) & (9 * group["eps"] > root)).sum())
    return reached / alive if alive else 0.0

"""AdamW at the report's epsilon, with weight decay only where it belongs.

torch's own fused AdamW does the work; what is ours is the choice of groups and the default
epsilon of 1e-16 (report section 3.1.3: the loss deteriorates once epsilon comes into the range
of the gradient's RMS, which falls as models grow; below that range it has no effect).
"""

from collections.abc import Iterable
from typing import Protocol

import torch
from torch import nn

from longcat.optim.transfer import learning_rate_factor, role_of


class HasParameters(Protocol):
    """A module, or the pieces of one that a process holds."""

    def named_parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        """(name, parameter) of each."""


def parameter_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    weight_decay: float,
    width_ratio: float = 1.0,
) -> list[dict[str, object]]:
    """Groups by what decays and by learning rate; a group's rate is `lr * group["lr_factor"]`.

    Matrices decay; norm weights and biases (one dimension) do not. A parameter that two modules
    share appears once. Frozen parameters are left out.

    Args:
        width_ratio: s of a width transfer; hidden and unembedding matrices then learn at 1/s.
    """
    groups: dict[tuple[float, float], dict[int, nn.Parameter]] = {}
    for name, parameter in named_parameters:
        if parameter.requires_grad:
            decay = weight_decay if parameter.ndim > 1 else 0.0
            factor = learning_rate_factor(role_of(name, parameter.ndim), width_ratio)
            groups.setdefault((decay, factor), {})[id(parameter)] = parameter
    return [
        {"params": list(members.values()), "weight_decay": decay, "lr_factor": factor}
        for (decay, factor), members in groups.items()
    ]


def adamw(
    model: HasParameters,
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-16,
    weight_decay: float = 0.1,
    width_ratio: float = 1.0,
) -> torch.optim.AdamW:
    """An AdamW over the model's trainable parameters; see `longcat.kernels.adamw_step`.

    Args:
        lr: peak learning rate of the proxy; `set_learning_rate` follows a schedule with it.
        eps: added to sqrt(v); keep it far below the gradient's RMS (`GradientMonitor`).
        weight_decay: per unit of learning rate, on matrices only.
        width_ratio: target width over the width that `lr` was found at (`longcat.optim.transfer`).
    """
    groups = parameter_groups(model.named_parameters(), weight_decay, width_ratio)
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=True)
    set_learning_rate(optimizer, lr)
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group its share of `lr`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_factor", 1.0)

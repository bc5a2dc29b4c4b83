"""AdamW at the report's epsilon, with weight decay only where it belongs.

torch's own fused AdamW does the work; what is ours is the choice of groups and the default
epsilon of 1e-16 (report section 3.1.3: the loss deteriorates once epsilon comes into the range
of the gradient's RMS, which falls as models grow; below that range it has no effect).
"""

from collections.abc import Iterable

import torch
from torch import nn


def parameter_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]], weight_decay: float
) -> list[dict[str, object]]:
    """Two groups: matrices decay; norm weights and biases (one dimension) do not.

    A parameter that two modules share appears once. Frozen parameters are left out.
    """
    decayed: dict[int, nn.Parameter] = {}
    kept: dict[int, nn.Parameter] = {}
    for _, parameter in named_parameters:
        if parameter.requires_grad:
            (decayed if parameter.ndim > 1 else kept)[id(parameter)] = parameter
    groups = [
        {"params": list(decayed.values()), "weight_decay": weight_decay},
        {"params": list(kept.values()), "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def adamw(
    model: nn.Module,
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float = 1e-16,
    weight_decay: float = 0.1,
) -> torch.optim.AdamW:
    """An AdamW over the model's trainable parameters; see `reference.adamw_step`.

    Args:
        lr: peak learning rate; a schedule scales each group's `lr`.
        eps: added to sqrt(v); keep it far below the gradient's RMS (`GradientMonitor`).
        weight_decay: per unit of learning rate, on matrices only.
    """
    groups = parameter_groups(model.named_parameters(), weight_decay)
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=True)

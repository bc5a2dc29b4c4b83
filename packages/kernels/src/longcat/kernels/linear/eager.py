"""A linear map in eager torch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """y = x @ weight^T + bias. x [..., I], weight [O, I], bias [O] -> [..., O].

    torch.nn.functional.linear, and so subject to torch.autocast.
    """
    return F.linear(x, weight, bias)

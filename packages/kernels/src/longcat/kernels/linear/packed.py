"""A linear map for inference on a CPU, its weight kept as oneDNN wants to read it.

A product of few rows is a read of the weight. From rows of numbers oneDNN and MKL read at half the
memory's pace; from oneDNN's own blocks at nearly all of it, and products of many rows save the
reordering of the weight, too. The packed weight stands in for the plain one: whoever lets go of
the plain one holds the numbers once.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from longcat.kernels import onednn

SMALLEST = 2**16  # numbers of a weight from which its read outweighs oneDNN's slower call


class PackedLinear:
    """y = x @ weight^T + bias, for inference; see `longcat.kernels.linear`.

    A small weight, or one that oneDNN has no fast product for, stays as it is.

    Args:
        weight: [O, I]. bias: [O] or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        weight = weight.detach()
        self.bias = None if bias is None else bias.detach()
        self.packed = weight.numel() >= SMALLEST and onednn.packs(weight)
        self._weight = onednn.pack(weight) if self.packed else weight

    def __call__(self, rows: Tensor) -> Tensor:
        """rows [M, I] -> [M, O]."""
        if self.packed:
            return onednn.times_packed(rows, self._weight, self.bias)
        return F.linear(rows, self._weight, self.bias)

    def added_to(self, residual: Tensor, rows: Tensor) -> Tensor:
        """residual [M, O] plus the map of rows [M, I], rounded once -> [M, O]."""
        if self.packed:
            return onednn.times_packed(rows, self._weight, self.bias, residual)
        return residual + F.linear(rows, self._weight, self.bias)

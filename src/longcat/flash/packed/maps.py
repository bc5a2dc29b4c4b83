"""Linear maps and norms of rows.

Shapes: T tokens, I inputs, O outputs, D width.
"""

import math
from typing import Protocol

import torch
from torch import Tensor, nn

from longcat.flash.int8 import Int8Linear
from longcat.kernels import Linear, PackedLinear, RMSNorm
from longcat.kernels.int8_linear import eager as int8


class Map(Protocol):
    """A linear map; `longcat.kernels.PackedLinear` is one."""

    def __call__(self, rows: Tensor) -> Tensor:
        """rows [T,I] -> [T,O]."""
        ...

    def added_to(self, residual: Tensor, rows: Tensor) -> Tensor:
        """residual [T,O] plus the map of rows [T,I] -> [T,O]."""
        ...


class Int8Map:
    """A map whose weight is kept in 8 bits: weight int8 [O,I], scale [O], bias [O] or None."""

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> None:
        self._weight, self._scale, self._bias = weight, scale, bias

    def __call__(self, rows: Tensor) -> Tensor:
        """rows [T,I] -> [T,O]."""
        y = int8.int8_linear(rows, self._weight, self._scale)
        return y if self._bias is None else y + self._bias

    def added_to(self, residual: Tensor, rows: Tensor) -> Tensor:
        """residual [T,O] plus the map of rows [T,I] -> [T,O]."""
        return residual + self(rows)


def joined(*modules: nn.Module, order: Tensor | None = None) -> Map:
    """One map for modules that read the same rows, their outputs side by side [T, O1+O2+..], or in
    another order [O] of these.
    """

    def stacked(name: str) -> Tensor:
        parts: list[Tensor] = [getattr(module, name).detach() for module in modules]
        whole = parts[0] if len(parts) == 1 else torch.cat(parts)
        return whole if order is None else whole[order]

    bias = None if modules[0].bias is None else stacked("bias")
    if isinstance(modules[0], Int8Linear):
        return Int8Map(stacked("weight"), stacked("scale"), bias)
    assert all(isinstance(module, Linear) for module in modules)
    return PackedLinear(stacked("weight"), bias)


class Norm:
    """RMSNorm of rows, the weight times `factor`, in the fewest operations:

        x / sqrt(|x|^2 + D eps) * (weight sqrt(D))

    All is computed in float32 (float64 for float64 rows) and rounded once.
    """

    def __init__(self, norm: RMSNorm, factor: float = 1.0) -> None:
        weight = norm.weight.detach()
        width, self._dtype = len(weight), weight.dtype
        self._wide = torch.promote_types(weight.dtype, torch.float32)
        self._weight = weight.to(self._wide) * (factor * math.sqrt(width))
        self._least = torch.full((1, 1), math.sqrt(width * norm.eps), dtype=self._wide)

    def __call__(self, x: Tensor) -> Tensor:
        """x [T,D] -> [T,D]."""
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=self._wide)
        return (x / torch.hypot(length, self._least)).mul_(self._weight).to(self._dtype)

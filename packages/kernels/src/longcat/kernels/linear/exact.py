"""A linear map whose rows do not depend on how many rows there are.

A matrix product may choose another order of summation for another number of rows. Here every
product has the same shape: TILE rows, the last tile padded with zeros. The other two widths are
padded to whole WORDs, because at odd widths BLAS was seen to sum the rows of one tile in different
orders, by their place in it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

TILE = 16
WORD = 16


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """y = x @ weight^T + bias. x [..., I], weight [O, I], bias [O] -> [..., O]."""
    y = linear_in_tiles(x.reshape(x.shape[:-1].numel(), x.shape[-1]), weight)
    if bias is not None:
        y = y + bias
    return y.view(*x.shape[:-1], weight.shape[0])


def linear_in_tiles(rows: Tensor, weight: Tensor) -> Tensor:
    """rows [M, I] times weight [O, I] transposed -> [M, O], TILE rows at a time."""
    (count, inner), outer = rows.shape, weight.shape[0]
    if count == 0:
        return rows @ weight.mT
    padded = F.pad(rows, (0, -inner % WORD, 0, -count % TILE))
    weight = F.pad(weight, (0, -inner % WORD, 0, -outer % WORD))
    tiles = [tile @ weight.mT for tile in torch.split(padded, TILE)]
    return torch.cat(tiles)[:count, :outer]

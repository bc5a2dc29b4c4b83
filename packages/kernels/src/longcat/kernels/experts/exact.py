"""The FFN experts with results that do not depend on how many rows an expert received.

Each expert's rows run in tiles of one fixed size, padded with zeros (see linear/exact.py). This
form loops over experts and reads the offsets back to the host: it is for checking, not for speed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from longcat.kernels.linear.exact import linear_in_tiles
from longcat.kernels.swiglu import exact as swiglu_exact


def experts(
    x_sorted: Tensor,
    gate_up: Tensor,
    down: Tensor,
    offsets: Tensor,
    rows: Tensor | None = None,
) -> Tensor:
    """x_sorted [S, D], gate_up [N, 2F, D], down [N, D, F], offsets [N] -> [S, D]."""
    if rows is not None:
        x_sorted = x_sorted.index_select(0, rows)
    outputs = []
    start = 0
    for expert, end in enumerate(offsets.tolist()):
        gate, up = linear_in_tiles(x_sorted[start:end], gate_up[expert]).chunk(2, dim=-1)
        hidden = swiglu_exact.swiglu(gate, up)
        outputs.append(linear_in_tiles(hidden, down[expert]))
        start = end
    return torch.cat([*outputs, x_sorted[start:]])  # rows behind the last expert's are nobody's

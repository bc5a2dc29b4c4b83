"""A linear layer whose product goes through the dispatcher."""

from __future__ import annotations

from torch import Tensor, nn

from longcat.kernels.linear import linear


class Linear(nn.Linear):
    """torch's own parameters and names; the product is `longcat.kernels.linear`.

    So one `use_backend("numpy")` or `exact()` around a model reaches its linear maps too.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x [..., in_features] to [..., out_features]."""
        return linear(x, self.weight, self.bias)

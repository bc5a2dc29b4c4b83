"""One operator computed twice in place, bits compared: what a healthy machine gives, twice.

The operator is the core of one attention, forward and backward: the report calls its gradient the
most sensitive to silent corruption, since it uses every unit of the accelerator. During an
ordinary step its inputs, output and gradients are kept aside; then it is computed again from the
same inputs.

Source: report section 5 (there in idle slots of the accelerator; here between two micro-batches).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor


class Recheck:
    """What one pass through an attention's `attend` took and gave.

    Attributes:
        forward_differs, gradient_differs: the verdict of `compare`.
    """

    def __init__(self, attention: Any) -> None:
        self.attention = attention
        self.forward_differs = False
        self.gradient_differs = False
        self._state: Any = None
        self._cache: Any = None
        self._output: Tensor | None = None
        self._output_gradient: Tensor | None = None
        self._gradients: dict[str, Tensor] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Inside, the attention's calls are kept aside; the last one counts."""
        original = self.attention.attend

        def attend(state: Any, cache: Any = None) -> Tensor:
            output: Tensor = original(state, cache)
            self._state, self._cache, self._output = state, cache, output.detach().clone()
            output.register_hook(self._keep_output_gradient)
            for name, tensor in _tensors(state).items():
                if tensor.requires_grad:
                    tensor.register_hook(lambda g, name=name: self._keep(name, g))
            return output

        self.attention.attend = attend
        try:
            yield
        finally:
            del self.attention.attend  # the class's own method shows again

    def compare(self) -> None:
        """Compute forward and backward again, and compare bits."""
        if self._output is None or self._output_gradient is None:
            return
        leaves = {
            name: tensor.detach().requires_grad_(name in self._gradients)
            for name, tensor in _tensors(self._state).items()
        }
        output = self.attention.attend(replace(self._state, **leaves), self._cache)
        wanted = list(self._gradients)
        again = torch.autograd.grad(
            output, [leaves[name] for name in wanted], self._output_gradient
        )
        self.forward_differs = not same_bits(output, self._output)
        self.gradient_differs = not all(
            same_bits(gradient, self._gradients[name])
            for name, gradient in zip(wanted, again, strict=True)
        )

    def _keep(self, name: str, gradient: Tensor) -> None:
        self._gradients[name] = gradient.detach().clone()

    def _keep_output_gradient(self, gradient: Tensor) -> None:
        self._output_gradient = gradient.detach().clone()


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one dtype and shape hold the same bytes; a NaN equals itself."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(as_bytes(a), as_bytes(b))


def as_bytes(tensor: Tensor) -> Tensor:
    """The tensor's memory, flat uint8."""
    return tensor.detach().contiguous().flatten().view(torch.uint8)


def _tensors(state: Any) -> dict[str, Tensor]:
    return {f.name: getattr(state, f.name) for f in fields(state)}

"""One row's forms, and the seeded operands they are given.

The first form of a case is the plain one: torch's own function, or what one would write with
torch's. The last is what longcat.kernels runs. Bytes are the operands and results moved once
(gradients too where the case runs backward); arithmetic counts a multiplication and an addition as
two operations and an exponential as one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

import longcat.kernels as kernels

Call = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """A training batch, and the requests and cached tokens of a decoding step."""

    batch: int = 8
    tokens: int = 256  # of each sequence
    context: int = 512

    @property
    def rows(self) -> int:
        """Tokens of the whole batch."""
        return self.batch * self.tokens


@dataclass(frozen=True, kw_only=True)
class Case:
    """One op at one shape: forms by name, the first torch's, the last ours; bytes, operations."""

    op: str
    shape: str
    forms: dict[str, Call]
    bytes: float
    flops: float
    dtype: torch.dtype = torch.float32
    serving: bool = False
    has_kernel: bool = True

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Where it runs: serving computes no gradients, and on a CPU checks no operands."""
        with ExitStack() as stack:
            if self.serving:
                stack.enter_context(torch.inference_mode())
                if not torch.cuda.is_available():
                    stack.enter_context(kernels.unchecked())
            yield


class Maker:
    """Seeded operands on one device in one dtype."""

    def __init__(self, device: str, dtype: torch.dtype, sizes: Sizes) -> None:
        self.device, self.dtype, self.sizes = device, dtype, sizes
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, *shape: int) -> Tensor:
        """Normal numbers that require a gradient."""
        return self.constant(*shape).requires_grad_()

    def constant(self, *shape: int) -> Tensor:
        """Normal numbers."""
        values = torch.randn(*shape, generator=self.generator)
        return values.to(self.device, self.dtype)

    def case(
        self, op: str, shape: str, forms: dict[str, Call], *, numbers: float, flops: float,
        more_bytes: float = 0, serving: bool = False, has_kernel: bool = True,
    ) -> Case:  # fmt: skip
        """A case that moves `numbers` of this dtype, and bytes of others."""
        return Case(
            op=op,
            shape=f"{shape} {str(self.dtype).removeprefix('torch.')}",
            forms=forms,
            bytes=numbers * self.dtype.itemsize + more_bytes,
            flops=flops,
            dtype=self.dtype,
            serving=serving,
            has_kernel=has_kernel,
        )


def both_ways(function: Callable[..., Tensor | tuple[Tensor, ...]], *operands: Tensor) -> Call:
    """A call of the function, forward and backward; returns the operands' gradients."""

    def outputs() -> list[Tensor]:
        made = function(*operands)
        return [made] if isinstance(made, Tensor) else [out for out in made if out.requires_grad]

    pulls = [torch.ones_like(out) for out in outputs()]
    return lambda: torch.autograd.grad(outputs(), operands, pulls)

"""What a process holds of the model, and the sum of gradients over processes; here: everything.

`split.SplitModel` is the other answer, for layouts that divide weights, and `staged.StagedModel`
the one for a model that is cut by layers.
"""

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor, nn

from longcat.flash import FlashModel
from longcat.train.exchange import Exchange


class Pieces(Protocol):
    """The parameters that this process steps, and operations on their gradients.

    Each step: `clear`, backward passes, `sum_` over processes, `norms`, perhaps `scale`. None of
    them waits for the device.

    Attributes:
        sizes: [P] elements of each tensor of the whole model, in the order of `norms`.
    """

    sizes: Tensor

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """(name, the part of it held here) of all that is trained; gradients are in `.grad`."""

    def clear(self) -> None:
        """Set the gradients to 0."""

    def sum_(self) -> None:
        """Make each held gradient that of the global batch."""

    def norms(self) -> Tensor:
        """[P] float64, on the device: of each tensor's gradient, the same in every process."""

    def scale(self, factor: float) -> None:
        """Multiply the gradients."""

    def take(self, name: str, whole: Tensor) -> Tensor:
        """The part of a whole tensor that belongs here."""

    def as_saved(self, name: str, held: Tensor) -> Tensor:
        """A held part as torch.distributed.checkpoint must see it: a piece of a whole tensor."""


def divide(model: FlashModel, exchange: Exchange, *, half: bool) -> Pieces:
    """The pieces that the exchange's layout gives this process; the model is changed to fit.

    Args:
        half: whether FSDP gathers weights in bfloat16 (the router's stay float32).

    Raises:
        RunError: for a layout that does not fit the model or the number of processes.
    """
    if exchange.layout.is_whole:
        return WholeModel(model, exchange)
    exchange.layout.check(exchange.world, model.config)
    if exchange.layout.pipeline:
        from longcat.train.parallel.staged import StagedModel

        return StagedModel(model, exchange)
    from longcat.train.parallel.split import SplitModel  # FSDP takes a second to import

    return SplitModel(model, exchange, half=half)


class WholeModel:
    """Every process holds everything; one all-reduce of one flat buffer sums all gradients.

    Attributes:
        gradients: flat; every parameter's `.grad` is a view into it.
    """

    def __init__(self, model: FlashModel, exchange: Exchange) -> None:
        self._model = model
        self._exchange = exchange
        trained = [p for p in model.parameters() if p.requires_grad]
        self.gradients = flat_gradients(trained)
        self.sizes = torch.tensor([p.numel() for p in trained])

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """See `Pieces`, as for the methods below."""
        return ((n, p) for n, p in self._model.named_parameters() if p.requires_grad)

    def clear(self) -> None:
        """Zeros."""
        self.gradients.zero_()

    def sum_(self) -> None:
        """One all-reduce."""
        self._exchange.sum_(self.gradients)

    def norms(self) -> Tensor:
        """Of what is here."""
        gradients = [p.grad for p in self._model.parameters() if p.grad is not None]
        return torch.stack(torch._foreach_norm(gradients)).double()

    def scale(self, factor: float) -> None:
        """One product."""
        self.gradients.mul_(factor)

    def take(self, name: str, whole: Tensor) -> Tensor:
        """All of it."""
        return whole

    def as_saved(self, name: str, held: Tensor) -> Tensor:
        """As it is."""
        return held


def flat_gradients(parameters: list[nn.Parameter]) -> Tensor:
    """One buffer that all gradients are views of, so that one all-reduce takes them all."""
    sizes = [p.numel() for p in parameters]
    dtype = parameters[0].dtype if parameters else torch.float32
    device = parameters[0].device if parameters else None
    flat = torch.zeros(sum(sizes), dtype=dtype, device=device)
    for parameter, view in zip(parameters, flat.split(sizes), strict=True):
        parameter.grad = view.view_as(parameter)
    return flat

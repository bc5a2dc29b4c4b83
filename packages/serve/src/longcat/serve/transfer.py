"""Between host and device, without either waiting for the other.

A plain copy to a GPU waits for all that the GPU has been given, and so does a plain copy back. What
is sent from here goes from memory that the device reads by itself; what is fetched has an event
behind it, so that whoever reads it waits for that and not for what was launched later.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def send(tensor: Tensor, device: torch.device | str) -> Tensor:
    """A tensor of the host on the device, in the order of what is launched there."""
    kind = torch.device(device).type
    if kind == "cpu":
        return tensor
    if kind != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class Fetched:
    """Tensors of the device on their way to the host."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = [tensor.to("cpu", non_blocking=True) for tensor in tensors]
        self._arrived: torch.cuda.Event | None = None
        if any(tensor.is_cuda for tensor in tensors):
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def wait(self) -> list[Tensor]:
        """The tensors on the host, once they are there."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._tensors

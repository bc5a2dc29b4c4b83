"""Whether all processes still hold the same bits of weights and optimizer state.

Each tensor is hashed to one number, all processes' numbers are exchanged, and the tensors whose
numbers differ are named; of a stacked tensor of experts, the expert too. The hash adds up the
words of the memory, each times an odd number of its place, modulo 2^52: a single changed bit
always changes it, and float64 carries it through a sum exactly.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from longcat.train.watch.recheck import as_bytes

_MASK = (1 << 52) - 1


class Sums(Protocol):
    """All that is needed of an Exchange."""

    rank: int
    world: int

    def sum_(self, tensor: Tensor) -> None:
        """Replace the tensor by its sum over all processes."""


def fingerprint(tensor: Tensor) -> int:
    """The hash of a tensor's bits, 0 to 2^52 - 1."""
    octets = as_bytes(tensor)
    words = octets.view(torch.int32) if octets.numel() % 4 == 0 else octets
    places = torch.arange(words.numel(), dtype=torch.int64, device=words.device) * 2 + 1
    return int((words.to(torch.int64) * places).sum()) & _MASK


def differing(tensors: Mapping[str, Tensor], exchange: Sums) -> list[str]:
    """Names of tensors that are not the same in all processes; the same list in each.

    Args:
        tensors: the same names in the same order everywhere. exchange: the other processes.
    """
    if exchange.world == 1:
        return []
    names = list(tensors)
    rows = _gathered([fingerprint(t) for t in tensors.values()], exchange)
    found = [names[i] for i in torch.nonzero((rows != rows[0]).any(dim=0)).flatten().tolist()]
    return [name for tensor_name in found for name in _with_expert(tensor_name, tensors, exchange)]


def _with_expert(name: str, tensors: Mapping[str, Tensor], exchange: Sums) -> list[str]:
    """The name, with the rows that differ where the tensor is a stack of matrices."""
    tensor = tensors[name]
    if tensor.ndim != 3:
        return [name]
    rows = _gathered([fingerprint(part) for part in tensor], exchange)
    experts = torch.nonzero((rows != rows[0]).any(dim=0)).flatten().tolist()
    return [f"{name}, expert {expert}" for expert in experts]


def _gathered(own: Sequence[int], exchange: Sums) -> Tensor:
    """[world, numbers]: everybody's, by a sum of rows that are 0 elsewhere."""
    rows = torch.zeros(exchange.world, len(own), dtype=torch.float64)
    rows[exchange.rank] = torch.tensor(own, dtype=torch.float64)
    exchange.sum_(rows)
    return rows

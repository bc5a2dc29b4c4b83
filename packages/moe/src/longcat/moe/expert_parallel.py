"""Expert parallelism: the FFN experts of a mixture split over the processes of a group.

Process r of P owns experts r*N/P up to (r+1)*N/P. Every process routes its own tokens; what
`permute` has sorted by expert is then sorted by owner too, so a dispatch is one all-to-all of
uneven pieces, and the combine is the same one backwards. Slots of identity experts were left out
before the sort: they never cross the network.

    dispatch   counts [N] and rows [S,D] to their owners          (S rows leave, S' arrive)
    compute    the N/P own experts on what arrived, sorted by expert, then by sender
    return     rows [S',D] back to where they came from

Notable:
- the rows of an expert come out in the order of an unsplit batch, so in exact mode the split
  changes no bit of the forward pass;
- gradients travel by the same exchange turned round. It is an `autograd.Function` of our own and
  not torch's functional collective: that one lives in a private module, and this is ten lines;
- the sizes of the pieces must be known on the host: one synchronisation per mixture.

Shapes: S rows held here, S' rows received, D width, N experts in all, P processes.

Source: report section 5 (expert parallelism), 2.1.1 (identity experts).
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

Compute = Callable[[Tensor, Tensor], Tensor]


class ExpertParallel:
    """The processes that share the experts of a mixture; each owns an equal range of them.

    Args:
        group: a process group of P members; None means all processes.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = group
        self.rank = dist.get_rank(group)
        self.size = dist.get_world_size(group)

    def owned(self, n_experts: int) -> slice:
        """The experts that live in this process.

        Raises:
            ValueError: when P does not divide N.
        """
        if n_experts % self.size:
            raise ValueError(
                f"expert parallelism: {n_experts} FFN experts cannot be split evenly over "
                f"{self.size} processes; choose a number that divides them"
            )
        share = n_experts // self.size
        return slice(self.rank * share, (self.rank + 1) * share)

    def run(self, x_sorted: Tensor, offsets: Tensor, compute: Compute) -> Tensor:
        """Send every row to its expert's owner, compute there, bring the results back.

        Args:
            x_sorted: [S,D] grouped by expert. offsets: [N] group ends.
            compute: the own experts, from (rows [S',D] grouped by expert, offsets [N/P]).

        Returns:
            [S,D], as if all experts were here; rows behind the last expert's stay here, as zeros.
        """
        counts_PE = offsets.diff(prepend=offsets.new_zeros(1)).to(torch.int64).view(self.size, -1)
        received_PE = torch.empty_like(counts_PE)  # [sender, own expert]
        dist.all_to_all_single(received_PE, counts_PE, group=self.group)
        sent, received = torch.stack([counts_PE.sum(dim=1), received_PE.sum(dim=1)]).tolist()

        travelling = x_sorted[: sum(sent)]
        arrived = _exchange(travelling, sent, received, self.group)
        order = _by_expert(received_PE)
        ends = received_PE.sum(dim=0).cumsum(0).to(offsets.dtype)
        done = compute(arrived[order], ends)
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=order.device)
        returned = _exchange(done[back], received, sent, self.group)
        stayed = len(x_sorted) - len(travelling)
        return F.pad(returned, (0, 0, 0, stayed)) if stayed else returned


def _by_expert(received_PE: Tensor) -> Tensor:
    """Where the rows of each own expert stand among rows that came sender by sender -> [S']."""
    senders, experts = received_PE.shape
    owner = torch.arange(experts, device=received_PE.device).repeat(senders)
    return owner.repeat_interleave(received_PE.view(-1)).sort(stable=True).indices


def _exchange(
    rows: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup | None
) -> Tensor:
    """Piece p of rows [S,D] to process p; what the others sent here, in their order -> [S',D]."""
    result: Tensor = _AllToAll.apply(rows, sent, received, group)  # type: ignore[no-untyped-call]
    return result


class _AllToAll(torch.autograd.Function):
    """all_to_all_single of uneven pieces; the gradient goes back the way the rows came."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, sent: list[int], received: list[int], group: Any) -> Tensor:
        ctx.route = (sent, received, group)
        return _send(rows, sent, received, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        sent, received, group = ctx.route
        return _send(grad, received, sent, group), None, None, None


def _send(rows: Tensor, sent: list[int], received: list[int], group: Any) -> Tensor:
    arrived = rows.new_empty(sum(received), rows.shape[1])
    dist.all_to_all_single(arrived, rows.contiguous(), received, sent, group=group)
    return arrived

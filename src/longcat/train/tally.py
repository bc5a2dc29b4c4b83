"""The sums of one optimizer step, as one float64 row that processes add up.

Everything a metrics line needs is a ratio of sums over the global batch, so each process adds up
its own micro-batches and one all-reduce makes the row global. Counts stay exact: float64 holds
integers up to 2^53. Each token is counted once, in the one forward pass that trains on it.

Shapes: L ScMoE layers, E = N+Z experts, G balance groups.
"""

import torch
from torch import Tensor

from longcat.flash import FlashConfig


class Tally:
    """Named float64 views into one flat row.

    counts [L,E] slots per expert, draft_counts [E] those of a draft head's mixture; ffn,
    ffn_squared [L] sums over tokens of FFN experts and their square; pull [L,E] gradient of the
    main cross entropy with respect to the mean scores, on measured steps; balance_f [L,G], balance
    [L] sums over micro-batches; the rest are scalars.
    """

    counts: Tensor
    draft_counts: Tensor
    ffn: Tensor
    ffn_squared: Tensor
    pull: Tensor
    balance_f: Tensor
    balance: Tensor

    def __init__(
        self, config: FlashConfig, groups: int, device: torch.device | None = None
    ) -> None:
        layers, experts = config.num_layers, config.router.n_experts
        shapes: dict[str, tuple[int, ...]] = {
            "counts": (layers, experts),
            "draft_counts": (experts,),
            "ffn": (layers,),
            "ffn_squared": (layers,),
            "pull": (layers, experts),
            "balance_f": (layers, groups + 1),
            "balance": (layers,),
        }
        scalars = ("tokens", "bytes", "nll", "targets", "mtp_nll", "mtp_targets", "agreed", "z")
        clocks = ("hidden_squared", "hidden_count", "cpu_seconds", "elapsed", "stop", "memory")
        shapes |= dict.fromkeys((*scalars, *clocks), ())
        sizes = [torch.Size(shape).numel() for shape in shapes.values()]
        self.row = torch.zeros(sum(sizes), dtype=torch.float64, device=device)
        parts = self.row.split(sizes)
        self._views = {
            name: part.view(shape)
            for (name, shape), part in zip(shapes.items(), parts, strict=True)
        }
        for name in shapes:
            if shapes[name]:
                setattr(self, name, self._views[name])

    def add(self, name: str, value: float | Tensor) -> None:
        """Add to one entry."""
        self._views[name].add_(value)

    def __getitem__(self, name: str) -> float:
        return float(self._views[name])

    def clear(self) -> None:
        """Set everything to 0 for the next step."""
        self.row.zero_()

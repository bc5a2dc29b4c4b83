"""Feed-forward networks: dense ones, experts, and the mixture of them.

Shapes: T tokens, D width, S = T*K slots, N FFN experts, E = N+Z, K top-k.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from longcat.flash.errors import ConfigError
from longcat.flash.int8 import Int8Experts
from longcat.flash.packed.maps import Int8Map, Map, joined
from longcat.kernels import PackedLinear
from longcat.kernels.route import eager as router
from longcat.moe import DenseFFN, MoE
from longcat.moe.mixture import Experts

BLOCK = 32  # rows: oneDNN writes code for every number of rows that it has not met


class PackedFFN:
    """down(silu(gate(x)) * up(x)), gate and up in one product."""

    def __init__(self, gate_up: Map, down: Map) -> None:
        self._gate_up, self._down = gate_up, down

    @classmethod
    def of(cls, ffn: DenseFFN) -> "PackedFFN":
        """The network of a dense module."""
        return cls(joined(ffn.gate_proj, ffn.up_proj), joined(ffn.down_proj))

    def __call__(self, x: Tensor) -> Tensor:
        """x [T,D] -> [T,D]."""
        return self._down(self._inner(x))

    def added_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """residual [T,D] plus the network of x [T,D] -> [T,D]."""
        return self._down.added_to(residual, self._inner(x))

    def in_blocks(self, x: Tensor) -> Tensor:
        """The same of x [T,D], many rows being filled up to whole BLOCKs."""
        missing = -len(x) % BLOCK if len(x) > BLOCK else 0
        return self(F.pad(x, (0, 0, 0, missing)))[: len(x)] if missing else self(x)

    def _inner(self, x: Tensor) -> Tensor:
        gate, up = self._gate_up(x).chunk(2, dim=-1)
        return F.silu(gate).mul_(up)


class PackedMixture:
    """gamma * sum over the chosen K of score * expert(u): each chosen expert runs once."""

    def __init__(self, moe: MoE) -> None:
        c = self._config = moe.config.router
        self._classifier = moe.router.classifier.weight.detach()
        self._bias = moe.router.e_score_correction_bias.detach()
        self._experts = _experts(moe.experts)
        self._gamma = c.routed_scaling_factor

    def __call__(self, u: Tensor) -> Tensor:
        """u [T,D] -> [T,D]."""
        c = self._config
        logits = F.linear(u.to(self._classifier.dtype), self._classifier)
        _, chosen, gates = router.route(logits, self._bias, c.top_k, self._gamma)
        # Slots by expert. Identity experts stand last, and return their rows as they are.
        expert, order = chosen.flatten().sort(stable=True)
        counts = torch.bincount(expert, minlength=c.n_experts).tolist()
        rows = u.index_select(0, order.div(c.top_k, rounding_mode="floor"))
        found, start = [], 0
        for run, count in zip(self._experts, counts, strict=False):
            if count:
                found.append(run.in_blocks(rows[start : start + count]))
                start += count
        found.append(rows[start:])
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order))
        # An embedding bag is the sum over a token's slots, in their order, with weights.
        y = F.embedding_bag(
            place.view_as(chosen),
            torch.cat(found).to(gates.dtype),
            mode="sum",
            per_sample_weights=gates,
        )
        return y.to(u.dtype)


def _experts(experts: Experts | Int8Experts) -> list[PackedFFN]:
    """The N networks.

    Raises ConfigError where several processes share them.
    """
    if isinstance(experts, Int8Experts):
        parts = (experts.gate_up, experts.gate_up_scale, experts.down, experts.down_scale)
        return [
            PackedFFN(Int8Map(gate_up, of_gate_up), Int8Map(down, of_down))
            for gate_up, of_gate_up, down, of_down in zip(*parts, strict=True)
        ]
    if experts.parallel is not None:
        raise ConfigError(
            "packed: the experts must all be in this process, and it holds "
            f"{len(experts.down_proj)} of them; serve the FlashModel itself"
        )
    return [
        PackedFFN(PackedLinear(gate_up), PackedLinear(down))
        for gate_up, down in zip(experts.gate_up_proj, experts.down_proj, strict=True)
    ]

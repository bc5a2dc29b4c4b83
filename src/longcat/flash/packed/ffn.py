"""Feed-forward networks: dense ones, experts, and the mixture of them.

Shapes: T tokens, D width, S = T*K slots, N FFN experts, E = N+Z, K top-k.
"""

from collections.abc import Sequence
from itertools import pairwise

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

FEW = 128  # slots, up to which Python sorts them faster than tensors do
BLOCK = 32  # rows: oneDNN writes code for every number of rows that it has not met


class PackedFFN:
    """down(silu(gate(x)) * up(x)), gate and up in one product."""

    def __init__(self, ffn: DenseFFN) -> None:
        self._gate_up, self._down = joined(ffn.gate_proj, ffn.up_proj), joined(ffn.down_proj)

    def added_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """residual [T,D] plus the network of x [T,D] -> [T,D]."""
        return self._down.added_to(residual, _swiglu(self._gate_up(x)))


class PackedMixture:
    """gamma * sum over the chosen K of score * expert(u): each chosen expert runs once."""

    def __init__(self, moe: MoE) -> None:
        self._config = moe.config.router
        self._classifier = moe.router.classifier.weight.detach()
        self._bias = moe.router.e_score_correction_bias.detach()
        self._gate_up, self._down = _experts(moe.experts)

    def __call__(self, u: Tensor) -> Tensor:
        """u [T,D] -> [T,D]."""
        scores = F.linear(u.to(self._classifier.dtype), self._classifier).softmax(dim=-1)
        chosen = _highest(scores + self._bias, self._config.top_k)
        gates = scores.gather(-1, chosen).mul_(self._config.routed_scaling_factor)
        mix = self._mix_few if chosen.numel() <= FEW else self._mix
        return mix(u, chosen, gates).to(u.dtype)

    def _mix_few(self, u: Tensor, chosen: Tensor, gates: Tensor) -> Tensor:
        """Few slots: sorted in Python, and summed by one product with the gates [T, S+T], which
        has a column for each slot of an FFN expert and one for each token as it is.
        """
        count, slots = len(u), _by_choice(chosen.tolist(), gates.tolist())
        own = [slots.pop(e) for e in sorted(slots) if e >= len(self._down)]
        placed = [slot for expert in slots.values() for slot in expert]
        width = len(placed) + count
        given = [0.0] * (count * width)
        for column, (token, gate) in enumerate(placed):
            given[token * width + column] = gate
        for token, gate in (slot for expert in own for slot in expert):
            given[token * width + len(placed) + token] += gate
        found = [u]
        if slots:
            counts = [len(expert) for expert in slots.values()]
            rows = [u] * len(slots)
            if count > 1:
                order = torch.tensor([token for token, _ in placed])
                rows = u.index_select(0, order).split(counts)
            inner = torch.cat([self._gate_up[e](x) for e, x in zip(slots, rows, strict=True)])
            inner = _swiglu(inner).split(counts)
            found = [self._down[e](x) for e, x in zip(slots, inner, strict=True)] + found
        return gates.new_tensor(given).view(count, width) @ torch.cat(found).to(gates.dtype)

    def _mix(self, u: Tensor, chosen: Tensor, gates: Tensor) -> Tensor:
        """Slots by expert; identity experts stand last, and return their rows as they are."""
        c = self._config
        expert, order = chosen.flatten().sort(stable=True)
        counts = torch.bincount(expert, minlength=c.n_experts).tolist()
        *of_ffn, own = u.index_select(0, order.div(c.top_k, rounding_mode="floor")).split(
            [*counts[: len(self._down)], sum(counts[len(self._down) :])]
        )
        found = [self._run(e, rows) for e, rows in enumerate(of_ffn) if len(rows)]
        rows = torch.cat([*found, own], out=gates.new_empty(len(order), u.shape[1]))
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order))
        # An embedding bag is the sum over a token's slots, in their order, with weights.
        return F.embedding_bag(place.view_as(chosen), rows, mode="sum", per_sample_weights=gates)

    def _run(self, expert: int, rows: Tensor) -> Tensor:
        """One expert of rows [S,D] -> [S,D]; many rows are filled up to whole BLOCKs."""
        count = len(rows)
        if count > BLOCK and count % BLOCK:
            rows = F.pad(rows, (0, 0, 0, -count % BLOCK))
        return self._down[expert](_swiglu(self._gate_up[expert](rows)))[:count]


def _swiglu(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)


def _highest(values: Tensor, count: int) -> Tensor:
    """`router.highest`: the lowest place first of equals, which torch.topk leaves open."""
    best, places = values.topk(min(count + 1, values.shape[-1]), dim=-1)
    if best.numel() <= FEW:
        equal = any(a == b for row in best.tolist() for a, b in pairwise(row))
    else:
        equal = bool((best[:, 1:] == best[:, :-1]).any())
    return router.highest(values, count) if equal else places[:, :count]


def _by_choice(
    chosen: Sequence[Sequence[int]], gates: Sequence[Sequence[float]]
) -> dict[int, list[tuple[int, float]]]:
    """Of each expert, who chose it and with what gate."""
    slots: dict[int, list[tuple[int, float]]] = {}
    for token, pairs in enumerate(zip(chosen, gates, strict=True)):
        for expert, gate in zip(*pairs, strict=True):
            slots.setdefault(expert, []).append((token, gate))
    return slots


def _experts(experts: Experts | Int8Experts) -> tuple[list[Map], list[Map]]:
    """The N maps to gate and up, and the N maps down.

    Raises ConfigError where several processes share them.
    """
    if isinstance(experts, Int8Experts):
        gate_up = zip(experts.gate_up, experts.gate_up_scale, strict=True)
        down = zip(experts.down, experts.down_scale, strict=True)
        return [Int8Map(*each) for each in gate_up], [Int8Map(*each) for each in down]
    if experts.parallel is not None:
        raise ConfigError(
            "packed: the experts must all be in this process, and it holds "
            f"{len(experts.down_proj)} of them; serve the FlashModel itself"
        )
    return (
        [PackedLinear(weight) for weight in experts.gate_up_proj],
        [PackedLinear(weight) for weight in experts.down_proj],
    )

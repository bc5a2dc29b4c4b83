"""A small good call of every op: where the tests that hold for all ops begin.

Sizes are odd, so that blocks are ragged, and small, for the interpreter takes milliseconds a block.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import longcat.kernels as kernels
from longcat.kernels.permute.reference import PermutePlan
from longcat.kernels.programs import INTERPRETED

BF16, E4M3 = torch.bfloat16, torch.float8_e4m3fn


@dataclass(frozen=True, kw_only=True)
class Call:
    """`function(**operands())` is right in all three forms.

    rows: the operands that have a dimension of tokens, and which one it is: it may be empty.
    reads: how often the Triton form loads each byte of an operand; an op without one has none.
    leaves: the operands whose gradients Triton computes as well.
    """

    function: Callable[..., Any]
    operands: Callable[[], dict[str, Tensor]]
    rows: Mapping[str, int]
    reads: Mapping[str, float] | None
    leaves: tuple[str, ...] = ()

    def __call__(self, **operands: Tensor) -> list[Tensor]:
        """The results, or what was written in place, as a list."""
        made = self.function(**operands)
        return [made] if isinstance(made, Tensor) else list(made)


def _numbers(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 3) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def _shares(*shape: int) -> Tensor:
    return _numbers(*shape, seed=5).softmax(-1)


def _below(top: int, *shape: int) -> Tensor:
    return (torch.arange(torch.Size(shape).numel()) * 7 % top).view(shape)


def _plan() -> PermutePlan[Tensor]:
    return kernels.permute(_numbers(6, 16), _below(5, 6, 2), 3)[1]


def _combine(**operands: Tensor) -> Tensor:
    place = getattr(operands["x"], "device", "cpu")
    fields = {name: getattr(PLAN, name).to(place) for name in ("slots", "tokens", "offsets")}
    return kernels.combine(**operands, plan=replace(PLAN, **fields), n_ffn=3)


def _experts(**operands: Tensor) -> Tensor:
    # Rows behind the last expert's may hold anything.
    return kernels.experts(**operands)[: int(operands["offsets"].max())]


def _adamw_step(**operands: Tensor) -> list[Tensor]:
    lists: dict[str, Any] = {name: [tensor] for name, tensor in operands.items()}
    kernels.adamw_step(**lists, step=3, lr=0.1)
    return [operands[name] for name in ("weights", "firsts", "seconds", "copies")]


PLAN = _plan()

CALLS: Mapping[str, Call] = {
    "route": Call(
        function=lambda logits, bias: kernels.route(logits, bias, 2, 1.0),
        operands=lambda: {"logits": _numbers(6, 8), "bias": _numbers(8)},
        rows={"logits": 0},
        reads={"logits": 1, "bias": INTERPRETED},  # once a program
        leaves=("logits",),
    ),
    "fused_route": Call(
        function=lambda logits, bias, token_mask: kernels.fused_route(
            logits, bias, 2, 1.0, 5, token_mask
        ),
        operands=lambda: {
            "logits": _numbers(6, 8), "bias": _numbers(8), "token_mask": _below(2, 6) == 0,
        },
        rows={"logits": 0, "token_mask": 0},
        reads={"logits": 1, "bias": INTERPRETED, "token_mask": 1},
        leaves=("logits",),
    ),
    "permute": Call(
        function=lambda x, indices: kernels.permute(x, indices, 3)[0],
        operands=lambda: {"x": _numbers(6, 16, dtype=BF16), "indices": _below(5, 6, 2)},
        rows={"x": 0, "indices": 0},
        reads={"x": len(PLAN.slots) / 6, "indices": 2 * 3},  # to count and to place, each expert
        leaves=("x",),
    ),
    "combine": Call(
        function=_combine,
        operands=lambda: {
            "y_sorted": _numbers(len(PLAN.slots), 16), "gates": _shares(6, 2),
            "indices": _below(5, 6, 2), "x": _numbers(6, 16),
        },
        rows={},  # the plan is for six
        # x of the four tokens that chose an identity expert.
        reads={"y_sorted": 1, "gates": 1, "indices": 1, "x": 4 / 6},
        leaves=("y_sorted", "gates", "x"),
    ),
    "linear": Call(
        function=kernels.linear,
        operands=lambda: {"x": _numbers(6, 40, dtype=BF16), "weight": _numbers(24, 40, dtype=BF16)},
        rows={"x": 0},
        reads={"x": 1, "weight": 1},
    ),
    "experts": Call(
        function=_experts,
        operands=lambda: {
            "x_sorted": _numbers(6, 24, dtype=BF16), "rows": _below(6, 5),
            "gate_up": _numbers(3, 32, 24, dtype=BF16), "down": _numbers(3, 24, 16, dtype=BF16),
            "offsets": torch.tensor([2, 2, 5]),
        },
        rows={"rows": 0},
        # Five of six rows, two of three experts; each of 3 + 1 programs reads every start and end.
        reads={
            "x_sorted": 5 / 6, "rows": 1, "gate_up": 2 / 3, "down": 2 / 3, "offsets": 4 * 5 / 3,
        },
        leaves=("x_sorted", "gate_up", "down"),
    ),
    "swiglu": Call(
        function=kernels.swiglu,
        operands=lambda: {"gate": _numbers(6, 24), "up": _numbers(6, 24, seed=4)},
        rows={"gate": 0, "up": 0},
        reads={"gate": 1, "up": 1},
        leaves=("gate", "up"),
    ),
    "rmsnorm": Call(
        function=lambda x, weight: kernels.rmsnorm(x, weight, 1e-5),
        operands=lambda: {"x": _numbers(6, 24), "weight": _numbers(24)},
        rows={"x": 0},
        reads={"x": 1, "weight": 6},  # of each row; it stays in the cache
        leaves=("x", "weight"),
    ),
    "add_rmsnorm": Call(
        function=lambda x, residual, weight: kernels.add_rmsnorm(x, residual, weight, 1e-5),
        operands=lambda: {
            "x": _numbers(6, 24), "residual": _numbers(6, 24, seed=4), "weight": _numbers(24),
        },
        rows={"x": 0, "residual": 0},
        reads={"x": 1, "residual": 1, "weight": 6},
        leaves=("x", "residual", "weight"),
    ),
    "rope": Call(
        function=kernels.rope,
        operands=lambda: {
            "x": _numbers(2, 3, 2, 8), "positions": _below(50, 2, 3), "inv_freq": _shares(4),
        },
        rows={"x": 1, "positions": 1},
        reads={"x": 1, "positions": 1, "inv_freq": 6},  # of each token
        leaves=("x",),
    ),
    "latent_write": Call(
        function=lambda **operands: kernels.latent_write(**operands, eps=1e-6, alpha=2.0),
        operands=lambda: {
            "compressed": _numbers(3, 24), "weight": _numbers(16), "positions": _below(50, 3),
            "inv_freq": _shares(4), "slots": torch.tensor([4, 0, 3]), "store": torch.zeros(7, 24),
        },
        rows={"compressed": 0, "positions": 0, "slots": 0},
        reads={
            "compressed": 1, "weight": 3, "positions": 1, "inv_freq": 3, "slots": 1, "store": 0,
        },
    ),
    "mla_decode": Call(
        function=lambda mask, **operands: kernels.mla_decode(**operands, scale=0.1, mask=mask),
        operands=lambda: {
            "q_latent": _numbers(2, 2, 3, 16), "q_rope": _numbers(2, 2, 3, 8),
            "latent": _numbers(2, 5, 16), "k_rope": _numbers(2, 5, 8),
            "mask": torch.ones(2, 2, 5).bool(),
        },
        rows={"q_latent": 1, "q_rope": 1, "mask": 1},
        reads=None,
    ),
    "paged_mla": Call(
        function=lambda **operands: kernels.paged_mla(**operands, scale=0.1),
        operands=lambda: {
            "q_latent": _numbers(2, 1, 3, 16, dtype=BF16),
            "q_rope": _numbers(2, 1, 3, 16, dtype=BF16),
            "store": _numbers(4, 8, 32, dtype=BF16),
            "table": torch.tensor([[1, 2], [3, 0]]), "lengths": torch.tensor([9, 16]),
        },
        rows={"q_latent": 0, "q_rope": 0, "table": 0, "lengths": 0},
        reads={"q_latent": 1, "q_rope": 1, "store": 25 / 32, "table": 1, "lengths": 1},
    ),
    "mla_prefill": Call(
        function=lambda mask, **operands: kernels.mla_prefill(**operands, scale=0.1, mask=mask),
        operands=lambda: {
            "q": _numbers(2, 3, 2, 24, dtype=BF16), "k": _numbers(2, 5, 2, 24, dtype=BF16, seed=4),
            "v": _numbers(2, 5, 2, 16, dtype=BF16), "mask": torch.ones(2, 3, 5).bool(),
        },
        rows={"q": 1, "mask": 1},
        reads={"q": 1, "k": 1, "v": 1, "mask": 2},  # the mask of each head
        leaves=("q", "k", "v"),
    ),
    "quantise_rows": Call(
        function=kernels.quantise_rows,
        operands=lambda: {"x": _numbers(3, 200)},
        rows={"x": 0},
        reads={"x": 1},
    ),
    "quantise_blocks": Call(
        function=kernels.quantise_blocks,
        operands=lambda: {"weight": _numbers(130, 200)},
        rows={"weight": 0},
        reads={"weight": 1},
    ),
    "fp8_linear": Call(
        function=kernels.fp8_linear,
        operands=lambda: {
            "x": _numbers(3, 160).to(E4M3), "x_scales": _shares(3, 2),
            "weight": _numbers(70, 160).to(E4M3), "weight_scales": _shares(1, 2),
        },
        rows={"x": 0, "x_scales": 0},
        reads={"x": 2, "x_scales": 2, "weight": 1, "weight_scales": 2},  # two blocks of outputs
    ),
    "int8_linear": Call(
        function=kernels.int8_linear,
        operands=lambda: {
            "x": _numbers(3, 16), "weight": _below(100, 5, 16).to(torch.int8), "scale": _shares(5),
        },
        rows={"x": 0},
        reads=None,
    ),
    "keep_top": Call(
        function=kernels.keep_top,
        operands=lambda: {
            "p": _shares(2, 9), "top_k": torch.tensor([3, 0]), "top_p": _shares(2),
        },
        rows={"p": 0, "top_k": 0, "top_p": 0},
        # Eight walks and one to weigh, for top_k and for top_p; one for ties, one to write.
        reads={"p": 2 * (8 + 1) + 2, "top_k": 1, "top_p": 1},
    ),
    "verify": Call(
        function=kernels.verify,
        operands=lambda: {
            "p": _shares(3, 3, 20), "q": _shares(3, 2, 20).flip(-1), "drafts": _below(20, 3, 2),
            "chance": _shares(3, 2),
        },
        rows={"p": 0, "q": 0, "drafts": 0, "chance": 0},
        # The drafts' own probabilities, and twice the place of the first that does not stand.
        reads={"p": (2 + 40) / 60, "q": (2 + 40) / 40, "drafts": 1, "chance": 1},
    ),
    "cross_entropy": Call(
        function=kernels.cross_entropy,
        operands=lambda: {"logits": _numbers(5, 20), "targets": _below(20, 5)},
        rows={"logits": 0, "targets": 0},
        reads={"logits": 21 / 20, "targets": 1},  # the target's once more
        leaves=("logits",),
    ),
    "hidden_z_loss": Call(
        function=lambda last_layer, token_mask: kernels.hidden_z_loss(last_layer, 0.1, token_mask),
        operands=lambda: {"last_layer": _numbers(5, 20), "token_mask": _below(2, 5) == 0},
        rows={"last_layer": 0, "token_mask": 0},
        reads={"last_layer": 1, "token_mask": 0},  # torch counts the tokens
        leaves=("last_layer",),
    ),
    "scatter_add": Call(
        function=lambda values, index: kernels.scatter_add(values, index, 4),
        operands=lambda: {"values": _numbers(6, 20), "index": _below(4, 6)},
        rows={"values": 0, "index": 0},
        reads={"values": 1, "index": 0},  # torch sorts it
    ),
    "adamw_step": Call(
        function=_adamw_step,
        operands=lambda: {
            "weights": _numbers(6, 20), "gradients": _numbers(6, 20, dtype=BF16),
            "firsts": _numbers(6, 20, seed=7), "seconds": _numbers(6, 20).abs(),
            "copies": torch.zeros(6, 20, dtype=BF16),
        },
        rows=dict.fromkeys(("weights", "gradients", "firsts", "seconds", "copies"), 0),
        reads={"weights": 1, "gradients": 1, "firsts": 1, "seconds": 1, "copies": 0},
    ),
}  # fmt: skip

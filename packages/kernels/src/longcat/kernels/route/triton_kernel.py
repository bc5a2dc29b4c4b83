"""The router as one Triton kernel: softmax, biased choice, gates, identity gates and counts.

A few programs share the tokens. Each holds a token's scores in registers and takes the largest
score + bias K times; it counts its choices in registers too, and the programs' counts are added
afterwards: no atomics. The gradient is a softmax's; what came to a gate is added to its score.
"""

# Kernels are read by Triton's compiler, not by mypy.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from longcat.kernels.programs import programs_for
from longcat.kernels.proof.configuration import Configuration

WARPS = 2  # one warp holds 1024 scores too, with every register it has


@triton.jit
def _route(
    logits_ptr,
    bias_ptr,
    counted_ptr,
    scores_ptr,
    indices_ptr,
    gates_ptr,
    identity_ptr,
    counts_ptr,
    scale,
    n_tokens,
    n_experts,
    n_ffn,
    logits_stride,
    TOP_K: tl.constexpr,
    MASKED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0)
    experts = tl.arange(0, BLOCK)
    real = experts < n_experts
    bias = tl.load(bias_ptr + experts, mask=real, other=0.0)
    counts = tl.zeros([BLOCK], dtype=tl.int32)
    for token in range(program, n_tokens, tl.num_programs(0)):
        row = tl.cast(token, tl.int64)
        logits = tl.load(logits_ptr + row * logits_stride + experts, mask=real, other=-float("inf"))
        shifted = tl.exp(logits - tl.max(logits, axis=0))
        scores = shifted / tl.sum(shifted, axis=0)
        tl.store(scores_ptr + row * n_experts + experts, scores, mask=real)
        counted = 1
        if MASKED:
            counted = tl.load(counted_ptr + row).to(tl.int32)
        # NaN comes first, as in a descending sort; otherwise nothing would equal the largest.
        key = scores + bias
        key = tl.where(key == key, key, float("inf"))
        left = real
        identity = 0.0
        for k in tl.static_range(TOP_K):
            largest = tl.max(tl.where(left, key, -float("inf")), axis=0)
            chosen = tl.min(tl.where(left & (key == largest), experts, BLOCK), axis=0)
            here = experts == chosen
            gate = scale * tl.sum(tl.where(here, scores, 0.0), axis=0)
            tl.store(indices_ptr + row * TOP_K + k, chosen.to(tl.int64))
            tl.store(gates_ptr + row * TOP_K + k, gate)
            identity += tl.where(chosen < n_ffn, 0.0, gate)
            counts += here.to(tl.int32) * counted
            left = left & (experts != chosen)
        tl.store(identity_ptr + row, identity)
    tl.store(counts_ptr + program * n_experts + experts, counts, mask=real)


def forward(
    logits: Tensor,
    bias: Tensor,
    top_k: int,
    scale: float,
    n_ffn: int,
    token_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(scores, indices, gates, identity, counts), see reference.py; float32."""
    n_tokens, n_experts = logits.shape
    scores = torch.empty(n_tokens, n_experts, dtype=torch.float32, device=logits.device)
    indices = torch.empty(n_tokens, top_k, dtype=torch.int64, device=logits.device)
    gates = torch.empty(n_tokens, top_k, dtype=torch.float32, device=logits.device)
    identity = torch.empty(n_tokens, dtype=torch.float32, device=logits.device)
    programs = max(min(n_tokens, programs_for(logits)), 1)
    parts = torch.empty(programs, n_experts, dtype=torch.int32, device=logits.device)
    with torch.cuda.device_of(logits):
        _route[(programs,)](
            logits, bias, bias if token_mask is None else token_mask.contiguous(), scores, indices,
            gates, identity, parts, float(scale), n_tokens, n_experts, n_ffn, logits.stride(0),
            TOP_K=top_k, MASKED=token_mask is not None, BLOCK=triton.next_power_of_2(n_experts),
            num_warps=WARPS,
        )  # fmt: skip
    return scores, indices, gates, identity, parts.sum(dim=0)


@triton.jit
def _gradient(
    scores_ptr, indices_ptr, grad_scores_ptr, grad_gates_ptr, grad_identity_ptr, grad_logits_ptr,
    scale, n_experts, n_ffn, TOP_K: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # Gates are scale * scores of the chosen, so what came to them goes to their scores; then the
    # softmax: grad_logits = scores * (g - sum(scores * g)).
    row = tl.program_id(0).to(tl.int64)
    experts = tl.arange(0, BLOCK)
    real = experts < n_experts
    places = row * n_experts + experts
    scores = tl.load(scores_ptr + places, mask=real, other=0.0)
    grad = tl.load(grad_scores_ptr + places, mask=real, other=0.0)
    of_identity = tl.load(grad_identity_ptr + row)
    for k in tl.static_range(TOP_K):
        chosen = tl.load(indices_ptr + row * TOP_K + k)
        of_gate = tl.load(grad_gates_ptr + row * TOP_K + k)
        of_gate += tl.where(chosen < n_ffn, 0.0, of_identity)
        grad += tl.where(experts == chosen, scale * of_gate, 0.0)
    grad = scores * (grad - tl.sum(scores * grad, axis=0))
    tl.store(grad_logits_ptr + places, grad, mask=real)


class _FusedRoute(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, bias: Tensor, top_k: int, scale: float, n_ffn: int,
        token_mask: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        scores, indices, gates, identity, counts = forward(
            logits, bias, top_k, scale, n_ffn, token_mask
        )
        ctx.mark_non_differentiable(indices, counts)
        ctx.save_for_backward(scores, indices)
        ctx.scale, ctx.n_ffn = scale, n_ffn
        return scores, indices, gates, identity, counts

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, of_scores: Tensor, _indices: Tensor, of_gates: Tensor, of_identity: Tensor,
        _counts: Tensor,
    ) -> tuple[Tensor, None, None, None, None, None]:  # fmt: skip
        scores, indices = ctx.saved_tensors
        grad = torch.empty_like(scores)
        if grad.numel():
            with torch.cuda.device_of(scores):
                _gradient[(len(scores),)](
                    scores, indices, of_scores.contiguous(), of_gates.contiguous(),
                    of_identity.contiguous(), grad, float(ctx.scale), scores.shape[1], ctx.n_ffn,
                    TOP_K=indices.shape[1], BLOCK=triton.next_power_of_2(scores.shape[1]),
                    num_warps=WARPS,
                )  # fmt: skip
        return grad, None, None, None, None, None


def fused_route(
    logits: Tensor,
    bias: Tensor,
    top_k: int,
    scale: float,
    n_ffn: int,
    token_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(scores, indices, gates, identity, counts), see reference.py; float32.

    The gradient flows to the logits through scores, gates and identity gates.
    """
    made: tuple[Tensor, Tensor, Tensor, Tensor, Tensor] = _FusedRoute.apply(
        logits, bias.detach().contiguous(), top_k, scale, n_ffn, token_mask
    )
    return made


def configurations() -> Iterator[Configuration]:
    """At 512 FFN and 256 identity experts, top 12, with and without padding, and the gradient."""
    types = {
        name: "*fp32" for name in (*_route.arg_names, *_gradient.arg_names) if name.endswith("_ptr")
    } | {"indices_ptr": "*i64", "counts_ptr": "*i32", "scale": "fp32"}
    for masked in (False, True):
        yield Configuration(
            kernel=_route,
            name=f"route 768 top 12{', masked' if masked else ''}",
            types=types | {"counted_ptr": "*i1" if masked else "*fp32"},
            constants={"TOP_K": 12, "MASKED": masked, "BLOCK": 1024},
            divisible=("n_experts", "n_ffn", "logits_stride"),
            warps=WARPS,
            needs=("LDG.E.128",),
        )
    yield Configuration(
        kernel=_gradient,
        name="route 768 top 12, gradient",
        types=types,
        constants={"TOP_K": 12, "BLOCK": 1024},
        divisible=("n_experts", "n_ffn"),
        warps=WARPS,
        needs=("LDG.E.128", "STG.E.128"),
    )

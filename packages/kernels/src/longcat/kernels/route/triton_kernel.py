"""The router as one Triton kernel: softmax, biased choice, gates, identity gates and counts.

A few programs share the tokens. Each holds a token's scores in registers and takes the largest
score + bias K times; it counts its choices in registers too, and the programs' counts are added
afterwards: no atomics.
"""

# Kernels are read by Triton's compiler, not by mypy.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from longcat.kernels.operands import check_rows
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


def fused_route(
    logits: Tensor,
    bias: Tensor,
    top_k: int,
    scale: float,
    n_ffn: int,
    token_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(scores, indices, gates, identity, counts), see reference.py; float32, no gradients."""
    check_rows("route", logits=logits, bias=bias)
    n_tokens, n_experts = logits.shape
    scores = torch.empty(n_tokens, n_experts, dtype=torch.float32, device=logits.device)
    indices = torch.empty(n_tokens, top_k, dtype=torch.int64, device=logits.device)
    gates = torch.empty(n_tokens, top_k, dtype=torch.float32, device=logits.device)
    identity = torch.empty(n_tokens, dtype=torch.float32, device=logits.device)
    programs = max(min(n_tokens, _programs(logits)), 1)
    parts = torch.empty(programs, n_experts, dtype=torch.int32, device=logits.device)
    with torch.cuda.device_of(logits):
        _route[(programs,)](
            logits, bias, bias if token_mask is None else token_mask.contiguous(), scores, indices,
            gates, identity, parts, float(scale), n_tokens, n_experts, n_ffn, logits.stride(0),
            TOP_K=top_k, MASKED=token_mask is not None, BLOCK=triton.next_power_of_2(n_experts),
            num_warps=WARPS,
        )  # fmt: skip
    return scores, indices, gates, identity, parts.sum(dim=0)


def _programs(logits: Tensor) -> int:
    if not logits.is_cuda:
        return 3
    processors: int = torch.cuda.get_device_properties(logits.device).multi_processor_count
    return 4 * processors


def configurations() -> Iterator[Configuration]:
    """At 512 FFN and 256 identity experts, top 12, with and without padding tokens."""
    for masked in (False, True):
        yield Configuration(
            kernel=_route,
            name=f"route 768 top 12{', masked' if masked else ''}",
            types={
                "logits_ptr": "*fp32", "bias_ptr": "*fp32", "scores_ptr": "*fp32",
                "gates_ptr": "*fp32", "identity_ptr": "*fp32", "indices_ptr": "*i64",
                "counts_ptr": "*i32", "counted_ptr": "*i1" if masked else "*fp32",
                "scale": "fp32",
            },
            constants={"TOP_K": 12, "MASKED": masked, "BLOCK": 1024},
            divisible=("n_experts", "n_ffn", "logits_stride"),
            warps=WARPS,
            needs=("LDG.E.128",),
            forbids=("ATOM", "RED."),
        )  # fmt: skip

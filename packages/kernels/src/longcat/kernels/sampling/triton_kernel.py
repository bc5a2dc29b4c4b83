"""Top-k and top-p without a sort, and the verification of drafts, as Triton kernels.

Probabilities are not negative, so their bits, read as integers, are ordered as they are. The
smallest number that is kept is searched for digit by digit, sixteen candidates in one walk over the
row: eight walks find it to the bit, whatever the vocabulary. Counting finds the k-th largest,
adding probabilities finds where the mass reaches top_p: the same search with other weights.
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

BLOCK = 1024  # probabilities at a time
DIGITS = 16


@triton.jit
def _search(
    row_ptr, width, least, spare, target, MASS: tl.constexpr, BLOCK: tl.constexpr,
    DIGITS: tl.constexpr,
):  # fmt: skip
    # The largest threshold, as bits, whose tokens (bits >= threshold) weigh `target` or more. With
    # MASS a token weighs its probability, and only tokens above `least` count, plus `spare` for the
    # ties at `least` that are still in; otherwise it weighs 1.
    digits = tl.arange(0, DIGITS)
    threshold = tl.full([], 0, dtype=tl.int32)
    for level in tl.static_range(8):
        # The sign bit is never set: the first digit ends at 7.
        candidates = threshold + (digits << (28 - 4 * level))
        weight = tl.zeros([DIGITS], dtype=tl.float32)
        for first in range(0, width, BLOCK):
            places = first + tl.arange(0, BLOCK)
            p = tl.load(row_ptr + places, mask=places < width, other=-1.0)
            bits = p.to(tl.int32, bitcast=True)
            above = (bits[None, :] >= candidates[:, None]) & (bits >= 0)[None, :]
            if MASS:
                above = above & (bits > least)[None, :]
                weight += tl.sum(tl.where(above, p[None, :], 0.0), axis=1)
            else:
                weight += tl.sum(tl.where(above, 1.0, 0.0), axis=1)
        if MASS:
            weight += tl.where(candidates <= least, spare, 0.0)
        reached = (weight >= target) & (candidates >= 0)
        # Weights fall from digit to digit. The first may miss its target by rounding alone.
        digit = tl.maximum(tl.sum(reached.to(tl.int32), axis=0) - 1, 0)
        threshold += digit << (28 - 4 * level)
    return threshold


@triton.jit
def _weigh(row_ptr, width, threshold, BLOCK: tl.constexpr):
    # How many tokens lie above the threshold, and their mass.
    count = 0
    mass = 0.0
    for first in range(0, width, BLOCK):
        places = first + tl.arange(0, BLOCK)
        p = tl.load(row_ptr + places, mask=places < width, other=-1.0)
        above = p.to(tl.int32, bitcast=True) > threshold
        count += tl.sum(above.to(tl.int32), axis=0)
        mass += tl.sum(tl.where(above, p, 0.0), axis=0)
    return count, mass


@triton.jit
def _keep_top(
    p_ptr, top_k_ptr, top_p_ptr, out_ptr, width, stride, BLOCK: tl.constexpr, DIGITS: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    row_ptr = p_ptr + row * stride
    top_k = tl.load(top_k_ptr + row).to(tl.int32)
    top_k = tl.where((top_k <= 0) | (top_k > width), width, top_k)
    top_p = tl.load(top_p_ptr + row)
    # The k-th largest, and how many of its equals are still among the k.
    least = _search(row_ptr, width, 0, 0.0, top_k.to(tl.float32), False, BLOCK, DIGITS)
    count, mass = _weigh(row_ptr, width, least, BLOCK)
    equals = top_k - count
    value = least.to(tl.float32, bitcast=True)
    spare = value * equals.to(tl.float32)
    whole = mass + spare
    if top_p < 1.0:
        target = top_p * whole
        found = _search(row_ptr, width, least, spare, target, True, BLOCK, DIGITS)
        found = tl.maximum(found, least)
        count, mass = _weigh(row_ptr, width, found, BLOCK)
        value = found.to(tl.float32, bitcast=True)
        # One equal more while the mass before it has not reached the target.
        needed = tl.ceil((target - mass) / tl.maximum(value, 1e-38)).to(tl.int32)
        needed = tl.maximum(needed, tl.where(count == 0, 1, 0))
        equals = tl.where(found == least, tl.minimum(needed, equals), needed)
        least = found
    taken = tl.minimum(_equals(row_ptr, width, least, BLOCK), equals)
    total = mass + value * taken.to(tl.float32)
    seen = tl.full([], 0, dtype=tl.int32)
    for first in range(0, width, BLOCK):
        places = first + tl.arange(0, BLOCK)
        inside = places < width
        p = tl.load(row_ptr + places, mask=inside, other=-1.0)
        bits = p.to(tl.int32, bitcast=True)
        same = (bits == least) & inside
        rank = seen + tl.cumsum(same.to(tl.int32), axis=0)  # of equals the lowest token first
        kept = (bits > least) | (same & (rank <= equals))
        tl.store(out_ptr + row * width + places, tl.where(kept, p / total, 0.0), mask=inside)
        seen += tl.sum(same.to(tl.int32), axis=0)


@triton.jit
def _equals(row_ptr, width, threshold, BLOCK: tl.constexpr):
    count = 0
    for first in range(0, width, BLOCK):
        places = first + tl.arange(0, BLOCK)
        p = tl.load(row_ptr + places, mask=places < width, other=-1.0)
        count += tl.sum((p.to(tl.int32, bitcast=True) == threshold).to(tl.int32), axis=0)
    return count


@triton.jit
def _verify(
    p_ptr, q_ptr, drafts_ptr, chance_ptr, accepted_ptr, rest_ptr, width,
    DRAFTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    p_rows = p_ptr + row * (DRAFTS + 1) * width
    q_rows = q_ptr + row * DRAFTS * width
    accepted = tl.full([], 0, dtype=tl.int32)
    standing = tl.full([], 1, dtype=tl.int32)
    for draft in tl.static_range(DRAFTS):
        token = tl.load(drafts_ptr + row * DRAFTS + draft)
        of_p = tl.load(p_rows + draft * width + token)
        of_q = tl.load(q_rows + draft * width + token)
        chance = tl.load(chance_ptr + row * DRAFTS + draft)
        standing = standing & (chance * of_q < of_p).to(tl.int32)
        accepted += standing
    refused = accepted < DRAFTS
    of_place = p_rows + accepted.to(tl.int64) * width
    against = q_rows + accepted.to(tl.int64) * width
    mass, whole = 0.0, 0.0
    for first in range(0, width, BLOCK):
        places = first + tl.arange(0, BLOCK)
        inside = places < width
        p = tl.load(of_place + places, mask=inside, other=0.0)
        q = tl.load(against + places, mask=inside & refused, other=0.0)
        mass += tl.sum(tl.maximum(p - q, 0.0), axis=0)
        whole += tl.sum(p, axis=0)
    plain = mass == 0.0  # nothing is left of it: p and q are one
    mass = tl.where(plain, whole, mass)
    for first in range(0, width, BLOCK):
        places = first + tl.arange(0, BLOCK)
        inside = places < width
        p = tl.load(of_place + places, mask=inside, other=0.0)
        q = tl.load(against + places, mask=inside & refused, other=0.0)
        left = tl.where(plain, p, tl.maximum(p - q, 0.0))
        tl.store(rest_ptr + row * width + places, left / mass, mask=inside)
    tl.store(accepted_ptr + row, accepted.to(tl.int64))


def keep_top(p: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """p [R, V], top_k [R], top_p [R] -> [R, V], see reference.py; float32, no gradients."""
    check_rows("keep_top", p=p)
    out = torch.empty(p.shape, dtype=p.dtype, device=p.device)
    if out.numel():
        with torch.cuda.device_of(p):
            _keep_top[(len(p),)](
                p, top_k.contiguous(), top_p.contiguous(), out, p.shape[1], p.stride(0),
                BLOCK=BLOCK, DIGITS=DIGITS, num_warps=8,
            )  # fmt: skip
    return out


def verify(p: Tensor, q: Tensor, drafts: Tensor, chance: Tensor) -> tuple[Tensor, Tensor]:
    """(accepted [R], rest [R, V]), see reference.py; float32, no gradients."""
    rows, n_drafts = drafts.shape
    width = p.shape[-1]
    accepted = torch.empty(rows, dtype=torch.int64, device=p.device)
    rest = torch.empty(rows, width, dtype=p.dtype, device=p.device)
    if rows:
        with torch.cuda.device_of(p):
            _verify[(rows,)](
                p.contiguous(), q.contiguous(), drafts.contiguous(), chance.contiguous(),
                accepted, rest, width, DRAFTS=n_drafts, BLOCK=BLOCK, num_warps=8,
            )  # fmt: skip
    return accepted, rest


def configurations() -> Iterator[Configuration]:
    """Both, for one draft and for three."""
    types = {
        "p_ptr": "*fp32", "q_ptr": "*fp32", "top_k_ptr": "*i64", "top_p_ptr": "*fp32",
        "out_ptr": "*fp32", "drafts_ptr": "*i64", "chance_ptr": "*fp32", "accepted_ptr": "*i64",
        "rest_ptr": "*fp32",
    }  # fmt: skip
    constants: dict[str, int] = {"BLOCK": BLOCK, "DIGITS": DIGITS}
    yield Configuration(
        kernel=_keep_top, name="sampling keep_top", types=types, constants=constants,
        divisible=("width", "stride"), warps=8, needs=("LDG.E.128",),
    )  # fmt: skip
    for drafts in (1, 3):
        yield Configuration(
            kernel=_verify, name=f"sampling verify {drafts}", types=types,
            constants={"BLOCK": BLOCK, "DRAFTS": drafts}, divisible=("width",), warps=8,
            needs=("LDG.E.128", "STG.E.128"),
        )  # fmt: skip

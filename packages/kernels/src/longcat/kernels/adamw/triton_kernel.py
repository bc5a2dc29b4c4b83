"""One step of AdamW over a list of tensors as one Triton launch.

Tensors are cut into chunks of BLOCK numbers. A program takes one chunk: a table tells it which
tensor that is of and where the tensor's weight, gradient, moments and copy lie. The table depends
on the addresses alone and is kept while they stay the same.
"""

# Kernels are read by Triton's compiler, not by mypy.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from longcat.kernels.proof.configuration import Configuration

BLOCK = 1024  # numbers of a chunk
WARPS = 4


@triton.jit
def _update(
    weights, gradients, firsts, seconds, copies, inside, keep, lr, beta1, rest1, beta2, rest2,
    correction, root, eps, COPY: tl.constexpr,
):  # fmt: skip
    gradient = tl.load(gradients, mask=inside).to(tl.float32)
    first = beta1 * tl.load(firsts, mask=inside) + rest1 * gradient
    second = beta2 * tl.load(seconds, mask=inside) + rest2 * gradient * gradient
    # A second moment that is flushed to zero is below 1e-38, its root below 1e-19: under epsilon.
    direction = first * correction / (tl.sqrt(second * root) + eps)
    weight = keep * tl.load(weights, mask=inside) - lr * direction
    tl.store(firsts, first, mask=inside)
    tl.store(seconds, second, mask=inside)
    tl.store(weights, weight, mask=inside)
    if COPY:
        tl.store(copies, weight.to(copies.dtype.element_ty), mask=inside)


@triton.jit
def _step(
    addresses_ptr, lengths_ptr, chunks_ptr, gradient_ptr, copy_ptr,
    keep, lr, beta1, rest1, beta2, rest2, correction, root, eps,
    COPY: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # gradient_ptr and copy_ptr say of which type these are; where they lie is in the table.
    tensor = tl.load(chunks_ptr + 2 * tl.program_id(0)).to(tl.int64)
    start = tl.load(chunks_ptr + 2 * tl.program_id(0) + 1).to(tl.int64) * BLOCK
    length = tl.load(lengths_ptr + tensor)
    row = addresses_ptr + 5 * tensor
    weights = tl.load(row).to(tl.pointer_type(tl.float32))
    gradients = tl.load(row + 1).to(gradient_ptr.dtype)
    firsts = tl.load(row + 2).to(tl.pointer_type(tl.float32))
    seconds = tl.load(row + 3).to(tl.pointer_type(tl.float32))
    copies = tl.load(row + 4).to(copy_ptr.dtype)
    if ALIGNED:
        weights, gradients = tl.multiple_of(weights, 16), tl.multiple_of(gradients, 16)
        firsts, seconds = tl.multiple_of(firsts, 16), tl.multiple_of(seconds, 16)
        copies = tl.multiple_of(copies, 16)
    places = start + tl.arange(0, BLOCK)
    # A chunk that is whole needs no mask, and without one moves 16 bytes at a time.
    if start + BLOCK <= length:
        _update(
            weights + places, gradients + places, firsts + places, seconds + places,
            copies + places, None, keep, lr, beta1, rest1, beta2, rest2, correction, root, eps,
            COPY,
        )  # fmt: skip
    else:
        _update(
            weights + places, gradients + places, firsts + places, seconds + places,
            copies + places, places < length, keep, lr, beta1, rest1, beta2, rest2, correction,
            root, eps, COPY,
        )  # fmt: skip


def adamw_step(
    weights: Sequence[Tensor],
    gradients: Sequence[Tensor],
    firsts: Sequence[Tensor],
    seconds: Sequence[Tensor],
    step: int,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    copies: Sequence[Tensor] | None,
) -> None:
    """See reference.py. Weights and moments are float32, all of a kind in one dtype, contiguous."""
    lists = (weights, gradients, firsts, seconds, weights if copies is None else copies)
    where = tuple(tuple(tensor.data_ptr() for tensor in row) for row in zip(*lists, strict=True))
    table = _table(where, tuple(weight.numel() for weight in weights), weights[0].device)
    if not len(table[2]):
        return
    beta1, beta2 = betas
    with torch.cuda.device_of(weights[0]):
        _step[(len(table[2]),)](
            *table, gradients[0], lists[4][0], 1 - lr * weight_decay, lr, beta1, 1 - beta1,
            beta2, 1 - beta2, 1 / (1 - beta1**step), 1 / (1 - beta2**step), eps,
            COPY=copies is not None,
            ALIGNED=all(address % 16 == 0 for row in where for address in row),
            BLOCK=BLOCK, num_warps=WARPS,
        )  # fmt: skip


@lru_cache(maxsize=8)
def _table(
    where: tuple[tuple[int, ...], ...], lengths: tuple[int, ...], device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """(addresses [n, 5], lengths [n], chunks [m, 2]: a tensor's number and one of its chunks)."""
    chunks = [
        (number, chunk)
        for number, length in enumerate(lengths)
        for chunk in range(triton.cdiv(length, BLOCK))
    ]
    return (
        torch.tensor(where, dtype=torch.int64, device=device),
        torch.tensor(lengths, dtype=torch.int64, device=device),
        torch.tensor(chunks, dtype=torch.int32, device=device).view(-1, 2),
    )


def configurations() -> Iterator[Configuration]:
    """Gradients in bfloat16 with a copy for the forward pass, and in float32 without; unaligned."""
    scalars = ("keep", "lr", "beta1", "rest1", "beta2", "rest2", "correction", "root", "eps")
    for gradient, copy, aligned in (("bf16", True, True), ("fp32", False, True),
                                    ("bf16", True, False)):  # fmt: skip
        yield Configuration(
            kernel=_step,
            name=f"adamw {gradient} gradients{', bf16 copy' if copy else ''}"
            + ("" if aligned else ", unaligned"),
            types={
                "addresses_ptr": "*i64", "lengths_ptr": "*i64", "chunks_ptr": "*i32",
                "gradient_ptr": f"*{gradient}", "copy_ptr": "*bf16" if copy else "*fp32",
                **dict.fromkeys(scalars, "fp32"),
            },
            constants={"COPY": copy, "ALIGNED": aligned, "BLOCK": BLOCK},
            warps=WARPS,
            needs=("LDG.E.128", "STG.E.128") if aligned else ("LDG.E",),
        )  # fmt: skip

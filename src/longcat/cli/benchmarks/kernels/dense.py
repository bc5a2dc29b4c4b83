"""Norms, the dense FFN's activation, linear maps, and weights of 8 bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

import longcat.kernels as kernels
from longcat.cli.benchmarks.kernels.case import Call, Case, Maker, both_ways
from longcat.flash.config import FlashConfig

EPS = 1e-5
GROUP = 128  # numbers that share a scale


def cases(config: FlashConfig, make: Maker) -> Iterator[Case]:
    """Every case of this file."""
    yield _rmsnorm(config, make)
    yield _add_rmsnorm(config, make)
    yield _swiglu(config, make)
    yield _linear(config, make)
    for rows in (1, make.sizes.batch):
        yield _few_rows(config, make, rows)
    yield _int8(config, make)
    yield from _fp8(config, make)


def _rmsnorm(config: FlashConfig, make: Maker) -> Case:
    rows, width = make.sizes.rows, config.hidden_size
    x, weight = make(rows, width), make(width)
    return make.case(
        "rmsnorm both ways",
        f"{rows}x{width}",
        {
            "F.rms_norm": both_ways(lambda x, w: F.rms_norm(x, w.shape, w, EPS), x, weight),
            "ours": both_ways(lambda x, w: kernels.rmsnorm(x, w, EPS), x, weight),
        },
        numbers=5 * x.numel(),
        flops=12 * x.numel(),
    )


def _add_rmsnorm(config: FlashConfig, make: Maker) -> Case:
    rows, width = make.sizes.rows, config.hidden_size
    x, residual, weight = make(rows, width), make(rows, width), make(width)

    def plain(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        total = x + residual
        return F.rms_norm(total, weight.shape, weight, EPS), total

    def ours(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        return kernels.add_rmsnorm(x, residual, weight, EPS)

    return make.case(
        "add_rmsnorm both ways",
        f"{rows}x{width}",
        {
            "F.rms_norm": both_ways(plain, x, residual, weight),
            "ours": both_ways(ours, x, residual, weight),
        },
        numbers=8 * x.numel(),
        flops=14 * x.numel(),
    )


def _swiglu(config: FlashConfig, make: Maker) -> Case:
    rows, width = make.sizes.rows, config.ffn_hidden_size
    gate, up = make(rows, width), make(rows, width)
    return make.case(
        "swiglu both ways",
        f"{rows}x{width}",
        {
            "g * sigmoid(g) * u": both_ways(lambda g, u: g * torch.sigmoid(g) * u, gate, up),
            "ours": both_ways(kernels.swiglu, gate, up),
        },
        numbers=8 * gate.numel(),
        flops=15 * gate.numel(),
    )


def _linear(config: FlashConfig, make: Maker) -> Case:
    rows, inner, outputs = make.sizes.rows, config.hidden_size, 2 * config.ffn_hidden_size
    x, weight = make(rows, inner), make(outputs, inner)
    return make.case(
        "linear both ways",
        f"{rows}x{inner} by {outputs}",
        {
            "F.linear": both_ways(F.linear, x, weight),
            "ours": both_ways(kernels.linear, x, weight),
        },
        numbers=3 * (x.numel() + weight.numel() + rows * outputs),
        flops=6 * rows * inner * outputs,
    )


def _few_rows(config: FlashConfig, make: Maker, rows: int) -> Case:
    inner, outputs = config.hidden_size, 2 * config.ffn_hidden_size
    x, weight = make.constant(rows, inner), make.constant(outputs, inner)
    forms: dict[str, Call] = {
        "F.linear": lambda: F.linear(x, weight),
        "ours": lambda: kernels.linear(x, weight),
    }
    if make.device == "cpu":
        packed = kernels.PackedLinear(weight)
        forms["ours, packed"] = lambda: packed(x)
    return make.case(
        "linear",
        f"{rows}x{inner} by {outputs}",
        forms,
        numbers=x.numel() + weight.numel() + rows * outputs,
        flops=2 * rows * inner * outputs,
        serving=True,
    )


def _int8(config: FlashConfig, make: Maker) -> Case:
    inner, outputs = config.hidden_size, 2 * config.ffn_hidden_size
    x, weight = make.constant(1, inner), make.constant(outputs, inner)
    numbers, scales = kernels.quantise_int8(weight)
    return make.case(
        "int8_linear",
        f"1x{inner} by {outputs}",
        {
            "F.linear, float": lambda: F.linear(x, weight),
            "ours": lambda: kernels.int8_linear(x, numbers, scales),
        },
        numbers=inner + 2 * outputs,
        more_bytes=numbers.numel(),
        flops=2 * inner * outputs,
        serving=True,
        has_kernel=False,
    )


def _fp8(config: FlashConfig, make: Maker) -> Iterator[Case]:
    rows, inner, outputs = make.sizes.batch, config.hidden_size, 2 * config.ffn_hidden_size
    x, weight = make.constant(make.sizes.rows, inner), make.constant(outputs, inner)
    yield _quantise("quantise_rows", kernels.quantise_rows, make, x, 1)
    yield _quantise("quantise_blocks", kernels.quantise_blocks, make, weight, GROUP)
    operands = (*kernels.quantise_rows(x[:rows]), *kernels.quantise_blocks(weight))

    def plain() -> Tensor:
        numbers, of_x, of_weight, scales = operands
        wide = numbers.float() * of_x.repeat_interleave(GROUP, 1)
        scales = scales.repeat_interleave(GROUP, 0).repeat_interleave(GROUP, 1)
        return F.linear(wide, of_weight.float() * scales)

    yield make.case(
        "fp8_linear",
        f"{rows}x{inner} by {outputs}",
        {"dequantise, F.linear": plain, "ours": lambda: kernels.fp8_linear(*operands)},
        numbers=0,
        more_bytes=sum(tensor.nbytes for tensor in operands) + 4 * rows * outputs,
        flops=2 * rows * inner * outputs,
        serving=True,
    )


def _quantise(
    op: str, function: Callable[[Tensor], object], make: Maker, x: Tensor, rows: int
) -> Case:
    def plain() -> tuple[Tensor, Tensor]:
        blocks = x.float().unflatten(1, (-1, GROUP)).unflatten(0, (-1, rows))
        scales = blocks.abs().amax(dim=(1, 3), keepdim=True) / 448
        return (blocks / scales).to(torch.float8_e4m3fn).view_as(x), scales[:, 0, :, 0]

    return make.case(
        op,
        f"{x.shape[0]}x{x.shape[1]}",
        {"amax, divide, cast": plain, "ours": lambda: function(x)},
        numbers=x.numel(),
        more_bytes=x.numel() * (1 + 4 / (GROUP * rows)),
        flops=3 * x.numel(),
        serving=True,
    )

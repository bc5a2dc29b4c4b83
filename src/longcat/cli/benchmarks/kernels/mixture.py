"""The mixture: routing, tokens to their experts and back, the experts themselves."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

import longcat.kernels as kernels
from longcat.cli.benchmarks.kernels.case import Case, Maker, both_ways
from longcat.flash.config import FlashConfig
from longcat.kernels.experts import eager as experts_eager


def cases(config: FlashConfig, make: Maker) -> Iterator[Case]:
    """Every case of this file."""
    if make.dtype == torch.float32:  # which routing is in, whatever the model is in
        yield _route(config, make)
    yield _permute(config, make)
    yield _experts(config, make)
    yield _combine(config, make)
    yield _scatter_add(config, make)


def _route(config: FlashConfig, make: Maker) -> Case:
    router = config.moe.router
    experts, top_k, scale = router.n_experts, router.top_k, router.routed_scaling_factor
    n_ffn = router.n_routed_experts
    logits, bias = make(make.sizes.rows, experts), torch.zeros(experts, device=make.device)

    def plain(logits: Tensor) -> tuple[Tensor, ...]:
        scores = torch.softmax(logits, dim=-1)
        order = torch.sort(scores.detach() + bias, dim=-1, descending=True, stable=True)
        chosen = order.indices[:, :top_k]
        gates = scores.gather(-1, chosen) * scale
        identity = torch.where(chosen >= n_ffn, gates, 0).sum(dim=1)
        return scores, chosen, gates, identity, torch.bincount(chosen.flatten(), minlength=experts)

    def ours(logits: Tensor) -> tuple[Tensor, ...]:
        return kernels.fused_route(logits, bias, top_k, scale, n_ffn)

    rows = make.sizes.rows
    return make.case(
        "fused_route both ways",
        f"{rows}x{experts} top {top_k}",
        {"softmax, stable sort": both_ways(plain, logits), "ours": both_ways(ours, logits)},
        numbers=5 * rows * experts,
        more_bytes=28 * rows * top_k,
        flops=rows * experts * (9 + 3 * top_k),
    )


def _routing(config: FlashConfig, make: Maker) -> tuple[Tensor, Tensor, int]:
    router = config.moe.router
    logits = make.constant(make.sizes.rows, router.n_experts).float()
    bias = torch.zeros(router.n_experts, device=make.device)
    _, indices, gates = kernels.route(logits, bias, router.top_k, router.routed_scaling_factor)
    return indices, gates, router.n_routed_experts


def _permute(config: FlashConfig, make: Maker) -> Case:
    indices, _, n_ffn = _routing(config, make)
    x = make(make.sizes.rows, config.hidden_size)
    top_k = indices.shape[1]

    def plain(x: Tensor) -> Tensor:
        experts = indices.flatten()
        order = torch.argsort(experts, stable=True)
        counts = torch.bincount(experts, minlength=n_ffn)[:n_ffn]
        order = order[: int(counts.sum())]
        return x[order // top_k]

    def ours(x: Tensor) -> Tensor:
        return kernels.permute(x, indices, n_ffn)[0]

    slots = int((indices < n_ffn).sum())
    return make.case(
        "permute both ways",
        f"T={x.shape[0]} S={slots} D={x.shape[1]}",
        {"argsort, x[tokens]": both_ways(plain, x), "ours": both_ways(ours, x)},
        numbers=2 * (slots + x.shape[0]) * x.shape[1],
        more_bytes=8 * indices.numel() + 16 * slots,
        flops=slots * x.shape[1],
    )


def _experts(config: FlashConfig, make: Maker) -> Case:
    indices, _, n_ffn = _routing(config, make)
    width, inner = config.hidden_size, config.moe.expert_ffn_hidden_size
    rows, plan = kernels.permute(make.constant(make.sizes.rows, width), indices, n_ffn)
    x, offsets = rows.detach().requires_grad_(), plan.offsets
    gate_up, down = make(n_ffn, 2 * inner, width), make(n_ffn, width, inner)

    def loop(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        outputs, start = [], 0
        for expert, end in enumerate(offsets.tolist()):
            gate, up = (x[start:end] @ gate_up[expert].mT).chunk(2, dim=-1)
            outputs.append((F.silu(gate) * up) @ down[expert].mT)
            start = end
        return torch.cat(outputs)

    def padded(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        gate, up = experts_eager.padded_linear(x, gate_up, offsets).chunk(2, dim=-1)
        return experts_eager.padded_linear(F.silu(gate) * up, down, offsets)

    def ours(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        return kernels.experts(x, gate_up, down, offsets)

    operands = (x, gate_up, down)
    weights = gate_up.numel() + down.numel()
    return make.case(
        "experts both ways",
        f"S={x.shape[0]} N={n_ffn} D={width} F={inner}",
        {
            "loop over experts": both_ways(loop, *operands),
            "padded bmm": both_ways(padded, *operands),
            "ours": both_ways(ours, *operands),
        },
        numbers=4 * x.numel() + 3 * weights,
        flops=18 * x.shape[0] * width * inner,
    )


def _combine(config: FlashConfig, make: Maker) -> Case:
    indices, gates, n_ffn = _routing(config, make)
    x = make(make.sizes.rows, config.hidden_size)
    rows, plan = kernels.permute(x.detach(), indices, n_ffn)
    y, gates = rows.clone().requires_grad_(), gates.requires_grad_()

    def index_add(y: Tensor, gates: Tensor, x: Tensor) -> Tensor:
        weighted = y.float() * gates.reshape(-1)[plan.slots, None]
        out = torch.zeros(x.shape, device=x.device).index_add(0, plan.tokens, weighted)
        identity = gates.masked_fill(indices < n_ffn, 0).sum(1, keepdim=True)
        return (out + identity * x.float()).to(x.dtype)

    def ours(y: Tensor, gates: Tensor, x: Tensor) -> Tensor:
        return kernels.combine(y, plan, gates, indices, x, n_ffn)

    return make.case(
        "combine both ways",
        f"S={y.shape[0]} T={x.shape[0]} D={x.shape[1]}",
        {"index_add": both_ways(index_add, y, gates, x), "ours": both_ways(ours, y, gates, x)},
        numbers=3 * y.numel() + 5 * x.numel(),
        flops=6 * y.numel() + 6 * x.numel(),
    )


def _scatter_add(config: FlashConfig, make: Maker) -> Case:
    """The gradient of an embedding: a batch's rows to the vocabulary's."""
    rows, width, size = make.sizes.rows, config.hidden_size, config.vocab_size
    values = make.constant(rows, width)
    index = torch.randint(size, (rows,), generator=make.generator).to(make.device)

    def plain() -> Tensor:
        return torch.zeros(size, width, dtype=make.dtype, device=make.device).index_add_(
            0, index, values
        )

    return make.case(
        "scatter_add",
        f"{rows}x{width} to {size} rows",
        {"index_add": plain, "ours": lambda: kernels.scatter_add(values, index, size)},
        numbers=(rows + size) * width,
        flops=rows * width,
    )

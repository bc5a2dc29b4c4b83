"""The forms that `longcat bench kernels` compares, at the shapes of the presets.

Each case names its naive form; the others are what longcat.kernels runs, or could run. Bytes are
the operands and results moved once (gradients too where the case runs backward); arithmetic counts
a multiplication and an addition as two operations and an exponential as one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import longcat.kernels as kernels
from longcat.flash.config import FlashConfig
from longcat.kernels.experts import eager as experts_eager
from longcat.kernels.mla_decode import eager as decode_eager
from longcat.kernels.mla_prefill import eager as prefill_eager
from longcat.kernels.rmsnorm import eager as rmsnorm_eager
from longcat.kernels.swiglu import eager as swiglu_eager

TOKENS = 256  # of each of BATCH sequences, as in training
BATCH = 8
CONTEXT = 512  # cached tokens of a decoding step


@dataclass(frozen=True, kw_only=True)
class Case:
    """One op at one shape: forms by name, the first of them naive; bytes and operations a call."""

    op: str
    shape: str
    forms: dict[str, Callable[[], object]]
    bytes: float
    flops: float


def cases(device: str) -> Iterator[Case]:
    """Every case, at the shapes of `nano` and `bench`, in float32 and bfloat16."""
    for preset in ("nano", "bench"):
        config = FlashConfig.preset(preset)
        for dtype in (torch.float32, torch.bfloat16):
            make = _Maker(device=device, dtype=dtype)
            yield _rmsnorm(config, make)
            yield _swiglu(config, make)
            yield _experts(config, make)
            yield _combine(config, make)
            yield _prefill(config, make)
            yield _decode(config, make)


class _Maker:
    """Seeded operands on one device in one dtype."""

    def __init__(self, *, device: str, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self.generator = torch.Generator().manual_seed(0)
        self.size = torch.empty(0, dtype=dtype).element_size()

    def __call__(self, *shape: int) -> Tensor:
        values = torch.randn(*shape, generator=self.generator)
        return values.to(self.device, self.dtype).requires_grad_()

    def label(self, shape: str) -> str:
        return f"{shape} {str(self.dtype).removeprefix('torch.')}"


def _both_ways(function: Callable[..., Tensor], *operands: Tensor) -> Callable[[], object]:
    """A call of the function, forward and backward."""
    pull = torch.ones_like(function(*operands))

    def run() -> object:
        return torch.autograd.grad(function(*operands), operands, pull)

    return run


def _with_triton(
    forms: dict[str, Callable[[], object]], make: _Maker, call: Callable[[], object]
) -> dict[str, Callable[[], object]]:
    if make.device != "cuda" or not kernels.triton_installed():
        return forms

    def run() -> object:
        with kernels.use_backend("triton"):
            return call()

    return {**forms, "triton": run}


def _rmsnorm(config: FlashConfig, make: _Maker) -> Case:
    rows, width = BATCH * TOKENS, config.hidden_size
    x, weight = make(rows, width), make(width)

    def naive(x: Tensor, weight: Tensor) -> Tensor:
        wide = x.float()
        inverse = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)
        return (wide * inverse).to(x.dtype) * weight

    forms = {
        "autograd": _both_ways(naive, x, weight),
        "eager": _both_ways(lambda x, w: rmsnorm_eager.rmsnorm(x, w, 1e-5), x, weight),
    }
    ours = _both_ways(lambda x, w: kernels.rmsnorm(x, w, 1e-5), x, weight)
    return Case(
        op="rmsnorm both ways",
        shape=make.label(f"{rows}x{width}"),
        forms=_with_triton(forms, make, ours),
        bytes=5 * x.numel() * make.size,
        flops=12 * x.numel(),
    )


def _swiglu(config: FlashConfig, make: _Maker) -> Case:
    rows, width = BATCH * TOKENS, config.ffn_hidden_size
    gate, up = make(rows, width), make(rows, width)
    forms = {
        "autograd": _both_ways(lambda g, u: g * torch.sigmoid(g) * u, gate, up),
        "eager": _both_ways(swiglu_eager.swiglu, gate, up),
    }
    ours = _both_ways(kernels.swiglu, gate, up)
    return Case(
        op="swiglu both ways",
        shape=make.label(f"{rows}x{width}"),
        forms=_with_triton(forms, make, ours),
        bytes=8 * gate.numel() * make.size,
        flops=15 * gate.numel(),
    )


def _routing(config: FlashConfig, make: _Maker) -> tuple[Tensor, Tensor, int]:
    router = config.moe.router
    logits = make(BATCH * TOKENS, router.n_experts).detach().float()
    bias = torch.zeros(router.n_experts, device=make.device)
    _, indices, gates = kernels.route(logits, bias, router.top_k, router.routed_scaling_factor)
    return indices, gates, router.n_routed_experts


def _experts(config: FlashConfig, make: _Maker) -> Case:
    indices, _, n_ffn = _routing(config, make)
    width, inner = config.hidden_size, config.moe.expert_ffn_hidden_size
    rows, plan = kernels.permute(make(BATCH * TOKENS, width), indices, n_ffn)
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

    def grouped(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        return experts_eager.experts(x, gate_up, down, offsets)

    weights = gate_up.numel() + down.numel()
    return Case(
        op="experts both ways",
        shape=make.label(f"S={x.shape[0]} N={n_ffn} D={width} F={inner}"),
        forms={
            "loop over experts": _both_ways(loop, x, gate_up, down),
            "padded bmm": _both_ways(padded, x, gate_up, down),
            "grouped_mm (eager)": _both_ways(grouped, x, gate_up, down),
        },
        bytes=(4 * x.numel() + 3 * weights) * make.size,
        flops=18 * x.shape[0] * width * inner,
    )


def _combine(config: FlashConfig, make: _Maker) -> Case:
    indices, gates, n_ffn = _routing(config, make)
    x = make(BATCH * TOKENS, config.hidden_size)
    rows, plan = kernels.permute(x.detach(), indices, n_ffn)
    y, gates = rows.clone().requires_grad_(), gates.requires_grad_()

    def index_add(y: Tensor, gates: Tensor, x: Tensor) -> Tensor:
        weighted = y.float() * gates.reshape(-1)[plan.slots, None]
        out = torch.zeros(x.shape, device=x.device).index_add(0, plan.tokens, weighted)
        identity = gates.masked_fill(indices < n_ffn, 0).sum(1, keepdim=True)
        return (out + identity * x.float()).to(x.dtype)

    def eager(y: Tensor, gates: Tensor, x: Tensor) -> Tensor:
        return kernels.combine(y, plan, gates, indices, x, n_ffn)

    return Case(
        op="combine both ways",
        shape=make.label(f"S={y.shape[0]} T={x.shape[0]} D={x.shape[1]}"),
        forms={
            "index_add": _both_ways(index_add, y, gates, x),
            "slot order (eager)": _both_ways(eager, y, gates, x),
        },
        bytes=(3 * y.numel() + 5 * x.numel()) * make.size,
        flops=6 * y.numel() + 6 * x.numel(),
    )


def _prefill(config: FlashConfig, make: _Maker) -> Case:
    mla, heads = config.attention, config.attention.num_heads
    width, values = mla.qk_nope_head_dim + mla.qk_rope_head_dim, mla.v_head_dim
    q, k = make(BATCH, TOKENS, heads, width), make(BATCH, TOKENS, heads, width)
    v = make(BATCH, TOKENS, heads, values)
    scale = width**-0.5

    def unequal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
        return out.transpose(1, 2)

    forms = {
        "fused, values as they are": _both_ways(unequal, q, k, v),
        "fused, values padded": _both_ways(
            lambda q, k, v: prefill_eager.fused(q, k, v, scale, None), q, k, v
        ),
    }
    if make.device == "cpu":
        forms["causal tiles (eager)"] = _both_ways(
            lambda q, k, v: prefill_eager.mla_prefill(q, k, v, scale), q, k, v
        )
    pairs = BATCH * heads * TOKENS * (TOKENS + 1) / 2
    return Case(
        op="mla_prefill both ways",
        shape=make.label(f"B={BATCH} T={TOKENS} H={heads} {width}|{values}"),
        forms=forms,
        bytes=BATCH * TOKENS * heads * (6 * width + 5 * values) * make.size,
        flops=6 * pairs * (width + values),
    )


def _decode(config: FlashConfig, make: _Maker) -> Case:
    mla, heads = config.attention, config.attention.num_heads
    latent_width, rope = mla.kv_lora_rank, mla.qk_rope_head_dim
    shapes = [(BATCH, 1, heads, latent_width), (BATCH, 1, heads, rope)]
    q_latent, q_rope = (make(*shape).detach() for shape in shapes)
    latent, k_rope = (make(BATCH, CONTEXT, width).detach() for width in (latent_width, rope))
    scale = (mla.qk_nope_head_dim + rope) ** -0.5

    def einsum() -> Tensor:
        scores = torch.einsum("bthc,bsc->bhts", q_latent, latent)
        scores = scores + torch.einsum("bthr,bsr->bhts", q_rope, k_rope)
        weights = (scores.float() * scale).softmax(-1).to(latent.dtype)
        return torch.einsum("bhts,bsc->bthc", weights, latent)

    width = latent_width + rope
    return Case(
        op="mla_decode forward",
        shape=make.label(f"B={BATCH} S={CONTEXT} H={heads} {latent_width}+{rope}"),
        forms={
            "einsum": einsum,
            "eager": lambda: decode_eager.mla_decode(q_latent, q_rope, latent, k_rope, scale),
        },
        bytes=(BATCH * CONTEXT * width + BATCH * heads * (width + latent_width)) * make.size,
        flops=2 * BATCH * heads * CONTEXT * (width + latent_width),
    )

"""The Triton kernels beside torch at LongCat-Flash's decoding shapes, for `longcat bench kernels`.

On a CUDA device every form is captured as a graph that walks over several copies of its weights, so
that none is found in the cache, and the limits are measured in the same run. On a CPU the same
cases run at toy sizes in Triton's interpreter, and are compared, not timed.
"""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
import typer
from torch import Tensor

import longcat.kernels as kernels
from longcat.cli.benchmarks import timing
from longcat.cli.benchmarks.document import Clock, Columns, Row, rounded
from longcat.kernels.experts import eager as experts_eager

CACHE_BYTES = 60 * 2**20  # second-level cache of an H100 or H200
FACTOR = 64  # toy sizes: widths divided by this
FURTHEST = 0.03  # relative difference to torch: roundings to bfloat16, and to FP8 on both sides

COLUMNS: Columns = {
    "us": ("us", "{:,.1f}"),
    "spread_%": ("spread %", "{:,.0f}"),
    "TFLOP/s": ("TFLOP/s", "{:.1f}"),
    "GB/s": ("GB/s", "{:,.0f}"),
    "%_of_limit": ("% of limit", "{:.0f}"),
    "x_torch": ("x torch", "{:.2f}"),
    "difference": ("difference", "{:.1e}"),
}
Form = Callable[[int], object]  # the number of a copy -> what it computes


@dataclass(frozen=True, kw_only=True)
class Case:
    """One op at one shape: our form and torch's, on any of `copies` copies of the weights.

    bytes: operands and results moved once; flops: a multiplication and an addition are two.
    """

    op: str
    shape: str
    ours: Form
    theirs: Form
    copies: int
    bytes: float
    flops: float


class _Maker:
    """Seeded bfloat16 operands."""

    def __init__(self, device: str, toy: bool) -> None:
        self.device, self.toy = device, toy
        self.generator = torch.Generator(device).manual_seed(0)

    def __call__(self, *shape: int) -> Tensor:
        values = torch.randn(*shape, generator=self.generator, device=self.device)
        scaled: Tensor = values / math.sqrt(shape[-1])
        return scaled.bfloat16()

    def width(self, real: int) -> int:
        return max(real // FACTOR, 16) if self.toy else real

    def copies(self, nbytes: int) -> int:
        return 1 if self.toy else max(1, math.ceil(3 * CACHE_BYTES / nbytes))


def _in_triton(call: Callable[[], object]) -> object:
    with torch.no_grad(), kernels.use_backend("triton"):
        return call()


MATRICES = {
    "q_a": (1536, 6144), "kv_a": (576, 6144), "q_b": (12288, 1536), "o": (6144, 8192),
    "dense gate_up": (24576, 6144), "dense down": (6144, 12288), "lm_head": (131072, 6144),
}  # fmt: skip
TOKENS = (1, 8, 16, 32, 64)


def cases(device: str, *, toy: bool) -> Iterator[Case]:
    """Every case; at toy sizes a few of each kind."""
    make = _Maker(device, toy)
    for name in ("q_a", "o") if toy else MATRICES:
        for tokens in (3, 16) if toy else TOKENS:
            yield _linear(make, name, tokens)
    for tokens in (5,) if toy else (16, 64, 256):
        yield _experts(make, tokens)
    for batch, length in ((2, 40),) if toy else ((1, 4096), (32, 4096), (128, 8192)):
        yield _attention(make, batch, length)
    for tokens in (5,) if toy else (64, 8192):
        yield _norm(make, tokens)
        yield _route(make, tokens)


def _linear(make: _Maker, name: str, tokens: int) -> Case:
    outputs, inner = (make.width(size) for size in MATRICES[name])
    copies = make.copies(2 * outputs * inner)
    x, weights = make(tokens, inner), [make(outputs, inner) for _ in range(copies)]
    return Case(
        op=f"linear {name}",
        shape=f"{tokens}x{inner} by {outputs}",
        ours=lambda i: _in_triton(lambda: kernels.linear(x, weights[i])),
        theirs=lambda i: F.linear(x, weights[i]),
        copies=copies,
        bytes=2 * (outputs * inner + tokens * (outputs + inner)),
        flops=2 * tokens * outputs * inner,
    )


def _experts(make: _Maker, tokens: int) -> Case:
    n_ffn, identity, top_k = (8, 4, 3) if make.toy else (512, 256, 12)
    width, inner = make.width(6144), make.width(2048)
    logits = make(tokens, n_ffn + identity).float()
    indices = kernels.route(logits, torch.zeros_like(logits[0]), top_k, 1.0)[1]
    x = make(tokens, width)
    _, plan = kernels.permute(x, indices, n_ffn)
    gate_up, down = make(n_ffn, 2 * inner, width), make(n_ffn, width, inner)
    chosen = len(indices[indices < n_ffn].unique())
    slots = len(plan.tokens)
    operands = (x, gate_up, down, plan.offsets, plan.tokens)
    return Case(
        op="experts",
        shape=f"{tokens} tokens, {chosen} of {n_ffn} experts, D={width} F={inner}",
        ours=lambda i: _in_triton(lambda: kernels.experts(*operands)),
        theirs=lambda i: experts_eager.experts(*operands),
        copies=1,  # gigabytes: none of it stays in the cache
        bytes=2 * (3 * chosen * width * inner + slots * (2 * width + 2 * inner)),
        flops=6 * slots * width * inner,
    )


def _attention(make: _Maker, batch: int, length: int) -> Case:
    heads, latent, rope = (3, 32, 16) if make.toy else (64, 512, 64)
    page = 16 if make.toy else 64
    pages = -(-length // page)
    store = make(batch * pages, page, latent + rope)
    table = torch.arange(batch * pages, device=make.device).view(batch, pages)
    lengths = torch.full((batch,), length, device=make.device)
    q = make(batch, 1, heads, latent + rope)
    operands = (q[..., :latent], q[..., latent:], store, table, lengths, 0.1)
    return Case(
        op="paged_mla",
        shape=f"B={batch} L={length} H={heads} {latent}+{rope}",
        ours=lambda i: _in_triton(lambda: kernels.paged_mla(*operands)),
        theirs=lambda i: kernels.paged_mla(*operands),
        copies=1,
        bytes=2 * batch * (length * (latent + rope) + heads * (2 * latent + rope)),
        flops=2 * batch * heads * length * (2 * latent + rope),
    )


def _norm(make: _Maker, tokens: int) -> Case:
    width = make.width(6144)
    copies = make.copies(8 * tokens * width)
    xs, residuals = ([make(tokens, width) for _ in range(copies)] for _ in range(2))
    weight = make(width)
    return Case(
        op="add_rmsnorm",
        shape=f"{tokens}x{width}",
        ours=lambda i: _in_triton(
            lambda: kernels.add_rmsnorm(xs[i], residuals[i], weight, 1e-5)[0]
        ),
        theirs=lambda i: F.rms_norm(xs[i] + residuals[i], (width,), weight, 1e-5),
        copies=copies,
        bytes=8 * tokens * width,
        flops=13 * tokens * width,
    )


def _route(make: _Maker, tokens: int) -> Case:
    experts, top_k = (12, 3) if make.toy else (768, 12)
    logits, bias = 40 * make(tokens, experts).float(), torch.zeros(experts, device=make.device)
    return Case(
        op="fused_route",
        shape=f"{tokens}x{experts} top {top_k}",
        ours=lambda i: _in_triton(
            lambda: kernels.fused_route(logits, bias, top_k, 6.0, experts // 2)[2]
        ),
        theirs=lambda i: kernels.fused_route(logits, bias, top_k, 6.0, experts // 2)[2],
        copies=1,
        bytes=tokens * (8 * experts + 12 * top_k),
        flops=tokens * experts * (4 + 3 * top_k),
    )


def document(device: str, rounds: int) -> dict[str, Any]:
    """Run every case; the file's document."""
    clock = Clock()
    rows: list[Row] = []
    toy = device == "cpu"
    if toy:
        os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is first imported
    limit = {} if toy else limits()
    with timing.pinned_threads(1):
        machine = timing.machine(device)
        for case in cases(device, toy=toy):
            row = compared(case) if toy else timed(case, limit, rounds)
            rows.append({"form": "triton", **row})
            typer.echo(f"ran {case.op}, {case.shape}", err=True)
    graphs = "medians of replayed CUDA graphs over copies of the weights; spread: middle half"
    return clock.document(
        f"longcat bench kernels --decoding --device {device} --rounds {rounds}",
        "none: toy sizes in Triton's interpreter, compared with torch" if toy else graphs,
        **machine,
        limits=rounded(limit),
        rows=rows,
    )


def compared(case: Case) -> Row:
    """Our form against torch's, at toy sizes.

    Raises:
        ValueError: they differ by more than roundings do.
    """
    ours, theirs = case.ours(0), case.theirs(0)
    if not isinstance(ours, Tensor) or not isinstance(theirs, Tensor):
        raise TypeError(f"bench: {case.op} must return a tensor from both forms")
    error = float((ours.double() - theirs.double()).norm() / theirs.double().norm())
    if not error <= FURTHEST:
        raise ValueError(
            f"bench: {case.op} at {case.shape} differs from torch by {error:.2g}, expected at most "
            f"{FURTHEST}; run the tests of longcat.kernels"
        )
    return {"op": case.op, "shape": case.shape, "difference": float(f"{error:.2g}")}


def limits() -> dict[str, float]:
    """Bytes per second of a copy, and bfloat16 operations per second of a large product."""
    source = torch.empty(2**29, dtype=torch.bfloat16, device="cuda")
    target = torch.empty_like(source)
    square = torch.randn(8192, 8192, device="cuda").bfloat16()
    copied = _seconds(lambda i: target.copy_(source), 1, rounds=15)[0]
    multiplied = _seconds(lambda i: square @ square, 1, rounds=15)[0]
    return {"bytes/s": 2 * source.nbytes / copied, "flop/s": 2 * 8192**3 / multiplied}


def timed(case: Case, limit: dict[str, float], rounds: int) -> Row:
    """Our form and torch's in turns on a CUDA device, as one row of the table."""
    ours, spread = _seconds(case.ours, case.copies, rounds)
    theirs, _ = _seconds(case.theirs, case.copies, rounds)
    floor = max(case.bytes / limit["bytes/s"], case.flops / limit["flop/s"])
    figures = {
        "us": 1e6 * ours,
        "spread_%": 100 * spread,
        "TFLOP/s": case.flops / ours / 1e12,
        "GB/s": case.bytes / ours / 1e9,
        "%_of_limit": 100 * floor / ours,
        "x_torch": theirs / ours,
    }
    return {"op": case.op, "shape": case.shape, **rounded(figures)}


def _seconds(form: Form, copies: int, rounds: int) -> tuple[float, float]:
    """(median seconds of one call, middle half over it) of a captured walk over the copies."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        form(0)  # compiles outside the capture
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for copy in range(copies):
            form(copy)
    graph.replay()
    samples = []
    for _ in range(max(rounds, 3)):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        samples.append(begin.elapsed_time(end) / 1e3 / copies)
    low, middle, high = statistics.quantiles(samples, n=4)
    return middle, (high - low) / middle

"""Forms of an op that are captured as CUDA graphs, for `longcat bench kernels`.

On a CUDA device every form is captured as a graph that walks over several copies of its operands,
so that none is found in the cache; ours and torch's are replayed in turns, and the limits are
measured in the same run. On a CPU the same cases run at toy sizes in Triton's interpreter, and are
compared, not timed.
"""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import typer
from torch import Tensor

import longcat.kernels as kernels
from longcat.cli.benchmarks import timing
from longcat.cli.benchmarks.document import Clock, Columns, Row, rounded

CACHE_BYTES = 60 * 2**20  # second-level cache of an H100 or H200
FACTOR = 64  # toy sizes: widths divided by this
FURTHEST = 0.03  # relative difference to torch: roundings to bfloat16, and to FP8 on both sides

COLUMNS: Columns = {
    "us": ("us", "{:,.1f}"),
    "spread_%": ("spread\n%", "{:,.0f}"),
    "TFLOP/s": ("TFLOP/s", "{:.1f}"),
    "GB/s": ("GB/s", "{:,.0f}"),
    "%_of_limit": ("% of\nlimit", "{:.0f}"),
    "x_torch": ("x\ntorch", "{:.2f}"),
    "difference": ("difference", "{:.1e}"),
}
Form = Callable[[int], object]  # the number of a copy -> what it computes


@dataclass(frozen=True, kw_only=True)
class Case:
    """One op at one shape: our form and torch's, on any of `copies` copies of the weights.

    bytes: operands and results moved once; flops: a multiplication and an addition are two.
    captured: False where a form waits for a number from the device, which no graph can hold; such
    a pair is launched call by call, and its row says so.
    """

    op: str
    shape: str
    ours: Form
    theirs: Form
    copies: int
    bytes: float
    flops: float
    captured: bool = True


class Maker:
    """Seeded bfloat16 operands."""

    def __init__(self, device: str, toy: bool) -> None:
        self.device, self.toy = device, toy
        self.generator = torch.Generator(device).manual_seed(0)

    def __call__(self, *shape: int) -> Tensor:
        values = torch.randn(*shape, generator=self.generator, device=self.device)
        scaled: Tensor = values / math.sqrt(shape[-1])
        return scaled.bfloat16()

    def leaf(self, *shape: int) -> Tensor:
        """The same, requiring a gradient."""
        return self(*shape).requires_grad_()

    def width(self, real: int) -> int:
        return max(real // FACTOR, 16) if self.toy else real

    def copies(self, nbytes: int) -> int:
        """So many operands of nbytes that the caches hold none of them when its turn comes."""
        return 1 if self.toy else max(1, math.ceil(3 * CACHE_BYTES / max(nbytes, 1)))


def in_triton(call: Callable[[], object]) -> object:
    """The call by the Triton kernels."""
    with kernels.use_backend("triton"):
        return call()


def in_torch(form: Form) -> Form:
    """The form without those of them that a CUDA device takes unasked."""

    def run(copy: int) -> object:
        with kernels.use_backend("torch"):
            return form(copy)

    return run


def both_ways(
    function: Callable[..., Tensor | tuple[Tensor, ...]], sets: Sequence[Sequence[Tensor]]
) -> tuple[Form, Form]:
    """(by Triton, by torch): outputs and the gradients of their sum, on each copy's operands."""

    def run(copy: int) -> object:
        made = function(*sets[copy])
        outputs = [made] if isinstance(made, Tensor) else [out for out in made if out.requires_grad]
        pulls = [torch.ones_like(out) for out in outputs]
        return [*outputs, *torch.autograd.grad(outputs, sets[copy], pulls)]

    return lambda copy: in_triton(lambda: run(copy)), run


def document(
    cases: Callable[..., Iterator[Case]], option: str, device: str, rounds: int
) -> dict[str, Any]:
    """Run every case of a table; the file's document."""
    clock = Clock()
    rows: list[Row] = []
    toy = device == "cpu"
    if toy:
        os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is first imported
    limit, busy = ({}, {}) if toy else limits()
    with timing.pinned_threads(1):
        machine = timing.machine(device)
        for case in cases(device, toy=toy):
            row = compared(case) if toy else timed(case, limit, rounds)
            rows.append({"form": "triton" if case.captured or toy else "triton, launched", **row})
            typer.echo(f"ran {case.op}, {case.shape}", err=True)
    graphs = "medians of CUDA graphs, replayed in turns over copies that no cache holds; spread: "
    graphs += "middle half over the median"
    return clock.document(
        f"longcat bench kernels --{option} --device {device} --rounds {rounds}",
        "none: toy sizes in Triton's interpreter, compared with torch" if toy else graphs,
        **machine,
        limits=rounded(limit),
        **({} if toy else {"clocks under the large product": busy}),
        rows=rows,
    )


def compared(case: Case) -> Row:
    """Our form against torch's, at toy sizes.

    Raises:
        ValueError: they differ by more than roundings do.
    """
    ours, theirs = (_flat(form(0)) for form in (case.ours, in_torch(case.theirs)))
    error = max(float((a - b).norm() / b.norm()) for a, b in zip(ours, theirs, strict=True))
    if not error <= FURTHEST:
        raise ValueError(
            f"bench: {case.op} at {case.shape} differs from torch by {error:.2g}, expected at most "
            f"{FURTHEST}; run the tests of longcat.kernels"
        )
    return {"op": case.op, "shape": case.shape, "difference": float(f"{error:.2g}")}


def _flat(made: object) -> list[Tensor]:
    """What a form returned, a tensor or several of them, in float64."""
    tensors: list[Tensor] = [made] if isinstance(made, Tensor) else list(made)  # type: ignore[call-overload]
    return [tensor.detach().double() for tensor in tensors]


def limits() -> tuple[dict[str, float], dict[str, float]]:
    """Bytes per second of a copy, bfloat16 operations per second of a large product; and clocks.

    The clock rates are read while the product still runs: an idle GPU tells others.
    """
    source = torch.empty(2**29, dtype=torch.bfloat16, device="cuda")
    target = torch.empty_like(source)
    square = torch.randn(8192, 8192, device="cuda").bfloat16()
    copy, product = _captured(lambda i: target.copy_(source)), _captured(lambda i: square @ square)
    (copied, _), (multiplied, _) = _in_turns([copy, product], 1, rounds=15)
    for _ in range(500):  # more than half a second of work that nobody waits for
        product()
    busy = timing.clocks()
    torch.cuda.synchronize()
    return {"bytes/s": 2 * source.nbytes / copied, "flop/s": 2 * 8192**3 / multiplied}, busy


def timed(case: Case, limit: dict[str, float], rounds: int) -> Row:
    """Our form and torch's in turns on a CUDA device, as one row of the table."""
    made = _captured if case.captured else _launched
    walks = [made(form, case.copies) for form in (case.ours, in_torch(case.theirs))]
    (ours, spread), (theirs, _) = _in_turns(walks, case.copies, rounds)
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


def _captured(form: Form, copies: int = 1) -> Callable[[], None]:
    """A replay of the form's walk over the copies, as one graph."""
    with torch.cuda.stream(torch.cuda.Stream()):
        form(0)  # compiles outside the capture
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for copy in range(copies):
            form(copy)
    replay: Callable[[], None] = graph.replay
    return replay


def _launched(form: Form, copies: int) -> Callable[[], None]:
    """The same walk, launched by the host."""

    def walk() -> None:
        for copy in range(copies):
            form(copy)

    return walk


def _in_turns(
    walks: Sequence[Callable[[], None]], copies: int, rounds: int
) -> list[tuple[float, float]]:
    """(median seconds of one call, middle half over it) of each walk; they take turns."""
    samples: list[list[float]] = [[] for _ in walks]
    for turn in range(max(rounds, 3) + 1):
        for walk, taken in zip(walks, samples, strict=True):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            walk()
            end.record()
            torch.cuda.synchronize()
            if turn:  # the first warms up
                taken.append(begin.elapsed_time(end) / 1e3 / copies)
    quartiles = [statistics.quantiles(taken, n=4) for taken in samples]
    return [(middle, (high - low) / middle) for low, middle, high in quartiles]

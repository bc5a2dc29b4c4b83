"""The step as one graph: target, verification and draft, replayed with a single launch.

On a GPU a small step costs more to launch, kernel by kernel, than to compute. A step that never
waits for the host and whose shapes depend on the batch's alone can be captured once and replayed:
rows go into buffers of a fixed size, padded to the next power of two, as the pages of the longest
do; a row that pads has page 0, which is nobody's. There is a graph for every shape that occurs.

Steps that feed prompts, that edit logits, or that are judged by a rule of their own run uncaptured.

Shape legend: R rows, P pages, g drafts, W = g+1 places.

Source: report section 5 (target, verification and draft as one graph).
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from longcat.serve.acceptance import Drafts
from longcat.serve.latents import Latents
from longcat.serve.protocol import PagedModel
from longcat.serve.sampling import Sampler
from longcat.serve.step import Chunk, Outcome, Rows, step

log = logging.getLogger("longcat.serve")

Results = tuple[Outcome, Rows]
Record = Callable[[], Results]
# Makes a graph of what a function launches -> (replay it, the results that it will leave).
Capture = Callable[[Record], tuple[Callable[[], None], Results]]


class CudaCapture:
    """Captures CUDA graphs, which share one pool of memory: they are replayed one at a time."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, record: Record) -> tuple[Callable[[], None], Results]:
        """Launch it twice beside, so that nothing is left to be set up, then capture it."""
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(2):
                record()
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            results = record()
        return graph.replay, results


@dataclass(frozen=True, kw_only=True)
class Shape:
    """All that a graph is captured for: sizes, and what the sampler need not do."""

    rows: int
    pages: int
    drafts: int
    proposals: int
    extend: bool
    keep: bool
    greedy: bool
    mixed: bool
    filtered: bool


@dataclass(frozen=True, kw_only=True)
class _Captured:
    """A graph, the buffers it reads and the results it leaves."""

    inputs: Rows
    replay: Callable[[], None]
    results: Results


class StepGraphs:
    """`longcat.serve.step.step` for rows alone, by replaying what was captured.

    Args:
        model, latents: as of `step`.
        capture: makes a graph of a step.

    Attributes: shapes (those that have been captured).
    """

    def __init__(self, model: PagedModel, latents: Latents, capture: Capture) -> None:
        self._model = model
        self._latents = latents
        self._capture = capture
        self._captured: dict[Shape, _Captured] = {}
        self._refused = False

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """What graphs there are."""
        return tuple(self._captured)

    def takes(self, rows: Rows, chunks: Sequence[Chunk]) -> bool:
        """Whether this step is one that is captured."""
        special = (rows.rules, rows.penalties, rows.allowed, rows.top)
        plain = all(thing is None for thing in special)
        return plain and not chunks and len(rows.last) > 0 and not self._refused

    def step(self, rows: Rows, *, proposals: int, extend: bool, keep: bool) -> Results:
        """As `step`, of rows that this `takes`."""
        sampler = rows.sampler
        shape = Shape(
            rows=_rounded(len(rows.last)),
            pages=_rounded(rows.table.shape[1]),
            drafts=rows.drafts.count,
            proposals=proposals,
            extend=extend,
            keep=keep,
            greedy=sampler.greedy,
            mixed=sampler.mixed,
            filtered=sampler.filtered,
        )
        if shape not in self._captured:
            try:
                self._captured[shape] = self._new(shape, rows)
            except RuntimeError as error:
                log.warning("a step cannot be captured as a graph, and runs without: %s", error)
                self._refused = True
                return step(
                    self._model, self._latents, rows, proposals=proposals, extend=extend, keep=keep
                )
        captured = self._captured[shape]
        with torch.inference_mode():
            _fill(captured.inputs, rows)
            captured.replay()
            return _taken(captured.results, rows)

    def _new(self, shape: Shape, like: Rows) -> _Captured:
        with torch.inference_mode():
            inputs = _buffers(shape, like)

        def record() -> Results:
            return step(
                self._model,
                self._latents,
                inputs,
                proposals=shape.proposals,
                extend=shape.extend,
                keep=shape.keep,
            )

        replay, results = self._capture(record)
        return _Captured(inputs=inputs, replay=replay, results=results)


def graphs_for(model: PagedModel, latents: Latents, wanted: bool | None) -> StepGraphs | None:
    """Graphs of a model's steps; None on a CPU, and where they are not wanted.

    wanted: None takes them in bfloat16 alone, the one type that torch multiplies groups of rows of
    without a look at their sizes.
    """
    layout = model.latent_layout
    if layout.device.type != "cuda":
        return None
    wanted = layout.dtype == torch.bfloat16 if wanted is None else wanted
    return StepGraphs(model, latents, CudaCapture()) if wanted else None


_COLUMNS = [field.name for field in fields(Sampler) if field.type is Tensor]


def _buffers(shape: Shape, like: Rows) -> Rows:
    """Zeros: rows that have no page and stand nowhere."""

    def zeros(of: Tensor, *rest: int) -> Tensor:
        return of.new_zeros(shape.rows, *rest)

    columns: dict[str, Any] = {n: zeros(getattr(like.sampler, n), 1) for n in _COLUMNS}
    return Rows(
        table=zeros(like.table, shape.pages),
        lengths=zeros(like.lengths),
        last=zeros(like.last),
        speculate=zeros(like.speculate),
        drafts=Drafts(
            tokens=zeros(like.drafts.tokens, shape.drafts), usable=zeros(like.drafts.usable)
        ),
        sampler=replace(like.sampler, **columns),
    )


def _fill(buffers: Rows, rows: Rows) -> None:
    """Put rows into the buffers, and nothing behind them."""
    pairs = [
        (buffers.table, rows.table),
        (buffers.lengths, rows.lengths),
        (buffers.last, rows.last),
        (buffers.speculate, rows.speculate),
        (buffers.drafts.tokens, rows.drafts.tokens),
        (buffers.drafts.usable, rows.drafts.usable),
        *((getattr(buffers.sampler, name), getattr(rows.sampler, name)) for name in _COLUMNS),
    ]
    for buffer, values in pairs:
        buffer.zero_()
        buffer[tuple(slice(size) for size in values.shape)].copy_(values)


def _taken(results: Results, rows: Rows) -> Results:
    """The rows' own part of the results, copied: the next replay writes over them."""
    outcome, after = results
    count = len(rows.last)
    drafts = Drafts(
        tokens=after.drafts.tokens[:count].clone(), usable=after.drafts.usable[:count].clone()
    )
    taken = replace(
        outcome,
        tokens=outcome.tokens[:count].clone(),
        accepted=outcome.accepted[:count].clone(),
        finite=outcome.finite[:count].clone(),
        drafts=drafts,
    )
    lengths, last = after.lengths[:count].clone(), after.last[:count].clone()
    return taken, replace(rows, lengths=lengths, last=last, drafts=drafts)


def _rounded(count: int) -> int:
    return 1 << max(count - 1, 0).bit_length()

"""`longcat demo kernels`: one decoding step's experts as tiles of the tensor core, and the waste.

Tokens choose experts at random; each expert's rows become blocks, as rows of the tensor core or as
its columns. Every cell of a drawing is eight rows that the tensor core multiplies, and its digit
says how many of them hold a token; most hold none. Then the Triton kernel runs in its interpreter,
and a probe counts what it reads.
"""

import importlib.util
import os
from collections.abc import Iterator

import torch
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

import longcat.kernels as kernels
from longcat.cli.ui.page import Page, Question, Verdict, source_line
from longcat.kernels.experts.tiles import choose_tile, most_blocks
from longcat.kernels.linear.tiles import Tile
from longcat.kernels.proof.roofline import COPY, PRODUCT

TOKENS = 64  # of a decoding step
EXPERTS, IDENTITY, TOP_K = 512, 256, 12  # the model's
GRANULES = {"tokens as rows, 64": 64, "as columns, 16": 16, "as columns, 8": 8}
_SHOWN = 24  # experts drawn
WIDTH, INNER = 6144, 2048  # of the model, and of an expert
# The probed run is small: the interpreter takes milliseconds per block.
_SMALL = (12, 16, 8, 3)  # tokens, FFN experts, identity experts, choices

PAGE = Page(
    name="kernels",
    title="SwapAB: a few tokens beside a large weight",
    claim=(
        "In decoding an expert receives one or two tokens. Hopper's matrix instruction multiplies "
        "64 rows by any multiple of 8 columns. With the weight on the left the tokens are the "
        "columns, padded to eights instead of to 64; the weight is read once as before."
    ),
    formula=(
        "Y = X W^T        tokens are rows      padded to 64",
        "Y^T = W X^T      tokens are columns   padded to 8",
    ),
    source="LongCat-Flash report, inference: SwapAB in the experts' GEMM",
    question=Question(
        text="64 tokens choose 12 of 768 experts, 512 of which compute. What part of the tensor "
        "core's rows holds a token when they are padded to 64?",
        options={"a": "about a third", "b": "about a tenth", "c": "about a fortieth"},
        answer="c",
        reason=(
            "The tokens reach about 325 experts, with 1.6 rows each. Padded to 8 it is a fifth; "
            "the time is that of reading 325 experts' weights in either case."
        ),
    ),
    read_next={
        "tiles": source_line(choose_tile),
        "kernel": "packages/kernels/src/longcat/kernels/experts/triton_kernel.py",
        "tutorial": "longcat tutorial 08",
    },
)


class KernelsDemo:
    """The walkthrough; see `longcat.cli.ui.page.Walkthrough`. seed decides who chooses whom."""

    page = PAGE

    def __init__(self, seed: int = 0, tokens: int = TOKENS) -> None:
        self.seed, self.tokens = seed, tokens
        self.counts = _counts(seed, tokens, EXPERTS, IDENTITY, TOP_K)
        self.drawn: dict[str, list[int]] = {name: [] for name in GRANULES}
        self.read: dict[str, float] = {}
        self.off = 0.0

    def frames(self) -> Iterator[RenderableType]:
        """Experts one after another, then the probed run."""
        busy = [count for count in self.counts if count]
        for place, count in enumerate(busy):
            for name, granule in GRANULES.items():
                self.drawn[name].append(-(-count // granule) * granule)
            if place < _SHOWN or place == len(busy) - 1:
                yield self._frame(f"{place + 1} of {len(busy)} experts that were chosen")
        self._probe()
        yield self._frame(f"{len(busy)} of {EXPERTS} experts were chosen")

    def _probe(self) -> None:
        """Run the kernel on a small mixture, and count what it reads of the experts' weights."""
        os.environ.setdefault("TRITON_INTERPRET", "1")
        if not interpreter_runs():
            return
        from longcat.kernels.experts import triton_kernel
        from longcat.kernels.proof.interpreter import repair
        from longcat.kernels.proof.probe import probed

        repair()
        tokens, n_ffn, identity, top_k = _SMALL
        generator = torch.Generator().manual_seed(self.seed)
        logits = torch.randn(tokens, n_ffn + identity, generator=generator)
        indices = kernels.route(logits, torch.zeros(n_ffn + identity), top_k, 1.0)[1]
        x = torch.randn(tokens, 32, generator=generator).bfloat16()
        gate_up = torch.randn(n_ffn, 32, 32, generator=generator).bfloat16() / 6
        down = torch.randn(n_ffn, 32, 16, generator=generator).bfloat16() / 4
        _, plan = kernels.permute(x, indices, n_ffn)
        tile = Tile(swap=True, outputs=16, tokens=8, inner=32, warps=4, stages=3)
        with probed() as probe:
            y = triton_kernel.with_tile(x, gate_up, down, plan.offsets, plan.tokens, tile)
        probe.check_written_once()
        ends = plan.offsets.tolist()
        sizes = [end - start for start, end in zip([0, *ends], ends, strict=False)]
        blocks = sum(-(-size // tile.tokens) for size in sizes)
        self.read = {
            "weights": probe.loaded(gate_up) / (blocks * gate_up[0].nbytes),
            "chosen": sum(size > 0 for size in sizes) / n_ffn,
            "of all": probe.loaded(gate_up) / gate_up.nbytes,
        }
        want = kernels.experts(x, gate_up, down, plan.offsets, plan.tokens)
        self.off = float((y.float() - want.float()).norm() / want.float().norm())

    def useful(self, name: str) -> float:
        """Rows that hold a token over rows multiplied, of the experts drawn so far."""
        drawn = self.drawn[name]
        busy = [count for count in self.counts if count][: len(drawn)]
        return sum(busy) / max(sum(drawn), 1)

    def _frame(self, doing: str) -> RenderableType:
        busy = [count for count in self.counts if count]
        parts: list[RenderableType] = []
        for name, rows in self.drawn.items():
            parts.append(
                Text(f"{name}: {self.useful(name):.1%} of the work is on a token", "title")
            )
            parts.append(_tiles(busy, rows[:_SHOWN]))
        shown = f"the first {_SHOWN} experts; a cell is eight rows, its digit the tokens in them"
        return Padding(Group(*parts, Text(shown, "note"), Text(doing, "dim")), (0, 2))

    def details(self) -> RenderableType:
        """Rows multiplied in each way for all experts, and the time beside that of the weights."""
        table = Table(box=None, padding=(0, 3, 0, 0), pad_edge=False, header_style="dim")
        table.add_column("blocks")
        for heading in ("rows multiplied", "useful", "multiplying", "reading"):
            table.add_column(heading, justify="right", no_wrap=True)
        for name, rows in self.drawn.items():
            multiplying, reading = self.floors(name)
            times = f"{1e3 * multiplying:.2f} ms", f"{1e3 * reading:.2f} ms"
            table.add_row(name, f"{sum(rows):,}", f"{self.useful(name):.1%}", *times)
        limits = (
            f"at the {PRODUCT / 1e12:.0f} TFLOP/s and {COPY / 1e12:.1f} TB/s measured on an H200: "
            "the longer of the two is the limit"
        )
        return Group(table, Text(limits, "note"))

    def floors(self, name: str) -> tuple[float, float]:
        """Seconds that the multiplications and the read of the chosen weights take at least."""
        numbers = 3 * WIDTH * INNER  # of an expert
        busy = sum(count > 0 for count in self.counts)
        return 2 * sum(self.drawn[name]) * numbers / PRODUCT, 2 * busy * numbers / COPY

    def verdicts(self) -> list[Verdict]:
        """Padding, the work list's bound, and what the probed kernel read."""
        rows, columns = self.useful("tokens as rows, 64"), self.useful("as columns, 8")
        slots, busy = sum(self.counts), sum(count > 0 for count in self.counts)
        slowest, reading = self.floors("tokens as rows, 64")
        tile = choose_tile(slots, EXPERTS)
        blocks = sum(-(-count // tile.tokens) for count in self.counts)
        room = most_blocks(slots, EXPERTS, tile)
        verdicts = [
            Verdict(
                claim="columns waste less than rows",
                measured=f"{columns:.1%} useful, {rows:.1%} as rows",
                published="12 tokens: 16, not 64",
                holds=columns > 4 * rows,
            ),
            Verdict(
                claim="reading is the limit in all of them",
                measured=f"{1e3 * reading:.1f} ms, at most {1e3 * slowest:.1f} multiplying",
                published="not published",
                holds=reading > slowest,
            ),
            Verdict(
                claim="the work list has room, no host asked",
                measured=f"{blocks} blocks, room for {room}",
                published="not published",
                holds=busy <= blocks <= room,
            ),
        ]
        if self.read:
            verdicts.append(
                Verdict(
                    claim="only chosen experts are read, once",
                    measured=f"{self.read['of all']:.0%} of the weights, "
                    f"{self.read['chosen']:.0%} chosen",
                    published="probed, 12 tokens",
                    holds=self.read["weights"] == 1.0 and self.off < 0.01,
                )
            )
        return verdicts

    def summary(self) -> dict[str, object]:
        """What was measured, for `--json`."""
        return {
            "seed": self.seed,
            "tokens": self.tokens,
            "experts_chosen": sum(count > 0 for count in self.counts),
            "useful": {name: self.useful(name) for name in GRANULES},
            "seconds_at_least": {
                name: dict(zip(("multiplying", "reading"), self.floors(name), strict=True))
                for name in GRANULES
            },
            "read": self.read,
        }


def interpreter_runs() -> bool:
    """Whether Triton is here and this process interprets its kernels."""
    if os.environ.get("TRITON_INTERPRET") != "1" or not importlib.util.find_spec("triton"):
        return False
    return not torch.cuda.is_available()


def _counts(seed: int, tokens: int, n_ffn: int, identity: int, top_k: int) -> list[int]:
    """Rows of each FFN expert when tokens choose evenly at random."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(tokens, n_ffn + identity, generator=generator)
    chosen = scores.topk(top_k, dim=1).indices.flatten()
    counts: list[int] = torch.bincount(chosen[chosen < n_ffn], minlength=n_ffn).tolist()
    return counts


def _tiles(counts: list[int], rows: list[int]) -> Text:
    """A column per expert would be wide; a group of cells per expert, eight rows a cell."""
    drawing = Text()
    for count, padded in zip(counts, rows, strict=False):
        cells = [min(max(count - first, 0), 8) for first in range(0, padded, 8)]
        for held in cells:
            drawing.append(str(held) if held else ".", "ffn" if held else "zero")
        drawing.append(" ")
    return drawing

"""What every op must move and compute at LongCat-Flash's sizes, and the least time of it.

`python -m longcat.kernels.proof.roofline --write FILE` writes the table; it is committed, and a
test compares it with what this file computes. Operands and results are moved once, in bfloat16
where nothing else is said; a multiplication and an addition are two operations. The least time is
the longer of the two at the rates that were measured on an H200, by a large copy and by cuBLAS.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

COPY, PRODUCT = 4.3e12, 788e12  # bytes and bfloat16 operations per second
D, DENSE, EXPERT, V = 6144, 12288, 2048, 131072
N, Z, K = 512, 256, 12
H, C, R, NOPE, VALUES = 64, 512, 64, 128, 128
DECODING, TRAINING = 64, 8192  # tokens of a step


@dataclass(frozen=True, kw_only=True)
class Row:
    """One op at one shape: bytes moved once, operations."""

    op: str
    shape: str
    moved: float
    flops: float

    @property
    def per_byte(self) -> float:
        """Operations per byte; the rates' own ratio is the ridge between the two limits."""
        return self.flops / self.moved

    @property
    def seconds(self) -> float:
        """The least time."""
        return max(self.moved / COPY, self.flops / PRODUCT)

    @property
    def limit(self) -> str:
        """What takes that time."""
        return "memory" if self.moved / COPY >= self.flops / PRODUCT else "arithmetic"


def rows() -> Iterator[Row]:
    """Every op that runs on one GPU."""
    yield from _decoding()
    yield from _training()


def _decoding() -> Iterator[Row]:
    t = DECODING
    for name, outputs, inner in (("kv_a", C + R, D), ("o", D, H * VALUES), ("lm_head", V, D)):
        yield Row(
            op="linear",
            shape=f"{name}, {t} tokens",
            moved=2 * (outputs * inner + t * (outputs + inner)),
            flops=2 * t * outputs * inner,
        )
    yield Row(
        op="fp8",
        shape=f"dense gate_up, {t} tokens",
        moved=2 * DENSE * D + t * (D + 4 * 2 * DENSE) + 4 * 2 * DENSE * D / 128**2,
        flops=2 * t * 2 * DENSE * D,
    )
    for tokens in (t, 512):
        slots = tokens * K * N / (N + Z)
        chosen = N * (1 - (1 - K / (N + Z)) ** tokens)
        yield Row(
            op="experts",
            shape=f"{tokens} tokens, {chosen:.0f} experts of {slots / chosen:.1f} rows",
            moved=2 * (3 * chosen * D * EXPERT + slots * (2 * D + 2 * EXPERT)),
            flops=6 * slots * D * EXPERT,
        )
    for new in (1, 2):
        batch, length = 32, 4096
        yield Row(
            op="paged_mla",
            shape=f"{batch} x {length} cached, {new} new",
            moved=2 * batch * (length * (C + R) + new * H * (2 * C + R)),
            flops=2 * batch * new * H * length * (2 * C + R),
        )
    yield Row(
        op="mla_decode",
        shape="1 x 4096 cached, 1 new",
        moved=2 * (4096 * (C + R) + H * (2 * C + R)),
        flops=2 * H * 4096 * (2 * C + R),
    )
    yield Row(
        op="latent_write",
        shape=f"{t} tokens",
        moved=t * (4 * (C + R) + 16),
        flops=t * (5 * C + 6 * R),
    )
    yield Row(op="sampling", shape=f"keep_top, {t} rows", moved=8 * t * V, flops=3 * t * V)
    yield Row(op="sampling", shape=f"verify, {t} requests", moved=12 * t * V, flops=3 * t * V)


def _training() -> Iterator[Row]:
    t = TRAINING
    slots = t * K * N // (N + Z)
    for op, width, numbers, flops in (
        ("rmsnorm", D, 5, 12),
        ("add_rmsnorm", D, 8, 27),
        ("swiglu", DENSE, 8, 15),
        ("hidden_z_loss", D, 3, 10),
        ("rope", H * R, 4, 6),
    ):
        yield Row(
            op=op,
            shape=f"{t} tokens, both ways",
            moved=2 * numbers * t * width,
            flops=flops * t * width,
        )
    yield Row(
        op="route",
        shape=f"{t} tokens, both ways",
        moved=t * (20 * (N + Z) + 28 * K),
        flops=t * (N + Z) * (9 + 3 * K),
    )
    yield Row(
        op="permute",
        shape=f"permute, {slots} rows, both ways",
        moved=4 * (t + slots) * D + 24 * t * K,
        flops=slots * D,
    )
    yield Row(
        op="permute",
        shape=f"combine, {slots} rows, both ways",
        moved=2 * (3 * slots + 5 * t) * D,
        flops=6 * (slots + t) * D,
    )
    yield Row(
        op="experts",
        shape=f"{slots} rows, both ways",
        moved=2 * (9 * N * D * EXPERT + 4 * slots * D),
        flops=18 * slots * D * EXPERT,
    )
    width = NOPE + R
    yield Row(
        op="mla_prefill",
        shape=f"{t} tokens, both ways",
        moved=2 * t * H * 6 * (width + VALUES),
        flops=t**2 * H * (4 * width + 3 * VALUES),
    )
    yield Row(op="cross_entropy", shape=f"{t} tokens", moved=4 * t * V, flops=9 * t * V)
    yield Row(op="scatter_add", shape=f"{t} rows to {V}", moved=2 * (t + V) * D, flops=t * D)
    yield Row(op="adamw", shape="a billion weights", moved=28e9, flops=12e9)


def table() -> str:
    """The committed page."""
    head = [
        "# Roofline",
        "",
        "Made by `make codegen` from `roofline.py`: what each op must move and compute at "
        "LongCat-Flash's sizes, and the least time of it",
        f"at {COPY / 1e12:.1f} TB/s and {PRODUCT / 1e12:.0f} TFLOP/s, measured on an H200 by a "
        f"copy and a large product: {PRODUCT / COPY:.0f} operations per byte are the ridge.",
        "No kernel was timed for this table. `int8_linear` runs on a CPU alone, and what limits "
        "`multimem` is a link.",
        "",
        "| op | shape | MB | GFLOP | per byte | limit | least us |",
        "|---|---|---:|---:|---:|---|---:|",
    ]
    lines = [
        f"| {row.op} | {row.shape} | {_figure(row.moved / 1e6)} | {_figure(row.flops / 1e9)} | "
        f"{_figure(row.per_byte)} | {row.limit} | {_figure(1e6 * row.seconds)} |"
        for row in rows()
    ]
    return "\n".join([*head, *lines, ""])


def _figure(value: float) -> str:
    """Two digits below ten, whole numbers from a hundred on."""
    if value < 10:
        return f"{value:.2g}"
    return f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m longcat.kernels.proof.roofline")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the table to FILE")
    options = parser.parse_args()
    if options.write:
        options.write.write_text(table(), encoding="utf-8")
    else:
        print(table())


if __name__ == "__main__":
    main()

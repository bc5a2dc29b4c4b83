"""Orientation and tile of the grouped products, by the rows that an expert has on average.

At LongCat-Flash's sizes 64 tokens reach 325 of 512 experts with 1.6 rows each: the weights are read
once and the tokens cost nothing but their padding. NOT YET MEASURED ON A GPU, see linear/tiles.py.
"""

from __future__ import annotations

from longcat.kernels.linear.tiles import Tile

# (up to this many rows per expert, tile), first fit.
ROWS: tuple[tuple[int, Tile], ...] = (
    (8, Tile(swap=True, outputs=64, tokens=8, inner=128, warps=4, stages=3)),
    (16, Tile(swap=True, outputs=64, tokens=16, inner=128, warps=4, stages=3)),
    (32, Tile(swap=True, outputs=64, tokens=32, inner=64, warps=4, stages=4)),
    (80, Tile(swap=True, outputs=64, tokens=64, inner=64, warps=4, stages=4)),
)
LARGE = Tile(swap=False, outputs=64, tokens=128, inner=64, warps=8, stages=3)
PROGRAMS_PER_PROCESSOR = 2


def choose_tile(slots: int, experts: int) -> Tile:
    """The tile for so many rows spread over so many experts; known without asking the device."""
    mean = slots / max(experts, 1)
    return next((tile for most, tile in ROWS if mean <= most), LARGE)


def most_blocks(slots: int, experts: int, tile: Tile) -> int:
    """How many blocks of rows there can be: each expert's last one may be partly empty."""
    return min(slots, slots // tile.tokens + experts)

"""Which side of the tensor core the queries of a decoding step stand on, and how keys are split.

A sequence's W*H queries share its latents. Up to 32 of them are the columns of wgmma, padded to 16
or 32; 64 fill its rows. NOT YET MEASURED ON A GPU: the boundary follows from registers, since the
plain form of 64 rows holds 64 x 512 float32 sums and needs nearly all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from longcat.kernels.linear.tiles import PROCESSORS


@dataclass(frozen=True, kw_only=True)
class Tile:
    """A block of queries by a block of keys; swap: the queries are the columns."""

    swap: bool
    queries: int
    keys: int
    warps: int
    stages: int


# (up to this many queries, tile), first fit.
ROWS: tuple[tuple[int, Tile], ...] = (
    (16, Tile(swap=True, queries=16, keys=64, warps=4, stages=2)),
    (32, Tile(swap=True, queries=32, keys=64, warps=8, stages=2)),
)
LARGE = Tile(swap=False, queries=64, keys=64, warps=8, stages=2)
FEWEST_KEYS = 256  # of a split: less is not worth its part of the merge
MOST_SPLITS = 64


def choose_tile(queries: int) -> Tile:
    """The tile for so many queries of one sequence."""
    return next((tile for most, tile in ROWS if queries <= most), LARGE)


def splits_for(blocks: int, most_keys: int) -> int:
    """Programs that share one block's keys: twice the processors' worth, if the keys suffice."""
    wanted = max(2 * PROCESSORS // max(blocks, 1), 1)
    return max(min(wanted, most_keys // FEWEST_KEYS, MOST_SPLITS), 1)

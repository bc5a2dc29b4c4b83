"""Orientation and tile of a product y[t, n] = sum_k x[t, k] w[n, k] on Hopper's tensor cores.

A warpgroup's matrix instruction (wgmma) takes 64 rows on its left and any multiple of 8 columns on
its right. With few tokens the weight belongs on the left (*SwapAB*): the tokens are then padded to
8, 16 or 32 instead of to 64. With many tokens the plain orientation has the larger tile.

NOT YET MEASURED ON A GPU: the boundaries below follow from the instruction's shape and from
counting bytes, not from timings. What each row compiles to is in proof/generated_code.md. Triton
3.6 and 3.7 have no wgmma with 8 columns; that row compiles to mma.sync m16n8k16, and needs it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

PROCESSORS = 132  # streaming multiprocessors of an H100 or H200


@dataclass(frozen=True, kw_only=True)
class Tile:
    """A block of the product.

    swap: the weight is the left operand of the tensor core, the tokens are its columns.
    outputs, tokens, inner: sizes of the block along n, t and k.
    splits: programs that share one block's sum over k; each adds its part in float32.
    """

    swap: bool
    outputs: int
    tokens: int
    inner: int
    warps: int
    stages: int
    splits: int = 1

    def constants(self, inner: int) -> dict[str, int | bool]:
        """What a kernel is compiled with for a sum over `inner` numbers."""
        return {
            "SWAP": self.swap,
            "BLOCK_N": self.outputs,
            "BLOCK_T": self.tokens,
            "BLOCK_K": self.inner,
            "EVEN": inner % self.inner == 0,
        }


# (up to this many tokens, tile), first fit.
ROWS: tuple[tuple[int, Tile], ...] = (
    (8, Tile(swap=True, outputs=64, tokens=8, inner=128, warps=4, stages=4)),
    (16, Tile(swap=True, outputs=64, tokens=16, inner=128, warps=4, stages=4)),
    (32, Tile(swap=True, outputs=64, tokens=32, inner=128, warps=4, stages=4)),
    (64, Tile(swap=True, outputs=64, tokens=64, inner=64, warps=4, stages=4)),
    (128, Tile(swap=False, outputs=128, tokens=64, inner=64, warps=4, stages=4)),
)
LARGE = Tile(swap=False, outputs=128, tokens=128, inner=64, warps=8, stages=3)
MOST_SPLITS = 8
FEWEST_STEPS = 4  # blocks along k that a split must have left to itself


def choose_tile(tokens: int, outputs: int, inner: int) -> Tile:
    """The tile for x [tokens, inner] and a weight [outputs, inner], splits included.

    A sum over k is split, in powers of two, while its blocks would leave processors without work:
    1536 outputs are only 24 blocks of 64.
    """
    tile = next((tile for most, tile in ROWS if tokens <= most), LARGE)
    blocks = -(-outputs // tile.outputs) * -(-tokens // tile.tokens)
    steps = -(-inner // tile.inner)
    splits = 1
    while (
        2 * splits <= MOST_SPLITS
        and 2 * splits * blocks <= 2 * PROCESSORS
        and steps // (2 * splits) >= FEWEST_STEPS
    ):
        splits *= 2
    return replace(tile, splits=splits)


def padded(tokens: int, tile: Tile) -> int:
    """Token rows that the tensor core multiplies for so many real ones."""
    return -(-tokens // tile.tokens) * tile.tokens

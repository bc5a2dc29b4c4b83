"""SwapAB for up to eight tokens, spelled out in Gluon: what Triton decides for you, by hand.

Plain Triton 3.6 and 3.7 have no wgmma of 8 columns and fall back to mma.sync. Here the layouts, the
shared memory, the copies and the waiting are written down, and the instruction is m64n8k16:

- TMA copies whole tiles, one instruction each, from descriptors that know the tensors' shapes and
  fill what lies outside with zeros;
- a ring of tiles, each with an mbarrier that counts the bytes still to come; its phase flips every
  time the tile is filled anew;
- wgmma reads both operands from shared memory and adds in registers, asynchronously; a tile may be
  refilled when the product that read it is done.

Gluon has no interpreter, so this kernel is compiled and its instructions are asserted, and that is
all: its numbers were never checked, for that needs a GPU. The dispatcher does not use it.
"""

# Kernels are read by Gluon's compiler, not by mypy.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

from collections.abc import Iterator

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from longcat.kernels.proof.configuration import Configuration

# Renamed between the versions that are supported.
_copy_in = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared

OUTPUTS, TOKENS, INNER = 64, 8, 64  # 64 numbers of bfloat16 are the 128 bytes that TMA swizzles
STAGES = 6


@gluon.jit
def swap_ab(
    weight,  # descriptor of [outputs, inner] in tiles of [OUTPUTS, INNER]
    x,  # descriptor of [tokens, inner] in tiles of [TOKENS, INNER]
    y_ptr,
    tokens,
    outputs,
    inner,
    OUTPUTS: gl.constexpr,
    TOKENS: gl.constexpr,
    INNER: gl.constexpr,
    STAGES: gl.constexpr,
):
    """y[t, n] = sum_k x[t, k] weight[n, k] for one block of outputs and one of tokens."""
    first_n = gl.program_id(0) * OUTPUTS
    first_t = gl.program_id(1) * TOKENS
    steps = gl.cdiv(inner, INNER)
    weights = gl.allocate_shared_memory(gl.bfloat16, [STAGES, OUTPUTS, INNER], weight.layout)
    xs = gl.allocate_shared_memory(gl.bfloat16, [STAGES, TOKENS, INNER], x.layout)
    ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for stage in gl.static_range(STAGES):
        mbarrier.init(ready.index(stage), count=1)
    fence_async_shared()

    # Fill the ring but for one tile: the loop refills a tile one step after it was used.
    for stage in gl.static_range(STAGES - 1):
        wanted = stage < steps
        mbarrier.expect(ready.index(stage), (OUTPUTS + TOKENS) * INNER * 2, pred=wanted)
        _copy_in(weight, [first_n, stage * INNER], ready.index(stage), weights.index(stage), wanted)
        _copy_in(x, [first_t, stage * INNER], ready.index(stage), xs.index(stage), wanted)

    # The sums: 64 outputs by 8 tokens over the four warps of a warpgroup.
    sums: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, TOKENS, 16]
    )
    total = gl.zeros([OUTPUTS, TOKENS], dtype=gl.float32, layout=sums)
    for step in range(steps):
        place = step % STAGES
        mbarrier.wait(ready.index(place), (step // STAGES) & 1)
        # x lies as [tokens, inner]; the right operand is read as its transpose, in place.
        total = warpgroup_mma(
            weights.index(place), xs.index(place).permute((1, 0)), total, is_async=True
        )
        # All but this product are done, so the tile of the step before may be filled again.
        total = warpgroup_mma_wait(num_outstanding=1, deps=(total,))
        coming = step + STAGES - 1
        there = coming % STAGES
        wanted_later = coming < steps
        mbarrier.expect(ready.index(there), (OUTPUTS + TOKENS) * INNER * 2, pred=wanted_later)
        _copy_in(
            weight, [first_n, coming * INNER], ready.index(there), weights.index(there),
            wanted_later,
        )  # fmt: skip
        _copy_in(x, [first_t, coming * INNER], ready.index(there), xs.index(there), wanted_later)
    total = warpgroup_mma_wait(num_outstanding=0, deps=(total,))
    for stage in gl.static_range(STAGES):
        mbarrier.invalidate(ready.index(stage))

    n = first_n + gl.arange(0, OUTPUTS, layout=gl.SliceLayout(1, sums))
    t = first_t + gl.arange(0, TOKENS, layout=gl.SliceLayout(0, sums))
    places = t.to(gl.int64)[None, :] * outputs + n[:, None]
    inside = (t < tokens)[None, :] & (n < outputs)[:, None]
    gl.store(y_ptr + places, total.to(gl.bfloat16), mask=inside)


def configurations() -> Iterator[Configuration]:
    """The eight tokens that plain Triton cannot give to wgmma."""
    layout = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    yield Configuration(
        kernel=swap_ab,
        name=f"linear gluon {OUTPUTS}x{TOKENS}x{INNER}",
        types={
            "weight": f"tensordesc<bf16[{OUTPUTS}, {INNER}],{layout!r}>",
            "x": f"tensordesc<bf16[{TOKENS}, {INNER}],{layout!r}>",
        },
        constants={"OUTPUTS": OUTPUTS, "TOKENS": TOKENS, "INNER": INNER, "STAGES": STAGES},
        divisible=("outputs", "inner"),
        needs=(f"HGMMA.64x{TOKENS}x16", "UTMALDG.2D"),
        forbids=("HMMA", "LDG.E"),
        gluon=True,
    )

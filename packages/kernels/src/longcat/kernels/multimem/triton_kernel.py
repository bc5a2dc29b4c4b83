"""Collectives in the NVLink switch: multimem.ld_reduce sums on the way in, multimem.st multicasts.

One instruction moves 16 bytes, a *unit*: 8 bfloat16 or 4 float32 numbers, in four registers. Four
blocks of 1024 threads do it all. Between the steps stands a barrier of counters: a program adds one
to its counter at every rank with `release`, then waits with `acquire` until all have added to its
own. What a rank stored through the switch is seen by the others after that, and not before.
"""

# Kernels are read by Triton's compiler, not by mypy.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

import torch
import triton
import triton.language as tl
from torch import Tensor

from longcat.kernels.multimem.memory import ALIGNMENT, PROGRAMS, SymmetricMemory
from longcat.kernels.proof.configuration import Configuration

UNITS = 1024  # units that one block moves at a time, one per thread
WARPS = 32

# The four registers are zeroed first (early-clobber: `=&r`), for lanes that the mask leaves out.
# Not pure: the compiler must neither repeat nor move it across the barrier.
_LOAD_BF16 = tl.constexpr("""{
    .reg .pred %p;
    setp.ne.b32 %p, $5, 0;
    mov.b32 $0, 0; mov.b32 $1, 0; mov.b32 $2, 0; mov.b32 $3, 0;
    @%p multimem.ld_reduce.relaxed.sys.global.add.acc::f32.v4.bf16x2 {$0, $1, $2, $3}, [$4];
}""")
_LOAD_FP32 = tl.constexpr("""{
    .reg .pred %p;
    setp.ne.b32 %p, $5, 0;
    mov.b32 $0, 0; mov.b32 $1, 0; mov.b32 $2, 0; mov.b32 $3, 0;
    @%p multimem.ld_reduce.relaxed.sys.global.add.v4.f32 {$0, $1, $2, $3}, [$4];
}""")
# Bits are bits: the same store serves both.
_STORE = tl.constexpr("""{
    .reg .pred %p;
    setp.ne.b32 %p, $6, 0;
    mov.b32 $0, 0;
    @%p multimem.st.relaxed.sys.global.v4.f32 [$1], {$2, $3, $4, $5};
}""")


@triton.jit
def _barrier(signals_ptr, epochs_ptr, rank, WORLD: tl.constexpr):
    tl.debug_barrier()  # every thread's stores come before the release of the few that signal
    program = tl.program_id(0)
    ranks = tl.arange(0, WORLD)
    epoch = tl.load(epochs_ptr + program) + 1
    theirs = tl.load(signals_ptr + ranks).to(tl.pointer_type(tl.int32))
    tl.atomic_add(theirs + program * WORLD + rank, 1, sem="release", scope="sys")
    mine = tl.load(signals_ptr + rank).to(tl.pointer_type(tl.int32)) + program * WORLD + ranks
    slowest = epoch - 1
    while slowest < epoch:
        slowest = tl.min(tl.atomic_add(mine, 0, sem="acquire", scope="sys"), axis=0)
    tl.debug_barrier()
    tl.store(epochs_ptr + program, epoch)


@triton.jit
def _load_sum(address, inside, BF16: tl.constexpr):
    if BF16:
        return tl.inline_asm_elementwise(
            _LOAD_BF16, "=&r,=&r,=&r,=&r,l,r", [address, inside.to(tl.int32)],
            dtype=(tl.int32, tl.int32, tl.int32, tl.int32), is_pure=False, pack=1,
        )  # fmt: skip
    else:
        return tl.inline_asm_elementwise(
            _LOAD_FP32, "=&r,=&r,=&r,=&r,l,r", [address, inside.to(tl.int32)],
            dtype=(tl.int32, tl.int32, tl.int32, tl.int32), is_pure=False, pack=1,
        )  # fmt: skip


@triton.jit
def _store_everywhere(address, a, b, c, d, inside):
    tl.inline_asm_elementwise(
        _STORE, "=&r,l,r,r,r,r,r", [address, a, b, c, d, inside.to(tl.int32)],
        dtype=tl.int32, is_pure=False, pack=1,
    )  # fmt: skip


@triton.jit
def _load_units(ptr, units, inside, UNITS: tl.constexpr):
    # 16 bytes a unit as four words: [UNITS, 4] in memory, four registers in a thread.
    words = (4 * units[:, None] + tl.arange(0, 4)[None, :]).to(tl.int64)
    values = tl.load(ptr + words, mask=inside[:, None], other=0)
    even, odd = tl.split(tl.reshape(values, [UNITS, 2, 2]))
    a, c = tl.split(even)
    b, d = tl.split(odd)
    return a, b, c, d


@triton.jit
def _store_units(ptr, units, a, b, c, d, inside, UNITS: tl.constexpr):
    words = (4 * units[:, None] + tl.arange(0, 4)[None, :]).to(tl.int64)
    values = tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), [UNITS, 4])
    tl.store(ptr + words, values, mask=inside[:, None])


@triton.jit
def _all_reduce(
    multicast, signals_ptr, epochs_ptr, rank, n_units,
    WORLD: tl.constexpr, BF16: tl.constexpr, UNITS: tl.constexpr,
):  # fmt: skip
    # Two shots, in place: each rank sums its slice and gives it to everybody.
    _barrier(signals_ptr, epochs_ptr, rank, WORLD)  # everybody's numbers are there
    share = tl.cdiv(n_units, WORLD)
    start = rank * share
    end = tl.minimum(start + share, n_units)
    first = start + tl.program_id(0) * UNITS
    for block in range(first, end, tl.num_programs(0) * UNITS):
        units = block + tl.arange(0, UNITS)
        inside = units < end
        address = multicast + 16 * units.to(tl.int64)
        a, b, c, d = _load_sum(address, inside, BF16)
        _store_everywhere(address, a, b, c, d, inside)
    _barrier(signals_ptr, epochs_ptr, rank, WORLD)  # everybody's slice has arrived


@triton.jit
def _all_reduce_one_shot(
    multicast, signals_ptr, epochs_ptr, out_ptr, rank, n_units,
    WORLD: tl.constexpr, BF16: tl.constexpr, UNITS: tl.constexpr,
):  # fmt: skip
    # Each rank sums everything for itself: N times the reads, one step less.
    _barrier(signals_ptr, epochs_ptr, rank, WORLD)
    for block in range(tl.program_id(0) * UNITS, n_units, tl.num_programs(0) * UNITS):
        units = block + tl.arange(0, UNITS)
        inside = units < n_units
        a, b, c, d = _load_sum(multicast + 16 * units.to(tl.int64), inside, BF16)
        _store_units(out_ptr, units, a, b, c, d, inside, UNITS)
    _barrier(signals_ptr, epochs_ptr, rank, WORLD)  # nobody reads any longer: it may be reused


@triton.jit
def _all_gather(
    multicast, signals_ptr, epochs_ptr, x_ptr, ends_ptr, rank,
    WORLD: tl.constexpr, UNITS: tl.constexpr,
):  # fmt: skip
    # ends: one past each rank's last unit. Each rank stores its own to everybody.
    _barrier(signals_ptr, epochs_ptr, rank, WORLD)  # nobody still reads what was there before
    start = tl.load(ends_ptr + rank - 1, mask=rank > 0, other=0)
    n_units = tl.load(ends_ptr + rank) - start
    for block in range(tl.program_id(0) * UNITS, n_units, tl.num_programs(0) * UNITS):
        units = block + tl.arange(0, UNITS)
        inside = units < n_units
        a, b, c, d = _load_units(x_ptr, units, inside, UNITS)
        address = multicast + 16 * (start + units).to(tl.int64)
        _store_everywhere(address, a, b, c, d, inside)
    _barrier(signals_ptr, epochs_ptr, rank, WORLD)


@triton.jit
def _reduce_scatter(
    multicast, signals_ptr, epochs_ptr, out_ptr, ends_ptr, rank,
    WORLD: tl.constexpr, BF16: tl.constexpr, UNITS: tl.constexpr,
):  # fmt: skip
    _barrier(signals_ptr, epochs_ptr, rank, WORLD)
    start = tl.load(ends_ptr + rank - 1, mask=rank > 0, other=0)
    n_units = tl.load(ends_ptr + rank) - start
    for block in range(tl.program_id(0) * UNITS, n_units, tl.num_programs(0) * UNITS):
        units = block + tl.arange(0, UNITS)
        inside = units < n_units
        address = multicast + 16 * (start + units).to(tl.int64)
        a, b, c, d = _load_sum(address, inside, BF16)
        _store_units(out_ptr, units, a, b, c, d, inside, UNITS)
    _barrier(signals_ptr, epochs_ptr, rank, WORLD)


def all_reduce(x: Tensor, memory: SymmetricMemory, shots: int) -> Tensor:
    """The sum over ranks; in one shot a new tensor, in two a view of the memory."""
    buffer = memory.buffer[: x.nbytes].view(x.dtype).view(x.shape)
    buffer.copy_(x)
    if shots == 1:
        out = torch.empty_like(buffer)
        launch_all_reduce_one_shot(out, memory)
        return out
    launch_all_reduce(buffer, memory)
    return buffer


def all_gather(x: Tensor, counts: Sequence[int], memory: SymmetricMemory) -> Tensor:
    """Everyone's rows, to the memory."""
    dense = x.contiguous()
    if dense.data_ptr() % ALIGNMENT:  # a slice that begins within a unit
        dense = dense.clone()
    launch_all_gather(dense, _ends(x, counts), memory)
    rows, width = sum(counts), x.shape[1]
    return memory.buffer[: rows * width * x.element_size()].view(x.dtype).view(rows, width)


def reduce_scatter(x: Tensor, counts: Sequence[int], memory: SymmetricMemory) -> Tensor:
    """This rank's rows of the sum."""
    memory.buffer[: x.nbytes].view(x.dtype).view(x.shape).copy_(x)
    out = x.new_empty(counts[memory.rank], x.shape[1])
    launch_reduce_scatter(out, _ends(x, counts), memory)
    return out


def _ends(x: Tensor, counts: Sequence[int]) -> Tensor:
    """One past each rank's last unit, int32 [world]."""
    row = x.shape[1] * x.element_size() // ALIGNMENT
    return (torch.tensor(counts, dtype=torch.int64).cumsum(0) * row).to(x.device, torch.int32)


def launch_all_reduce(x: Tensor, memory: SymmetricMemory, units: int = UNITS) -> None:
    """Two shots over the first x.nbytes of the memory, in place; x tells the dtype and size."""
    arguments = (memory.multicast, memory.signals, memory.epochs, memory.rank, x.nbytes // 16)
    with torch.cuda.device_of(x):
        _all_reduce[(PROGRAMS,)](
            *arguments, WORLD=memory.world, BF16=x.dtype == torch.bfloat16, UNITS=units,
            num_warps=WARPS,
        )  # fmt: skip


def launch_all_reduce_one_shot(out: Tensor, memory: SymmetricMemory, units: int = UNITS) -> None:
    """The sum of the first out.nbytes of everyone's memory, to out."""
    with torch.cuda.device_of(out):
        _all_reduce_one_shot[(PROGRAMS,)](
            memory.multicast, memory.signals, memory.epochs, out.view(torch.int32), memory.rank,
            out.nbytes // 16, WORLD=memory.world, BF16=out.dtype == torch.bfloat16, UNITS=units,
            num_warps=WARPS,
        )  # fmt: skip


def launch_all_gather(x: Tensor, ends: Tensor, memory: SymmetricMemory, units: int = UNITS) -> None:
    """x to everyone's memory, between ends[rank - 1] and ends[rank], counted in units."""
    with torch.cuda.device_of(x):
        _all_gather[(PROGRAMS,)](
            memory.multicast, memory.signals, memory.epochs, x.view(torch.int32), ends, memory.rank,
            WORLD=memory.world, UNITS=units, num_warps=WARPS,
        )  # fmt: skip


def launch_reduce_scatter(
    out: Tensor, ends: Tensor, memory: SymmetricMemory, units: int = UNITS
) -> None:
    """The sum of everyone's memory between ends[rank - 1] and ends[rank], to out."""
    with torch.cuda.device_of(out):
        _reduce_scatter[(PROGRAMS,)](
            memory.multicast, memory.signals, memory.epochs, out.view(torch.int32), ends,
            memory.rank, WORLD=memory.world, BF16=out.dtype == torch.bfloat16, UNITS=units,
            num_warps=WARPS,
        )  # fmt: skip


def configurations() -> Iterator[Configuration]:
    """Every collective, in both dtypes where the dtype matters, at eight, two and four ranks."""
    types = {
        "multicast": "i64", "signals_ptr": "*i64", "epochs_ptr": "*i32", "out_ptr": "*i32",
        "x_ptr": "*i32", "ends_ptr": "*i32",
    }  # fmt: skip
    for kernel, reduces, multicasts in (
        (_all_reduce, True, True),
        (_all_reduce_one_shot, True, False),
        (_all_gather, False, True),
        (_reduce_scatter, True, False),
    ):
        for world, bf16 in product((8, 2, 4), (True, False) if reduces else (True,)):
            constants = {"WORLD": world, "UNITS": UNITS}
            if reduces:
                constants["BF16"] = bf16
            needs = {True: ("LDGMC.E.F32ADD.BF16x8",), False: ("LDGMC.E.ADD.F32x4",)}[bf16]
            # The switch's store is a plain store in SASS: the address is what multicasts.
            yield Configuration(
                kernel=kernel,
                name=f"multimem {kernel.__name__.strip('_')} "
                + (("bf16" if bf16 else "fp32") if reduces else "any")
                + ("" if world == 8 else f", {world} ranks"),
                types=types,
                constants=constants,
                divisible=("multicast",),
                atomic=True,
                warps=WARPS,
                needs=(*(needs if reduces else ()), "MEMBAR.ALL.SYS"),
                ptx=(
                    *(("multimem.ld_reduce.relaxed.sys",) if reduces else ()),
                    *(("multimem.st.relaxed.sys",) if multicasts else ()),
                    ".release.",
                    ".acquire.",
                ),
            )

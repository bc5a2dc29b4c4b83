"""Collectives through a simulated switch: the Triton kernels in N real processes.

See longcat/kernels/multimem/simulation.py for what this proves and what it cannot.
"""

import ctypes
import faulthandler
import time

import numpy as np
import pytest
import torch

from longcat.kernels import multimem
from longcat.kernels.multimem import reference

pytest.importorskip("triton")

pytestmark = pytest.mark.usefixtures("interpreter")

WORLDS = [2, 4, 8]


@pytest.fixture
def simulate():
    from longcat.kernels.multimem.simulation import Simulation

    def run(world, function, nbytes=8192, seed=0):
        return Simulation(world, nbytes, seed).run(function)

    return run


def _parts(randn, world, *shape, dtype=torch.bfloat16):
    return randn(world, *shape, dtype=dtype)


def _sum(parts, check, values, dtype):
    """The error against the exact sum: float32 additions and one rounding."""
    want = reference.all_reduce(parts.double().flatten(1).numpy())
    errors = [check.error(value.flatten(), row) for value, row in zip(values, want, strict=True)]
    return max(errors) / check.bound(dtype, len(parts)) * 8


@pytest.mark.parametrize(
    ("world", "dtype"), [*((world, torch.bfloat16) for world in WORLDS), (2, torch.float32)]
)
def test_two_shots_leave_the_same_sum_on_every_rank_and_move_a_share_each(
    simulate, randn, check, world, dtype
):
    parts = _parts(randn, world, 3, 72, dtype=dtype)
    outcomes = simulate(
        world, lambda memory: multimem.all_reduce(parts[memory.rank], memory, shots=2).clone()
    )
    values = [outcome.value for outcome in outcomes]
    assert _sum(parts, check, values, dtype) <= 1
    assert all(torch.equal(value, values[0]) for value in values)
    units, share = parts[0].nbytes // 16, -(-parts[0].nbytes // 16 // world)
    for rank, outcome in enumerate(outcomes):
        mine = 16 * max(0, min(share, units - rank * share))
        assert outcome.loaded == outcome.stored == mine


@pytest.mark.parametrize("world", WORLDS)
def test_one_shot_reads_everything_on_every_rank_and_multicasts_nothing(
    simulate, randn, check, world
):
    parts = _parts(randn, world, 200)
    outcomes = simulate(world, lambda memory: multimem.all_reduce(parts[memory.rank], memory))
    assert _sum(parts, check, [outcome.value for outcome in outcomes], torch.bfloat16) <= 1
    assert all((outcome.loaded, outcome.stored) == (400, 0) for outcome in outcomes)


@pytest.mark.parametrize(("world", "counts"), [(2, [3, 1]), (4, [5, 0, 2, 1]), (8, [1] * 7 + [9])])
def test_uneven_rows_are_gathered_in_the_order_of_ranks(simulate, randn, world, counts):
    parts = [randn(count, 24, dtype=torch.bfloat16) for count in counts]
    outcomes = simulate(
        world, lambda memory: multimem.all_gather(parts[memory.rank], counts, memory).clone()
    )
    want = reference.all_gather([part.double().numpy() for part in parts], counts)
    for count, outcome, rows in zip(counts, outcomes, want, strict=True):
        assert np.array_equal(outcome.value.double().numpy(), rows)
        assert (outcome.loaded, outcome.stored) == (0, count * 48)


@pytest.mark.parametrize(
    ("world", "counts", "dtype"),
    [
        (2, [1, 4], torch.float32),
        (2, [5, 0], torch.bfloat16),
        (4, [0, 3, 3, 1], torch.bfloat16),
        (8, [2] * 7 + [0], torch.bfloat16),
    ],
)
def test_uneven_rows_of_the_sum_reach_their_ranks(simulate, randn, check, world, counts, dtype):
    parts = _parts(randn, world, sum(counts), 8, dtype=dtype)
    outcomes = simulate(
        world, lambda memory: multimem.reduce_scatter(parts[memory.rank], counts, memory)
    )
    want = reference.reduce_scatter(parts.double().numpy(), counts)
    for count, outcome, rows in zip(counts, outcomes, want, strict=True):
        assert check.error(outcome.value, rows) <= check.bound(dtype, world) / 8
        assert (outcome.loaded, outcome.stored) == (count * 8 * dtype.itemsize, 0)


def test_the_same_memory_serves_one_collective_after_another(simulate, randn, check):
    parts = _parts(randn, 4, 16, 8)

    def twice(memory):
        time.sleep(0.05 * memory.rank)  # nobody is in step
        mine = parts[memory.rank]
        total = multimem.all_reduce(mine, memory, shots=2).clone()
        rows = multimem.all_gather(total[: memory.rank], [0, 1, 2, 3], memory).clone()
        return total, rows, multimem.reduce_scatter(mine, [4] * 4, memory)

    outcomes = [outcome.value for outcome in simulate(4, twice)]
    total = outcomes[0][0]
    assert all(torch.equal(outcome[0], total) for outcome in outcomes)
    for rank, (_, rows, share) in enumerate(outcomes):
        assert torch.equal(rows, torch.cat([total[:1], total[:2], total[:3]]))
        assert check.error(share, total[4 * rank : 4 * rank + 4].double()) <= 2**-8


def _gather_with(kernels, counts=(3, 2)):
    """all_gather by a mutant's launcher; what the memory holds right afterwards."""

    def run(memory):
        x = torch.full((counts[memory.rank], 8), 1.0 + memory.rank, dtype=torch.bfloat16)
        ends = torch.tensor(counts).cumsum(0).int()
        kernels.launch_all_gather(x, ends, memory)
        return memory.buffer[: 16 * sum(counts)].view(torch.bfloat16)[::8].tolist()

    return run


GATHERED = [[1.0, 1.0, 1.0, 2.0, 2.0]] * 2
MUTANTS = {
    "a missing release": ('1, sem="release"', '1, sem="relaxed"'),
    "a missing mask": ("    @%p multimem.st", "    multimem.st"),
    "a wrong slice": ("multicast + 16 * (start + units).to(tl.int64)\n        _store",
                      "multicast + 16 * units.to(tl.int64)\n        _store"),
}  # fmt: skip


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_simulation_rejects(simulate, mutate, mutant):
    from longcat.kernels.multimem import triton_kernel

    right = simulate(2, _gather_with(triton_kernel))
    assert [outcome.value for outcome in right] == GATHERED
    broken = mutate(triton_kernel, *MUTANTS[mutant])
    if "mask" in mutant:
        with pytest.raises(RuntimeError, match=r"rank \d: .*lanes reach bytes .* to \d+ through"):
            simulate(2, _gather_with(broken), nbytes=4096)
        return
    wrong = [outcome.value for outcome in simulate(2, _gather_with(broken))]
    assert all(mine != true for mine, true in zip(wrong, GATHERED, strict=True))


def test_a_load_marked_pure_is_rejected(simulate, mutate):
    from longcat.kernels.multimem import triton_kernel

    old = '_LOAD_BF16, "=&r,=&r,=&r,=&r,l,r", [address, inside.to(tl.int32)],\n            '
    old += "dtype=(tl.int32, tl.int32, tl.int32, tl.int32), is_pure=False"
    broken = mutate(triton_kernel, old, old.replace("False", "True"))
    out = torch.empty(8, dtype=torch.bfloat16)
    with pytest.raises(RuntimeError, match="must not be marked pure"):
        simulate(2, lambda memory: broken.launch_all_reduce_one_shot(out, memory))


def test_a_first_barrier_left_out_reads_what_is_not_there_yet(simulate, mutate):
    from longcat.kernels.multimem import triton_kernel

    barrier = (
        "    _barrier(signals_ptr, epochs_ptr, rank, WORLD)  # everybody's numbers are there\n"
    )
    broken = mutate(triton_kernel, barrier, "")

    def late(kernels, seconds):
        def run(memory):
            x = memory.buffer[:32].view(torch.float32)
            patience = time.monotonic() + seconds * memory.rank
            while not x.any() and time.monotonic() < patience:  # rank 1 waits for rank 0's sum
                time.sleep(0.01)
            x.fill_(1.0)
            kernels.launch_all_reduce(x, memory)
            return x.tolist()

        return run

    assert [o.value for o in simulate(2, late(triton_kernel, 0.3))] == [[2.0] * 8] * 2
    assert simulate(2, late(broken, 30))[0].value != [2.0] * 8


def test_an_ordinary_access_to_the_multicast_address_ends_the_process(simulate):
    def touch(memory):
        faulthandler.disable()  # it dies on purpose, and need not say where
        return ctypes.string_at(memory.multicast, 1)

    with pytest.raises(RuntimeError, match=r"rank \d died with exit code -11"):
        simulate(2, touch)


def test_operands_that_do_not_fit_are_refused_by_name():
    from longcat.kernels.multimem.simulation import Simulation

    memory = Simulation(2, 4096).memory(0)
    odd, long = torch.zeros(3, 3), torch.zeros(2048)
    cases = {
        r"all_reduce: x must be bfloat16 or float32, got float16": lambda: multimem.all_reduce(
            odd.half(), memory
        ),
        r"all_reduce: x must be a multiple of 16 bytes, .* got 36": lambda: multimem.all_reduce(
            odd, memory
        ),
        r"all_reduce: x has 8192 bytes and the symmetric memory 4096": lambda: multimem.all_reduce(
            long, memory
        ),
        r"all_reduce: shots must be 1, 2 or None": lambda: multimem.all_reduce(
            long[:4], memory, shots=3
        ),
        r"all_gather: rows of x must be a multiple of 16 bytes, got 12": lambda: (
            multimem.all_gather(odd, [3, 0], memory)
        ),
        r"all_gather: x must have counts\[0\] = 2 rows, got 3": lambda: multimem.all_gather(
            torch.zeros(3, 4), [2, 1], memory
        ),
        r"reduce_scatter: counts must be 2 numbers": lambda: multimem.reduce_scatter(
            torch.zeros(3, 4), [3], memory
        ),
        r"reduce_scatter: x must have sum\(counts\) = 4 rows": lambda: multimem.reduce_scatter(
            torch.zeros(3, 4), [3, 1], memory
        ),
    }
    for sentence, call in cases.items():
        with pytest.raises(ValueError, match=sentence):
            call()


class _Handle:
    """The fields of torch's symmetric memory handle that are read."""

    rank, world_size, buffer_size, multicast_ptr, signal_pad_ptrs = 1, 2, 64, 1 << 20, [16, 32]

    def get_buffer(self, rank, sizes, dtype):
        return torch.zeros(sizes, dtype=dtype)


def test_torchs_handle_is_taken_and_gpus_without_a_switch_are_refused():
    cpu = torch.device("cpu")
    memory = multimem.SymmetricMemory.from_torch(_Handle(), cpu)
    assert (memory.rank, memory.world, memory.multicast) == (1, 2, 1 << 20)
    assert memory.signals.tolist() == [16, 32]
    alone = _Handle()
    alone.multicast_ptr = 0
    with pytest.raises(ValueError, match="no multicast address; multimem needs two GPUs"):
        multimem.SymmetricMemory.from_torch(alone, cpu)
    with pytest.raises(ValueError, match="world must be a power of two, got 3"):
        multimem.SymmetricMemory(
            rank=0,
            world=3,
            buffer=torch.zeros(16, dtype=torch.uint8),
            multicast=1 << 20,
            signals=torch.zeros(3),
            epochs=torch.zeros(4),
        )

"""Collectives over torch.distributed, in real gloo processes, against the switch in numpy."""

import importlib.util
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from longcat.kernels import multimem, use_backend
from longcat.kernels.multimem import eager, reference

COUNTS = {1: [3], 2: [5, 0], 3: [2, 0, 4], 4: [0, 3, 7, 1]}  # rows of each rank
WIDTH = 24
NAMES = ("one shot", "two shots", "by size", "gathered", "scattered")


def parts_of(world: int, dtype: torch.dtype) -> Tensor:
    """x of every rank, [world, sum of counts, WIDTH]; terms of one size whose sum is small."""
    generator = torch.Generator().manual_seed(7)
    parts = 1 + torch.rand(world, sum(COUNTS[world]), WIDTH, generator=generator)
    parts[1::2] *= -1
    return parts.to(dtype)


@contextmanager
def replaced(mutant: str | None) -> Iterator[None]:
    """The eager forms of another file, inside the block."""
    before = multimem.eager
    if mutant is not None:
        spec = importlib.util.spec_from_file_location("mutant", mutant)
        assert spec is not None
        assert spec.loader is not None
        multimem.eager = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(multimem.eager)
    try:
        yield
    finally:
        multimem.eager = before


def every_collective(
    dtype: torch.dtype, backend: str = "torch", mutant: str | None = None
) -> dict[str, Tensor]:
    """On one rank: what each collective returned. In a group of all processes."""
    rank, world = dist.get_rank(), dist.get_world_size()
    memory = multimem.SymmetricMemory.from_group(4096)
    x, counts = parts_of(world, dtype)[rank], COUNTS[world]
    rows = x[: counts[rank]] + 1
    with replaced(mutant), use_backend(backend):
        made = {
            "one shot": multimem.all_reduce(x, memory, shots=1),
            "two shots": multimem.all_reduce(x, memory, shots=2).clone(),
            "by size": multimem.all_reduce(x, memory).clone(),
            "gathered": multimem.all_gather(rows, counts, memory).clone(),
            "scattered": multimem.reduce_scatter(x, counts, memory),
        }
    made["torch's own"] = x.clone()
    dist.all_reduce(made["torch's own"])
    return made


def wanted(world: int, dtype: torch.dtype) -> dict[str, list[np.ndarray]]:
    """The definition's answers in float64, one per rank."""
    parts, counts = parts_of(world, dtype), COUNTS[world]
    rows = [(part[:count] + 1).double().numpy() for part, count in zip(parts, counts, strict=True)]
    parts64 = parts.double().numpy()
    sums = reference.all_reduce(parts64.reshape(world, -1)).reshape(parts64.shape)
    return {
        **{name: list(sums) for name in ("one shot", "two shots", "by size", "torch's own")},
        "gathered": list(reference.all_gather(rows, counts)),
        "scattered": reference.reduce_scatter(parts64, counts),
    }


def excess(made: dict[str, Tensor], name: str, rank: int, world: int, dtype: torch.dtype) -> float:
    """The largest error over its bound: one rounding to the dtype, N - 1 to float32."""
    want = wanted(world, dtype)[name][rank]
    got = made[name].double().numpy()
    assert got.shape == want.shape
    if not want.size:
        return 0.0
    magnitudes = parts_of(world, dtype).double().abs().sum(0).numpy()
    if name == "scattered":
        start = sum(COUNTS[world][:rank])
        magnitudes = magnitudes[start : start + COUNTS[world][rank]]
    if name == "gathered":
        return 0.0 if np.array_equal(got, want) else np.inf
    rounded = torch.finfo(dtype).eps / 2 if dtype == torch.bfloat16 else 0.0
    bound = rounded * np.abs(want) + (world - 1) * 2.0**-24 * magnitudes * (1 + rounded)
    return float((np.abs(got - want) / np.maximum(bound, 1e-30)).max())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("world", COUNTS)
def test_sums_are_in_float32_and_rounded_once_the_same_on_every_rank(ranks, world, dtype):
    answers = ranks(world, __file__, "every_collective", dtype)
    for rank, made in enumerate(answers):
        assert all(excess(made, name, rank, world, dtype) <= 1 for name in NAMES)
        for name in ("one shot", "two shots", "by size"):
            assert torch.equal(made[name], answers[0]["one shot"])
        # The order is that of ranks, to the bit.
        total = parts_of(world, dtype)[0].float()
        for part in parts_of(world, dtype)[1:]:
            total = total + part.float()
        assert torch.equal(made["one shot"], total.to(dtype))
        start = sum(COUNTS[world][:rank])
        share = made["one shot"][start : start + COUNTS[world][rank]]
        assert torch.equal(made["scattered"], share)
    if world == 4 and dtype == torch.bfloat16:  # the control: a sum that rounds at every step
        assert excess(answers[0], "torch's own", 0, world, dtype) > 1


def test_the_definition_runs_over_processes_too(ranks):
    for rank, made in enumerate(ranks(4, __file__, "every_collective", torch.float32, "numpy")):
        for name in NAMES:
            want = torch.from_numpy(wanted(4, torch.float32)[name][rank]).float()
            assert torch.equal(made[name], want)


# What is replaced, and the collective and rank whose result shows it.
MUTANTS = {
    "a sum in bfloat16": ("parts[0].to(torch.float32, copy=True)", "parts[0].clone()",
                          "one shot", 0),
    "a rank left out": ("parts[1:]", "parts[2:]", "scattered", 1),
    "slices of one rank only": ("if out is None else out\n", "if out is None else out\n"
                                "    mine = mine * (memory.rank == 0)\n", "two shots", 0),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_the_bound_rejects(ranks, mutate, name):
    old, new, collective, rank = MUTANTS[name]
    path = mutate(eager, old, new).__file__
    made = ranks(4, __file__, "every_collective", torch.bfloat16, "torch", path)[rank]
    assert excess(made, collective, rank, 4, torch.bfloat16) > 1


def test_the_definition_gives_one_sum_in_one_shot_and_two():
    parts = parts_of(4, torch.float32).double().flatten(1).numpy()
    one, two = (reference.all_reduce(parts, shots) for shots in (1, 2))
    assert np.array_equal(one, two)
    assert np.array_equal(two[3], parts.sum(axis=0))


def in_part_of_the_group() -> tuple[list[float], list[float]] | None:
    """Ranks 1 and 3 of 4 among themselves; what a second collective leaves of the first's."""
    group = dist.new_group([1, 3])
    x = torch.full((8,), float(dist.get_rank()))
    if dist.get_rank() not in (1, 3):
        with pytest.raises(ValueError, match="this process is not in the group"):
            multimem.SymmetricMemory.from_group(64, group)
        return None
    memory = multimem.SymmetricMemory.from_group(64, group)
    with pytest.raises(ValueError, match=r"rank \d of 2 and this process rank \d of 4"):
        multimem.all_reduce(x, replace(memory, group=None))
    total = multimem.all_reduce(x, memory, shots=2)
    before = total.tolist()
    multimem.all_gather(x[:4].view(1, 4), [1, 1], memory)
    return before, total.tolist()


def test_a_group_counts_its_own_ranks_and_results_stay_until_its_next_collective(ranks):
    answers = ranks(4, __file__, "in_part_of_the_group")
    assert answers[0] is None
    assert answers[1] == answers[3] == ([4.0] * 8, [1.0] * 4 + [3.0] * 4)


def the_readmes_example() -> Tensor:
    text = Path(multimem.__file__).with_name("README.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (begin,) = [line for line in example.splitlines() if "init_process_group" in line]
    names: dict[str, Tensor] = {}
    exec(example.replace(begin, ""), names)  # the ranks of this test are a group already
    return names["rows"].clone()


def test_the_readmes_example_gathers_uneven_rows(ranks):
    want = [0.0] + [1.0] * 2 + [2.0] * 3 + [3.0] * 4
    for rows in ranks(4, __file__, "the_readmes_example"):
        assert rows[:, 0].tolist() == want


def of_nothing() -> list[list[int]]:
    memory = multimem.SymmetricMemory.from_group(64)
    nothing = torch.empty(0, 4)
    made = [
        multimem.all_reduce(nothing, memory, shots=1),
        multimem.all_reduce(nothing, memory, shots=2),
        multimem.all_gather(nothing, [0, 0], memory),
        multimem.reduce_scatter(nothing, [0, 0], memory),
    ]
    return [list(tensor.shape) for tensor in made]


def test_ranks_without_tokens_do_nothing(ranks):
    assert ranks(2, __file__, "of_nothing") == [[[0, 4]] * 4] * 2


def _memory(**fields) -> multimem.SymmetricMemory:
    """Two ranks' memory that nobody is behind: refusals come before any communication."""
    buffer = torch.zeros(256, dtype=torch.uint8)
    switch = {
        "multicast": 1 << 20,
        "signals": torch.zeros(2, dtype=torch.int64),
        "epochs": torch.zeros(4, dtype=torch.int32),
    }
    return multimem.SymmetricMemory(**{"rank": 1, "world": 2, "buffer": buffer, **switch, **fields})


def test_what_cannot_be_done_is_refused_before_anybody_waits():
    memory = _memory()
    held = memory.buffer.view(torch.float32)
    cases = {
        r"all_reduce: torch.distributed has no process group yet; call torch.distributed.init": (
            lambda: multimem.all_reduce(torch.zeros(4), memory)
        ),
        r"all_reduce: no gradients are computed; call it under torch.no_grad\(\)": (
            lambda: multimem.all_reduce(torch.zeros(4, requires_grad=True), memory)
        ),
        r"all_reduce: x lies in the symmetric memory, .* x.clone\(\)": (
            lambda: multimem.all_reduce(held[4:8], memory)
        ),
        r"all_gather: x lies in the symmetric memory, .* x.clone\(\)": (
            lambda: multimem.all_gather(held[:4].view(1, 4), [1, 1], memory)
        ),
        r"reduce_scatter: x lies in the symmetric memory, .* x.clone\(\)": (
            lambda: multimem.reduce_scatter(held[4:12].view(2, 4), [1, 1], memory)
        ),
        r"all_gather: the result has 512 bytes and the symmetric memory 256": (
            lambda: multimem.all_gather(torch.zeros(16, 4), [16, 16], memory)
        ),
        "a multicast address needs signals and epochs": lambda: _memory(signals=None),
        "multimem: torch.distributed has no process group yet": (
            lambda: multimem.SymmetricMemory.from_group(64)
        ),
    }
    for sentence, call in cases.items():
        with pytest.raises(ValueError, match=sentence):
            call()


def test_x_may_already_lie_where_the_memory_will_hold_it():
    memory = _memory()
    held = memory.buffer.view(torch.float32)
    for call in (
        lambda: multimem.all_reduce(held[:8], memory),
        lambda: multimem.all_gather(held[4:8].view(1, 4), [1, 1], memory),
        lambda: multimem.reduce_scatter(held[:8].view(2, 4), [1, 1], memory),
    ):
        with pytest.raises(ValueError, match="has no process group"):  # the last thing asked for
            call()

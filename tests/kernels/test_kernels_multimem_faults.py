"""Every kind of fault in what a collective is given: refused by name before a launch, or right."""

import re

import pytest
import torch

import longcat.kernels as kernels
from longcat.kernels import multimem

pytest.importorskip("triton")

pytestmark = pytest.mark.usefixtures("interpreter")

COUNTS = [3, 3]
CALLS = {
    "multimem.all_reduce": (lambda x, memory: multimem.all_reduce(x, memory, shots=2).clone(), 3),
    "multimem.all_gather": (lambda x, memory: multimem.all_gather(x, COUNTS, memory).clone(), 3),
    "multimem.reduce_scatter": (lambda x, memory: multimem.reduce_scatter(x, COUNTS, memory), 6),
}


def _in_steps(x):
    wide = torch.full((*x.shape, 2), torch.nan).to(x.dtype)
    wide[..., 0] = x
    return wide[..., 0]


def _behind_a_word(x):
    memory = torch.full((x.numel() + 1,), torch.nan).to(x.dtype)
    return memory[1:].copy_(x.flatten()).view(x.shape)


REFUSED = {
    "a list": lambda x: x.tolist(),
    "another device": lambda x: x.to("meta"),
    "integers": lambda x: x.long(),
    "complex": lambda x: x.to(torch.complex64),
    "another precision": lambda x: x.double(),
    "a width that fills no word": lambda x: x[:, :7],
}
# An all-reduce takes any shape, and a width that every rank has.
SHAPES = {
    "one dimension more": lambda x: x[None],
    "a row more": lambda x: torch.cat([x, x[:1]]),
}
SERVED = {
    "as it should be": lambda x: x,
    "columns apart": _in_steps,
    "stored by columns": lambda x: x.mT.contiguous().mT,
    "one element behind a word": _behind_a_word,
    "one row for all": lambda x: x[:1].expand(x.shape),
}


def _x(rank, rows):
    return (torch.arange(rows * 8.0).view(rows, 8) + 100 * rank).bfloat16()


@pytest.mark.parametrize("op", CALLS)
def test_what_a_collective_cannot_take_is_refused_by_name_before_a_launch(op):
    from longcat.kernels.multimem.simulation import Simulation
    from longcat.kernels.proof.probe import probed

    call, rows = CALLS[op]
    memory = Simulation(2, 4096).memory(0)
    faults = REFUSED | (SHAPES if op != "multimem.all_reduce" else {})
    for fault, change in faults.items():
        with kernels.use_backend("triton"), probed() as probe:
            with pytest.raises((ValueError, TypeError), match=rf"^{re.escape(op)}: ") as refused:
                call(change(_x(0, rows)), memory)
            assert re.search(r"\bx\b", str(refused.value)), f"{fault}: {refused.value}"
            assert not probe.launches, fault


@pytest.mark.parametrize("op", CALLS)
def test_other_layouts_are_served(op):
    from longcat.kernels.multimem.simulation import Simulation

    call, rows = CALLS[op]

    def every(memory):
        with kernels.use_backend("triton"):
            return {
                fault: call(change(_x(memory.rank, rows)), memory)
                for fault, change in SERVED.items()
            }

    for rank, outcome in enumerate(Simulation(2, 4096).run(every)):
        for fault, change in SERVED.items():
            parts = [change(_x(other, rows)) for other in range(2)]
            want = torch.cat(parts) if op == "multimem.all_gather" else parts[0] + parts[1]
            if op == "multimem.reduce_scatter":
                want = want.split(COUNTS)[rank]
            assert torch.equal(outcome.value[fault], want), (fault, rank)

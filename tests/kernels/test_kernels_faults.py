"""Every op with every kind of fault in each of its operands: refused by name, or served right.

A fault is put into one operand of a good call. Either a sentence that begins with the op and names
the operand comes before any kernel is launched, or the result is what eager torch computes.
"""

import importlib
import re
from pathlib import Path

import pytest
import torch

import longcat.kernels as kernels

pytest.importorskip("triton")

pytestmark = pytest.mark.usefixtures("interpreter", "poisoned")

from longcat.kernels.proof.calls import CALLS, E4M3  # noqa: E402

# Widths that fill no tile and start no word of 16 bytes, for what reads its operands in tiles.
ODD = {
    "linear": {"x": (6, 39), "weight": (23, 39)},
    "experts": {"x_sorted": (6, 23), "gate_up": (3, 30, 23), "down": (3, 23, 15)},
    "mla_prefill": {"q": (2, 3, 2, 23), "k": (2, 5, 2, 23), "v": (2, 5, 2, 15)},
    "fp8_linear": {"x": (3, 157), "weight": (67, 157)},
    "quantise_rows": {"x": (3, 131)},
    "quantise_blocks": {"weight": (67, 131)},
}


def _grown(tensor, dim):
    bits = tensor.view(torch.uint8) if tensor.dtype == E4M3 else tensor  # FP8 has no cat
    return torch.cat([bits, bits.narrow(dim, 0, 1)], dim).view(tensor.dtype)


def _memory(tensor, *shape):
    """Memory of NaN, of numbers that are no index, or of True: nothing of it may be read."""
    if tensor.dtype == torch.bool:
        return torch.ones(shape, dtype=torch.bool)
    bits = torch.uint8 if tensor.dtype == E4M3 else tensor.dtype
    value = 0x7F if tensor.dtype.itemsize == 1 else 2**30
    fill = torch.nan if bits.is_floating_point else value
    return torch.full(shape, fill, dtype=bits).view(tensor.dtype)


def _in_steps(tensor):
    wide = _memory(tensor, *tensor.shape, 2)
    wide[..., 0] = tensor
    return wide[..., 0]


def _by_columns(tensor):
    return tensor.mT.contiguous().mT if tensor.dim() > 1 else _in_steps(tensor)


def _behind_a_word(tensor):
    memory = _memory(tensor, tensor.numel() + 1)
    return memory[1:].copy_(tensor.flatten()).view(tensor.shape)


def _in_wider_memory(tensor):
    wide = _memory(tensor, *(size + 3 for size in tensor.shape))
    inside = wide[tuple(slice(1, 1 + size) for size in tensor.shape)]
    return inside.copy_(tensor)


def _rows_apart(tensor):
    wide = _memory(tensor, *tensor.shape[:-1], tensor.shape[-1] + 24)
    return wide[..., : tensor.shape[-1]].copy_(tensor)


FAULTS = {
    "a list": lambda tensor: tensor.tolist(),
    "another device": lambda tensor: tensor.to("meta"),
    "integers": lambda tensor: tensor.long() if tensor.is_floating_point() else tensor.float(),
    "complex": lambda tensor: tensor.to(torch.complex64),
    "another precision": lambda t: t.double() if t.is_floating_point() else t.int(),
    "one dimension more": lambda tensor: tensor[None],
    "a scalar": lambda tensor: tensor.flatten()[0],
    **{f"size {dim}": lambda tensor, dim=dim: _grown(tensor, dim) for dim in range(4)},
    "columns apart": _in_steps,
    "stored by columns": _by_columns,
    "rows apart": _rows_apart,
    "in a wider memory": _in_wider_memory,
    "one element behind a word": _behind_a_word,
    # Of numbers, not of indices: these would mean something else.
    "one row for all": lambda t: t[:1].expand(t.shape) if t.is_floating_point() else t,
}
MUTUAL = ("size", "another precision", "a scalar")  # of two that differ, either may be named


def _outcome(op, operands, backend="triton"):
    """Tensors, or the sentence that refused them."""
    from longcat.kernels.proof.probe import probed

    # AdamW finds its tensors through a table of addresses, which the probe cannot follow.
    reached = {name: t for name, t in operands.items() if isinstance(t, torch.Tensor)}
    with kernels.use_backend(backend), probed(**reached) as probe:
        try:
            return CALLS[op](**operands)
        except (ValueError, TypeError) as error:
            return f"after a launch: {error}" if probe.launches else str(error)


def _complaint(check, op, change, blamed=()):
    """What is wrong with the call after `change` made its operands, or None."""
    try:
        made = _outcome(op, change(CALLS[op].operands()))
        if isinstance(made, str):
            by_name = any(re.search(rf"\b{name}\b", made) for name in blamed)
            return None if by_name and made.startswith(f"{op}: ") else f"names none: {made}"
        want = _outcome(op, change(CALLS[op].operands()), "torch")
        errors = [check.error(a.float(), b.float()) for a, b in zip(made, want, strict=True)]
        return None if max(errors) <= 2e-2 else f"wrong by {max(errors):.2g}"
    except Exception as error:  # a traceback is a complaint as well
        return f"{type(error).__name__}: {error}"


def _complaints(check, op, operand):
    names, found = [*CALLS[op].operands(), "plan"], {}
    for fault, change in FAULTS.items():
        if fault.startswith("size") and int(fault[-1]) >= CALLS[op].operands()[operand].dim():
            continue
        complaint = _complaint(
            check,
            op,
            lambda operands, change=change: operands | {operand: change(operands[operand])},
            names if fault.startswith(MUTUAL) else [operand, "meta ones"],
        )
        if complaint:
            found[fault] = complaint
    return found


CASES = [(op, operand) for op in CALLS for operand in CALLS[op].operands()]


@pytest.mark.parametrize(("op", "operand"), CASES, ids=[" ".join(case) for case in CASES])
def test_every_fault_of_an_operand_is_refused_by_name_or_served_right(check, op, operand):
    assert _complaints(check, op, operand) == {}


@pytest.mark.parametrize("op", ODD)
def test_widths_that_fit_no_tile_and_start_no_word_are_masked(check, op):
    def narrowed(operands):
        for name, shape in ODD[op].items():
            for dim, size in enumerate(shape):
                operands[name] = operands[name].narrow(dim, 0, size)
            operands[name] = operands[name].contiguous()
        return operands

    assert _complaint(check, op, narrowed) is None


def test_there_is_a_call_for_every_op_with_a_kernel():
    folders = {
        path.parent.name for path in Path(kernels.__file__).parent.glob("*/triton_kernel.py")
    }
    several = {"fp8": "fp8_linear", "sampling": "keep_top", "adamw": "adamw_step"}
    assert {several.get(name, name) for name in folders} <= {*CALLS, "multimem"}


@pytest.mark.parametrize(
    ("op", "operand", "module", "check_left_out", "fault"),
    [
        ("scatter_add", "values", "scatter_add.triton_kernel", "check_rows", "columns apart"),
        ("verify", "drafts", "sampling", "check_dtype", "integers"),
        ("rmsnorm", "weight", "rmsnorm", "check_shape", "size 0"),
        ("swiglu", "up", "swiglu", "check_together", "another device"),
    ],
)
def test_a_check_left_out_is_caught(check, monkeypatch, op, operand, module, check_left_out, fault):
    module = importlib.import_module(f"longcat.kernels.{module}")
    monkeypatch.setattr(module, check_left_out, lambda *_, **__: None)
    assert fault in _complaints(check, op, operand)

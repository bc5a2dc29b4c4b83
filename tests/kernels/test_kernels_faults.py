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

BF16, E4M3 = torch.bfloat16, torch.float8_e4m3fn


def _numbers(*shape, dtype=torch.float32, seed=3):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def _shares(*shape):
    return _numbers(*shape, seed=5).softmax(-1)


def _below(top, *shape):
    return (torch.arange(torch.Size(shape).numel()) * 5 % top).view(shape)


PLAN = kernels.permute(_numbers(6, 16), _below(5, 6, 2), 3)[1]


def _adamw_step(**operands):
    *state, copies = ([tensor] for tensor in operands.values())
    kernels.adamw_step(*state, 3, lr=0.1, copies=copies)
    return [operands[name] for name in ("weights", "firsts", "seconds", "copies")]


# name: (a call, operands that it serves)
CALLS = {
    "route": (
        lambda logits, bias: kernels.route(logits, bias, 2, 1.0),
        lambda: {"logits": _numbers(6, 8), "bias": _numbers(8)},
    ),
    "fused_route": (
        lambda logits, bias, token_mask: kernels.fused_route(logits, bias, 2, 1.0, 5, token_mask),
        lambda: {"logits": _numbers(6, 8), "bias": _numbers(8), "token_mask": _below(2, 6) == 0},
    ),
    "permute": (
        lambda x, indices: kernels.permute(x, indices, 3)[0],
        lambda: {"x": _numbers(6, 16, dtype=BF16), "indices": _below(5, 6, 2)},
    ),
    "combine": (
        lambda y_sorted, gates, indices, x: kernels.combine(y_sorted, PLAN, gates, indices, x, 3),
        lambda: {"y_sorted": _numbers(len(PLAN.slots), 16), "gates": _shares(6, 2),
                 "indices": _below(5, 6, 2), "x": _numbers(6, 16)},
    ),
    "linear": (
        kernels.linear,
        lambda: {"x": _numbers(6, 40, dtype=BF16), "weight": _numbers(24, 40, dtype=BF16)},
    ),
    "experts": (
        lambda **o: kernels.experts(**o)[: o["offsets"].max()],  # the rest are no expert's
        lambda: {"x_sorted": _numbers(6, 24, dtype=BF16), "rows": _below(6, 5),
                 "gate_up": _numbers(3, 32, 24, dtype=BF16),
                 "down": _numbers(3, 24, 16, dtype=BF16), "offsets": torch.tensor([2, 2, 5])},
    ),
    "swiglu": (kernels.swiglu, lambda: {"gate": _numbers(6, 24), "up": _numbers(6, 24, seed=4)}),
    "rmsnorm": (
        lambda x, weight: kernels.rmsnorm(x, weight, 1e-5),
        lambda: {"x": _numbers(6, 24), "weight": _numbers(24)},
    ),
    "add_rmsnorm": (
        lambda x, residual, weight: kernels.add_rmsnorm(x, residual, weight, 1e-5),
        lambda: {"x": _numbers(6, 24), "residual": _numbers(6, 24), "weight": _numbers(24)},
    ),
    "rope": (
        kernels.rope,
        lambda: {"x": _numbers(2, 3, 2, 8), "positions": _below(50, 2, 3), "inv_freq": _shares(4)},
    ),
    "latent_write": (
        lambda **operands: kernels.latent_write(**operands, eps=1e-6, alpha=2.0),
        lambda: {"compressed": _numbers(3, 24), "weight": _numbers(16), "positions": _below(50, 3),
                 "inv_freq": _shares(4), "slots": torch.tensor([4, 0, 3]),
                 "store": torch.zeros(7, 24)},
    ),
    "mla_decode": (
        lambda mask, **operands: kernels.mla_decode(**operands, scale=0.1, mask=mask),
        lambda: {"q_latent": _numbers(2, 2, 3, 16), "q_rope": _numbers(2, 2, 3, 8),
                 "latent": _numbers(2, 5, 16), "k_rope": _numbers(2, 5, 8),
                 "mask": torch.ones(2, 2, 5).bool()},
    ),
    "paged_mla": (
        lambda **operands: kernels.paged_mla(**operands, scale=0.1),
        lambda: {"q_latent": _numbers(2, 1, 3, 16, dtype=BF16),
                 "q_rope": _numbers(2, 1, 3, 16, dtype=BF16),
                 "store": _numbers(4, 8, 32, dtype=BF16), "table": torch.tensor([[1, 2], [3, 0]]),
                 "lengths": torch.tensor([9, 16])},
    ),
    "mla_prefill": (
        lambda mask, **operands: kernels.mla_prefill(**operands, scale=0.1, mask=mask),
        lambda: {"q": _numbers(2, 3, 2, 24, dtype=BF16), "k": _numbers(2, 5, 2, 24, dtype=BF16),
                 "v": _numbers(2, 5, 2, 16, dtype=BF16), "mask": torch.ones(2, 3, 5).bool()},
    ),
    "quantise_rows": (kernels.quantise_rows, lambda: {"x": _numbers(3, 200)}),
    "quantise_blocks": (kernels.quantise_blocks, lambda: {"weight": _numbers(130, 200)}),
    "fp8_linear": (
        kernels.fp8_linear,
        lambda: {"x": _numbers(3, 160).to(E4M3), "x_scales": _shares(3, 2),
                 "weight": _numbers(70, 160).to(E4M3), "weight_scales": _shares(1, 2)},
    ),
    "int8_linear": (
        kernels.int8_linear,
        lambda: {"x": _numbers(3, 16), "weight": _below(100, 5, 16).to(torch.int8),
                 "scale": _shares(5)},
    ),
    "keep_top": (
        kernels.keep_top,
        lambda: {"p": _shares(2, 9), "top_k": torch.tensor([3, 0]), "top_p": _shares(2)},
    ),
    "verify": (
        kernels.verify,
        lambda: {"p": _shares(3, 3, 20), "q": _shares(3, 2, 20).flip(-1),
                 "drafts": _below(20, 3, 2), "chance": _shares(3, 2)},
    ),
    "cross_entropy": (
        kernels.cross_entropy, lambda: {"logits": _numbers(5, 20), "targets": _below(20, 5)},
    ),
    "hidden_z_loss": (
        lambda last_layer, token_mask: kernels.hidden_z_loss(last_layer, 0.1, token_mask),
        lambda: {"last_layer": _numbers(5, 20), "token_mask": _below(2, 5) == 0},
    ),
    "scatter_add": (
        lambda values, index: kernels.scatter_add(values, index, 4),
        lambda: {"values": _numbers(6, 20), "index": _below(4, 6)},
    ),
    "adamw_step": (
        _adamw_step,
        lambda: {"weights": _numbers(6, 20), "gradients": _numbers(6, 20, dtype=BF16),
                 "firsts": _numbers(6, 20, seed=7), "seconds": _numbers(6, 20).abs(),
                 "copies": torch.zeros(6, 20, dtype=BF16)},
    ),
}  # fmt: skip

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


def _in_steps(tensor):
    wide = tensor.new_zeros(*tensor.shape, 2)
    wide[..., 0] = tensor
    return wide[..., 0]


def _by_columns(tensor):
    return tensor.mT.contiguous().mT if tensor.dim() > 1 else _in_steps(tensor)


def _behind_a_word(tensor):
    memory = tensor.new_zeros(tensor.numel() + 1)
    return memory[1:].copy_(tensor.flatten()).view(tensor.shape)


def _rows_apart(tensor):
    width = tensor.shape[-1]
    wide = tensor.new_zeros(*tensor.shape[:-1], width + 3)
    wide[..., :width] = tensor
    return wide[..., :width]


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
    "one element behind a word": _behind_a_word,
    "one row for all": lambda tensor: tensor[:1].expand(tensor.shape),
}
MUTUAL = ("size", "another precision", "a scalar")  # of two that differ, either may be named


def _outcome(op, operands, backend="triton"):
    """Tensors, or the sentence that refused them."""
    from longcat.kernels.proof.probe import probed

    # AdamW finds its tensors through a table of addresses, which the probe cannot follow.
    reached = {name: t for name, t in operands.items() if isinstance(t, torch.Tensor)}
    with kernels.use_backend(backend), probed(**reached) as probe:
        try:
            made = CALLS[op][0](**operands)
        except (ValueError, TypeError) as error:
            return f"after a launch: {error}" if probe.launches else str(error)
    return [made] if isinstance(made, torch.Tensor) else list(made)


def _complaint(check, op, change, blamed=()):
    """What is wrong with the call after `change` made its operands, or None."""
    try:
        made = _outcome(op, change(CALLS[op][1]()))
        if isinstance(made, str):
            by_name = any(re.search(rf"\b{name}\b", made) for name in blamed)
            return None if by_name and made.startswith(f"{op}: ") else f"names none: {made}"
        want = _outcome(op, change(CALLS[op][1]()), "torch")
        errors = [check.error(a.float(), b.float()) for a, b in zip(made, want, strict=True)]
        return None if max(errors) <= 2e-2 else f"wrong by {max(errors):.2g}"
    except Exception as error:  # a traceback is a complaint as well
        return f"{type(error).__name__}: {error}"


def _complaints(check, op, operand):
    names, found = [*CALLS[op][1](), "plan"], {}
    for fault, change in FAULTS.items():
        if fault.startswith("size") and int(fault[-1]) >= CALLS[op][1]()[operand].dim():
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


CASES = [(op, operand) for op in CALLS for operand in CALLS[op][1]()]


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

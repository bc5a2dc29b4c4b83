"""A repair of Triton's interpreter, which is silently wrong in bfloat16 and FP8.

The interpreter holds such numbers as unsigned integers. Up to 3.9 at least it multiplies and adds
these integers as they are, cuts float32 to bfloat16 where the hardware rounds to nearest even, and
loses a carry on the way to FP8. After `repair()` every operation on them is computed in float32
and rounded once, to nearest even; FP8 saturates, as the conversion instruction does. Products that
allow TF32 have their operands cut to it, which the stock interpreter leaves out.

The dispatcher calls `repair()` before it runs a kernel on CPU tensors. Compiled kernels never see
any of this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import triton.language as tl
from numpy.typing import NDArray
from triton.runtime import interpreter as stock_interpreter

Bits = NDArray[Any]
Method = Callable[..., Any]

_FP8 = {tl.float8e4nv: torch.float8_e4m3fn, tl.float8e5: torch.float8_e5m2}
_NARROW = {tl.bfloat16, *_FP8}
_Builder = stock_interpreter.InterpreterBuilder
_Handle = stock_interpreter.TensorHandle


def widen(bits: Bits, dtype: Any) -> NDArray[np.float32]:
    """The float32 values of bfloat16 or FP8 numbers given as unsigned integers. Exact."""
    if dtype == tl.bfloat16:
        return (bits.astype(np.uint32) << 16).view(np.float32)
    return torch.from_numpy(np.array(bits)).view(_FP8[dtype]).float().numpy()


def narrow(values: Bits, dtype: Any) -> Bits:
    """Floating values rounded to nearest even in bfloat16 or FP8, as unsigned integers.

    float64 goes through float32. FP8 saturates at its largest number; NaN stays NaN.
    """
    values = np.ascontiguousarray(values, dtype=np.float32)
    if dtype == tl.bfloat16:
        bits = values.view(np.uint32)
        rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16
        # Adding to the bits of a NaN could carry into its sign.
        return np.where(np.isnan(values), np.uint32(0x7FC0), rounded).astype(np.uint16)
    largest = torch.finfo(_FP8[dtype]).max
    clamped = torch.from_numpy(values).clamp(-largest, largest)
    return clamped.to(_FP8[dtype]).view(torch.uint8).numpy()


def _is_narrow(operand: Any) -> bool:
    return isinstance(operand, _Handle) and operand.dtype.scalar in _NARROW


def _widened(operand: Any) -> Any:
    if not _is_narrow(operand):
        return operand
    return _Handle(widen(operand.data, operand.dtype.scalar), tl.float32)


def _through_float32(method: Method) -> Method:
    """The method on float32 in place of narrow operands, its float result rounded back."""

    def repaired(self: Any, *operands: Any) -> Any:
        dtype = next((o.dtype.scalar for o in operands if _is_narrow(o)), None)
        if dtype is None:
            return method(self, *operands)
        result = method(self, *(_widened(operand) for operand in operands))
        if result.data.dtype != np.float32:  # a comparison
            return result
        return _Handle(narrow(result.data, dtype), dtype)

    return repaired


def _cast(method: Method) -> Method:
    def repaired(self: Any, source: Any, to: Any, *rounding: Any) -> Any:
        if not _is_narrow(source) and to.scalar not in _NARROW:
            return method(self, source, to, *rounding)
        values = _widened(source).data
        if to.scalar in _NARROW:
            return _Handle(narrow(values, to.scalar), to.scalar)
        return _Handle(values.astype(stock_interpreter._get_np_dtype(to)), to.scalar)

    return repaired


def _dot(method: Method) -> Method:
    def repaired(self: Any, a: Any, b: Any, c: Any, precision: Any, imprecise: Any) -> Any:
        a, b = _widened(a), _widened(b)
        allows_tf32 = precision == stock_interpreter._ir.INPUT_PRECISION.TF32
        if allows_tf32 and a.data.dtype == b.data.dtype == np.float32:
            a, b = _cut_to_tf32(a), _cut_to_tf32(b)
        return method(self, a, b, c, precision, imprecise)

    return repaired


def _cut_to_tf32(operand: Any) -> Any:
    """float32 without its last 13 bits, which the tensor core does not read."""
    bits = np.ascontiguousarray(operand.data).view(np.uint32) & np.uint32(0xFFFFE000)
    return _Handle(bits.view(np.float32), tl.float32)


def _refusing(method: Method) -> Method:
    def repaired(self: Any, operands: Any) -> Any:
        for operand in operands:
            if operand.dtype.scalar in _NARROW:
                raise TypeError(
                    f"the interpreter reduces the bits of {operand.dtype}, not its numbers; "
                    "convert with .to(tl.float32) before tl.sum, tl.max or a scan"
                )
        return method(self, operands)

    return repaired


_REPAIRS: list[tuple[Any, str, Callable[[Method], Method]]] = [
    *((_Builder, name, _through_float32) for name in ("binary_op", "unary_op", "ternary_op")),
    *((_Builder, name, _through_float32) for name in ("create_fma", "create_rsqrt", "create_erf")),
    (_Builder, "cast_impl", _cast),
    (_Builder, "create_fp_to_fp", _cast),
    (_Builder, "create_dot", _dot),
    (stock_interpreter.ReduceOps, "apply_impl", _refusing),
    (stock_interpreter.ScanOps, "apply_impl", _refusing),
]
_STOCK = {(owner, name): getattr(owner, name) for owner, name, _ in _REPAIRS}


def repair() -> None:
    """Mend the interpreter of this process. Calling it again changes nothing."""
    for owner, name, mend in _REPAIRS:
        if getattr(owner, name) is _STOCK[owner, name]:
            setattr(owner, name, mend(_STOCK[owner, name]))


@contextmanager
def stock() -> Iterator[None]:
    """The interpreter as it ships, inside the block: what the repair is compared with."""
    mended = {(owner, name): getattr(owner, name) for owner, name in _STOCK}
    for (owner, name), method in _STOCK.items():
        setattr(owner, name, method)
    try:
        yield
    finally:
        for (owner, name), method in mended.items():
            setattr(owner, name, method)

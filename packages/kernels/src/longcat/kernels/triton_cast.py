"""Rounding to bfloat16 that is right under Triton's interpreter too.

The interpreter (up to 3.9 at least) truncates float32 to bfloat16 where the hardware rounds to
nearest even, and says nothing. When it runs, `cast` rounds the bits itself first, so that the
interpreter's truncation has nothing left to cut; compiled kernels keep the one instruction.
"""

# Kernels are read by Triton's compiler, not by mypy.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, allow-untyped-calls

from __future__ import annotations

import os

import triton
import triton.language as tl

# Triton reads the variable when a kernel is defined, so it must not change afterwards.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_BY_BITS = tl.constexpr(INTERPRETED)


@triton.jit
def cast(value, dtype: tl.constexpr):
    """value (float32 or float64) rounded to nearest even in `dtype`."""
    if _BY_BITS and dtype == tl.bfloat16:
        narrow = value.to(tl.float32)
        bits = narrow.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        # NaN stays as it is: adding to its bits could carry into the sign.
        value = tl.where(narrow == narrow, rounded.to(tl.float32, bitcast=True), narrow)
    return value.to(dtype)

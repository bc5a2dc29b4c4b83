"""SwiGLU: silu(gate) * up, the nonlinearity of the dense FFNs and of the experts."""

from __future__ import annotations

from torch import Tensor

from longcat.kernels.dispatch import choose, or_unchecked, through_numpy
from longcat.kernels.operands import check_floating, check_same_dtype, check_together
from longcat.kernels.swiglu import eager, exact, reference

__all__ = ["swiglu"]


@or_unchecked(eager.swiglu)
def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, where silu(z) = z / (1 + exp(-z)).

    Args:
        gate: [..., F].
        up: [..., F], same shape and dtype as gate.

    Returns:
        [..., F] in the operands' dtype.

    Raises:
        ValueError: an operand of the wrong shape, dtype or device.

    Source: report section 2.4 (hidden_act silu); Shazeer 2020.
    """
    check_together("swiglu", gate=gate, up=up)
    check_floating("swiglu", gate=gate, up=up)
    check_same_dtype("swiglu", gate=gate, up=up)
    if gate.shape != up.shape:
        raise ValueError(
            f"swiglu: up must have the shape of gate {list(gate.shape)}, got {list(up.shape)}"
        )
    match choose("swiglu", gate, up, has_kernel=True):
        case "numpy":
            result: Tensor = through_numpy(reference.swiglu, gate, up, like=gate)
            return result
        case "triton":
            from longcat.kernels.swiglu import triton_kernel

            return triton_kernel.swiglu(gate, up)
        case "exact":
            return exact.swiglu(gate, up)
        case _:
            return eager.swiglu(gate, up)

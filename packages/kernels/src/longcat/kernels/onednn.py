"""Large matrix products on a CPU, by oneDNN where that is faster than torch's default.

torch multiplies float32 matrices with MKL, which uses 256-bit vectors on CPUs that are not Intel's;
oneDNN, in the same torch, uses 512-bit vectors wherever there are any: twice as fast on such a
machine, and as fast as MKL on an Intel one (`longcat bench train` measures both).

The first product of a new shape costs oneDNN about half a millisecond of code generation, so small
products and few rows stay with MKL. In inference mode the same few rows come again with every
token, and MKL reads a large weight anew for each of two or three: there oneDNN takes those too.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

FEWEST_ROWS = 32
SMALLEST = 2**23  # multiply-adds from which the faster product pays for the slower call
LARGE = 2**18  # numbers of a weight from which it does for few rows


def takes(rows: Tensor, weight: Tensor) -> bool:
    """Whether `times_transposed` is the faster product of rows [..., I] and weight [O, I].

    Only where `serves` says that it can be.
    """
    return _pays(rows, weight) and serves(rows, weight)


def serves(rows: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN is there and the faster one for operands like these, were they large.

    Only for plain float32 tensors on a CPU, outside autocast; tensor subclasses keep to torch's own
    operators.
    """
    return rows.dtype == weight.dtype == torch.float32 and reaches(rows) and reaches(weight)


def reaches(operand: Tensor) -> bool:
    """Whether oneDNN is there, with an advantage, for this tensor: a plain one on a CPU."""
    return (
        operand.device.type == "cpu"
        and type(operand) in (Tensor, nn.Parameter)
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and available()
    )


def _pays(rows: Tensor, weight: Tensor) -> bool:
    if rows.numel() < FEWEST_ROWS * rows.shape[-1]:
        several = rows.numel() > rows.shape[-1]
        return several and weight.numel() >= LARGE and torch.is_inference_mode_enabled()
    return rows.numel() * weight.shape[0] >= SMALLEST


@cache
def available() -> bool:
    """Whether this torch has oneDNN and this CPU the vectors that make it worth the while."""
    capability = torch.backends.cpu.get_cpu_capability()
    return torch.backends.mkldnn.is_available() and capability.startswith("AVX512")


def times_transposed(rows: Tensor, weight: Tensor, added: Tensor | None = None) -> Tensor:
    """rows [M, I] @ weight [O, I]^T + added [M, O] -> [M, O], without autograd; rows and weight may
    be transposed.
    """
    return times_packed(rows, weight, None, added)


def packs(weight: Tensor) -> bool:
    """Whether `pack` takes this weight and pays: float32 or bfloat16, where `available`."""
    return (
        weight.dtype in (torch.float32, torch.bfloat16)
        and weight.device.type == "cpu"
        and available()
    )


def pack(weight: Tensor) -> Tensor:
    """weight [O, I] in oneDNN's blocks, for `times_packed`; as many numbers, to no other use."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight.default(weight.contiguous())
    return packed


def times_packed(
    rows: Tensor, packed: Tensor, bias: Tensor | None = None, residual: Tensor | None = None
) -> Tensor:
    """rows [M, I] times a packed weight [O, I] transposed, plus bias [O] and residual [M, O]; it
    takes a plain weight as well.
    """
    product: Tensor
    if residual is None:
        product = torch.ops.mkldnn._linear_pointwise.default(rows, packed, bias, "none", [], "")
    else:
        product = torch.ops.mkldnn._linear_pointwise.binary(rows, residual, packed, bias, "add")
    return product

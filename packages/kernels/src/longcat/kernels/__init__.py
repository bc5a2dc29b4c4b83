"""Every LongCat-Flash operation once: numpy definition, eager torch, and Triton kernels.

Each op is a folder with `reference.py` (float64 numpy, the definition), `eager.py` (torch, any
device, gradients) and, for some, `triton_kernel.py`; the functions below pick one of them by the
tensors' device (see dispatch.py). Shapes: B batch, T tokens, D model width, H heads, C latent,
R rope, N FFN experts, Z identity experts, E = N + Z, K choices per token, S FFN slots, F FFN width.
"""

from longcat.kernels import multimem
from longcat.kernels.adamw import adamw_step
from longcat.kernels.add_rmsnorm import add_rmsnorm
from longcat.kernels.cross_entropy import cross_entropy
from longcat.kernels.dispatch import (
    Backend,
    exact,
    exact_enabled,
    triton_installed,
    unchecked,
    use_backend,
)
from longcat.kernels.experts import experts
from longcat.kernels.fp8 import fp8_linear, quantise_blocks, quantise_rows
from longcat.kernels.hidden_z_loss import hidden_z_loss
from longcat.kernels.int8_linear import int8_linear, quantise_int8
from longcat.kernels.latent_write import latent_write
from longcat.kernels.linear import linear
from longcat.kernels.linear.module import Linear
from longcat.kernels.linear.packed import PackedLinear
from longcat.kernels.mla_decode import mla_decode
from longcat.kernels.mla_prefill import mla_prefill
from longcat.kernels.operands import cast_once
from longcat.kernels.paged_mla import paged_mla
from longcat.kernels.permute import PermutePlan, combine, permute
from longcat.kernels.rmsnorm import RMSNorm, rmsnorm
from longcat.kernels.rope import rope, rope_frequencies
from longcat.kernels.route import expert_counts, fused_route, route
from longcat.kernels.sampling import keep_top, verify
from longcat.kernels.scatter_add import scatter_add
from longcat.kernels.swiglu import swiglu

__all__ = [
    "Backend",
    "Linear",
    "PackedLinear",
    "PermutePlan",
    "RMSNorm",
    "adamw_step",
    "add_rmsnorm",
    "cast_once",
    "combine",
    "cross_entropy",
    "exact",
    "exact_enabled",
    "expert_counts",
    "experts",
    "fp8_linear",
    "fused_route",
    "hidden_z_loss",
    "int8_linear",
    "keep_top",
    "latent_write",
    "linear",
    "mla_decode",
    "mla_prefill",
    "multimem",
    "paged_mla",
    "permute",
    "quantise_blocks",
    "quantise_int8",
    "quantise_rows",
    "rmsnorm",
    "rope",
    "rope_frequencies",
    "route",
    "scatter_add",
    "swiglu",
    "triton_installed",
    "unchecked",
    "use_backend",
    "verify",
]

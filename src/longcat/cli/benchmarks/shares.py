"""Where the time of a training step goes, by kind of operation.

Every kind but the products is what lies between a step and the peak that products reach alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from torch.autograd.profiler import profile

STEPS = 2
PRODUCTS = "matrix products"
REST = "calls, views, memory"  # whatever is in no operation below, Python included
KINDS = {
    PRODUCTS: (
        "_linear_pointwise",
        "mm",
        "addmm",
        "addmm_",
        "bmm",
        "baddbmm",
        "baddbmm_",
        "addmv_",
    ),
    "arithmetic, element by element": (
        *("add", "add_", "sub", "mul", "mul_", "div", "div_", "neg", "addcmul", "addcmul_"),
        *("silu", "silu_backward", "exp", "log", "polar", "rsqrt_", "pow_", "where", "sum"),
        *("mean", "amax", "linalg_vector_norm", "_softmax", "_softmax_backward_data"),
    ),
    "copies, casts, rows moved": (
        *("copy_", "_foreach_copy_", "cat", "fill_", "zero_", "masked_fill_", "complex", "index"),
        *("index_select", "index_put_", "_index_put_impl_", "gather", "scatter_", "scatter_add_"),
        *("index_add_", "_embedding_bag", "_embedding_bag_forward_only"),
        *("embedding_dense_backward", "sort", "topk", "nonzero", "cumsum", "searchsorted"),
    ),
    "optimizer": ("_fused_adamw_",),
}
_KIND_OF = {name: kind for kind, names in KINDS.items() for name in names}


def shares(step: Callable[[], object]) -> dict[str, float]:
    """Shares of the kinds in the wall time of some steps, in percent; they add up to 100.

    torch's profiler makes every operation a little slower, so small ones seem larger than they are.
    """
    with profile(use_kineto=False) as seen:
        started = time.perf_counter()
        for _ in range(STEPS):
            step()
        taken = time.perf_counter() - started
    found = dict.fromkeys(KINDS, 0.0)
    for event in seen.key_averages():
        kind = _KIND_OF.get(event.key.rpartition("::")[2])
        if kind is not None:
            found[kind] += 100 * event.self_cpu_time_total / 1e6 / taken
    return found | {REST: 100 - sum(found.values())}

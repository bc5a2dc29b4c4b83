"""The mixture and the ScMoE block in float64 numpy, one expert at a time: the definition.

Shapes: T tokens, D width, N FFN experts, K top-k.

Source: report sections 2.1.1 (equation 1) and 2.2 (figure 2).
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Function = Callable[[Array], Array]


def swiglu_ffn(x: Array, gate: Array, up: Array, down: Array) -> Array:
    """down(silu(gate x) * up x) for x [T,D], gate and up [F,D], down [D,F]."""
    g = x @ gate.T
    result: Array = (g / (1 + np.exp(-g)) * (x @ up.T)) @ down.T
    return result


def mixture(
    u: Array, indices: NDArray[np.int64], gates: Array, gate_up: Array, down: Array
) -> Array:
    """sum over K of gate * expert(u); experts from index N on return u.

    Args:
        u: [T,D]. indices, gates: [T,K] from `longcat.router.reference.route`.
        gate_up: [N,2F,D], gate rows first. down: [N,D,F].
    """
    n_ffn, width = len(gate_up), down.shape[-1]
    y = np.zeros_like(u, dtype=np.float64)
    for token in range(len(u)):
        for expert, gate in zip(indices[token], gates[token], strict=True):
            x = u[token : token + 1]
            if expert < n_ffn:
                w = gate_up[expert]
                x = swiglu_ffn(x, w[:width], w[width:], down[expert])
            y[token] += gate * x[0]
    return y


def scmoe_block(
    x: Array,
    *,
    attentions: tuple[Function, Function],
    ffns: tuple[Function, Function],
    moe: Function,
    input_norms: tuple[Function, Function],
    post_norms: tuple[Function, Function],
) -> Array:
    """One layer on x [T,D]; the mixture reads u and is added only at the very end."""
    h1 = x + attentions[0](input_norms[0](x))
    u = post_norms[0](h1)
    m = moe(u)
    h2 = h1 + ffns[0](u)
    h3 = h2 + attentions[1](input_norms[1](h2))
    h4 = h3 + ffns[1](post_norms[1](h3))
    return h4 + m


def standard_block(
    x: Array,
    *,
    attentions: tuple[Function, Function],
    ffns: tuple[Function, Function],
    moe: Function,
    input_norms: tuple[Function, Function],
    post_norms: tuple[Function, Function],
) -> Array:
    """The same layer without the shortcut: the mixture reads u just before it is added."""
    h1 = x + attentions[0](input_norms[0](x))
    h2 = h1 + ffns[0](post_norms[0](h1))
    h3 = h2 + attentions[1](input_norms[1](h2))
    u = post_norms[1](h3)
    return h3 + ffns[1](u) + moe(u)

"""The mixture and the ScMoE block in float64 numpy, one expert at a time: the definition.

Shapes: T tokens, D width, N FFN experts, K top-k.

Source: report sections 2.1.1 (equation 1), 2.2 (figure 2) and 5 (expert parallelism).
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


def split_mixture(
    parts: list[tuple[Array, NDArray[np.int64], Array]], gate_up: Array, down: Array
) -> tuple[list[Array], NDArray[np.int64]]:
    """`mixture` with the experts split over P processes, here P loops: the definition.

    Args:
        parts: per process its own (u [T,D], indices [T,K], gates [T,K]).
        gate_up, down: all N experts; process r owns those from r*N/P on.

    Returns:
        (per process its y [T,D], rows [P,P]: how many rows process s sends to process r).
    """
    processes, n_ffn = len(parts), len(gate_up)
    width, share = down.shape[-1], n_ffn // processes
    sent = np.zeros((processes, processes), dtype=np.int64)
    inbox: list[list[tuple[int, int, int, float, Array]]] = [[] for _ in range(processes)]
    results = []
    for sender, (u, indices, gates) in enumerate(parts):
        y = np.zeros_like(u, dtype=np.float64)
        for token in range(len(u)):
            for expert, gate in zip(indices[token], gates[token], strict=True):
                if expert >= n_ffn:  # an identity slot: answered here, never sent
                    y[token] += gate * u[token]
                else:
                    inbox[expert // share].append((sender, token, expert, gate, u[token]))
                    sent[sender, expert // share] += 1
        results.append(y)
    for rows in inbox:
        for sender, token, expert, gate, x in rows:
            w = gate_up[expert]
            back = swiglu_ffn(x[None], w[:width], w[width:], down[expert])[0]
            results[sender][token] += gate * back
    return results, sent


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

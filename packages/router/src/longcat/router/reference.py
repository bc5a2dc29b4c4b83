"""The router, its controller and its balance loss in float64 numpy: the definition of each.

Shapes: T tokens, D width, N FFN experts, Z identity experts, E = N+Z, K top-k, L layers.
Loops are kept where they make an equation recognisable.

Source: report sections 2.1 (equations 1 to 5) and 3.1.3.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Counts = NDArray[np.int64]


class Routing(NamedTuple):
    """scores [T,E], indices [T,K], gates [T,K], counts [E], ffn_per_token [T]."""

    scores: Array
    indices: Counts
    gates: Array
    counts: Counts
    ffn_per_token: Counts


def softmax(logits: Array) -> Array:
    """Row-wise softmax of logits [..., E]."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    result: Array = shifted / shifted.sum(axis=-1, keepdims=True)
    return result


def route(
    u: Array,
    classifier: Array,
    bias: Array,
    *,
    top_k: int,
    scale: float,
    n_ffn: int,
    token_mask: NDArray[np.bool_] | None = None,
    chosen: Counts | None = None,
) -> Routing:
    """Choose K of N+Z experts for each token of u [T,D].

    $$s = softmax(W_r u), \\quad TopK(s_i + b_i), \\quad g_i = \\gamma s_i$$

    The bias decides who is chosen and never touches the gate; gates are not renormalised; gamma
    scales identity experts too. Ties go to the lower index. Tokens masked out (False) are routed
    but not counted. A forward run again keeps the choice of the first, `chosen` [T,K].
    """
    scores = softmax(u.astype(np.float64) @ classifier.astype(np.float64).T)
    fresh = np.argsort(-(scores + bias), axis=-1, kind="stable")[:, :top_k]
    indices = fresh if chosen is None else chosen
    gates = scale * np.take_along_axis(scores, indices, axis=-1)
    counts = np.zeros(scores.shape[-1], dtype=np.int64)
    for token, experts in enumerate(indices):
        if token_mask is None or token_mask[token]:
            counts[experts] += 1
    return Routing(scores, indices, gates, counts, (indices < n_ffn).sum(axis=-1))


def expert_error(counts: Counts, *, n_ffn: int, top_k: int, target_ffn: float) -> Array:
    """How far each expert is below its share of slots, e [..., E]; 0 for identity experts, and
    for all experts of a layer without tokens.

    $$e_i = \\frac{K_e}{K N} - \\frac{T_i}{\\sum_j T_j}$$

    Dividing by the sum of counts instead of K*T_all makes the law immune to tokens counted twice.
    Source: report equation 2.
    """
    error = np.zeros(counts.shape, dtype=np.float64)
    total = counts.sum(axis=-1, keepdims=True)
    if n_ffn:
        below = target_ffn / (top_k * n_ffn) - counts[..., :n_ffn] / np.maximum(total, 1)
        error[..., :n_ffn] = np.where(total > 0, below, 0.0)
    return error


def controller_step(
    bias: Array,
    errors: tuple[Array, Array, Array],
    *,
    k_i: float,
    k_p: float = 0,
    k_d: float = 0,
    k_mean: float | None = None,
    n_ffn: int = 0,
) -> Array:
    """One step of the velocity-form controller; errors are (e_t, e_{t-1}, e_{t-2}).

    $$\\Delta b = K_I e_t + K_P (e_t - e_{t-1}) + K_D (e_t - 2 e_{t-1} + e_{t-2})$$

    The published law is K_I = mu with K_P = K_D = 0. Source: report equation 2.

    With `k_mean` the mean of e over the n_ffn FFN experts, which says how far a layer is from K_e,
    has that integral gain in place of K_I: K_I (e - mean) + K_M mean.
    """
    now, before, earlier = errors
    result: Array = bias + k_i * now + k_p * (now - before) + k_d * (now - 2 * before + earlier)
    if k_mean is not None:
        result[..., :n_ffn] += (k_mean - k_i) * now[..., :n_ffn].mean(axis=-1, keepdims=True)
    return result


def settle(
    bias: Array,
    count: Callable[[Array], Counts],
    *,
    steps: int,
    mu: float,
    n_ffn: int,
    top_k: int,
    target_ffn: float,
) -> Array:
    """The bias after `steps` updates with frozen weights and a gain that falls to 0.

    $$b_{t+1} = b_t + \\mu (1 - t/S) e(b_t)$$

    count(b) are the counts of a fresh batch under b.
    """
    still = np.zeros_like(bias)
    for t in range(steps):
        error = expert_error(count(bias), n_ffn=n_ffn, top_k=top_k, target_ffn=target_ffn)
        bias = controller_step(bias, (error, still, still), k_i=mu * (1 - t / steps))
    return bias


class Balance(NamedTuple):
    """loss without its weight alpha; f [G] and P [G] per group; G = D (+1 identity group)."""

    loss: float
    f: Array
    p: Array


def balance_loss(
    scores: Array,
    indices: Counts,
    *,
    n_ffn: int,
    target_ffn: float,
    groups: int,
    token_mask: NDArray[np.bool_] | None = None,
) -> Balance:
    """Device-level balance loss over D groups of FFN experts and one group of identity experts.

    $$L = \\sum_j f_j P_j, \\; f_j = \\frac{D}{K_e T}\\#slots_j, \\;
      f_{D+1} = \\frac{1}{(K-K_e) T}\\#slots_{D+1}, \\;
      P_j = \\frac1T \\sum_{i\\in j}\\sum_t s_{t,i}$$

    Selected slots are counted (a 0/1 indicator per token could never reach 1 for the identity
    group), f is a constant in the backward pass. Source: report equations 3 to 5.
    """
    if token_mask is not None:
        scores, indices = scores[token_mask], indices[token_mask]
    n_tokens, n_experts = scores.shape
    top_k = indices.shape[-1]
    with_identity = n_experts > n_ffn and target_ffn < top_k
    f = np.zeros(groups + with_identity)
    p = np.zeros(groups + with_identity)
    if n_ffn == 0 or n_tokens == 0:
        return Balance(0.0, f, p)
    size = n_ffn // groups
    for group in range(groups):
        lo, hi = group * size, (group + 1) * size
        slots = np.count_nonzero((indices >= lo) & (indices < hi))
        f[group] = groups * slots / (target_ffn * n_tokens)
        p[group] = scores[:, lo:hi].sum() / n_tokens
    if with_identity:
        f[groups] = np.count_nonzero(indices >= n_ffn) / ((top_k - target_ffn) * n_tokens)
        p[groups] = scores[:, n_ffn:].sum() / n_tokens
    return Balance(float(f @ p), f, p)


def group_of_expert(n_ffn: int, n_experts: int, groups: int) -> Counts:
    """The group index of each expert [E]: D groups of N/D FFN experts, identity experts last."""
    group = np.full(n_experts, groups, dtype=np.int64)
    if n_ffn:
        group[:n_ffn] = np.arange(n_ffn) // (n_ffn // groups)
    return group


def router_gradient_ratio(
    lm_gradient: Array, f: Array, *, alpha: float, n_ffn: int, groups: int, centred: bool = False
) -> float:
    """R_g, the balance loss's pull on the mean expert probabilities against the LM loss's.

    $$R_g = \\frac{\\lVert \\alpha \\nabla_P L_{LB} \\rVert}{\\lVert \\nabla_P L_{LM} \\rVert}$$

    Args:
        lm_gradient: [E], the sum over tokens of dL_LM/ds_t (the same perturbation added to every
            token's probability vector), L_LM being the main cross entropy alone.
        f: [G] selected-slot frequencies of the same batch; (grad_P L_LB)_i = f of i's group.
        centred: take the mean over experts from both gradients first. Softmax cancels that
            component, so it moves no weight, and at exact balance nothing else is left of L_LB's.

    Source: report section 3.1.3 (the convention for the gradient is this project's).
    """
    group = group_of_expert(n_ffn, len(lm_gradient), groups)
    padded = np.append(f, 0.0) if len(f) == groups else f
    pull = alpha * padded[group]
    if centred:
        pull, lm_gradient = pull - pull.mean(), lm_gradient - lm_gradient.mean()
    norm = float(np.linalg.norm(lm_gradient))
    return float(np.linalg.norm(pull)) / norm if norm > 0 else float("inf")


def router_similarity(classifier: Array) -> float:
    """Mean cosine between the weight vectors of two experts, over all pairs of rows of [E,D].

    $$\\frac{2}{E(E-1)} \\sum_{i<j} \\frac{w_i^\\top w_j}{\\lVert w_i \\rVert \\lVert w_j \\rVert}$$

    A high value says that the balance loss rules. NaN with fewer than two experts; a row of zeros
    has cosine 0 with every other. Source: report section 3.1.3.
    """
    cosines = []
    for i, one in enumerate(classifier):
        for other in classifier[:i]:
            lengths = np.linalg.norm(one) * np.linalg.norm(other)
            cosines.append(one @ other / lengths if lengths > 0 else 0.0)
    return float(np.mean(cosines)) if cosines else float("nan")

"""Multi-head Latent Attention in float64 numpy, one head at a time: the definition.

Shapes: T tokens, D width, H heads, C latent, R rope, dn = qk_nope, dv = value width.

Source: report section 2.3.1, equations 6 and 7.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis."""
    normed: Array = x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + eps) * weight
    return normed


def rotate(x: Array, positions: NDArray[np.int64], inv_freq: Array, factor: float = 1.0) -> Array:
    """Interleaved RoPE on x [T, R]: pairs (0,1), (2,3), ... in, halves out."""
    angle = positions[:, None] * inv_freq[None, :]
    cos, sin = factor * np.cos(angle), factor * np.sin(angle)
    even, odd = x[:, 0::2], x[:, 1::2]
    return np.concatenate([even * cos - odd * sin, odd * cos + even * sin], axis=-1)


def document_positions(document_ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """[T] positions of packed tokens: a document is a run of equal ids and starts at 0."""
    positions = np.zeros(len(document_ids), dtype=np.int64)
    for t in range(1, len(document_ids)):
        if document_ids[t] == document_ids[t - 1]:
            positions[t] = positions[t - 1] + 1
    return positions


def document_mask(document_ids: NDArray[np.int64]) -> NDArray[np.bool_]:
    """[T, T], True where query t may see key s: the earlier tokens of its own document, itself.

    Negative ids are padding, which nobody else sees.
    """
    n_tokens = len(document_ids)
    positions = document_positions(document_ids)
    mask = np.eye(n_tokens, dtype=bool)
    for t in range(n_tokens):
        if document_ids[t] >= 0:
            mask[t, t - positions[t] : t] = True
    return mask


def mla(
    x: Array,
    weights: Mapping[str, Array],
    *,
    num_heads: int,
    qk_nope_head_dim: int,
    v_head_dim: int,
    inv_freq: Array,
    positions: NDArray[np.int64],
    softmax_scale: float,
    latent_norm_eps: float = 1e-6,
    rope_factor: float = 1.0,
) -> Array:
    """Causal attention of x [T, D] to [T, D].

    $$c^Q = \\alpha_q\\,norm(W^{DQ} h), \\; c^{KV} = \\alpha_{kv}\\,norm(W^{DKV} h), \\;
      k_i = [W_i^{UK} c^{KV}; RoPE(W^{KR} h)]$$

    with alpha_q = sqrt(D / q rank), alpha_kv = sqrt(D / kv rank); the rotary key is shared by
    all heads and carries neither norm nor scale. `weights` has the checkpoint's names.
    """
    n_tokens, width = x.shape
    q_rank, kv_rank = len(weights["q_a_layernorm"]), len(weights["kv_a_layernorm"])
    query_latent = rms_norm(
        x @ weights["q_a_proj"].T + weights.get("q_a_proj.bias", np.zeros(1)),
        weights["q_a_layernorm"],
        latent_norm_eps,
    )
    q = np.sqrt(width / q_rank) * query_latent @ weights["q_b_proj"].T
    compressed = x @ weights["kv_a_proj_with_mqa"].T + weights.get(
        "kv_a_proj_with_mqa.bias", np.zeros(1)
    )
    latent = np.sqrt(width / kv_rank) * rms_norm(
        compressed[:, :kv_rank], weights["kv_a_layernorm"], latent_norm_eps
    )
    k_rope = rotate(compressed[:, kv_rank:], positions, inv_freq, rope_factor)
    q = q.reshape(n_tokens, num_heads, -1)
    kv = (latent @ weights["kv_b_proj"].T).reshape(n_tokens, num_heads, -1)
    hidden_future = np.triu(np.full((n_tokens, n_tokens), -np.inf), k=1)
    heads = []
    for head in range(num_heads):
        q_nope = q[:, head, :qk_nope_head_dim]
        q_rope = rotate(q[:, head, qk_nope_head_dim:], positions, inv_freq, rope_factor)
        k_nope, v = kv[:, head, :qk_nope_head_dim], kv[:, head, qk_nope_head_dim:]
        scores = (q_nope @ k_nope.T + q_rope @ k_rope.T) * softmax_scale + hidden_future
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        heads.append(scores / scores.sum(axis=-1, keepdims=True) @ v)
    out = np.stack(heads, axis=1).reshape(n_tokens, num_heads * v_head_dim)
    result: Array = out @ weights["o_proj"].T + weights.get("o_proj.bias", np.zeros(1))
    return result

"""LongCat-Flash in one numpy file, to be read from top to bottom.

Everything is float64 and written for one sequence of T tokens; loops are kept where they make
the mathematics visible. The fast model agrees with this file to rounding, and this file agrees
with an implementation we did not write.

    forward(weights, config, ids)                 logits of every position
    draft(weights, config, hidden, next_ids)      the MTP head's logits

`weights` maps the released checkpoint's tensor names to arrays (experts may be stacked).
`config` maps config.json's field names to values, as `FlashConfig.to_hf()` returns them.

Shapes: T tokens, D width, H heads, C kv latent, R rope, N FFN experts, Z identity experts,
K top-k, V vocabulary.

Source: report (arXiv 2509.01322) sections 2.1 to 2.4; released config.json and tensor names.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Ids = NDArray[np.int64]
Weights = Mapping[str, NDArray[Any]]
Config = Mapping[str, Any]


class Forward(NamedTuple):
    """logits [T,V]; hidden [T,D] after the final norm; last_layer [T,D] before it;
    choices [L,T,K]; gates [L,T,K]; scores [L,T,N+Z].
    """

    logits: Array
    hidden: Array
    last_layer: Array
    choices: Ids
    gates: Array
    scores: Array


# --- elementary functions -------------------------------------------------------------------


def get(weights: Weights, name: str) -> Array:
    """A tensor by name, in float64."""
    return np.asarray(weights[name], dtype=np.float64)


def linear(weights: Weights, name: str, x: Array) -> Array:
    """x [..., I] times weight [O, I] transposed, plus a bias where the checkpoint has one."""
    y = x @ get(weights, f"{name}.weight").T
    return y + get(weights, f"{name}.bias") if f"{name}.bias" in weights else y


def rms_norm(weights: Weights, name: str, x: Array, eps: float) -> Array:
    """x / sqrt(mean(x^2) + eps) * weight."""
    scale = np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + eps)
    normed: Array = x / scale * get(weights, f"{name}.weight")
    return normed


def softmax(x: Array) -> Array:
    """Over the last axis."""
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    result: Array = e / e.sum(axis=-1, keepdims=True)
    return result


def swiglu(gate: Array, up: Array) -> Array:
    """silu(gate) * up."""
    return gate / (1.0 + np.exp(-gate)) * up


# --- rotary positions -----------------------------------------------------------------------


class Rotary(NamedTuple):
    """Frequencies [R/2], the factor on cos and sin, and the factor on the softmax scale."""

    frequencies: Array
    factor: float
    softmax_factor: float


def rotary(config: Config) -> Rotary:
    """theta^(-2j/R); YaRN stretches the slow ones by `factor` and leaves the fast ones."""
    width, theta = config["qk_rope_head_dim"], config["rope_theta"]
    exponents = np.arange(0, width, 2) / width
    # The constants are defined as float64 values rounded once to float32.
    plain = theta**-exponents
    yarn = config.get("rope_scaling")
    if not yarn:
        return Rotary(plain.astype(np.float32).astype(np.float64), 1.0, 1.0)
    factor = yarn["factor"]
    original = yarn.get("original_max_position_embeddings") or config["max_position_embeddings"]

    def dimension_of(rotations: float) -> float:
        turns = math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(theta))
        return float(width * turns)

    low, high = dimension_of(yarn.get("beta_fast") or 32), dimension_of(yarn.get("beta_slow") or 1)
    if yarn.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    ramp = np.clip((np.arange(width // 2) - low) / max(high - low, 0.001), 0.0, 1.0)
    mixed = plain / factor * ramp + plain * (1.0 - ramp)

    def mscale(coefficient: float) -> float:
        return float(0.1 * coefficient * math.log(factor) + 1.0) if factor > 1 else 1.0

    all_dim = yarn.get("mscale_all_dim") or 0
    if yarn.get("attention_factor") is not None:
        attention_factor = float(yarn["attention_factor"])
    elif yarn.get("mscale") and all_dim:
        attention_factor = mscale(yarn["mscale"]) / mscale(all_dim)
    else:
        attention_factor = mscale(1.0)
    return Rotary(
        mixed.astype(np.float32).astype(np.float64),
        attention_factor,
        mscale(all_dim) ** 2 if all_dim else 1.0,
    )


def rotate(x: Array, positions: Ids, rope: Rotary) -> Array:
    """x [T,R]: pairs (0,1), (2,3), ... are rotated; first halves come out first."""
    angle = positions[:, None] * rope.frequencies[None, :]
    cos, sin = rope.factor * np.cos(angle), rope.factor * np.sin(angle)
    even, odd = x[:, 0::2], x[:, 1::2]
    return np.concatenate([even * cos - odd * sin, odd * cos + even * sin], axis=-1)


# --- multi-head latent attention (report 2.3.1) ---------------------------------------------


def attention(weights: Weights, name: str, config: Config, x: Array, positions: Ids) -> Array:
    """Causal MLA with scale correction on x [T,D]."""
    heads, nope = config["num_attention_heads"], config["qk_nope_head_dim"]
    width, rank = config["hidden_size"], config["kv_lora_rank"]
    eps = config.get("latent_norm_eps", 1e-6)  # not rms_norm_eps
    rope, n_tokens = rotary(config), len(x)
    alpha_q = math.sqrt(width / config["q_lora_rank"])
    alpha_kv = math.sqrt(width / rank)
    if not config.get("mla_scale_q_lora", True):
        alpha_q = 1.0
    if not config.get("mla_scale_kv_lora", True):
        alpha_kv = 1.0

    query_latent = rms_norm(
        weights, f"{name}.q_a_layernorm", linear(weights, f"{name}.q_a_proj", x), eps
    )
    q = alpha_q * linear(weights, f"{name}.q_b_proj", query_latent)
    q = q.reshape(n_tokens, heads, -1)

    compressed = linear(weights, f"{name}.kv_a_proj_with_mqa", x)  # [T, C+R]
    latent = alpha_kv * rms_norm(weights, f"{name}.kv_a_layernorm", compressed[:, :rank], eps)
    k_rope = rotate(compressed[:, rank:], positions, rope)  # shared, neither normed nor scaled
    kv = linear(weights, f"{name}.kv_b_proj", latent).reshape(n_tokens, heads, -1)

    scale = (nope + config["qk_rope_head_dim"]) ** -0.5 * rope.softmax_factor
    future = np.triu(np.ones((n_tokens, n_tokens), dtype=bool), k=1)
    outputs = []
    for h in range(heads):
        k_nope, v = kv[:, h, :nope], kv[:, h, nope:]
        q_rope = rotate(q[:, h, nope:], positions, rope)
        scores = (q[:, h, :nope] @ k_nope.T + q_rope @ k_rope.T) * scale
        outputs.append(softmax(np.where(future, -np.inf, scores)) @ v)
    return linear(weights, f"{name}.o_proj", np.concatenate(outputs, axis=-1))


# --- feed-forward parts (report 2.1) --------------------------------------------------------


def dense_ffn(weights: Weights, name: str, x: Array) -> Array:
    """down(silu(gate x) * up x)."""
    gate, up = linear(weights, f"{name}.gate_proj", x), linear(weights, f"{name}.up_proj", x)
    return linear(weights, f"{name}.down_proj", swiglu(gate, up))


def expert(weights: Weights, name: str, index: int, x: Array) -> Array:
    """FFN expert `index`, from stacked tensors or from the checkpoint's separate ones."""
    if f"{name}.experts.gate_up_proj" not in weights:
        return dense_ffn(weights, f"{name}.experts.{index}", x)
    gate_up = np.asarray(weights[f"{name}.experts.gate_up_proj"][index], dtype=np.float64)
    down = np.asarray(weights[f"{name}.experts.down_proj"][index], dtype=np.float64)
    gate, up = np.split(x @ gate_up.T, 2, axis=-1)
    return swiglu(gate, up) @ down.T


class Routed(NamedTuple):
    """output [T,D], choices [T,K], gates [T,K], scores [T,N+Z]."""

    output: Array
    choices: Ids
    gates: Array
    scores: Array


def mixture(weights: Weights, name: str, config: Config, u: Array) -> Routed:
    """gamma * sum over the chosen K of score_i * E_i(u), with E_i(u) = u from index N on."""
    n_ffn, top_k = config["n_routed_experts"], config["moe_topk"]
    scores = softmax(linear(weights, f"{name}.router.classifier", u))
    biased = scores + get(weights, f"{name}.router.e_score_correction_bias")
    choices = np.argsort(-biased, axis=-1, kind="stable")[:, :top_k]  # the bias only chooses
    gates = config["routed_scaling_factor"] * np.take_along_axis(scores, choices, axis=-1)
    output = np.zeros_like(u)
    for i in np.unique(choices):
        tokens, slots = np.nonzero(choices == i)
        result = expert(weights, name, int(i), u[tokens]) if i < n_ffn else u[tokens]
        output[tokens] += gates[tokens, slots, None] * result
    return Routed(output, choices, gates, scores)


# --- the shortcut-connected block and the model (report 2.2) --------------------------------


def block(
    weights: Weights, name: str, config: Config, x: Array, positions: Ids
) -> tuple[Array, Routed]:
    """One ScMoE layer on x [T,D]."""
    eps = config["rms_norm_eps"]
    normed = rms_norm(weights, f"{name}.input_layernorm.0", x, eps)
    h1 = x + attention(weights, f"{name}.self_attn.0", config, normed, positions)
    u = rms_norm(weights, f"{name}.post_attention_layernorm.0", h1, eps)
    m = mixture(weights, f"{name}.mlp", config, u)  # the shortcut, kept aside
    h2 = h1 + dense_ffn(weights, f"{name}.mlps.0", u)
    normed = rms_norm(weights, f"{name}.input_layernorm.1", h2, eps)
    h3 = h2 + attention(weights, f"{name}.self_attn.1", config, normed, positions)
    normed = rms_norm(weights, f"{name}.post_attention_layernorm.1", h3, eps)
    h4 = h3 + dense_ffn(weights, f"{name}.mlps.1", normed)
    return h4 + m.output, m  # and added only here


def forward(weights: Weights, config: Config, ids: Ids) -> Forward:
    """The main model on token ids [T]."""
    positions = np.arange(len(ids))
    x = get(weights, "model.embed_tokens.weight")[ids]
    routed = []
    for layer in range(config["num_layers"]):
        x, decision = block(weights, f"model.layers.{layer}", config, x, positions)
        routed.append(decision)
    hidden = rms_norm(weights, "model.norm", x, config["rms_norm_eps"])
    return Forward(
        logits=linear(weights, "lm_head", hidden),
        hidden=hidden,
        last_layer=x,
        choices=np.stack([r.choices for r in routed]),
        gates=np.stack([r.gates for r in routed]),
        scores=np.stack([r.scores for r in routed]),
    )


def draft(weights: Weights, config: Config, hidden: Array, next_ids: Ids) -> Array:
    """The MTP head (report 2.4): hidden [T,D] at t and tokens [T] at t+1 to logits at t+2.

    Its layer is dense, or a whole ScMoE layer where config has `nextn_use_scmoe` (table 5).
    """
    eps, name = config["rms_norm_eps"], "model.mtp.layers.0"
    embedded = get(weights, "model.mtp.embed_tokens.weight")[next_ids]
    e = rms_norm(weights, f"{name}.enorm.m", embedded, eps)
    h = rms_norm(weights, f"{name}.hnorm.m", hidden, eps)
    z = linear(weights, f"{name}.eh_proj", np.concatenate([e, h], axis=-1))
    positions = np.arange(len(z))
    if config.get("nextn_use_scmoe"):
        z, _ = block(weights, f"{name}.transformer_layer", config, z, positions)
    else:
        normed = rms_norm(weights, f"{name}.input_layernorm", z, eps)
        z = z + attention(weights, f"{name}.self_attn", config, normed, positions)
        normed = rms_norm(weights, f"{name}.post_attention_layernorm", z, eps)
        z = z + dense_ffn(weights, f"{name}.transformer_layer.mlp", normed)
    return linear(weights, "lm_head", rms_norm(weights, "model.mtp.norm", z, eps))

"""Sampling and speculation in float64 numpy, one row at a time: the definition.

Only numpy and the standard library, loops where they read better. `longcat.serve.sampling`
computes the same in torch for many rows; tests hold the two together.

The idea worth knowing is *shared-Gumbel coupling*. A token is drawn as argmax(log p + G) with
Gumbel noise G that depends on (seed, position) alone. The draft head draws its guess with the
SAME noise from its own distribution q, and the guess is accepted iff the target's draw is the
same token. The emitted token is always the target's draw, so its law is exactly p for any q,
and the text is identical with and without speculation.
"""

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def probabilities(
    logits: Array,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> Array:
    """The distribution that a row of logits[V] is sampled from -> [V], sums to 1.

    In this order, each on what the one before left (renormalised):
      temperature  softmax(logits / temperature); 0 means all mass on the largest logit
      top_k        keep the k most probable tokens (0: all)
      top_p        keep the shortest list of most probable tokens whose mass reaches top_p
      min_p        keep tokens with at least min_p times the largest probability
    Ties are ordered by token id, lowest first, so "the k most probable" is always k tokens.
    """
    logits = np.asarray(logits, dtype=np.float64)
    if temperature == 0.0:
        point = np.zeros_like(logits)
        point[np.argmax(logits)] = 1.0
        return point
    weights = np.exp((logits - logits.max()) / temperature)
    p: Array = weights / weights.sum()
    order = sorted(range(p.size), key=lambda token: (-p[token], token))
    if top_k > 0:
        p = _keep(p, order[:top_k])
    if top_p < 1.0:
        mass, kept = 0.0, []
        for token in order:
            if mass >= top_p:
                break
            kept.append(token)
            mass += p[token]
        p = _keep(p, kept)
    if min_p > 0.0:
        p = _keep(p, [token for token in order if p[token] >= min_p * p.max()])
    return p


def _keep(p: Array, tokens: list[int]) -> Array:
    kept = np.zeros_like(p)
    kept[tokens] = p[tokens]
    return np.asarray(kept / kept.sum(), dtype=np.float64)


@lru_cache(maxsize=16)
def gumbel_noise(seed: int, position: int, vocab_size: int) -> Array:
    """Standard Gumbel noise [V] for one position: a pure function of (seed, position).

    Counter-based (Philox, key = seed, counter = position), so a token's noise does not depend
    on what was drawn before it, on the batch around it, or on how far a draft ran ahead.
    The result is cached, hence read-only: draft and target ask for the same row.
    """
    if not 0 <= seed < 2**64:
        raise ValueError(f"gumbel_noise: seed must be in 0 .. 2**64-1, got {seed}")
    # The position goes into the third counter word: the first two count blocks within the row.
    generator = np.random.Philox(key=seed, counter=[0, 0, position, 0])
    # (k + 1/2) / 2^52 with k < 2^52 is exact in float64 and is never 0 or 1.
    uniform = ((generator.random_raw(vocab_size) >> np.uint64(12)) + 0.5) * 2.0**-52
    noise = np.asarray(-np.log(-np.log(uniform)), dtype=np.float64)
    noise.flags.writeable = False
    return noise


def choose(p: Array, noise: Array) -> int:
    """The token that probabilities p[V] and noise[V] give: argmax(log p + noise)."""
    with np.errstate(divide="ignore"):
        return int(np.argmax(np.log(p) + noise))


def coupled_acceptance(p: Array, q: Array) -> float:
    """P(argmax(log p + G) == argmax(log q + G)) for shared Gumbel noise G, exactly.

    Both draws are x iff G_x - G_y >= max(log p_y/p_x, log q_y/q_x) for every y, which is a
    Gumbel race with weights max(p_y/p_x, q_y/q_x):

        sum_x 1 / sum_y max(p_y / p_x, q_y / q_x)      over x with p_x, q_x > 0

    It lies between (1 - TV) / (1 + TV) and 1 - TV, where TV = sum |p - q| / 2.
    """
    total = 0.0
    for x in range(p.size):
        if p[x] > 0.0 and q[x] > 0.0:
            total += 1.0 / float(np.maximum(p / p[x], q / q[x]).sum())
    return total


def expected_tokens_per_step(acceptance: float, num_drafts: int) -> float:
    """Tokens that one target pass yields when each draft is accepted with this probability.

    sum_{i=0..g} a^i = (1 - a^(g+1)) / (1 - a). For one draft this is 1 + a.
    Source: report section 5, the expected accepted length of its speed-up model.
    """
    return math.fsum(acceptance**i for i in range(num_drafts + 1))

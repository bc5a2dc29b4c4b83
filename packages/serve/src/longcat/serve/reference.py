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


# What a number is drawn for: the token itself (by draft and target alike), a draft of its own,
# the judgement of a draft, the token in place of a refused one.
TOKEN, DRAFT, ACCEPT, REPLACE = range(4)
_GOLDEN = 0x9E3779B97F4A7C15
_WORD = 2**64 - 1


def mix(z: int) -> int:
    """A 64-bit word scrambled: the finaliser of SplitMix64, a bijection."""
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & _WORD
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & _WORD
    return z ^ (z >> 31)


def noise_key(seed: int, position: int, choice: int = 0, purpose: int = TOKEN) -> int:
    """Where a row of noise begins: mix(mix(seed + golden) ^ (position, choice, purpose)).

    position < 2**40 is the index that the token will have in its sequence, choice < 2**16 the
    sequence's index among the choices of one call.
    """
    if not 0 <= seed < 2**64:
        raise ValueError(f"noise_key: seed must be in 0 .. 2**64-1, got {seed}")
    return mix(mix((seed + _GOLDEN) & _WORD) ^ (position << 24 | choice << 8 | purpose))


def uniform_noise(key: int, count: int) -> Array:
    """Numbers in (0, 1), [count]: SplitMix64 from `key` on, (k + 1/2) / 2^52 with k < 2^52.

    Counter-based: number i is mix(key + (i + 1) golden). So a token's noise does not depend on what
    was drawn before it, on the batch around it, or on how far a draft ran ahead.
    """
    words = [mix((key + (i + 1) * _GOLDEN) & _WORD) >> 12 for i in range(count)]
    return (np.array(words, dtype=np.float64) + 0.5) * 2.0**-52  # exact, never 0 or 1


def gumbel_noise(
    seed: int, position: int, vocab_size: int, choice: int = 0, purpose: int = TOKEN
) -> Array:
    """Standard Gumbel noise [V] of one position: -log(-log(uniform))."""
    uniform = uniform_noise(noise_key(seed, position, choice, purpose), vocab_size)
    return np.asarray(-np.log(-np.log(uniform)), dtype=np.float64)


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


def judge(
    p: Array, q: Array, drafts: list[int], uniforms: list[float], noise: Array
) -> tuple[list[int], int]:
    """Classic rejection sampling of a run of drafts -> (tokens, how many are drafts).

    Draft i, drawn from q[i], is accepted with probability min(1, p[i][d] / q[i][d]), i.e. when
    uniforms[i] * q[i][d] < p[i][d]. The first refused one is replaced by a draw from what p has
    more than q, max(p - q, 0) normalised; behind accepted ones comes a draw from the last p. The
    tokens are then distributed as p exactly, and 1 - TV(p, q) of the drafts are accepted.

    A draft that was not drawn but is the head's best guess has a q that is all on it: it is
    accepted with probability p[d] ("target-only" acceptance).

    p: [g+1, V]. q: [g, V]. noise: [g+1, V], Gumbel noise of the places.
    """
    for i, draft in enumerate(drafts):
        if uniforms[i] * q[i][draft] < p[i][draft]:
            continue
        residual = np.maximum(p[i] - q[i], 0.0)
        return [*drafts[:i], choose(residual / residual.sum(), noise[i])], i
    return [*drafts, choose(p[len(drafts)], noise[len(drafts)])], len(drafts)


def edit_logits(
    logits: Array,
    prompt: list[int],
    text: list[int],
    *,
    repetition_penalty: float = 1.0,
    frequency_penalty: float = 0.0,
    presence_penalty: float = 0.0,
    logit_bias: dict[int, float] | None = None,
) -> Array:
    """The logits [V] that follow prompt and text, with penalties and biases applied, in this order:

    repetition  a token in prompt or text: positive logits are divided by it, others multiplied
    frequency   taken off once for every time a token is in the text
    presence    taken off once when it is there at all
    bias        added
    """
    edited = np.array(logits, dtype=np.float64)
    for token in {*prompt, *text}:
        high = edited[token] > 0
        edited[token] *= 1.0 / repetition_penalty if high else repetition_penalty
    for token in text:
        edited[token] -= frequency_penalty
    for token in set(text):
        edited[token] -= presence_penalty
    for token, bias in (logit_bias or {}).items():
        edited[token] += bias
    return edited


def reserves(accepted: list[int], steps: int, drafts: int) -> list[int]:
    """Cache entries that a sequence has in reserve when each schedule of n steps is launched.

    A scheduler that launches schedule i before it has read what schedule i-1 accepted can only give
    back what was used two schedules ago. With U_i entries used by schedule i, and g drafts:

        R_0 = (g+1) n,  A_0 = (g+1) n,  R_i = R_{i-1} - U_{i-1} + A_{i-1},  A_i = U_{i-1}

    so R_i = 2 (g+1) n - U_{i-1}, which lies between (g+1) n, the most that a schedule can use, and
    (2g+1) n, because a step uses at least one entry.

    accepted: [I], the entries U_i.

    Source: report section 6, figure 10 (for one draft: between 2n and 3n).
    """
    reserve = grant = (drafts + 1) * steps
    found = [reserve]
    for used in accepted:
        reserve, grant = reserve - used + grant, used
        found.append(reserve)
    return found

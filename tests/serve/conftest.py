"""A model small enough to know everything about: a Markov chain with a draft head.

The target's next-token logits depend on the last ORDER = 2 tokens in the cache (and nothing
else), so a stale cache changes them and the truth can be looked up. The draft head sees the
same pair when it is fed the right hidden state, and agrees with the target as far as `quality`
says. Both record what was stored where.
"""

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor


class MarkovCache:
    """Tokens instead of latents; the head's latents are the (token, hidden) pairs it was fed."""

    def __init__(self, batch: int, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self.tokens: list[list[int]] = [[] for _ in range(batch)]
        self.draft_latents: list[tuple[int, tuple[float, ...]]] = []

    @property
    def length(self) -> int:
        return len(self.tokens[0])

    def truncate(self, length: int) -> None:
        self.tokens = [row[:length] for row in self.tokens]
        self.draft_latents = self.draft_latents[:length]


class MarkovModel:
    """p(next | a, b) = softmax(table[a, b]); the head mixes that table with a foreign one."""

    has_draft_head = True
    eos_token_id: int | None = None
    cache_class = MarkovCache

    def __init__(self, vocab: int = 7, quality: float = 0.6, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.vocab_size = vocab
        self.max_position = 10**9
        self.table = 2.0 * rng.standard_normal((vocab, vocab, vocab))
        other = 2.0 * rng.standard_normal((vocab, vocab, vocab))
        self.draft_table = quality * self.table + (1.0 - quality) * other
        self.passes: list[int] = []
        self.cache: MarkovCache | None = None

    def new_cache(self, batch: int, max_tokens: int) -> MarkovCache:
        self.cache = self.cache_class(batch, max_tokens)
        return self.cache

    def target(
        self, ids: Tensor, cache: MarkovCache, attention_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        start, width = cache.length, ids.shape[1]
        self.passes.append(width)
        for row, new in zip(cache.tokens, ids.tolist(), strict=True):
            row.extend(new)
        assert cache.length <= cache.max_tokens, "the cache was asked for more than its room"
        logits = np.zeros((ids.shape[0], width, self.vocab_size))
        hidden = np.zeros((ids.shape[0], width, 2 * self.vocab_size))
        for row, t in itertools.product(range(ids.shape[0]), range(width)):
            at = start + t
            seen = [
                token
                for i, token in enumerate(cache.tokens[row][: at + 1])
                if attention_mask is None or attention_mask[row, i]
            ]
            a, b = ([0, 0, *seen])[-2:]
            logits[row, t] = self.table[a, b]
            hidden[row, t, a] = hidden[row, t, self.vocab_size + b] = 1.0
        return torch.tensor(logits), torch.tensor(hidden)

    def draft(self, ids: Tensor, hidden: Tensor, cache: MarkovCache) -> tuple[Tensor, Tensor]:
        assert ids.shape[0] == 1
        assert ids.shape[1] == hidden.shape[1]
        logits, own = [], []
        for token, state in zip(ids[0].tolist(), hidden[0], strict=True):
            cache.draft_latents.append((token, tuple(state.tolist())))
            before = int(state[self.vocab_size :].argmax())
            logits.append(self.draft_table[before, token])
            # The head's own hidden state says the same, but in numbers no target state has.
            after = np.zeros(2 * self.vocab_size)
            after[before] = after[self.vocab_size + token] = 0.5
            own.append(after)
        return torch.tensor(np.array(logits))[None], torch.tensor(np.array(own))[None]


def surprise(observed: np.ndarray, expected: np.ndarray) -> float:
    """How many standard deviations Pearson's chi-square lies above its mean.

    observed, expected: counts [contexts, outcomes]; each row is one multinomial.
    """
    cells = expected > 0
    assert not observed[~cells].any(), "an impossible outcome was observed"
    chi_square = float((((observed - expected) ** 2)[cells] / expected[cells]).sum())
    freedom = int(cells.sum() - (expected.sum(1) > 0).sum())
    return (chi_square - freedom) / (2.0 * freedom) ** 0.5


def transitions(tokens: Sequence[int], vocab: int) -> np.ndarray:
    """Counts [vocab^2, vocab] of what followed each pair of tokens."""
    counts = np.zeros((vocab, vocab, vocab))
    for a, b, c in zip(tokens, tokens[1:], tokens[2:], strict=False):
        counts[a, b, c] += 1
    return counts.reshape(vocab * vocab, vocab)


@pytest.fixture
def markov() -> type[MarkovModel]:
    return MarkovModel


@pytest.fixture
def markov_cache() -> type[MarkovCache]:
    return MarkovCache


@pytest.fixture
def law_surprise() -> Callable[[Sequence[int], np.ndarray], float]:
    """law_surprise(tokens, p[V,V,V]): distance of the observed transitions from the law p."""

    def measure(tokens: Sequence[int], p: np.ndarray) -> float:
        vocab = p.shape[-1]
        observed = transitions(tokens, vocab)
        return surprise(observed, observed.sum(1, keepdims=True) * p.reshape(-1, vocab))

    return measure

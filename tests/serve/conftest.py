"""A model small enough to know everything about: a Markov chain with a draft head.

The target's next-token logits depend on the last ORDER = 2 tokens in the cache (and nothing
else), so a stale cache changes them and the truth can be looked up. The draft head sees the
same pair when it is fed the right hidden state, and agrees with the target as far as `quality`
says. Both record what was stored where.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from longcat.serve import LatentLayout


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
    misplaced = 0

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

    def target(self, ids: Tensor, cache: MarkovCache) -> tuple[Tensor, Tensor]:
        start, width = cache.length, ids.shape[1]
        self.passes.append(width)
        for row, new in zip(cache.tokens, ids.tolist(), strict=True):
            row.extend(new)
        assert cache.length <= cache.max_tokens, "the cache was asked for more than its room"
        logits = np.zeros((ids.shape[0], width, self.vocab_size))
        hidden = np.zeros((ids.shape[0], width, 2 * self.vocab_size))
        for row, t in itertools.product(range(ids.shape[0]), range(width)):
            at = start + t
            a, b = ([0, 0, *cache.tokens[row][: at + 1]])[-2:]
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

    # The same model for many sequences in one row: a token's latent is the token and its place.

    @property
    def latent_layout(self) -> LatentLayout:
        return LatentLayout(
            target_attentions=1,
            draft_attentions=1 if self.has_draft_head else 0,
            latent_rank=1,
            rope_dim=1,
            dtype=torch.float64,
            device=torch.device("cpu"),
        )

    def forward_paged(self, ids: Tensor, positions: Tensor, layers: Sequence[Any]) -> Tensor:
        self.passes.append(len(ids))
        hidden = np.zeros((len(ids), 2 * self.vocab_size))
        for t, seen in enumerate(self._seen(layers[0], ids, positions)):
            a, b = ([0, 0, *seen])[-2:]
            hidden[t, a] = hidden[t, self.vocab_size + b] = 1.0
        return torch.tensor(hidden)

    def draft_paged(
        self, ids: Tensor, hidden: Tensor, positions: Tensor, layers: Sequence[Any]
    ) -> Tensor:
        self._seen(layers[0], ids, positions)
        own = torch.zeros_like(hidden)
        before = hidden[:, self.vocab_size :].argmax(-1)
        rows = torch.arange(len(ids))
        own[rows, before] = own[rows, self.vocab_size + ids] = 0.5
        return own

    def logits(self, hidden: Tensor) -> Tensor:
        a, b = hidden[:, : self.vocab_size], hidden[:, self.vocab_size :]
        tables = torch.tensor(np.stack([self.draft_table, self.table]))
        return tables[(a.amax(-1) == 1.0).long(), a.argmax(-1), b.argmax(-1)]

    def _seen(self, layer: Any, ids: Tensor, positions: Tensor) -> list[list[int]]:
        """The tokens that each of ids may look at, itself included, as they are stored."""
        layer.write(ids[None, :, None].double(), positions[None, :, None].double())
        found: list[list[int]] = []
        for group in layer.groups():
            batch, keys = group.latent.shape[:2]
            width = (group.tokens.stop - group.tokens.start) // batch
            for b, w in itertools.product(range(batch), range(width)):
                if group.mask is None:
                    visible = torch.arange(keys) <= keys - width + w
                else:
                    visible = group.mask[b, w]
                place = int(positions[len(found)])
                stored = group.k_rope[b, visible, 0].tolist()
                # What a request may not have any more is written to page 0 and means nothing.
                kept = int(layer._ragged.slots[len(found)]) >= layer._store.shape[1]
                self.misplaced += kept and stored != list(range(place + 1))
                found.append([int(token) for token in group.latent[b, visible, 0]])
        return found


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
def law_surprise() -> Callable[..., float]:
    """law_surprise(p[V,V,V], *texts): distance of the observed transitions from the law p."""

    def measure(p: np.ndarray, *texts: Sequence[int]) -> float:
        vocab = p.shape[-1]
        observed = sum(transitions(tokens, vocab) for tokens in texts)
        return surprise(observed, observed.sum(1, keepdims=True) * p.reshape(-1, vocab))

    return measure

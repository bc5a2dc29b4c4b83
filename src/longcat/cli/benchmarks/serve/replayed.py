"""A model whose drafts are right at a rate of our choice, at the full cost of computing them.

Everything is computed as the model would. Only what it says is replaced: after each token the
target says a fixed next one (a random walk through the vocabulary), and the head says the same for
a given share of the tokens, another one for the rest. So speculation can be timed on a model that
nobody has trained, at an acceptance that a trained one would have.

The token that a hidden state is for stands in its first two numbers, the head's mark in the third,
where the choice of rows and places carries them along.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from longcat.serve import PagedModel

DIGIT = 128  # exact in bfloat16
LOUD = 1e4


class Replayed:
    """A `longcat.serve.PagedModel` that computes `model` and says what was laid down."""

    def __init__(self, model: PagedModel, acceptance: float, seed: int = 0) -> None:
        self._model = model
        generator = torch.Generator().manual_seed(seed)
        vocab = model.vocab_size
        walk = torch.randperm(vocab, generator=generator)
        self._next = torch.empty_like(walk)
        self._next[walk] = walk.roll(-1)
        right = torch.randperm(vocab, generator=generator) < round(acceptance * vocab)
        self._guess = torch.where(right, self._next, (self._next + 1) % vocab)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def forward_paged(self, ids: Tensor, positions: Tensor, layers: Sequence[Any]) -> Tensor:
        """Hidden states that name their tokens."""
        return _marked(self._model.forward_paged(ids, positions, layers), ids, head=False)

    def draft_paged(
        self, ids: Tensor, hidden: Tensor, positions: Tensor, layers: Sequence[Any]
    ) -> Tensor:
        """The head's, which name theirs."""
        return _marked(self._model.draft_paged(ids, hidden, positions, layers), ids, head=True)

    def logits(self, hidden: Tensor) -> Tensor:
        """The model's, with the laid down token above all."""
        logits = self._model.logits(hidden)
        high, low, head = hidden[:, :3].float().round().long().unbind(-1)
        token = high * DIGIT + low
        said = torch.where(head == 1, self._guess[token], self._next[token])
        return logits.scatter(-1, said.unsqueeze(-1), LOUD)


def _marked(hidden: Tensor, ids: Tensor, *, head: bool) -> Tensor:
    marks = [ids // DIGIT, ids % DIGIT, torch.full_like(ids, head)]
    hidden[:, :3] = torch.stack(marks, dim=-1).to(hidden.dtype)
    return hidden

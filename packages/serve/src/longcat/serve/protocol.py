"""What a model and a tokenizer must offer to be decoded: protocols, and nothing about weights.

Shape legend: B sequences, T tokens fed in one call, D model width, V vocabulary.

`longcat.serve` never loads a checkpoint and never imports a model. A model that satisfies
`PagedModel` structurally (no inheritance needed) is served by the engine; one that satisfies
`Model` decodes with everything in this package.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


class Cache(Protocol):
    """Latents of the tokens seen so far, for the target's layers and for the draft head.

    The draft head's latents are counted apart: its position i holds the pair
    (token i+1, hidden i), so it may lag behind the target, and it runs ahead of it while a
    chain of drafts is being proposed.
    """

    @property
    def length(self) -> int:
        """Target tokens stored."""
        ...

    def truncate(self, length: int) -> None:
        """Forget everything at positions >= `length`, in the target's layers and in the head's."""
        ...


@dataclass(frozen=True, kw_only=True)
class LatentLayout:
    """What a model keeps of each token: C+R numbers in every attention.

    target_attentions  attentions of the model itself
    draft_attentions   of its draft head; 0 without one
    latent_rank        C. rope_dim: R
    dtype, device      of the latents, and the device that ids are fed on
    """

    target_attentions: int
    draft_attentions: int
    latent_rank: int
    rope_dim: int
    dtype: torch.dtype
    device: torch.device


class PagedModel(Protocol):
    """A causal language model, perhaps with a multi-token-prediction head, as the engine feeds it:
    tokens of many sequences in one row, latents in pages.

    Everything is on the model's device here, and on an accelerator nothing waits for it.

    Source: report section 2.4 (the head) and section 5 (its use as a draft).
    """

    @property
    def has_draft_head(self) -> bool: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def max_position(self) -> int:
        """Longest sequence the model takes, prompt and generated tokens together."""
        ...

    @property
    def eos_token_id(self) -> int | None: ...
    @property
    def latent_layout(self) -> LatentLayout: ...

    def forward_paged(self, ids: Tensor, positions: Tensor, layers: Sequence[Any]) -> Tensor:
        """Hidden states [T,D] of ids[T] at positions[T] of whatever sequences they belong to.

        layers: one `longcat.attention.RaggedCache` per attention of the target. hidden is what the
        language-model head reads (after the final norm), because that is also what the draft head
        reads; `logits` is asked for the rows that need them.
        """
        ...

    def draft_paged(
        self, ids: Tensor, hidden: Tensor, positions: Tensor, layers: Sequence[Any]
    ) -> Tensor:
        """The head's own hidden states [T,D], of ids[T] after hidden[T,D] at positions[T].

        layers: one per attention of the head.
        """
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [R,V] of hidden states [R,D], the target's or the head's."""
        ...


class Model(PagedModel, Protocol):
    """One that also decodes without an engine, over a cache of its own.

    `cache` is always what this model's own `new_cache` returned, so an implementation may
    annotate it with its own class; the protocol says Any to allow that.
    """

    def new_cache(self, batch: int, max_tokens: int) -> Cache:
        """An empty cache with room for `max_tokens` positions of `batch` sequences."""
        ...

    def target(self, ids: Tensor, cache: Any) -> tuple[Tensor, Tensor]:
        """Append ids[B,T] to the cache; return logits[B,T,V] and hidden[B,T,D].

        hidden is as in `forward_paged`. ids arrive on the host; the model moves them to its own
        device.
        """
        ...

    def draft(self, ids: Tensor, hidden: Tensor, cache: Any) -> tuple[Tensor, Tensor]:
        """Append T draft latents; return logits[B,T,V] and the head's own hidden[B,T,D].

        Column t pairs the token ids[:, t] with the hidden state of the position *before* it.
        ids arrive on the host, as in `target`.
        """
        ...


class Tokenizer(Protocol):
    """Text to token ids and back; `longcat.flash.tokenizer.Tokenizer` is one."""

    @property
    def eos_id(self) -> int: ...

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without any added token."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """Text of token ids; bytes that are no UTF-8 become U+FFFD."""
        ...

    def token_bytes(self) -> list[bytes]:
        """The bytes of every id [V]; control tokens stand for none."""
        ...

"""The paged latent cache, and one pass's view of it.

    store   one tensor [pages, page_size, C+R] per attention, the draft head's included; a
            sequence's pages are the same in all of them
    Ragged  which tokens of many sequences one pass feeds, as one row: computed once per pass,
            shared by all attentions
    Layer   the two together, which is what an attention is given

Rejected tokens leave their latents behind; the next pass writes over them.

Shape legend: T tokens in the row, B sequences of a group, W tokens of each, P pages,
S = P*page_size latents.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple

import torch
from torch import Tensor

from longcat.serve.protocol import LatentLayout


@dataclass(frozen=True, kw_only=True)
class Rectangle:
    """W consecutive tokens of each of B sequences.

    start   where they begin in the row
    table   [B,P] pages of each sequence, 0 where it has none
    mask    [B,W,S] which of the latents in those pages each token may look at; None when all S
            count, causally (then S ends with the last token)
    length  S, where the last page is cut off; None for whole pages
    """

    start: int
    width: int
    table: Tensor
    mask: Tensor | None
    length: int | None = None

    @cached_property
    def pages(self) -> Tensor:
        """[B*P], all of them in a row; every attention of a pass asks."""
        return self.table.flatten()


class Ragged:
    """The tokens of one pass: where each is stored, and what it may look at."""

    def __init__(self, slots: Tensor, rectangles: Sequence[Rectangle]) -> None:
        self.slots = slots  # [T], index into the flattened pages
        self.rectangles = tuple(rectangles)


class Group(NamedTuple):
    """What one rectangle may look at, gathered; `longcat.attention.Group`.

    latents  [B,S,C+R]. rank: C
    """

    tokens: slice
    latents: Tensor
    rank: int
    mask: Tensor | None

    @property
    def latent(self) -> Tensor:
        """[B,S,C]."""
        return self.latents[..., : self.rank]

    @property
    def k_rope(self) -> Tensor:
        """[B,S,R]."""
        return self.latents[..., self.rank :]


class Layer:
    """One attention's latents in one pass; a `longcat.attention.RaggedCache`.

    store is [pages, page_size, C+R], and row the same latents as [1, pages*page_size, C+R];
    written is told of what has been stored: slots [T] and latents [T, C+R].
    """

    def __init__(
        self,
        store: Tensor,
        row: Tensor,
        ragged: Ragged,
        latent_rank: int,
        written: Callable[[Tensor, Tensor], None] | None = None,
    ) -> None:
        self._store, self._row = store, row
        self._ragged = ragged
        self._rank = latent_rank
        self._written = written

    def write(self, latent: Tensor, k_rope: Tensor) -> None:
        """Store latent [1,T,C] and k_rope [1,T,R]."""
        both = torch.cat([latent, k_rope.to(latent.dtype)], dim=-1)
        self._row.index_copy_(1, self._ragged.slots, both)
        if self._written is not None:
            self._written(self._ragged.slots, both[0])

    def groups(self) -> list[Group]:
        """The latents that each rectangle may look at."""
        groups = []
        for r in self._ragged.rectangles:
            batch = r.table.shape[0]
            latents = self._store.index_select(0, r.pages).view(batch, -1, self._row.shape[2])
            if r.length is not None:
                latents = latents[:, : r.length]
            groups.append(
                Group(
                    tokens=slice(r.start, r.start + batch * r.width),
                    latents=latents,
                    rank=self._rank,
                    mask=r.mask,
                )
            )
        return groups


class Latents:
    """The store of all attentions, page 0 being nobody's.

    Attributes:
        stores: [pages, page_size, C+R] each, those of the draft head last.
        written: called when an attention has stored its latents in a pass, with its index, the
            slots [T] and the latents [T, C+R].
    """

    def __init__(self, layout: LatentLayout, num_pages: int, page_size: int) -> None:
        self._layout = layout
        self.written: Callable[[int, Tensor, Tensor], None] | None = None
        self.page_size = page_size
        # Zeros, because a masked latent is multiplied by 0 and must not be NaN.
        self.stores = [
            torch.zeros(
                num_pages + 1,
                page_size,
                layout.latent_rank + layout.rope_dim,
                dtype=layout.dtype,
                device=layout.device,
            )
            for _ in range(layout.target_attentions + layout.draft_attentions)
        ]

        self._rows = [store.flatten(0, 1).unsqueeze(0) for store in self.stores]
        self._hidden: Tensor | None = None

    def keep_hidden(self, slots: Tensor, hidden: Tensor) -> None:
        """Store the target's hidden states [T,D] beside the latents: what the draft head will need
        to make up for places that it has not read.
        """
        if self._hidden is None:
            pages = self.stores[0].shape[:2].numel()
            self._hidden = hidden.new_zeros(pages, hidden.shape[1])
        self._hidden.index_copy_(0, slots, hidden)

    def kept_hidden(self, slots: Tensor) -> Tensor:
        """Hidden states [T,D] that were kept."""
        assert self._hidden is not None
        return self._hidden.index_select(0, slots)

    @property
    def bytes(self) -> int:
        """Memory of the store."""
        return sum(store.numel() * store.element_size() for store in self.stores)

    def target(self, ragged: Ragged) -> list[Layer]:
        """What the target's attentions are given for one pass."""
        return self._layers(0, self._layout.target_attentions, ragged)

    def draft(self, ragged: Ragged) -> list[Layer]:
        """What the draft head's are given."""
        return self._layers(self._layout.target_attentions, len(self.stores), ragged)

    def _layers(self, first: int, end: int, ragged: Ragged) -> list[Layer]:
        rank, told = self._layout.latent_rank, self.written
        return [
            Layer(
                self.stores[i],
                self._rows[i],
                ragged,
                rank,
                None if told is None else partial(told, i),
            )
            for i in range(first, end)
        ]

    def slots(self, table: Tensor, positions: Tensor) -> Tensor:
        """Where positions [B,W] of sequences with pages table [B,P] are stored -> [B*W].

        A position behind the last page falls on page 0.
        """
        page = positions // self.page_size
        inside = page < table.shape[1]
        held = table.gather(1, page.clamp(max=table.shape[1] - 1))
        return torch.where(inside, held * self.page_size + positions % self.page_size, 0).flatten()

    def together(self, start: int, table: Tensor, positions: Tensor) -> Rectangle:
        """Tokens at positions [B,W], each looking at the ones before it and itself."""
        keys = torch.arange(table.shape[1] * self.page_size, device=positions.device)
        mask = keys <= positions.unsqueeze(-1)
        return Rectangle(start=start, width=positions.shape[1], table=table, mask=mask)

    def alone(self, start: int, table: Tensor, first: int, width: int) -> Rectangle:
        """Tokens first .. first+width-1 of one sequence with pages table [1,P]."""
        end = first + width
        pages = table[:, : -(-end // self.page_size)]
        return Rectangle(start=start, width=width, table=pages, mask=None, length=end)

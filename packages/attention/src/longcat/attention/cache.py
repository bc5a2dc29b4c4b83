"""What a query may look at: a latent cache of C+R numbers per token, or a bare key mask.

MLA writes the scaled latent and the rotated shared key of each new token and reads all of them.
Rejected speculative tokens need no undoing: a latent depends on its own token alone, so setting
the length back is enough and the next write overwrites them.

Shapes: B batch, T new tokens, S all tokens so far, C latent, R rope, H heads.

Source: report section 2.3.1; the absorbed form is report section 5 (decode).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from longcat.kernels import mla_decode


class LatentCache(Protocol):
    """The latents of one attention layer, as MLA sees them."""

    def write(self, latent: Tensor, k_rope: Tensor) -> None:
        """Append latent [B,T,C] (normed and scaled) and k_rope [B,T,R] (rotated)."""

    def read(self) -> tuple[Tensor, Tensor]:
        """All latents [B,S,C] and rotated keys [B,S,R] written so far."""

    def mask(self, n_queries: int) -> Tensor | None:
        """[B,T,S] bool, True where a query may look; None means plain causal."""

    def attend(self, q_latent: Tensor, q_rope: Tensor, scale: float) -> Tensor:
        """Absorbed attention of the last T tokens: q [B,T,H,C] and [B,T,H,R] to [B,T,H,C]."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Consecutive tokens of a ragged row that attend together: W of each of B sequences.

    Attributes:
        tokens: where they stand in the row, B*W of them, sequence by sequence.
        latents: [B,S,C+R], everything they may look at: latents and behind them rotated keys.
        rank: C.
        mask: [B,W,S] bool, or None: causal, the last of the W looking at all S.
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


class RaggedCache(Protocol):
    """The latents of one attention layer for tokens of many sequences, laid in one row [1,T,D].

    Linear maps, norms and experts see one row of T tokens; only attention has to know which
    sequence a token belongs to, and asks for its groups.
    """

    def write(self, latent: Tensor, k_rope: Tensor) -> None:
        """Store latent [1,T,C] and k_rope [1,T,R], each token's in its own place."""

    def groups(self) -> Sequence[Group]:
        """The groups, which cover the row in order; to be called after `write`."""


def causal_mask(valid: Tensor, n_queries: int) -> Tensor:
    """[B, T, S] for keys valid [B, S]: causal, padding hidden, every query sees itself.

    The last clause gives rows that are padding themselves something to attend to, so that no
    softmax runs over an empty set; their results are never used.
    """
    n_keys = valid.shape[1]
    key = torch.arange(n_keys, device=valid.device)
    query = key[n_keys - n_queries :].unsqueeze(-1)
    return ((key <= query) & valid.unsqueeze(1)) | (key == query)


class KeyMask:
    """No cache, only padding: tokens attend among themselves where `valid` [B, T] is True."""

    def __init__(self, valid: Tensor) -> None:
        self.valid = valid.to(torch.bool)
        # Built once here, shared by every attention of the model.
        self.mask = causal_mask(self.valid, valid.shape[1])


class LayerCache:
    """One attention layer's part of a DenseLatentCache; a LatentCache."""

    def __init__(self, owner: "DenseLatentCache", store: Tensor) -> None:
        self.owner = owner
        self.store = store  # [B, M, C+R]
        self.length = 0

    def write(self, latent: Tensor, k_rope: Tensor) -> None:
        """Append T tokens.

        Raises:
            ValueError: when the cache is full.
        """
        end = self.length + latent.shape[1]
        if end > self.store.shape[1]:
            raise ValueError(
                f"latent cache: holds {self.store.shape[1]} tokens, {end} are needed; create it "
                "with a larger max_tokens"
            )
        rank = self.owner.latent_rank
        self.store[:, self.length : end, :rank] = latent
        self.store[:, self.length : end, rank:] = k_rope
        self.length = end

    def read(self) -> tuple[Tensor, Tensor]:
        """Views of latents [B,S,C] and keys [B,S,R]."""
        rank = self.owner.latent_rank
        used = self.store[:, : self.length]
        return used[..., :rank], used[..., rank:]

    def mask(self, n_queries: int) -> Tensor | None:
        """Causal over valid keys, or None where there is no padding."""
        if self.owner.valid is None:
            return None
        return causal_mask(self.owner.valid[:, : self.length], n_queries)

    def attend(self, q_latent: Tensor, q_rope: Tensor, scale: float) -> Tensor:
        """Absorbed attention over everything written."""
        latent, k_rope = self.read()
        return mla_decode(q_latent, q_rope, latent, k_rope, scale, self.mask(q_latent.shape[1]))


class DenseLatentCache:
    """A contiguous latent cache for all attention layers of a model.

    Args:
        num_attentions: attention layers, two per ScMoE layer (plus the draft head's).
        batch: B. max_tokens: capacity in tokens.
        latent_rank: C. rope_dim: R.
        valid: [B, any] bool, False for left padding; None when there is none. Tokens past its
            width count as valid.
    """

    def __init__(
        self,
        num_attentions: int,
        batch: int,
        max_tokens: int,
        latent_rank: int,
        rope_dim: int,
        *,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        valid: Tensor | None = None,
    ) -> None:
        self.latent_rank = latent_rank
        self.max_tokens = max_tokens
        self.valid: Tensor | None = None
        width = latent_rank + rope_dim
        self.layers = [
            LayerCache(self, torch.zeros(batch, max_tokens, width, dtype=dtype, device=device))
            for _ in range(num_attentions)
        ]
        if valid is not None:
            self.set_padding(valid)

    @property
    def length(self) -> int:
        """Tokens written to the first layer, i.e. seen by the model."""
        return self.layers[0].length

    def set_padding(self, valid: Tensor) -> None:
        """Mark left padding: valid [B, T] bool; tokens past T count as valid.

        It replaces what was marked before; where all tokens are valid nothing is marked.
        """
        if bool(valid.all()):
            self.valid = None
            return
        n = valid.shape[1]
        self.valid = torch.ones(
            valid.shape[0], self.max_tokens, dtype=torch.bool, device=valid.device
        )
        self.valid[:, :n] = valid.to(torch.bool)

    def truncate(self, length: int) -> None:
        """Forget tokens past `length` in every layer that has more."""
        for layer in self.layers:
            layer.length = min(layer.length, length)

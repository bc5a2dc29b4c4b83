"""Where each token of a pass stands, whether it counts, and what it may attend to.

Shapes: B batch, T new tokens, S all tokens so far.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from longcat.attention import DenseLatentCache, DocumentMask, KeyMask


@dataclass(frozen=True, kw_only=True)
class Places:
    """What the layers are told of T tokens beside the tokens themselves.

    Attributes:
        positions: [B,T] int64.
        token_mask: [B,T] bool, False for padding; None where there is none.
        visible: what attention without a cache may see; None for plain causal.
    """

    positions: Tensor
    token_mask: Tensor | None
    visible: KeyMask | DocumentMask | None


def find_places(
    ids: Tensor,
    attention_mask: Tensor | None,
    document_ids: Tensor | None,
    cache: DenseLatentCache | None,
    past: int,
) -> Places:
    """Places of ids [B,T] after `past` cached tokens; the masks are those of `FlashModel.forward`.

    Raises:
        ValueError: for document ids of another shape, or beside a mask or a cache.
    """
    if document_ids is not None:
        if attention_mask is not None or cache is not None:
            raise ValueError(
                "model: document_ids go with neither an attention_mask (mark padding by -1) nor a "
                "cache"
            )
        if document_ids.shape != ids.shape:
            raise ValueError(
                f"model: document_ids must be {tuple(ids.shape)} like the tokens; got "
                f"{tuple(document_ids.shape)}"
            )
        documents = DocumentMask(document_ids)
        return Places(positions=documents.positions, token_mask=documents.valid, visible=documents)
    valid = _valid(attention_mask, cache, past + ids.shape[1])
    if valid is None:
        steps = torch.arange(past, past + ids.shape[1], device=ids.device)
        return Places(positions=steps.expand(ids.shape), token_mask=None, visible=None)
    # With padding on the left, the first real token is at 0.
    positions = (valid.to(torch.int64).cumsum(dim=-1) - 1).clamp(min=0)[:, past:]
    return Places(
        positions=positions,
        token_mask=valid[:, past:],
        visible=KeyMask(valid) if cache is None else None,
    )


def _valid(
    attention_mask: Tensor | None, cache: DenseLatentCache | None, total: int
) -> Tensor | None:
    """[B, total] bool, False for padding; None where there is none. The cache remembers it."""
    if cache is None:
        return None if attention_mask is None else attention_mask.to(torch.bool)
    if attention_mask is not None:
        cache.set_padding(attention_mask)
    return None if cache.valid is None else cache.valid[:, :total]

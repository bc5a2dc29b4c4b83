"""Several documents in one row of tokens, each attending to itself alone, from position 0.

A document is a run of equal ids, so ids need not be unique along a row: 0 0 1 1 0 holds three
documents. A negative id marks padding, which nobody attends to.

Shapes: B batch, T tokens.
"""

import torch
from torch import Tensor


class DocumentMask:
    """What packed tokens may attend to, and at which positions they stand.

    A token attends to the earlier tokens of its own document and to itself. Padding attends to
    itself alone (no softmax runs over an empty set); its results are never used.

    Args:
        document_ids: [B,T] integers, the document of each token; negative for padding.

    Attributes:
        valid: [B,T] bool, False for padding.
        positions: [B,T] int64, counted from the start of each document.
        mask: [B,T,T] bool, True where query t may see key s.

    Raises:
        ValueError: when the ids are not integers of shape [B,T].
    """

    def __init__(self, document_ids: Tensor) -> None:
        if document_ids.ndim != 2 or document_ids.is_floating_point():
            raise ValueError(
                "documents: document_ids must be integers [B,T]; got "
                f"{document_ids.dtype} {tuple(document_ids.shape)}"
            )
        begins = torch.ones_like(document_ids, dtype=torch.bool)
        begins[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
        place = torch.arange(document_ids.shape[1], device=document_ids.device)
        self.valid = document_ids >= 0
        self.positions = place - torch.where(begins, place, 0).cummax(dim=-1).values
        run = begins.cumsum(dim=-1)  # numbers the documents of a row, padding included
        same = run.unsqueeze(2) == run.unsqueeze(1)
        earlier = place.unsqueeze(1) > place
        itself = place.unsqueeze(1) == place
        self.mask = (same & earlier & self.valid.unsqueeze(1)) | itself

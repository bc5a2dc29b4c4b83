"""Decode several sequences together: left-padded, one token each per step, no drafts.

The plain form. Every sequence waits for the longest, and the padding is computed and masked;
in return there is nothing here but a loop.

Shape legend: B sequences, T padded prompt length, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from longcat.serve.params import SamplingParams
from longcat.serve.protocol import Model
from longcat.serve.sampling import choose, fresh_seed
from longcat.serve.speculation import check_prompt


def pad_left(prompts: Sequence[Sequence[int]], pad_token_id: int) -> tuple[Tensor, Tensor]:
    """Prompts of any lengths -> ids[B,T] padded on the left, and mask[B,T], True on real tokens."""
    longest = max((len(prompt) for prompt in prompts), default=0)
    ids = torch.full((len(prompts), longest), pad_token_id, dtype=torch.long)
    mask = torch.zeros(len(prompts), longest, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        start = longest - len(prompt)
        ids[row, start:] = torch.tensor(list(prompt), dtype=torch.long)
        mask[row, start:] = True
    return ids, mask


@torch.inference_mode()
def decode_batch(
    model: Model,
    input_ids: Tensor,
    params: SamplingParams,
    attention_mask: Tensor | None = None,
    pad_token_id: int = 0,
) -> Tensor:
    """Continue input_ids[B,T] -> generated ids int64 [B, new], new <= params.max_tokens.

    Row r gets exactly what `decode` gives its prompt alone with seed + r: noise is keyed by the
    row's own positions, padding not counted. After its end-of-sequence token a row holds
    pad_token_id; decoding stops when all rows have ended.

    attention_mask[B,T] is True (or 1) on real tokens; padding must be on the left.
    Raises ValueError for padding elsewhere, and whatever `decode` raises for a row's prompt.
    """
    rows = unpadded(input_ids, attention_mask)
    for row in rows:
        check_prompt(model, row, params.max_tokens)

    ids, mask = pad_left(rows, pad_token_id)
    batch, width = ids.shape
    lengths = [len(row) for row in rows]
    seed = fresh_seed() if params.seed is None else params.seed
    seeds = [(seed + row) % 2**64 for row in range(batch)]
    padded = not bool(mask.all())
    stop = None if params.ignore_eos else model.eos_token_id
    cache = model.new_cache(batch, width + params.max_tokens)
    generated: list[Tensor] = []
    ended = torch.zeros(batch, dtype=torch.bool)
    fed = ids
    for step in range(params.max_tokens):
        logits, _ = model.target(fed, cache, mask if padded else None)
        positions = [length + step for length in lengths]
        tokens = torch.tensor(choose(logits[:, -1], params, seeds, positions))
        tokens = torch.where(ended, pad_token_id, tokens)
        generated.append(tokens)
        if stop is not None:
            ended = ended | (tokens == stop)
        if bool(ended.all()):
            break
        fed = tokens[:, None]
        mask = torch.cat([mask, torch.ones(batch, 1, dtype=torch.bool)], dim=1)
    return torch.stack(generated, dim=1)


def unpadded(input_ids: Tensor, attention_mask: Tensor | None) -> list[list[int]]:
    """The real tokens of each row of input_ids[B,T]; padding must be on the left.

    Raises ValueError for ids or a mask of another shape, and for padding after a real token.
    """
    ids = input_ids.to("cpu", torch.long)
    if ids.ndim != 2 or ids.numel() == 0:
        raise ValueError(f"input_ids must be a non-empty [batch, tokens], got {list(ids.shape)}")
    if attention_mask is None:
        return [[int(token) for token in row] for row in ids.tolist()]
    mask = attention_mask.to("cpu", torch.bool)
    if mask.shape != ids.shape:
        raise ValueError(
            f"attention_mask {list(mask.shape)} must have the shape of input_ids {list(ids.shape)}"
        )
    if bool((mask[:, :-1] & ~mask[:, 1:]).any()):
        raise ValueError(
            "attention_mask has padding after a real token; "
            "pad on the left (longcat.serve.pad_left does)"
        )
    return [row[keep].tolist() for row, keep in zip(ids, mask, strict=True)]

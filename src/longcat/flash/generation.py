"""`FlashModel.generate`: from token ids to token ids, on the parts of `longcat.serve`."""

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from longcat.serve import SamplingParams, decode, decode_batch
from longcat.serve.batch import unpadded
from longcat.serve.sampling import fresh_seed

if TYPE_CHECKING:
    from longcat.flash.model import FlashModel


@torch.inference_mode()
def generate(
    model: "FlashModel",
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    seed: int | None = None,
    speculative: bool | None = None,
    ignore_eos: bool = False,
) -> Tensor:
    """Continue every row of input_ids [B,T]; padding goes on the left.

    Args:
        attention_mask: [B,T], 0 for padding.
        max_new_tokens: rows that end earlier are filled with pad_token_id.
        temperature: 0 is greedy.
        seed: of the sampling noise; the row's index is added to it.
        speculative: None drafts with the MTP head where there is one; True without a head
            decodes plainly and warns once.
        ignore_eos: go on past the end-of-text token.

    Returns:
        [B, T + new], where new is the longest continuation.
    """
    fill = model.config.pad_token_id or 0
    params = SamplingParams(
        temperature=temperature, max_tokens=max_new_tokens, seed=seed, ignore_eos=ignore_eos
    )
    use_drafts = speculative is not False and model.has_draft_head
    if speculative and not use_drafts:
        warnings.warn("the model has no MTP head: decoding without speculation", stacklevel=3)
    if not use_drafts:
        new = decode_batch(model, input_ids, params, attention_mask, fill)
        return torch.cat([input_ids, new.to(input_ids.device)], dim=1)
    first_seed = fresh_seed() if seed is None else seed
    rows = []
    for index, prompt in enumerate(unpadded(input_ids, attention_mask)):
        row_params = replace(params, seed=(first_seed + index) % 2**64)
        rows.append([token.id for token in decode(model, prompt, row_params)])
    width = max((len(row) for row in rows), default=0)
    new = torch.tensor([row + [fill] * (width - len(row)) for row in rows], dtype=torch.int64)
    return torch.cat([input_ids, new.to(input_ids.device).view(len(input_ids), width)], dim=1)

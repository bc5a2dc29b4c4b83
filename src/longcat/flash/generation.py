"""`FlashModel.generate`: from token ids to token ids, through the engine of `longcat.serve`."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from longcat.serve import (
    Completion,
    Engine,
    EngineConfig,
    Request,
    SamplingParams,
    complete,
    pages_for,
)
from longcat.serve.sampling import fresh_seed

if TYPE_CHECKING:
    from longcat.flash.model import FlashModel

# Rows computed together, and tokens of prompts fed in one pass.
_MOST_ROWS, _CHUNK = 128, 2048


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

    A row gets what it would get alone, whatever is beside it (to rounding, as everywhere outside
    `longcat.kernels.exact()`). For texts, stop strings or one setting per prompt there is
    `longcat.flash.load_llm`.

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

    Raises:
        ValueError: for ids or a mask of another shape, padding after a real token, a row without
            tokens or without room for max_new_tokens, and parameters outside their range.
        RuntimeError: when the model's logits are no numbers.
    """
    if max_new_tokens < 1:
        raise ValueError(f"generate: max_new_tokens must be at least 1; got {max_new_tokens}")
    params = SamplingParams(
        temperature=temperature, max_tokens=max_new_tokens, ignore_eos=ignore_eos
    )
    use_drafts = speculative is not False and model.has_draft_head
    if speculative and not use_drafts:
        warnings.warn("the model has no MTP head: decoding without speculation", stacklevel=3)
    first = fresh_seed() if seed is None else seed
    requests = [
        Request(
            request_id=str(row),
            prompt_ids=tuple(prompt),
            params=replace(params, seed=(first + row) % 2**64),
        )
        for row, prompt in enumerate(unpadded(input_ids, attention_mask))
    ]
    completions = continued(model, requests, num_drafts=1 if use_drafts else 0)
    texts = [completion.token_ids for completion in completions]
    width = max(map(len, texts))
    fill = model.config.pad_token_id or 0
    new = torch.tensor([[*text, *[fill] * (width - len(text))] for text in texts])
    return torch.cat([input_ids, new.to(input_ids.device)], dim=1)


def continued(
    model: "FlashModel", requests: Sequence[Request], *, num_drafts: int
) -> list[Completion]:
    """Serve requests together, in an engine of their own -> what became of each.

    Args:
        num_drafts: per pass, 0 .. 3; not chosen by the clock, so that the bits are the same every
            time.

    Raises ValueError and RuntimeError as `longcat.serve.complete`.
    """
    running = min(len(requests), _MOST_ROWS)
    longest = max(len(r.prompt_ids) + r.params.max_tokens for r in requests)
    config = EngineConfig(
        num_pages=pages_for(running, longest, model.latent_layout.device.type),
        max_running=running,
        token_budget=_CHUNK,
        prefix_cache=False,
        num_drafts=num_drafts,
        graphs=False,
    )
    return complete(Engine(model, None, config), requests)


def unpadded(input_ids: Tensor, attention_mask: Tensor | None) -> list[list[int]]:
    """The real tokens of each row of input_ids[B,T]; padding must be on the left.

    Raises ValueError for ids that are no integers, for ids or a mask of another shape, and for
    padding after a real token.
    """
    if input_ids.is_floating_point() or input_ids.dtype == torch.bool:
        raise ValueError(f"generate: input_ids must be integers; got {input_ids.dtype}")
    ids = input_ids.to("cpu", torch.long)
    if ids.ndim != 2 or ids.numel() == 0:
        raise ValueError(f"generate: input_ids must be a non-empty [B,T]; got {list(ids.shape)}")
    if attention_mask is None:
        return [[int(token) for token in row] for row in ids.tolist()]
    mask = attention_mask.to("cpu", torch.bool)
    if mask.shape != ids.shape:
        raise ValueError(
            f"generate: attention_mask {list(mask.shape)} must have the shape of input_ids "
            f"{list(ids.shape)}"
        )
    if bool((mask[:, :-1] & ~mask[:, 1:]).any()):
        raise ValueError("generate: attention_mask has padding after a real token; pad on the left")
    return [row[keep].tolist() for row, keep in zip(ids, mask, strict=True)]

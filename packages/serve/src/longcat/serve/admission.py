"""What an engine cannot honour is refused before anything is computed, by the name of the field."""

import torch

from longcat.serve.config import EngineConfig
from longcat.serve.protocol import PagedModel
from longcat.serve.request import Request
from longcat.serve.speculation import check_prompt


def check_request(request: Request, model: PagedModel, room: int, *, speaks: bool) -> None:
    """Raise ValueError for a request that an engine of this model cannot honour.

    room: tokens that its latent cache can hold. speaks: whether it has a tokenizer.
    """
    params, prompt = request.params, request.prompt_ids
    check_prompt(model, prompt, params.max_tokens)
    if len(prompt) + params.max_tokens > room:
        raise ValueError(
            f"prompt_ids ({len(prompt)} tokens) plus max_tokens {params.max_tokens} exceed the "
            f"{room} tokens that the latent cache can hold; ask for less, or give it more pages"
        )
    for name in ("logit_bias", "stop_token_ids"):
        if any(token >= model.vocab_size for token in getattr(params, name)):
            raise ValueError(
                f"{name} names a token outside the vocabulary 0 .. {model.vocab_size - 1}"
            )
    eos = None if params.ignore_eos else model.eos_token_id
    if params.min_tokens and len({eos, *params.stop_token_ids} - {None}) == model.vocab_size:
        raise ValueError(
            "min_tokens contradicts stop_token_ids: every token of the vocabulary ends the text"
        )
    if params.stop and not speaks:
        raise ValueError("stop needs an engine with a tokenizer")
    for name in ("min_tokens", "ignore_eos"):
        if params.constraint is not None and getattr(params, name):
            raise ValueError(f"{name} contradicts constraint, which decides where text ends")


def check_dtype(config: EngineConfig, dtype: torch.dtype) -> None:
    """Raise ValueError where an exact engine is asked of a model in another type."""
    if config.exact and dtype not in (torch.float32, torch.float64):
        name = str(dtype).removeprefix("torch.")
        raise ValueError(
            f"EngineConfig: exact computes in float32 or float64, but the model is in {name}; "
            "load it in float32"
        )

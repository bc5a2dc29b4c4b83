"""A model with a larger vocabulary: rows for new tokens, everything else as it was.

$$E' = [E; \\sigma_E \\xi], \\qquad W' = [W; \\bar W]$$

New embeddings are drawn with the deviation sigma_E of the old ones, so that new tokens differ from
each other from the start; new rows of the output head are the mean of the old rows, so that a new
token begins as an average one. The MTP head's embedding gets the same rows as the main one's.

The report does not say how its vocabulary grew; this is this project's choice.
"""

from dataclasses import replace

import torch

from longcat.flash.config import FlashConfig
from longcat.flash.model import FlashModel

_HEAD = "lm_head.weight"
_EMBEDDING = "embed_tokens.weight"


def grown_config(config: FlashConfig, vocab_size: int, eos_token_id: int) -> FlashConfig:
    """The configuration with room for at least `vocab_size` ids and another end of text."""
    size = max(config.vocab_size, vocab_size)  # a model may have spare rows
    return replace(config, vocab_size=size, eos_token_id=eos_token_id)


@torch.no_grad()
def grow_vocabulary(model: FlashModel, config: FlashConfig, *, seed: int) -> FlashModel:
    """`model` under `config`, which differs in the vocabulary and in the end of text alone.

    Args:
        seed: of a generator of our own; it draws the new embeddings.

    Raises:
        ValueError: when the vocabulary would shrink.
    """
    old, new = model.config.vocab_size, config.vocab_size
    if new < old:
        raise ValueError(f"vocabulary: a model of {old} ids cannot have {new}; ids are never lost")
    grown = FlashModel(config, device=model.lm_head.weight.device, dtype=model.lm_head.weight.dtype)
    if model.model.mtp is not None and model.model.mtp.embed_tokens is not model.model.embed_tokens:
        grown.untie_mtp_embedding()
    state = model.state_dict()
    for name, tensor in state.items():
        if name.endswith(_EMBEDDING):
            generator = torch.Generator().manual_seed(seed)
            drawn = torch.randn(new - old, tensor.shape[1], generator=generator)
            fresh = drawn.to(tensor.device, tensor.dtype) * tensor.std()
        elif name == _HEAD:
            fresh = tensor.mean(dim=0, keepdim=True).expand(new - old, -1)
        else:
            continue
        state[name] = torch.cat([tensor, fresh])
    grown.load_state_dict(state)
    return grown

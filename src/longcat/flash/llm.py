"""A checkpoint directory, ready to generate: `load_llm`."""

from importlib.util import find_spec
from pathlib import Path

import torch

from longcat.flash.checkpoint import load_model
from longcat.flash.int8 import to_int8
from longcat.flash.packed import as_served
from longcat.flash.tokenizer import Tokenizer
from longcat.serve import LLM, ConstraintFactory, EngineConfig


def load_llm(
    directory: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    int8: bool = False,
    config: EngineConfig | None = None,
) -> LLM:
    """An `LLM` of the checkpoint and the tokenizer in `directory`.

    Structured output works where llguidance is installed (`longcat-serve[structured]`).

    Args:
        dtype: of the weights and of what is computed.
        int8: keep weights in 8 bits (`longcat.flash.int8`); with dtype bfloat16 a CPU then reads
            half the bytes per token.

    Raises:
        CheckpointError: naming what is missing or does not fit.
    """
    model = load_model(directory, dtype=dtype).eval()
    if int8:
        to_int8(model)
    tokenizer = Tokenizer.load(directory)
    constraints = constraint_factory(tokenizer, model.vocab_size, model.eos_token_id)
    config = config or EngineConfig()
    served = as_served(model, exact=config.exact)
    return LLM(served, tokenizer, config, constraints=constraints)


def constraint_factory(
    tokenizer: Tokenizer, vocab_size: int, eos_token_id: int | None
) -> ConstraintFactory | None:
    """What holds texts to a form; None where llguidance is not installed."""
    if find_spec("llguidance") is None:
        return None
    from longcat.serve.structured import ConstraintCompiler

    return ConstraintCompiler(
        tokenizer.token_bytes(),
        eos_token_id,
        vocab_size=vocab_size,
        encode=tokenizer.encode_bytes,
    )

"""A checkpoint directory, ready to generate: `load_llm`."""

from pathlib import Path

import torch

from longcat.flash.checkpoint import load_model
from longcat.flash.int8 import to_int8
from longcat.flash.tokenizer import Tokenizer
from longcat.serve import LLM, EngineConfig


def load_llm(
    directory: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    int8: bool = False,
    config: EngineConfig | None = None,
) -> LLM:
    """An `LLM` of the checkpoint and the tokenizer in `directory`.

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
    return LLM(model, Tokenizer.load(directory), config)

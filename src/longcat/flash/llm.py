"""A checkpoint directory, ready to generate: `load_llm`."""

from pathlib import Path

import torch

from longcat.flash.checkpoint import load_model
from longcat.flash.tokenizer import Tokenizer
from longcat.serve import LLM, EngineConfig


def load_llm(
    directory: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    config: EngineConfig | None = None,
) -> LLM:
    """An `LLM` of the checkpoint and the tokenizer in `directory`.

    Raises:
        CheckpointError: naming what is missing or does not fit.
    """
    model = load_model(directory, dtype=dtype).eval()
    return LLM(model, Tokenizer.load(directory), config)

"""Decoding: sampling, and speculation with the multi-token-prediction head.

    from longcat.serve import SamplingParams, decode

    for token in decode(model, prompt_ids, SamplingParams(temperature=0.8, seed=1)):
        ...

The model is anything that satisfies `Model`; an `Engine` asks for less, `PagedModel`. Definitions
in numpy: `longcat.serve.reference`.
"""

from longcat.serve.config import EngineConfig, EngineStats, pages_for
from longcat.serve.constraint import Constraint, ConstraintFactory, ConstraintSpec
from longcat.serve.engine import Engine
from longcat.serve.llm import LLM, Completion, complete
from longcat.serve.params import SamplingParams
from longcat.serve.protocol import Cache, LatentLayout, Model, PagedModel, Tokenizer
from longcat.serve.request import Delta, PromptToken, Request, Token
from longcat.serve.sampling import probabilities
from longcat.serve.serving import Serving
from longcat.serve.speculation import DecodeStats, Decoding, decode

__all__ = [
    "LLM",
    "Cache",
    "Completion",
    "Constraint",
    "ConstraintFactory",
    "ConstraintSpec",
    "DecodeStats",
    "Decoding",
    "Delta",
    "Engine",
    "EngineConfig",
    "EngineStats",
    "LatentLayout",
    "Model",
    "PagedModel",
    "PromptToken",
    "Request",
    "SamplingParams",
    "Serving",
    "Token",
    "Tokenizer",
    "complete",
    "decode",
    "pages_for",
    "probabilities",
]

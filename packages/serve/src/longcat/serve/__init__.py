"""Decoding: sampling, and speculation with the multi-token-prediction head.

    from longcat.serve import SamplingParams, decode

    for token in decode(model, prompt_ids, SamplingParams(temperature=0.8, seed=1)):
        ...

The model is anything that satisfies `Model`. Definitions in numpy: `longcat.serve.reference`.
"""

from longcat.serve.batch import decode_batch, pad_left
from longcat.serve.protocol import Cache, Model
from longcat.serve.sampling import SamplingParams, probabilities
from longcat.serve.speculation import DecodeStats, Decoding, Token, decode

__all__ = [
    "Cache",
    "DecodeStats",
    "Decoding",
    "Model",
    "SamplingParams",
    "Token",
    "decode",
    "decode_batch",
    "pad_left",
    "probabilities",
]

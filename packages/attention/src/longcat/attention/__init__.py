"""Multi-head Latent Attention with scale correction, and its latent cache."""

from longcat.attention.cache import (
    DenseLatentCache,
    Group,
    KeyMask,
    LatentCache,
    RaggedCache,
    causal_mask,
)
from longcat.attention.config import MLAConfig
from longcat.attention.documents import DocumentMask
from longcat.attention.mla import MLA, MLAState

__all__ = [
    "MLA",
    "DenseLatentCache",
    "DocumentMask",
    "Group",
    "KeyMask",
    "LatentCache",
    "MLAConfig",
    "MLAState",
    "RaggedCache",
    "causal_mask",
]

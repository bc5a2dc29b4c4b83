"""Stacked experts, identity experts that cost nothing, and the shortcut-connected MoE block."""

from longcat.moe.block import Attention, ScMoEBlock
from longcat.moe.config import MoEConfig
from longcat.moe.expert_parallel import ExpertParallel
from longcat.moe.ffn import DenseFFN
from longcat.moe.mixture import Experts, MoE, MoERecord
from longcat.moe.standard import StandardBlock

__all__ = [
    "Attention",
    "DenseFFN",
    "ExpertParallel",
    "Experts",
    "MoE",
    "MoEConfig",
    "MoERecord",
    "ScMoEBlock",
    "StandardBlock",
]

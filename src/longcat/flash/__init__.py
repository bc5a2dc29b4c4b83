"""LongCat-Flash, whole: configuration, model, draft head, checkpoints, tokenizer, numpy forward."""

from longcat.flash.accounting import Accounting, count_parameters
from longcat.flash.config import FlashConfig
from longcat.flash.errors import CheckpointError, ConfigError
from longcat.flash.llm import load_llm
from longcat.flash.model import FlashModel
from longcat.flash.stack import FlashOutput

__all__ = [
    "Accounting",
    "CheckpointError",
    "ConfigError",
    "FlashConfig",
    "FlashModel",
    "FlashOutput",
    "count_parameters",
    "load_llm",
]

"""Checkpoints: read the hub's form, that of transformers 5.x and FP8; write the first two.

`FlashModel.from_pretrained` calls `load_model`, `.save_pretrained` calls `save_checkpoint`, and
`longcat export` calls `export_checkpoint`.
"""

from longcat.flash.checkpoint.load import load_model, open_checkpoint
from longcat.flash.checkpoint.names import FORMATS, DiskTensor, Format, checkpoint_tensors
from longcat.flash.checkpoint.save import export_checkpoint, save_checkpoint

__all__ = [
    "FORMATS",
    "DiskTensor",
    "Format",
    "checkpoint_tensors",
    "export_checkpoint",
    "load_model",
    "open_checkpoint",
    "save_checkpoint",
]

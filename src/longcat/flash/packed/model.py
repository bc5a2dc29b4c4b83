"""All of it: what the engine is given.

Shapes: T tokens, D width, R rows, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from longcat.attention import RaggedCache
from longcat.flash.errors import ConfigError
from longcat.flash.model import FlashModel
from longcat.flash.packed.attention import Rotation
from longcat.flash.packed.layers import PackedBlock, PackedHead
from longcat.flash.packed.maps import Norm, joined
from longcat.kernels import PackedLinear, huge_pages
from longcat.kernels.dispatch import plain_forms

_OWN = __package__


class PackedModel:
    """A FlashModel for inference on a CPU; a `longcat.serve.PagedModel`.

    Packed weights are copies, and nothing else of the model is kept alive but small tensors, the
    embedding and kv_b_proj (which a bfloat16 model also has in float32). Training it on does not
    reach the copies. Inside `exact()` or `use_backend()`
    it refuses: their forms are the FlashModel's.

    Args:
        model: on a CPU; of weights in 8 bits (`longcat.flash.int8`) these are shared.

    Raises:
        ConfigError: for a model on another device, and for one whose experts are elsewhere or
            whose layers are not a checkpoint's.
    """

    def __init__(self, model: FlashModel) -> None:
        self.latent_layout = model.latent_layout
        if self.latent_layout.device.type != "cpu":
            raise ConfigError(
                f"packed: the model must be on a CPU, got one on {self.latent_layout.device}; "
                "serve the FlashModel itself"
            )
        self.has_draft_head = model.has_draft_head
        self.vocab_size, self.max_position = model.vocab_size, model.max_position
        self.eos_token_id = model.eos_token_id
        stack: Any = model.model  # torch types its children as bare modules
        self._embedding = stack.embed_tokens.weight.detach()
        self._blocks = [PackedBlock(block) for block in stack.layers]
        wide = torch.promote_types(self.latent_layout.dtype, torch.float32)
        self._rotation = Rotation(stack.layers[0].self_attn[0], wide)
        self._norm = Norm(stack.norm)
        self._logits = joined(model.lm_head)
        self._head = None if stack.mtp is None else PackedHead(stack.mtp)
        huge_pages.ask_for(_weights([self._blocks, self._logits, self._head]))

    def forward_paged(
        self, ids: Tensor, positions: Tensor, layers: Sequence[RaggedCache]
    ) -> Tensor:
        """Hidden states [T,D] of ids [T] of many sequences in one row."""
        _refuse_other_forms()
        x, places = F.embedding(ids, self._embedding), self._rotation.at(positions)
        for i, block in enumerate(self._blocks):
            x = block(x, places, layers[2 * i : 2 * i + 2])
        return self._norm(x)

    def draft_paged(
        self, ids: Tensor, hidden: Tensor, positions: Tensor, layers: Sequence[RaggedCache]
    ) -> Tensor:
        """The head's hidden states [T,D] of the tokens ids [T] after hidden [T,D]."""
        _refuse_other_forms()
        if self._head is None:
            raise ConfigError("this model has no MTP head (num_nextn_predict_layers is 0)")
        return self._head(ids, hidden, self._rotation.at(positions), layers)

    def logits(self, hidden: Tensor) -> Tensor:
        """[R,D] to [R,V]."""
        return self._logits(hidden)


def _weights(part: object) -> Iterator[Tensor]:
    """All that a pass reads of a part: its tensors, and those of its own parts."""
    if isinstance(part, Tensor):
        yield part
    elif isinstance(part, list):
        for each in part:
            yield from _weights(each)
    elif isinstance(part, PackedLinear) or type(part).__module__.startswith(_OWN):
        yield from _weights(list(vars(part).values()))


def _refuse_other_forms() -> None:
    if not plain_forms():
        raise ValueError(
            "packed: a packed model has one form of every operation; inside exact() or "
            "use_backend() give the engine the FlashModel itself"
        )

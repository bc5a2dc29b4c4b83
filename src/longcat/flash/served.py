"""What `longcat.serve` asks of a model, answered by `FlashModel`.

Shapes: B batch, T tokens, R rows, V vocabulary, D width.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor

from longcat.attention import DenseLatentCache
from longcat.flash.config import FlashConfig
from longcat.flash.errors import ConfigError
from longcat.flash.stack import FlashOutput, FlashStack
from longcat.kernels import Linear, unchecked
from longcat.moe import ScMoEBlock
from longcat.serve import LatentLayout


class Served:
    """The protocol `longcat.serve.Model`, for the model that has the rest."""

    config: FlashConfig
    model: FlashStack
    lm_head: Linear
    forward: Any
    mtp: Any

    @property
    def has_draft_head(self) -> bool:
        """Whether `draft` can be called."""
        return self.model.mtp is not None

    @property
    def vocab_size(self) -> int:
        """V."""
        return self.config.vocab_size

    @property
    def max_position(self) -> int:
        """Longest sequence in tokens."""
        return self.config.max_position_embeddings

    @property
    def eos_token_id(self) -> int | None:
        """The token that ends a text, or None."""
        return self.config.eos_token_id

    def new_cache(self, batch: int, max_tokens: int) -> DenseLatentCache:
        """An empty latent cache for the main model's attentions and the draft head's."""
        weight = self.lm_head.weight
        return DenseLatentCache(
            2 * self.config.num_layers + self.config.mtp_attentions,
            batch,
            max_tokens,
            self.config.attention.kv_lora_rank,
            self.config.attention.qk_rope_head_dim,
            dtype=weight.dtype,
            device=weight.device,
        )

    def target(self, ids: Tensor, cache: DenseLatentCache) -> tuple[Tensor, Tensor]:
        """(logits [B,T,V], hidden [B,T,D]) of ids [B,T], appended to the cache."""
        output: FlashOutput = self.forward(ids.to(self.lm_head.weight.device), cache=cache)
        return output.logits, output.hidden

    def draft(self, ids: Tensor, hidden: Tensor, cache: DenseLatentCache) -> tuple[Tensor, Tensor]:
        """`mtp` with the cache: ids [B,T] are the tokens after `hidden` [B,T,D]."""
        drafted: tuple[Tensor, Tensor] = self.mtp(hidden, ids.to(hidden.device), cache=cache)
        return drafted

    @property
    def latent_layout(self) -> LatentLayout:
        """What is cached of a token."""
        attention, weight = self.config.attention, self.lm_head.weight
        return LatentLayout(
            target_attentions=2 * self.config.num_layers,
            draft_attentions=self.config.mtp_attentions,
            latent_rank=attention.kv_lora_rank,
            rope_dim=attention.qk_rope_head_dim,
            dtype=weight.dtype,
            device=weight.device,
        )

    def forward_paged(self, ids: Tensor, positions: Tensor, layers: Sequence[Any]) -> Tensor:
        """Hidden states [T,D] of ids [T] of many sequences in one row."""
        x, places = self.model.embed_tokens(ids[None]), positions[None]
        with _checks(x):
            for i, block in enumerate(self.model.layers):
                assert isinstance(block, ScMoEBlock)
                x = block.infer(x, places, (layers[2 * i], layers[2 * i + 1]))
            hidden: Tensor = self.model.norm(x)[0]
        return hidden

    def draft_paged(
        self, ids: Tensor, hidden: Tensor, positions: Tensor, layers: Sequence[Any]
    ) -> Tensor:
        """The head's hidden states [T,D] of the tokens ids [T] after hidden [T,D]."""
        head = self.model.mtp
        if head is None:
            raise ConfigError("this model has no MTP head (num_nextn_predict_layers is 0)")
        with _checks(hidden):
            drafted: Tensor = head(hidden[None], ids[None], positions[None], layers)[0]
        return drafted

    def logits(self, hidden: Tensor) -> Tensor:
        """[R,D] to [R,V]."""
        with _checks(hidden):
            y: Tensor = self.lm_head(hidden)
        return y


def _checks(x: Tensor) -> AbstractContextManager[None]:
    """None on a CPU, where they would take a third of a decoding step; a GPU needs the choice of
    kernels that comes with them.
    """
    return unchecked() if x.device.type == "cpu" else nullcontext()

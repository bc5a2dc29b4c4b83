"""The model: embedding, ScMoE layers, final norm, output head, and the MTP head.

State-dict names are those of the released checkpoint, but for experts, which are stacked:
`model.layers.i.mlp.experts.{gate_up_proj [N,2F,D], down_proj [N,D,F]}`.

Shapes: B batch, T tokens, V vocabulary, D width, L layers, E = N+Z experts.

Source: report sections 2.1 to 2.4.
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from longcat.attention import MLA, DenseLatentCache
from longcat.flash.config import FlashConfig
from longcat.flash.errors import ConfigError
from longcat.flash.places import find_places
from longcat.flash.recompute import Recompute, run
from longcat.flash.served import Served
from longcat.flash.stack import FlashOutput, FlashStack
from longcat.kernels import Linear
from longcat.moe import MoERecord
from longcat.router import BalanceLoss

if TYPE_CHECKING:
    from longcat.flash.checkpoint import Format


class FlashModel(Served, nn.Module):
    """A LongCat-Flash causal language model.

    Args:
        config: sizes.
        device, dtype: of the parameters; routers stay float32 unless dtype is float64. The meta
            device builds the model without memory.
        seed: initialises the weights (`longcat.flash.init`); None leaves that to the caller.

    Attributes:
        recompute: "none", or which kind of activation checkpointing passes with a gradient use
            (`longcat.flash.recompute`).
    """

    def __init__(
        self,
        config: FlashConfig,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        self.config = config
        self.balance = BalanceLoss()
        self.recompute: Recompute = "none"
        self.model = FlashStack(config, self.balance, made)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False, **made)
        if seed is not None:
            from longcat.flash.init import initialise

            initialise(self, seed)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        output_router: bool = False,
        *,
        cache: DenseLatentCache | None = None,
        document_ids: Tensor | None = None,
    ) -> FlashOutput:
        """Logits for every position.

        Args:
            input_ids: [B,T] int64.
            attention_mask: [B,T], or [B, cached + T] with a cache; 0 marks padding on the left.
                Without one, the padding that the cache already knows of holds.
            output_router: return every layer's Routing.
            cache: from `new_cache`; the tokens are appended to it.
            document_ids: [B,T] integers for documents packed into one row, a run of equal ids
                being one document: attention stays inside each, whose positions start at 0. -1
                marks padding anywhere, which nobody attends to and no expert counts.

        Raises:
            ValueError: for ids outside the vocabulary, a sequence longer than the maximum, or a
                mask of another shape.
        """
        past = 0 if cache is None else cache.length
        self._check(input_ids, attention_mask, past)
        places = find_places(input_ids, attention_mask, document_ids, cache, past)
        x = self.model.embed_tokens(input_ids)
        records: list[MoERecord] = []
        kind = self._recompute_kind(cache)
        for i, layer in enumerate(self.model.layers):
            caches = (
                (places.visible, places.visible)
                if cache is None
                else (cache.layers[2 * i], cache.layers[2 * i + 1])
            )
            x, record = run(layer, kind, x, places.positions, caches, places.token_mask)
            records.append(record)
        hidden = self.model.norm(x)
        return FlashOutput(
            logits=self.lm_head(hidden),
            hidden=hidden,
            last_layer=x,
            counts=torch.stack([r.routing.counts for r in records]),
            balance_loss=torch.stack([r.balance_loss for r in records]),
            balance_f=torch.stack([r.balance_f for r in records]),
            router=[r.routing for r in records] if output_router else None,
        )

    def mtp(
        self,
        hidden: Tensor,
        next_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        cache: DenseLatentCache | None = None,
        document_ids: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Draft logits and hidden states.

        Args:
            hidden: [B,T,D], `FlashOutput.hidden` of positions t (or this head's own hidden, for
                a second draft).
            next_ids: [B,T], the tokens at t+1.
            attention_mask: as in `forward`, 0 where `hidden` is of padding.
            cache: the main model's; this head's latents are appended to their own part of it.
            document_ids: as in `forward`, of the positions of `hidden`. What is drafted where
                `next_ids` already belongs to another document means nothing.

        Returns:
            (logits [B,T,V] for the tokens at t+2, hidden [B,T,D]).

        Raises:
            ValueError: when the model has no MTP head.
        """
        head = self.model.mtp
        if head is None:
            raise ConfigError("this model has no MTP head (num_nextn_predict_layers is 0)")
        own = None if cache is None else cache.layers[2 * self.config.num_layers :]
        past = 0 if own is None else own[0].length
        places = find_places(next_ids, attention_mask, document_ids, cache, past)
        caches = [places.visible] * self.config.mtp_attentions if own is None else own
        kind = self._recompute_kind(cache)
        drafted = head(hidden, next_ids, places.positions, caches, places.token_mask, kind)
        return self.lm_head(drafted), drafted

    def _check(self, input_ids: Tensor, attention_mask: Tensor | None, past: int) -> None:
        if input_ids.is_floating_point() or input_ids.dtype == torch.bool:
            raise ValueError(f"model: input_ids must be integers; got {input_ids.dtype}")
        if input_ids.ndim != 2:
            raise ValueError(f"model: input_ids must be [B,T]; got {tuple(input_ids.shape)}")
        total = past + input_ids.shape[1]
        if total > self.config.max_position_embeddings:
            raise ValueError(
                f"model: {total} tokens are more than max_position_embeddings="
                f"{self.config.max_position_embeddings}; shorten the text"
            )
        if attention_mask is not None and attention_mask.shape != (len(input_ids), total):
            raise ValueError(
                f"model: attention_mask must be [B, cached + T] = {(len(input_ids), total)}; "
                f"got {tuple(attention_mask.shape)}"
            )
        if input_ids.device.type == "cpu" and input_ids.numel():
            low, high = int(input_ids.min()), int(input_ids.max())
            if low < 0 or high >= self.config.vocab_size:
                raise ValueError(
                    f"model: token ids must lie in 0..{self.config.vocab_size - 1}; got "
                    f"{low if low < 0 else high}. Is the tokenizer this model's?"
                )

    def _recompute_kind(self, cache: DenseLatentCache | None) -> Recompute:
        """Nothing is recomputed without a gradient, and a cache must be written once."""
        return self.recompute if torch.is_grad_enabled() and cache is None else "none"

    def set_rope(self, theta: float, max_position: int) -> None:
        """Go on with another rotary base and longest sequence; the config then says so too."""
        attention = replace(self.config.attention, rope_theta=theta, max_position=max_position)
        if attention == self.config.attention:
            return
        self.config = replace(
            self.config, attention=attention, max_position_embeddings=max_position
        )
        for module in self.modules():
            if isinstance(module, MLA):
                module.set_rope(theta, max_position)

    def untie_mtp_embedding(self) -> None:
        """Give the MTP head an embedding of its own, a copy of the main model's."""
        head = self.model.mtp
        if head is not None and head.embed_tokens is self.model.embed_tokens:
            weight = self.model.embed_tokens.weight
            rows, width = weight.shape
            own = nn.Embedding(rows, width, device=weight.device, dtype=weight.dtype)
            own.load_state_dict({"weight": weight}, assign=False)
            head.embed_tokens = own

    @classmethod
    def from_pretrained(
        cls, directory: str | Path, dtype: torch.dtype = torch.float32
    ) -> "FlashModel":
        """Load a checkpoint directory; see `longcat.flash.checkpoint.load_model`."""
        from longcat.flash.checkpoint import load_model

        return load_model(directory, dtype=dtype)

    def save_pretrained(self, directory: str | Path, format: "Format" = "hub") -> None:
        """Write a checkpoint directory; see `longcat.flash.checkpoint.save_checkpoint`."""
        from longcat.flash.checkpoint import save_checkpoint

        save_checkpoint(self, directory, format=format)

    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int | None = None,
        speculative: bool | None = None,
        ignore_eos: bool = False,
    ) -> Tensor:
        """[B, T + new] token ids; see `longcat.flash.generation.generate`."""
        from longcat.flash.generation import generate

        return generate(
            self,
            input_ids,
            attention_mask,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            speculative=speculative,
            ignore_eos=ignore_eos,
        )

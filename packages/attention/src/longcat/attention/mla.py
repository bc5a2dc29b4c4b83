"""Multi-head Latent Attention with scale correction, in its two equal forms.

The training form expands the latent into per-head keys and values; the absorbed form moves
`kv_b_proj` onto the query and the output, so that decoding reads C+R numbers per cached token
instead of H*(2*dn+R) of them. `attend` takes whichever needs fewer operations.

Notable:
- alpha_q multiplies the whole query, alpha_kv the normed latent (so keys and values both);
- the shared rotary key is neither normed nor scaled;
- the latent norms have an epsilon of their own.

Shapes: B batch, T new tokens, S all tokens, D width, H heads, C latent, R rope.

Source: report section 2.3.1, equations 6 and 7; names as in the released checkpoint.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from longcat.attention.cache import KeyMask, LatentCache, RaggedCache
from longcat.attention.config import MLAConfig
from longcat.attention.documents import DocumentMask
from longcat.kernels import (
    Linear,
    RMSNorm,
    cast_once,
    exact_enabled,
    mla_decode,
    mla_prefill,
    rope,
    rope_frequencies,
)


@dataclass(frozen=True, kw_only=True)
class MLAState:
    """What `project` computes from T tokens alone.

    Attributes:
        q_nope: [B,T,H,dn]. q_rope: [B,T,H,R], rotated.
        latent: [B,T,C], normed and scaled. k_rope: [B,T,R], rotated.
    """

    q_nope: Tensor
    q_rope: Tensor
    latent: Tensor
    k_rope: Tensor


class MLA(nn.Module):
    """Multi-head Latent Attention; `forward` is `project` followed by `attend`."""

    def __init__(
        self,
        config: MLAConfig,
        *,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        c = config
        self.config = c
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        heads = c.num_heads
        eps = c.latent_norm_eps
        self.q_a_proj = Linear(c.hidden_size, c.q_lora_rank, bias=c.attention_bias, **made)
        self.q_a_layernorm = RMSNorm(c.q_lora_rank, eps, **made)
        self.q_b_proj = Linear(c.q_lora_rank, heads * c.qk_head_dim, bias=False, **made)
        self.kv_a_proj_with_mqa = Linear(
            c.hidden_size, c.cache_numbers, bias=c.attention_bias, **made
        )
        self.kv_a_layernorm = RMSNorm(c.kv_lora_rank, eps, **made)
        self.kv_b_proj = Linear(
            c.kv_lora_rank, heads * (c.qk_nope_head_dim + c.v_head_dim), bias=False, **made
        )
        self.o_proj = Linear(heads * c.v_head_dim, c.hidden_size, bias=c.attention_bias, **made)
        self.set_rope(c.rope_theta, c.max_position)

    def set_rope(self, theta: float, max_position: int) -> None:
        """Use another rotary base and longest sequence from now on; weights stay as they are."""
        c = self.config = replace(self.config, rope_theta=theta, max_position=max_position)
        frequencies, self.rope_factor = rope_frequencies(
            c.qk_rope_head_dim, c.rope_theta, c.rope_scaling, c.max_position
        )
        self._scale = c.softmax_scale
        # Not a buffer: a cast of the model must never round these constants.
        self._inv_freq = torch.from_numpy(frequencies)

    def frequencies(self, device: torch.device) -> Tensor:
        """Of RoPE, float32 [R/2]; `rope_factor` multiplies cosine and sine."""
        if self._inv_freq.device != device:
            self._inv_freq = self._inv_freq.to(device)
        return self._inv_freq

    def project(self, x: Tensor, positions: Tensor) -> MLAState:
        """Queries and latents of x [B,T,D] at positions [B,T] (int64)."""
        c = self.config
        frequencies = self.frequencies(x.device)
        x = cast_once(x)
        # The product is linear, so the narrow side is multiplied: the query is four times as wide.
        q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x)) * c.alpha_q)
        q = q.unflatten(-1, (c.num_heads, c.qk_head_dim))
        q_nope, q_rope = q.split([c.qk_nope_head_dim, c.qk_rope_head_dim], dim=-1)
        compressed = self.kv_a_proj_with_mqa(x)
        latent, k_rope = compressed.split([c.kv_lora_rank, c.qk_rope_head_dim], dim=-1)
        rotated = rope(k_rope.unsqueeze(2), positions, frequencies, self.rope_factor)
        return MLAState(
            q_nope=q_nope,
            q_rope=rope(q_rope, positions, frequencies, self.rope_factor),
            latent=self.kv_a_layernorm(latent) * c.alpha_kv,
            k_rope=rotated.squeeze(2),
        )

    def attend(
        self,
        state: MLAState,
        cache: LatentCache | RaggedCache | KeyMask | DocumentMask | None = None,
    ) -> Tensor:
        """Attention output [B,T,D].

        Args:
            state: from `project`.
            cache: a LatentCache or a RaggedCache (the new latents are written to it first), a
                KeyMask for padded batches without a cache, a DocumentMask for packed documents, or
                None for plain causal attention.
        """
        q, q_rope = state.q_nope, state.q_rope
        if cache is None or isinstance(cache, KeyMask | DocumentMask):
            mask = None if cache is None else cache.mask
            heads = self._expanded(q, q_rope, state.latent, state.k_rope, mask)
        elif hasattr(cache, "groups"):  # isinstance of a protocol takes longer than a product
            heads = self._grouped(state, cast(RaggedCache, cache))
        else:
            cache.write(state.latent, state.k_rope)
            latent, k_rope = cache.read()
            # Exact mode keeps to one form: which is cheaper depends on the chunk's length.
            if not exact_enabled() and self.absorbed_is_cheaper(q.shape[1], latent.shape[1]):
                heads = self._absorbed(q, lambda q: cache.attend(q, q_rope, self._scale))
            else:
                heads = self._expanded(q, q_rope, latent, k_rope, cache.mask(q.shape[1]))
        y: Tensor = self.o_proj(heads.flatten(-2))
        return y

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        cache: LatentCache | RaggedCache | KeyMask | DocumentMask | None = None,
    ) -> Tensor:
        """x [B,T,D] at positions [B,T] to [B,T,D]."""
        return self.attend(self.project(x, positions), cache)

    def absorbed_is_cheaper(self, n_queries: int, n_keys: int) -> bool:
        """Whether the absorbed form needs fewer multiply-adds; see `MLAConfig`."""
        return self.config.absorbed_is_cheaper(n_queries, n_keys)

    def _grouped(self, state: MLAState, cache: RaggedCache) -> Tensor:
        """Each group of a ragged row by itself -> [1,T,H,dv]."""
        cache.write(state.latent, state.k_rope)
        q, q_rope = state.q_nope, state.q_rope
        outputs = []
        for group in cache.groups():
            shape = (len(group.latent), -1, *q.shape[2:])
            of_group = q[0, group.tokens].view(shape)
            rotary = q_rope[0, group.tokens].view(*shape[:-1], q_rope.shape[-1])
            keys, k_rope, mask = group.latent, group.k_rope, group.mask
            if not exact_enabled() and self.absorbed_is_cheaper(of_group.shape[1], keys.shape[1]):
                attend = partial(
                    mla_decode,
                    q_rope=rotary,
                    latent=keys,
                    k_rope=k_rope,
                    scale=self._scale,
                    mask=mask,
                )
                heads = self._absorbed(of_group, attend)
            else:
                heads = self._expanded(of_group, rotary, keys, k_rope, mask)
            outputs.append(heads.reshape(1, -1, *heads.shape[2:]))
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)

    def _expanded(
        self, q_nope: Tensor, q_rope: Tensor, latent: Tensor, k_rope: Tensor, mask: Tensor | None
    ) -> Tensor:
        """The training form: per-head keys and values from the latents [B,S,C] -> [B,T,H,dv]."""
        c = self.config
        kv = self.kv_b_proj(latent).unflatten(-1, (c.num_heads, -1))
        k_nope, v = kv.split([c.qk_nope_head_dim, c.v_head_dim], dim=-1)
        shared = k_rope.to(k_nope.dtype).unsqueeze(2).expand(-1, -1, c.num_heads, -1)
        k = _joined(k_nope, shared)
        q = _joined(q_nope, q_rope.to(q_nope.dtype))
        return mla_prefill(q, k, v, self._scale, mask)

    def _absorbed(self, q_nope: Tensor, attend: Callable[[Tensor], Tensor]) -> Tensor:
        """The decode form: W_UK moved to the query, W_UV to the output -> [B,T,H,dv]."""
        c = self.config
        w = self.kv_b_proj.weight.view(c.num_heads, -1, c.kv_lora_rank)
        w_uk, w_uv = w.split([c.qk_nope_head_dim, c.v_head_dim], dim=1)  # [H,dn,C], [H,dv,C]
        return _by_head(attend(_by_head(q_nope, w_uk)), w_uv.mT)


def _by_head(x: Tensor, w: Tensor) -> Tensor:
    """x [B,T,H,I] times w [H,I,O], each head by its own matrix -> [B,T,H,O]."""
    product = torch.bmm(x.flatten(0, 1).transpose(0, 1), w)
    return product.transpose(0, 1).view(*x.shape[:-1], -1)


def _joined(nope: Tensor, rope: Tensor) -> Tensor:
    """[B,T,H,dn] and [B,T,H,R] -> [B,T,H,dn+R], laid out head by head, as attention wants it."""
    return torch.cat([nope.transpose(1, 2), rope.transpose(1, 2)], dim=-1).transpose(1, 2)

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

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from longcat.attention.cache import KeyMask, LatentCache
from longcat.attention.config import MLAConfig
from longcat.attention.documents import DocumentMask
from longcat.kernels import Linear, RMSNorm, exact_enabled, mla_prefill, rope, rope_frequencies


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
        # Not a buffer: a cast of the model must never round these constants.
        self._inv_freq = torch.from_numpy(frequencies)

    def _frequencies(self, device: torch.device) -> Tensor:
        if self._inv_freq.device != device:
            self._inv_freq = self._inv_freq.to(device)
        return self._inv_freq

    def project(self, x: Tensor, positions: Tensor) -> MLAState:
        """Queries and latents of x [B,T,D] at positions [B,T] (int64)."""
        c = self.config
        frequencies = self._frequencies(x.device)
        q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x))) * c.alpha_q
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
        self, state: MLAState, cache: LatentCache | KeyMask | DocumentMask | None = None
    ) -> Tensor:
        """Attention output [B,T,D].

        Args:
            state: from `project`.
            cache: a LatentCache (the new latents are written to it first), a KeyMask for padded
                batches without a cache, a DocumentMask for packed documents, or None for plain
                causal attention.
        """
        if cache is None:
            return self._expanded(state, state.latent, state.k_rope, None)
        if isinstance(cache, KeyMask | DocumentMask):
            return self._expanded(state, state.latent, state.k_rope, cache.mask)
        cache.write(state.latent, state.k_rope)
        latent, k_rope = cache.read()
        n_queries, n_keys = state.q_nope.shape[1], latent.shape[1]
        # Exact mode keeps to one form: which is cheaper depends on the chunk's length.
        if not exact_enabled() and self.absorbed_is_cheaper(n_queries, n_keys):
            return self._absorbed(state, cache)
        return self._expanded(state, latent, k_rope, cache.mask(n_queries))

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        cache: LatentCache | KeyMask | DocumentMask | None = None,
    ) -> Tensor:
        """x [B,T,D] at positions [B,T] to [B,T,D]."""
        return self.attend(self.project(x, positions), cache)

    def absorbed_is_cheaper(self, n_queries: int, n_keys: int) -> bool:
        """Compare multiply-adds per head of the two forms for T queries over S keys."""
        c = self.config
        up = c.kv_lora_rank * (c.qk_nope_head_dim + c.v_head_dim)
        pairs = n_queries * n_keys
        absorbed = n_queries * up + pairs * (2 * c.kv_lora_rank + c.qk_rope_head_dim)
        expanded = n_keys * up + pairs * (c.qk_head_dim + c.v_head_dim)
        return absorbed < expanded

    def _expanded(
        self, state: MLAState, latent: Tensor, k_rope: Tensor, mask: Tensor | None
    ) -> Tensor:
        """The training form: per-head keys and values from the latents [B,S,C]."""
        c = self.config
        kv = self.kv_b_proj(latent).unflatten(-1, (c.num_heads, -1))
        k_nope, v = kv.split([c.qk_nope_head_dim, c.v_head_dim], dim=-1)
        shared = k_rope.to(k_nope.dtype).unsqueeze(2).expand(-1, -1, c.num_heads, -1)
        k = torch.cat([k_nope, shared], dim=-1)
        q = torch.cat([state.q_nope, state.q_rope.to(state.q_nope.dtype)], dim=-1)
        y: Tensor = self.o_proj(mla_prefill(q, k, v, c.softmax_scale, mask).flatten(-2))
        return y

    def _absorbed(self, state: MLAState, cache: LatentCache) -> Tensor:
        """The decode form: W_UK moved to the query, W_UV to the output."""
        c = self.config
        w = self.kv_b_proj.weight.view(c.num_heads, -1, c.kv_lora_rank)
        w_uk, w_uv = w.split([c.qk_nope_head_dim, c.v_head_dim], dim=1)  # [H,dn,C], [H,dv,C]
        q_latent = torch.einsum("bthd,hdc->bthc", state.q_nope, w_uk)
        attended = cache.attend(q_latent, state.q_rope, c.softmax_scale)
        y: Tensor = self.o_proj(torch.einsum("bthc,hvc->bthv", attended, w_uv).flatten(-2))
        return y

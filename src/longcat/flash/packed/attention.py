"""Multi-head Latent Attention of one pass: `longcat.attention.MLA` with its norm and its residual.

Shapes: T tokens, D width, H heads, C latent, R rope, B sequences of a group, W tokens of each,
S latents they may look at.
"""

import torch
from torch import Tensor

from longcat.attention import MLA, Group, RaggedCache
from longcat.flash.packed.maps import Norm, joined
from longcat.kernels import RMSNorm
from longcat.kernels.linear import eager as linear
from longcat.kernels.mla_prefill import eager as prefill

FEW = 2**19  # multiply-adds below which even latents are turned into float32
FEW_TOKENS = 16  # whose rotations are matrices: one small product in place of five operations


class Rotation:
    """RoPE's cosines and sines, computed once for every position that has been met."""

    def __init__(self, mla: MLA, wide: torch.dtype) -> None:
        self._frequencies = mla.frequencies(torch.device("cpu")).to(wide)
        self._factor = mla.rope_factor
        self._table = self._computed(64)
        self._same = torch.eye(mla.config.qk_rope_head_dim, dtype=wide)
        self._other = self._same.roll(mla.config.qk_rope_head_dim // 2, dims=1)

    def at(self, positions: Tensor) -> "Places":
        """What depends on positions [T] alone."""
        behind = int(positions.max()) + 1 if len(positions) else 0
        if behind > len(self._table):
            self._table = self._computed(2 * behind)
        cos, sin = self._table.index_select(0, positions).unbind(1)
        few = len(positions) <= FEW_TOKENS
        return Places(cos, sin, self._matrices(cos, sin) if few else None)

    def _computed(self, count: int) -> Tensor:
        """[positions, cos and signed sin, 1, 2, R/2]."""
        angles = torch.arange(count).unsqueeze(1) * self._frequencies
        cos, sin = angles.cos() * self._factor, angles.sin() * self._factor
        return torch.stack([cos, cos, -sin, sin], dim=1).view(count, 2, 1, 2, -1)

    def _matrices(self, cos: Tensor, sin: Tensor) -> Tensor:
        """[T,R,R]: cosines where an output meets its own input, sines where it meets the other."""
        same, other = self._same * cos.flatten(2), self._other * sin.flatten(2)
        return same + other


class Places:
    """Where the tokens of one pass stand, for all its attentions: cos and sin [T,1,2,R/2], and the
    same as matrices [T,R,R] where the tokens are few.
    """

    def __init__(self, cos: Tensor, sin: Tensor, matrices: Tensor | None = None) -> None:
        self._cos, self._sin, self._matrices = cos, sin, matrices
        self._unseen: dict[int, Tensor] = {}

    def turned(self, x: Tensor) -> Tensor:
        """x [T,H,R], its pairs apart (`_pairs_apart`), rotated -> [T,H,R], in float32 or wider."""
        if self._matrices is not None:
            return torch.bmm(x.to(self._matrices.dtype), self._matrices)
        halves = x.unflatten(-1, (2, -1))
        return torch.addcmul(halves * self._cos, halves.flip(2), self._sin).flatten(2)

    def unseen(self, group: Group, width: int, heads: int, dtype: torch.dtype) -> Tensor:
        """What is added to a group's scores [B,W*H,S]: minus infinity where nothing may be seen."""
        known = self._unseen.get(group.tokens.start)
        if known is None:
            seen = group.mask
            if seen is None:
                seen = prefill.causal_mask(width, group.latents.shape[1], self._cos.device)[None]
            known = torch.where(seen, 0.0, -torch.inf).to(dtype)
            known = known.unsqueeze(2).expand(-1, -1, heads, -1).flatten(1, 2)
            self._unseen[group.tokens.start] = known
        return known


class PackedAttention:
    """x + MLA(norm(x)), for the tokens of many sequences in one row."""

    def __init__(self, mla: MLA, norm: RMSNorm) -> None:
        c = self._config = mla.config
        self._norm = Norm(norm)
        rope = c.qk_rope_head_dim
        apart = _pairs_apart(1, c.q_lora_rank + c.kv_lora_rank + rope, rope)
        self._compress = joined(mla.q_a_proj, mla.kv_a_proj_with_mqa, order=apart)
        self._compressed = [c.q_lora_rank, c.kv_lora_rank, rope]
        self._q_norm = Norm(mla.q_a_layernorm)
        self._kv_norm = Norm(mla.kv_a_layernorm, c.alpha_kv)
        heads = _pairs_apart(c.num_heads, c.qk_head_dim, rope).view(c.num_heads, -1)
        nope, turned = heads.split([c.qk_nope_head_dim, rope], dim=1)
        self._q = joined(mla.q_b_proj, order=torch.cat([nope.flatten(), turned.flatten()]))
        self._nope_rope = [nope.numel(), turned.numel()]
        self._out = joined(mla.o_proj)
        # As it is: the absorbed form reads it head by head, of a bfloat16 model in float32, whose
        # small products are done before bfloat16 ones have begun.
        self._kv = mla.kv_b_proj.weight.detach()
        wide = torch.promote_types(self._kv.dtype, torch.float32)
        by_head = self._kv.to(wide).view(c.num_heads, -1, c.kv_lora_rank)
        self._w_uk = by_head[:, : c.qk_nope_head_dim]  # [H,dn,C]
        self._w_uv = by_head[:, c.qk_nope_head_dim :].mT  # [H,C,dv]
        self._scale = c.softmax_scale * c.alpha_q

    def __call__(self, x: Tensor, places: Places, cache: RaggedCache) -> Tensor:
        """x [T,D] -> [T,D]; the new latents are written to the cache first."""
        c = self._config
        q_a, kv_a, k_rope = self._compress(self._norm(x)).split(self._compressed, dim=-1)
        q_nope, q_rope = self._q(self._q_norm(q_a)).split(self._nope_rope, dim=-1)
        q_nope = q_nope.view(-1, c.num_heads, c.qk_nope_head_dim)
        rope = torch.cat([q_rope, k_rope], dim=-1).view(-1, c.num_heads + 1, c.qk_rope_head_dim)
        q_rope, k_rope = places.turned(rope).split([c.num_heads, 1], dim=1)
        cache.write(self._kv_norm(kv_a).unsqueeze(0), k_rope.transpose(0, 1))
        groups = cache.groups()
        if len(groups) == 1:
            return self._out.added_to(x, self._attended(q_nope, q_rope, groups[0], places))
        found = [
            self._attended(q_nope[group.tokens], q_rope[group.tokens], group, places)
            for group in groups
        ]
        return self._out.added_to(x, torch.cat(found))

    def _attended(self, q_nope: Tensor, q_rope: Tensor, group: Group, places: Places) -> Tensor:
        """What a group's tokens [B*W,H,..] find -> [B*W,H*dv]."""
        batch, keys = group.latents.shape[:2]
        if self._config.absorbed_is_cheaper(len(q_nope) // batch, keys):
            return self._absorbed(q_nope, q_rope, group, places)
        return self._expanded(q_nope, q_rope, group)

    def _absorbed(self, q_nope: Tensor, q_rope: Tensor, group: Group, places: Places) -> Tensor:
        c, latents, wide = self._config, group.latents, self._w_uk.dtype
        count, (batch, keys, _) = len(q_nope), latents.shape
        q = torch.bmm(q_nope.transpose(0, 1).to(wide), self._w_uk).transpose(0, 1)
        q = torch.cat([q, q_rope], dim=-1).view(batch, -1, c.cache_numbers)
        if latents.dtype != wide:
            if count * c.num_heads * keys * c.cache_numbers < FEW:
                latents = latents.to(wide)
            else:
                q = q.to(latents.dtype)
        unseen = places.unseen(group, count // batch, c.num_heads, q.dtype)
        scores = torch.baddbmm(unseen, q, latents.mT, alpha=self._scale)
        found = torch.bmm(scores.softmax(dim=-1), latents[..., : c.kv_lora_rank])
        found = found.view(-1, c.num_heads, c.kv_lora_rank).transpose(0, 1).to(wide)
        return torch.bmm(found, self._w_uv).transpose(0, 1).flatten(1).to(q_nope.dtype)

    def _expanded(self, q_nope: Tensor, q_rope: Tensor, group: Group) -> Tensor:
        c, (batch, keys) = self._config, group.latents.shape[:2]
        kv = linear.linear(group.latent, self._kv).view(batch, keys, c.num_heads, -1)
        k_nope, v = kv.split([c.qk_nope_head_dim, c.v_head_dim], dim=-1)
        k_rope = group.k_rope.unsqueeze(2).expand(-1, -1, c.num_heads, -1)
        k = _head_by_head(k_nope, k_rope)
        q_rope = q_rope.to(q_nope.dtype)
        q = _head_by_head(q_nope.unflatten(0, (batch, -1)), q_rope.unflatten(0, (batch, -1)))
        found = prefill.mla_prefill(q, k, v, self._scale, group.mask)
        return found.flatten(0, 1).flatten(1)


def _pairs_apart(heads: int, width: int, rope: int) -> Tensor:
    """An order [heads*width] of outputs: of each head's last `rope`, which RoPE turns in pairs, the
    even ones and then the odd ones, as RoPE is to leave them.
    """
    order = torch.arange(heads * width).view(heads, width)
    plain, pairs = order.split([width - rope, rope], dim=1)
    return torch.cat([plain, pairs[:, 0::2], pairs[:, 1::2]], dim=1).flatten()


def _head_by_head(nope: Tensor, rope: Tensor) -> Tensor:
    """[B,T,H,dn] and [B,T,H,R] -> [B,T,H,dn+R], laid out as attention wants it."""
    return torch.cat([nope.transpose(1, 2), rope.transpose(1, 2)], dim=-1).transpose(1, 2)

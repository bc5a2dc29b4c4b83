"""The noise of `longcat.serve.reference` in torch, for many rows at once, on any device.

64-bit words are int64 tensors, whose products wrap as unsigned ones do.
"""

import torch
from torch import Tensor


def _signed(word: int) -> int:
    return word - 2**64 if word >= 2**63 else word


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_FIRST, _SECOND = _signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB)


def seed_word(seed: int) -> int:
    """A seed 0 .. 2**64-1 as the int64 of the same bits."""
    return _signed(seed)


def _shifted(z: Tensor, bits: int) -> Tensor:
    """z >> bits as unsigned words: the copies of the sign are masked off."""
    shifted: Tensor = (z >> bits) & (2 ** (64 - bits) - 1)
    return shifted


def mix(z: Tensor) -> Tensor:
    """Words scrambled, each by itself."""
    z = (z ^ _shifted(z, 30)) * _FIRST
    z = (z ^ _shifted(z, 27)) * _SECOND
    return z ^ _shifted(z, 31)


def noise_keys(seeds: Tensor, positions: Tensor, choices: Tensor, purpose: int) -> Tensor:
    """Where each row's noise begins; int64 operands of shapes that broadcast."""
    place = positions << 24 | choices << 8 | purpose
    return mix(mix(seeds + _GOLDEN) ^ place)


def uniform(keys: Tensor, count: int) -> Tensor:
    """float64 [..., count] in (0, 1) for keys [...]."""
    steps = torch.arange(1, count + 1, device=keys.device) * _GOLDEN
    words = mix(keys.unsqueeze(-1) + steps)
    return (_shifted(words, 12).double() + 0.5) * 2.0**-52


def gumbel(keys: Tensor, count: int) -> Tensor:
    """Standard Gumbel noise, float64 [..., count]."""
    return uniform(keys, count).log_().neg_().log_().neg_()

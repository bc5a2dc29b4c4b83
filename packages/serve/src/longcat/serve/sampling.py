"""From logits to tokens, in torch: the filters and the draw of `longcat.serve.reference`.

Every row has parameters of its own, and nothing is read back from the device.

Shape legend: R rows (sequences), W places of each, V vocabulary.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from longcat.serve.noise import gumbel, noise_keys, seed_word
from longcat.serve.params import SamplingParams
from longcat.serve.reference import TOKEN
from longcat.serve.transfer import send


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """How each of R rows is drawn; all tensors [R,1], so that they broadcast over places.

    greedy    no row draws anything. mixed: some do, and some do not
    filtered  some row leaves tokens out
    """

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    seed: Tensor
    choice: Tensor
    greedy: bool
    mixed: bool
    filtered: bool

    @classmethod
    def of(
        cls,
        params: Sequence[SamplingParams],
        seeds: Sequence[int],
        choices: Sequence[int],
        device: torch.device | str = "cpu",
    ) -> "Sampler":
        """The sampler of rows with these parameters, seeds and choice indices."""

        numbers = [(p.temperature, p.top_p, p.min_p) for p in params]
        words = [
            (p.top_k, seed_word(seed), choice)
            for p, seed, choice in zip(params, seeds, choices, strict=True)
        ]
        temperature, top_p, min_p = _columns(numbers, torch.float64, device)
        top_k, seed, choice = _columns(words, torch.int64, device)
        return cls(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            seed=seed,
            choice=choice,
            greedy=all(p.greedy for p in params),
            mixed=len({p.greedy for p in params}) > 1,
            filtered=any(p.top_k or p.top_p < 1 or p.min_p for p in params if not p.greedy),
        )

    def probabilities(self, logits: Tensor) -> Tensor:
        """The distributions that logits [R,W,V] are sampled from -> float64 [R,W,V]."""
        if self.greedy:
            return _point(logits)
        greedy = (self.temperature == 0).unsqueeze(-1)
        temperature = self.temperature.unsqueeze(-1).masked_fill(greedy, 1.0)
        logits64 = logits.double()
        # Divided by next to nothing, all but the largest become minus infinity, and none infinity.
        p = torch.softmax((logits64 - logits64.amax(-1, keepdim=True)) / temperature, dim=-1)
        if self.filtered:
            p = self._filter(p)
        return torch.where(greedy, _point(logits), p) if self.mixed else p

    def _filter(self, p: Tensor) -> Tensor:
        # One stable sort serves all three filters: none of them reorders what it keeps.
        sorted_p, order = torch.sort(p, dim=-1, descending=True, stable=True)
        top_k, top_p, min_p = (x.unsqueeze(-1) for x in (self.top_k, self.top_p, self.min_p))
        place = torch.arange(p.shape[-1], device=p.device)
        sorted_p = sorted_p.masked_fill((top_k > 0) & (place >= top_k), 0.0)
        sorted_p = sorted_p / sorted_p.sum(-1, keepdim=True)
        # A token stays when the mass strictly before it has not reached top_p yet.
        before = torch.cumsum(sorted_p, dim=-1).roll(1, dims=-1)
        before[..., 0] = 0.0
        sorted_p = sorted_p.masked_fill((top_p < 1) & (before >= top_p), 0.0)
        sorted_p = sorted_p / sorted_p.sum(-1, keepdim=True)
        sorted_p = sorted_p.masked_fill(sorted_p < min_p * sorted_p[..., :1], 0.0)
        sorted_p = sorted_p / sorted_p.sum(-1, keepdim=True)
        return torch.zeros_like(p).scatter_(-1, order, sorted_p)

    def keys(self, positions: Tensor, purpose: int) -> Tensor:
        """Keys of the noise [R,W] for tokens that will stand at positions [R,W]."""
        return noise_keys(self.seed, positions, self.choice, purpose)

    def choose(self, logits: Tensor, positions: Tensor, purpose: int = TOKEN) -> Tensor:
        """argmax(log p + noise) for logits [R,W,V] -> tokens [R,W]."""
        if self.greedy:
            return _largest(logits)
        return self.draw(self.probabilities(logits), positions, purpose)

    def draw(self, p: Tensor, positions: Tensor, purpose: int) -> Tensor:
        """argmax(log p + noise) for probabilities p [R,W,V] -> tokens [R,W]."""
        scores = p.log() + gumbel(self.keys(positions, purpose), p.shape[-1])
        return scores.argmax(-1)


def _columns(
    rows: Sequence[tuple[float, float, float]], dtype: torch.dtype, device: torch.device | str
) -> tuple[Tensor, Tensor, Tensor]:
    """Three numbers of each row as three tensors [R,1], sent together."""
    sent = send(torch.tensor(rows, dtype=dtype).view(-1, 3, 1), device)
    first, second, third = sent.unbind(1)
    return first, second, third


def _point(logits: Tensor) -> Tensor:
    """All mass on the largest logit of each row, the first of equals."""
    point = torch.zeros_like(logits, dtype=torch.float64)
    return point.scatter_(-1, _largest(logits).unsqueeze(-1), 1.0)


def _largest(logits: Tensor) -> Tensor:
    """The place of the largest of each row of logits [..., V], the first of equals -> [...]."""
    if logits.dtype == torch.bfloat16:
        logits = logits.float()  # a CPU finds it there in a quarter of the time
    return logits.argmax(-1)


def fresh_seed() -> int:
    """A random 64-bit seed, for parameters that name none."""
    return secrets.randbits(64)


def probabilities(logits: Tensor, params: SamplingParams) -> Tensor:
    """The distribution each row of logits[..., V] is sampled from -> float64 [..., V].

    temperature, then top_k, top_p and min_p, each on what the one before left; ties by token
    id, lowest first. The definition is `longcat.serve.reference.probabilities`.
    """
    sampler = Sampler.of([params], [0], [0], logits.device)
    rows = logits.reshape(1, -1, logits.shape[-1])
    return sampler.probabilities(rows).view(logits.shape)


def choose(sampler: Sampler, logits: Tensor, positions: Tensor) -> list[int]:
    """One token for each of logits [R,W,V], row by row: argmax(log p + noise), read back.

    positions [R,W] are the indices that the tokens will have in their sequences. The draw happens
    where the sampler's tensors are.

    Raises ValueError when the logits hold NaN or infinity: nothing sensible can follow.
    """
    logits = logits.to(sampler.seed.device)
    tokens = sampler.choose(logits, positions)
    chosen, finite = torch.stack([tokens, finite_rows(logits).long()]).flatten(1).tolist()
    if not all(finite):
        raise ValueError(NO_CHOICE)
    return [int(token) for token in chosen]


NO_CHOICE = (
    "choose: the logits hold NaN or infinity, so no token can be chosen; the weights are "
    "damaged or overflow in this dtype (try float32)"
)


def finite_rows(logits: Tensor) -> Tensor:
    """Whether something can be chosen from logits [..., V] -> bool [...]."""
    return logits.amax(-1).isfinite()

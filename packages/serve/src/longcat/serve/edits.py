"""Logits changed before they are sampled from: penalties, biases, and tokens not allowed.

The order of `longcat.serve.reference.edit_logits`; what is not allowed is then minus infinity. A
place behind drafts counts them as text.

Shape legend: R rows, g drafts, W = g+1 places, V vocabulary.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from longcat.serve.params import SamplingParams
from longcat.serve.transfer import send


@dataclass(frozen=True, kw_only=True)
class Penalties:
    """Penalties [R,1,1] and biases [R,1,V] of R rows, and the texts they apply to.

    counts    [R,V] how often each token is in the text
    prompted  [R,V] whether it is in the prompt
    """

    presence: Tensor
    frequency: Tensor
    repetition: Tensor
    bias: Tensor
    counts: Tensor
    prompted: Tensor

    @classmethod
    def of(
        cls,
        params: Sequence[SamplingParams],
        prompts: Iterable[Sequence[int]],
        texts: Iterable[Sequence[int]],
        vocab_size: int,
        device: torch.device | str = "cpu",
    ) -> "Penalties | None":
        """What these rows ask for, or None when none asks for anything."""
        if not any(p.edits_logits for p in params):
            return None

        def column(values: Sequence[float]) -> Tensor:
            return send(torch.tensor(values, dtype=torch.float32), device).view(-1, 1, 1)

        bias = torch.zeros(len(params), vocab_size)
        counts = torch.zeros(len(params), vocab_size)
        prompted = torch.zeros(len(params), vocab_size, dtype=torch.bool)
        for row, (p, prompt, text) in enumerate(zip(params, prompts, texts, strict=True)):
            if not p.edits_logits:
                continue
            if p.logit_bias:
                values = torch.tensor(list(p.logit_bias.values()), dtype=torch.float32)
                bias[row, list(p.logit_bias)] = values
            prompted[row, list(prompt)] = True
            counts[row].index_add_(
                0, torch.tensor(list(text), dtype=torch.int64), torch.ones(len(text))
            )
        return cls(
            presence=column([p.presence_penalty for p in params]),
            frequency=column([p.frequency_penalty for p in params]),
            repetition=column([p.repetition_penalty for p in params]),
            bias=send(bias, device).unsqueeze(1),
            counts=send(counts, device),
            prompted=send(prompted, device),
        )

    def apply(self, logits: Tensor, drafts: Tensor) -> Tensor:
        """logits [R,W,V] after the texts and the drafts [R,g] before each place."""
        rows, places, vocab = logits.shape
        counts = self.counts.unsqueeze(1).expand(rows, places, vocab).clone()
        for i in range(1, places):
            counts[:, i:].scatter_add_(
                2,
                drafts[:, i - 1].view(-1, 1, 1).expand(-1, places - i, 1),
                torch.ones(rows, places - i, 1, device=logits.device),
            )
        there = counts > 0
        scaled = torch.where(logits > 0, logits / self.repetition, logits * self.repetition)
        edited = torch.where(there | self.prompted.unsqueeze(1), scaled, logits)
        return edited - self.frequency * counts - self.presence * there + self.bias

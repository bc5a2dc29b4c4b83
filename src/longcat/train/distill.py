"""The MTP-only phase: the draft head learns to say what the frozen model would say.

The labels of the text are not what a draft is judged by; the model's own choice is. So the head is
trained against the frozen model's distribution, on two kinds of windows: text of the corpus, and
the model's own greedy continuations of corpus prompts, which is where drafts are made.

$$L = -\\sum_v q_v \\log d_v, \\qquad q = softmax(\\ell / \\tau)$$

with l the model's logits for the token two places on and d the head's distribution. A teacher
temperature tau below 1 sharpens q: it helps greedy drafting and hurts sampled drafting a little.

Source: report section 2.4 (the head and its acceptance); the recipe is this project's.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from longcat.flash import FlashModel
from longcat.kernels import cross_entropy
from longcat.optim import adamw, set_learning_rate, warmup_stable_decay
from longcat.train.device import sent
from longcat.train.errors import RunError


@dataclass(frozen=True, kw_only=True)
class DistillSettings:
    """The MTP-only phase.

    Args:
        steps: optimizer steps; the learning rate decays over the last two thirds.
        lr: peak learning rate.
        corpus_windows, own_windows: windows per step of the corpus and of the model's own text.
        window: tokens per window. prompt: how many of an own window come from the corpus.
        pool: own windows kept, no more than the steps can use. refresh: at so many equal
            intervals that share of them is replaced by new ones.
        temperature: tau of the teacher.
        autocast: compute the head in bfloat16, as the run that it follows.
        seed: decides windows and prompts.
    """

    steps: int = 400
    lr: float = 2e-3
    corpus_windows: int = 6
    own_windows: int = 10
    window: int = 256
    prompt: int = 48
    pool: int = 640
    refresh: int = 6
    temperature: float = 0.5
    autocast: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.steps, self.pool, self.refresh, self.own_windows + self.corpus_windows) < 1:
            raise RunError("distill: steps, pool, refresh and windows per step must be positive")
        if not 0 < self.prompt < self.window or self.temperature <= 0:
            raise RunError(
                "distill: prompt must lie inside the window and temperature above 0; got "
                f"prompt={self.prompt}, window={self.window}, temperature={self.temperature}"
            )


@dataclass(frozen=True, kw_only=True)
class DistillRecord:
    """One step: its loss in nats, and how often the head's choice was the model's own."""

    step: int
    loss: float
    agreement_corpus: float
    agreement_own: float


class Pool:
    """Windows of the model's own greedy text, with the hidden states that it had there."""

    def __init__(self, model: FlashModel, tokens: NDArray[np.integer], s: DistillSettings) -> None:
        self._model, self._tokens, self._settings = model, tokens, s
        self._rng = np.random.default_rng([s.seed, 1])
        self.size = min(s.pool, s.steps * max(1, s.own_windows))
        self.ids, self.hidden = self._write(self.size)

    def renew(self, count: int) -> None:
        """Replace the oldest `count` windows."""
        ids, hidden = self._write(count)
        self.ids = torch.cat([self.ids[count:], ids])
        self.hidden = torch.cat([self.hidden[count:], hidden])

    def _write(self, count: int) -> tuple[Tensor, Tensor]:
        s = self._settings
        prompts = corpus_windows(self._tokens, self._rng, count, s.prompt)
        ids = self._model.generate(
            prompts, max_new_tokens=s.window - s.prompt, ignore_eos=True, speculative=False
        ).to(self._model.lm_head.weight.device)
        with torch.no_grad():
            hidden = torch.cat([self._model(part).hidden for part in ids.split(16)])
        return ids, hidden


def corpus_windows(
    tokens: NDArray[np.integer], rng: np.random.Generator, count: int, length: int
) -> Tensor:
    """[count, length] windows of the corpus at random places."""
    starts = rng.integers(0, len(tokens) - length + 1, size=count)
    places = starts[:, None] + np.arange(length)
    return torch.from_numpy(np.asarray(tokens[places], dtype=np.int64))


def distill_loss(
    model: FlashModel, ids: Tensor, hidden: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """(loss in nats, agreement [B, T-2]) of the head on ids [B,T] with hidden [B,T,D].

    The head at position i reads hidden i and token i+1; its teacher is the model at i+1.
    """
    with torch.no_grad():
        taught = model.lm_head(hidden[:, 1:-1]).float()
    drafted, _ = model.mtp(hidden[:, :-2], ids[:, 1:-1])
    teacher = (taught / temperature).softmax(dim=-1)
    rows = drafted.shape[:-1].numel()
    loss = cross_entropy(drafted.flatten(0, 1), teacher.flatten(0, 1)) / rows
    return loss, drafted.argmax(dim=-1) == taught.argmax(dim=-1)


def distill_mtp(
    model: FlashModel,
    tokens: NDArray[np.integer],
    settings: DistillSettings,
    observe: Callable[[DistillRecord], None] = lambda _: None,
) -> None:
    """Train the MTP head of `model` in place; nothing else of the model changes.

    Args:
        tokens: the training ids, flat. observe: called after every step.

    Raises:
        RunError: without a head, with too little text, or when the loss is not finite.
    """
    head = model.model.mtp
    if head is None:
        raise RunError("distill: the model has no MTP head")
    if len(tokens) < settings.window:
        raise RunError(
            f"distill: expected at least one window of {settings.window} tokens, got {len(tokens)}"
        )
    trained = {id(p) for p in head.parameters()} - {id(model.model.embed_tokens.weight)}
    frozen = [p for p in model.parameters() if p.requires_grad and id(p) not in trained]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        _train(model, tokens, settings, observe)
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)


def _train(
    model: FlashModel,
    tokens: NDArray[np.integer],
    s: DistillSettings,
    observe: Callable[[DistillRecord], None],
) -> None:
    device = model.lm_head.weight.device
    rng = np.random.default_rng([s.seed, 0])
    optimizer = adamw(model, lr=s.lr, weight_decay=0.0)
    pool = Pool(model, tokens, s)
    every = max(1, math.ceil(s.steps / s.refresh))
    for step in range(s.steps):
        if step and step % every == 0:
            pool.renew(max(1, pool.size // s.refresh))
        ids = corpus_windows(tokens, rng, s.corpus_windows, s.window).to(device)
        chosen = sent(rng.integers(0, len(pool.ids), size=s.own_windows), device)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=s.autocast):
            with torch.no_grad():
                hidden = model(ids).hidden
            ids = torch.cat([ids, pool.ids[chosen]])
            hidden = torch.cat([hidden, pool.hidden[chosen]])
            loss, agreement = distill_loss(model, ids, hidden, s.temperature)
        if not math.isfinite(loss.item()):
            raise RunError(f"distill: the loss is not finite at step {step + 1}; lower its lr")
        loss.backward()
        factor = warmup_stable_decay((step + 1) / s.steps, warmup=0.05, decay=0.65)
        set_learning_rate(optimizer, s.lr * factor)
        optimizer.step()
        optimizer.zero_grad()
        share = agreement.double().mean(dim=1)
        observe(
            DistillRecord(
                step=step + 1,
                loss=loss.item(),
                agreement_corpus=float(share[: s.corpus_windows].mean()),
                agreement_own=float(share[s.corpus_windows :].mean()),
            )
        )

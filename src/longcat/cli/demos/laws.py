"""Bias laws on a frozen router: the experiment behind `longcat demo router`.

One random softmax router (N = 8 FFN experts, Z = 8 identity experts, K = 4) sees batches of tokens
drawn anew at every step, and only its biases move. Every law gets the same tokens.

Notable:
- K_e = 3 differs from the uniform share K*N/(N+Z) = 2. In the released model the two are both 8,
  and a law that aims at the uniform share looks right there;
- the controller's error history starts at zero, so the proportional law is K_P times the error
  and nothing else;
- router and controller are `longcat.router`'s; nothing here decides how a bias moves.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from longcat.router import BiasController, ControllerConfig, Router, RouterConfig

SHAPE = RouterConfig(
    hidden_size=32,
    n_routed_experts=8,
    zero_expert_num=8,
    top_k=4,
    expected_ffn_experts=3.0,
)
TOKENS = 2048  # per step
WORDS = 2000  # different tokens there are; word r is drawn with a chance of 1/r
CONTEXT = 0.6  # spread of one word over its contexts, in units of the spread over words
SHARPNESS = 1.2  # standard deviation of the router's logits, roughly


@dataclass(frozen=True, kw_only=True)
class Law:
    """One way to move the biases: a name for plots, a colour role, gains and a target."""

    name: str
    rule: str
    role: str
    gains: ControllerConfig
    target: float | None = SHAPE.expected_ffn_experts


LAWS = (
    Law(name="I", rule="Δb = 0.1 e", role="ffn", gains=ControllerConfig(mu=0.1)),
    Law(name="P", rule="b = 0.5 e", role="net", gains=ControllerConfig(mu=0.0, k_p=0.5)),
    Law(
        name="PD",
        rule="b = 0.5 e + 0.25 Δe",
        role="zero",
        gains=ControllerConfig(mu=0.0, k_p=0.5, k_d=0.25),
    ),
    # The mutant: without a target of its own the error is measured against K*N/(N+Z).
    Law(
        name="uniform",
        rule="Δb = 0.1 e, share 1/(N+Z)",
        role="bad",
        gains=ControllerConfig(mu=0.1),
        target=None,
    ),
)


class Trial:
    """One law on its own copy of the router, and what it has measured so far."""

    def __init__(self, law: Law, classifier: Tensor) -> None:
        self.law = law
        self.router = Router(SHAPE)
        self.router.load_state_dict(
            {"classifier.weight": classifier, "e_score_correction_bias": torch.zeros(16)}
        )
        config = replace(SHAPE, expected_ffn_experts=law.target)
        self.controller = BiasController(config, num_layers=1, gains=law.gains)
        self.ffn_mean: list[float] = []
        self.heaviest: list[float] = []
        self.load = torch.zeros(SHAPE.n_experts, dtype=torch.float64)

    def step(self, u_TD: Tensor) -> None:
        """Route one batch, note what came out, let the controller answer."""
        with torch.no_grad():
            routing = self.router(u_TD)
        self.ffn_mean.append(float(routing.ffn_per_token.double().mean()))
        fair = TOKENS * SHAPE.target_ffn / SHAPE.n_routed_experts
        self.load = routing.counts.double() / fair
        self.heaviest.append(float(self.load[: SHAPE.n_routed_experts].max()))
        self._update(routing.counts)

    def ffn_experts(self, u_TD: Tensor) -> list[int]:
        """FFN experts that each token would use with the biases as they stand."""
        with torch.no_grad():
            return [int(n) for n in self.router(u_TD).ffn_per_token]

    def settled(self, window: int) -> float:
        """Mean FFN experts per token over the last `window` steps."""
        return _mean(self.ffn_mean[-window:])

    def heaviest_settled(self, window: int) -> float:
        """Mean over the last `window` steps of the heaviest expert's load, in fair shares."""
        return _mean(self.heaviest[-window:])

    def steps_to_target(self, *, tolerance: float = 0.01, smooth: int = 20) -> int | None:
        """Steps until the mean of `smooth` steps is, for good, within `tolerance` of K_e."""
        low, high = (SHAPE.target_ffn * (1 + sign * tolerance) for sign in (-1, 1))
        arrived: int | None = None
        for end in range(smooth, len(self.ffn_mean) + 1):
            inside = low <= _mean(self.ffn_mean[end - smooth : end]) <= high
            arrived = (arrived or end) if inside else None
        return arrived

    def _update(self, counts: Tensor) -> None:
        bias = self.router.e_score_correction_bias
        bias.copy_(self.controller.update(bias[None], counts[None])[0])


class Experiment:
    """Every law on the same stream of tokens."""

    def __init__(self, seed: int, laws: Sequence[Law] = LAWS) -> None:
        self._rng = torch.Generator().manual_seed(seed)
        width = SHAPE.hidden_size
        classifier = self._normal(SHAPE.n_experts, width) * (SHARPNESS / width**0.5)
        self._words = self._normal(WORDS, width)
        self._chance = 1.0 / torch.arange(1, WORDS + 1, dtype=torch.float64)
        self.trials = [Trial(law, classifier) for law in laws]

    def step(self) -> None:
        """One batch for everyone."""
        words = torch.multinomial(self._chance, TOKENS, replacement=True, generator=self._rng)
        u_TD = self.in_context(words)
        for trial in self.trials:
            trial.step(u_TD)

    def in_context(self, words: Tensor) -> Tensor:
        """Hidden states [T, D] of words [T], each in some context."""
        noise = self._normal(len(words), SHAPE.hidden_size)
        return self._words[words] + CONTEXT * noise

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self._rng)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)

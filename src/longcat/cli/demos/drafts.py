"""Drafts of the shipped nano, kept as they were judged; and rules of acceptance, right and wrong.

Notable:
- what decodes is `longcat.serve.decode`'s own class; it is watched, not repeated;
- the distributions p and q are those of one real text, all places in one pass;
- the faulty rules are real mistakes: a threshold below 1, a best guess judged as if it had been
  drawn, a refused draft replaced from p instead of from what p has more than q.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files

import numpy as np
import torch
from numpy.typing import NDArray

from longcat.flash import FlashModel
from longcat.flash.tokenizer import Tokenizer
from longcat.kernels import exact
from longcat.serve import DecodeStats, Decoding, SamplingParams, probabilities
from longcat.serve.reference import choose, coupled_acceptance, gumbel_noise, judge

Array = NDArray[np.float64]
TEMPERATURE, TOP_K = 0.8, 40
PROMPTS = ("def read(self, path):\n", "import os\nimport ")
DRAFTS = (0, 1, 2, 3)
_ROWS = 24  # places whose distributions are looked at
_PLACES = 12  # tokens of the small distribution that the rules are tried on


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One pass of the target: the drafts it judged, and the tokens that it gave."""

    drafts: tuple[int, ...]
    tokens: tuple[int, ...]
    accepted: int


class Watched(Decoding):
    """A `Decoding` that remembers its drafts."""

    def __init__(self, model: FlashModel, prompt: Sequence[int], seed: int, g: int, n: int) -> None:
        params = SamplingParams(
            temperature=TEMPERATURE, top_k=TOP_K, seed=seed, max_tokens=n, ignore_eos=True
        )
        self.passes: list[Judged] = []
        super().__init__(model, prompt, params, g > 0, max(1, g))

    def _emit(self, drafts: list[int], run: list[int], accepted: int) -> None:
        judged = Judged(drafts=tuple(drafts), tokens=tuple(run), accepted=accepted)
        self.passes.append(judged)
        super()._emit(drafts, run, accepted)


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One rule of acceptance: (p, q, generator) -> (token, whether the draft was accepted)."""

    name: str
    faulty: bool
    apply: Callable[[Array, Array, np.random.Generator], tuple[int, bool]]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What a rule made of p: its acceptance, distance from p, and surprise.

    tv        sum |f - p| / 2 of the frequencies f
    surprise  by how many standard deviations Pearson's chi-square lies above its mean
    """

    rule: Rule
    accepted: float
    tv: float
    surprise: float


class Drafting:
    """The nano, its texts with 0 to 3 drafts, and the distributions along one of them.

    Args:
        seed: of every text and draw.
        tokens: length of each text.
    """

    def __init__(self, seed: int, tokens: int) -> None:
        where = files("longcat.flash") / "nano"
        self.model = FlashModel.from_pretrained(str(where)).eval()
        self.tokenizer = Tokenizer.load(str(where))
        self.seed, self.tokens = seed, tokens
        self.prompts = [self.tokenizer.encode(text, bos=True) for text in PROMPTS]
        self.texts: dict[tuple[int, int], list[int]] = {}
        self.stats: dict[tuple[int, int], DecodeStats] = {}

    def start(self, prompt: int, g: int) -> Watched:
        """The decoding of one prompt with g drafts, not yet begun."""
        return Watched(self.model, self.prompts[prompt], self.seed, g, self.tokens)

    def step(self, decoding: Watched) -> bool:
        """One more pass of the target in exact arithmetic; False when the text is done."""
        with exact():
            done = len(decoding.passes)
            while len(decoding.passes) == done:
                if next(decoding, None) is None:
                    return False
        return True

    def finish(self, prompt: int, g: int, decoding: Watched) -> None:
        """Run it to its end and keep text and counts."""
        while self.step(decoding):
            pass
        self.texts[prompt, g] = [token for judged in decoding.passes for token in judged.tokens]
        self.stats[prompt, g] = decoding.stats

    def same_texts(self) -> tuple[int, int]:
        """(texts with drafts that equal the one without, all texts with drafts)."""
        drafted = [key for key in self.texts if key[1]]
        same = sum(self.texts[key] == self.texts[key[0], 0] for key in drafted)
        return same, len(drafted)

    def of(self, g: int) -> tuple[list[float], float]:
        """(acceptance at each depth, tokens per pass) with g drafts, over all prompts."""
        stats = [self.stats[prompt, g] for prompt in range(len(PROMPTS))]
        drafted = np.sum([s.drafted_at for s in stats], axis=0)
        accepted = np.sum([s.accepted_at for s in stats], axis=0)
        passes = sum(s.steps for s in stats)
        return (
            [float(a / d) if d else 0.0 for a, d in zip(accepted, drafted, strict=True)],
            sum(s.tokens - 1 for s in stats) / passes,
        )

    def cut_passes(self, g: int) -> float:
        """The largest share of passes without a draft: the last of each text, where it is cut."""
        return len(PROMPTS) / sum(self.stats[prompt, g].steps for prompt in range(len(PROMPTS)))

    @torch.inference_mode()
    def distributions(self) -> tuple[Array, Array]:
        """p [N,V] of the target and q [N,V] of the head's first draft, places of one text."""
        ids = torch.tensor([[*self.prompts[0], *self.texts[0, 0]]])
        cache = self.model.new_cache(1, ids.shape[1])
        logits, hidden = self.model.target(ids, cache)
        guesses, _ = self.model.draft(ids[:, 1:], hidden[:, :-1], cache)
        params = SamplingParams(temperature=TEMPERATURE, top_k=TOP_K)
        rows = slice(-_ROWS - 1, -1)  # the last place of p has no q beside it
        p = probabilities(logits[0, 1:], params)[rows]
        q = probabilities(guesses[0], params)[rows]
        return p.numpy(), q.numpy()


def coupling(p: Array, q: Array, seed: int, draws: int = 100) -> tuple[float, float, float]:
    """(share of equal draws with shared noise, what theory says, its standard error)."""
    equal = [
        choose(a, noise) == choose(b, noise)
        for row, (a, b) in enumerate(zip(p, q, strict=True))
        for draw in range(draws)
        for noise in [gumbel_noise(seed, row, _PLACES, choice=draw)]
    ]
    theory = np.array([coupled_acceptance(a, b) for a, b in zip(p, q, strict=True)])
    error = float(np.sqrt((theory * (1 - theory)).sum() / draws)) / len(p)
    return float(np.mean(equal)), float(theory.mean()), error


def small(p: Array, q: Array) -> tuple[Array, Array]:
    """The same rows over the tokens that matter most in each: [N, 12], renormalised."""
    order = np.argsort(-(p + q), axis=1, kind="stable")[:, :_PLACES]
    kept = (np.take_along_axis(p, order, 1) + 1e-4, np.take_along_axis(q, order, 1) + 1e-4)
    first, second = (rows / rows.sum(1, keepdims=True) for rows in kept)
    return first, second


def try_rule(rule: Rule, p: Array, q: Array, seed: int, draws: int) -> Trial:
    """The law of one place's token under a rule, over many draws."""
    rng = np.random.default_rng(seed)
    drawn = [rule.apply(p, q, rng) for _ in range(draws)]
    counts = np.bincount([token for token, _ in drawn], minlength=p.size)
    chi_square = float(((counts - draws * p) ** 2 / (draws * p)).sum())
    freedom = p.size - 1
    return Trial(
        rule=rule,
        accepted=float(np.mean([accepted for _, accepted in drawn])),
        tv=float(np.abs(counts / draws - p).sum() / 2),
        surprise=(chi_square - freedom) / float(np.sqrt(2 * freedom)),
    )


def _noise(p: Array, rng: np.random.Generator) -> Array:
    return np.asarray(rng.gumbel(size=p.size), dtype=np.float64)


def _judged(
    p: Array, q: Array, draft: int, chance: float, rng: np.random.Generator
) -> tuple[int, bool]:
    """`longcat.serve.reference.judge` on one draft."""
    rows = np.stack([p, p])
    tokens, accepted = judge(rows, q[None], [draft], [chance], rng.gumbel(size=rows.shape))
    return tokens[0], accepted == 1


def _coupled(p: Array, q: Array, rng: np.random.Generator) -> tuple[int, bool]:
    noise = _noise(p, rng)
    token = choose(p, noise)
    return token, token == choose(q, noise)


def _rejection(p: Array, q: Array, rng: np.random.Generator) -> tuple[int, bool]:
    return _judged(p, q, choose(q, _noise(q, rng)), rng.random(), rng)


def _target_only(p: Array, q: Array, rng: np.random.Generator) -> tuple[int, bool]:
    guess = int(q.argmax())
    return _judged(p, np.eye(q.size)[guess], guess, rng.random(), rng)


def _threshold(p: Array, q: Array, rng: np.random.Generator) -> tuple[int, bool]:
    return _judged(p, q, choose(q, _noise(q, rng)), 0.3 * rng.random(), rng)


def _guess_as_if_drawn(p: Array, q: Array, rng: np.random.Generator) -> tuple[int, bool]:
    return _judged(p, q, int(q.argmax()), rng.random(), rng)


def _replaced_from_p(p: Array, q: Array, rng: np.random.Generator) -> tuple[int, bool]:
    token, accepted = _rejection(p, q, rng)
    return (token, True) if accepted else (choose(p, _noise(p, rng)), False)


RULES = (
    Rule(name="coupled: one noise for both", faulty=False, apply=_coupled),
    Rule(name="rejection: min(1, p/q)", faulty=False, apply=_rejection),
    Rule(name="target-only: best guess, p(d)", faulty=False, apply=_target_only),
    Rule(name="faulty: accept from 0.3 p/q on", faulty=True, apply=_threshold),
    Rule(name="faulty: best guess as if drawn", faulty=True, apply=_guess_as_if_drawn),
    Rule(name="faulty: replaced from p", faulty=True, apply=_replaced_from_p),
)

"""Each acceptance rule gives tokens of the target's law; the known mistakes do not, and are caught.

One step with two drafts is repeated under many seeds, and the pairs of tokens that two places get
are compared with the law p(x) p(y|x) by Pearson's chi-square.

Faulty rules, each of which was found in the wild: the ratio test for a draft that was not drawn but
is the best guess, acceptance whenever p(draft) reaches a threshold, and replacing a refused draft
by a draw from p instead of from the residual.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from longcat.serve import SamplingParams, reference
from longcat.serve.acceptance import Drafts, Rules, judge, propose
from longcat.serve.sampling import Sampler

VOCAB = 6


@pytest.fixture(scope="module")
def laws() -> tuple[np.ndarray, np.ndarray]:
    """Logits of target and head, [V+1, V]: the last row for the first place, row x after x."""
    rng = np.random.default_rng(1)
    target = 1.5 * rng.standard_normal((VOCAB + 1, VOCAB))
    return target, 0.5 * target + rng.standard_normal((VOCAB + 1, VOCAB))


def softmax(logits: np.ndarray) -> np.ndarray:
    p = np.exp(logits - logits.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def drawn(acceptance: str, laws, count: int, faulty: str | None = None) -> tuple[Tensor, float]:
    """First tokens and drafts under `count` seeds: pairs [count,2], and the acceptance.

    Two steps: the first judges one draft; where it is refused, the second place is drawn by a
    second step, as in the engine.
    """
    target, head = (torch.tensor(logits) for logits in laws)
    params = SamplingParams(temperature=1.0, acceptance=acceptance)
    sampler = Sampler.of([params] * count, range(count), [0] * count)
    one = torch.ones(count, 1, dtype=torch.bool)
    rules = None
    if acceptance != "coupled":
        rules = Rules(rejecting=one, guessing=one & (acceptance == "target-only"))

    def places(first: int, width: int) -> Tensor:
        return torch.arange(first, first + width).expand(count, width)

    draft, q = propose(head[VOCAB].expand(count, 1, VOCAB), sampler, rules, places(1, 1))
    if faulty == "ratio of a guess":
        draft = head[VOCAB].argmax().expand(count, 1)
    drafts = Drafts(tokens=draft, usable=torch.ones(count, dtype=torch.int64), q=q)
    logits = torch.stack([target[VOCAB].expand(count, VOCAB), target[draft[:, 0]]], dim=1)
    tokens, accepted = judge(logits, drafts, sampler, rules, places(1, 2))
    if faulty == "threshold":
        p = torch.softmax(logits[:, 0], -1).gather(1, draft).squeeze(1)
        lucky = (p > 0.2) & (accepted == 0)
        fresh, _ = judge(logits[:, 1:], _none(count), sampler, None, places(2, 1))
        tokens = torch.where(lucky.unsqueeze(1), torch.cat([draft, fresh], dim=1), tokens)
        accepted = accepted + lucky
    if faulty == "no residual":
        again = sampler.draw(torch.softmax(logits[:, :1], -1), places(1, 1), reference.REPLACE)
        tokens[:, 0] = torch.where(accepted == 0, again[:, 0], tokens[:, 0])
    # Where the draft was refused, the next step gives the second token.
    second, _ = judge(
        target[tokens[:, 0]].unsqueeze(1), _none(count, q), sampler, rules, places(2, 1)
    )
    pairs = torch.stack([tokens[:, 0], torch.where(accepted > 0, tokens[:, 1], second[:, 0])], 1)
    return pairs, float(accepted.double().mean())


def _none(count: int, q: Tensor | None = None) -> Drafts:
    return Drafts(
        tokens=torch.zeros(count, 0, dtype=torch.int64),
        usable=torch.zeros(count, dtype=torch.int64),
        q=None if q is None else q[:, :0],
    )


def surprise_of(pairs: Tensor, laws) -> float:
    """Standard deviations of chi-square above its mean."""
    p = softmax(laws[0])
    law = (p[VOCAB][:, None] * p[:VOCAB]).ravel()
    observed = np.bincount((pairs[:, 0] * VOCAB + pairs[:, 1]).numpy(), minlength=VOCAB**2)
    expected = law * len(pairs)
    chi_square = float(((observed - expected) ** 2 / expected).sum())
    freedom = VOCAB**2 - 1
    return (chi_square - freedom) / (2 * freedom) ** 0.5


RULES = ["coupled", "rejection", "target-only"]
FAULTS = [
    ("ratio of a guess", "rejection"),
    ("threshold", "rejection"),
    ("no residual", "rejection"),
]


@pytest.mark.parametrize("rule", RULES)
def test_tokens_follow_the_law_of_the_target(laws, rule):
    pairs, _ = drawn(rule, laws, 20_000)
    assert surprise_of(pairs, laws) < 4


@pytest.mark.parametrize(("faulty", "rule"), FAULTS)
def test_known_mistakes_are_caught(laws, faulty, rule):
    pairs, _ = drawn(rule, laws, 20_000, faulty)
    assert surprise_of(pairs, laws) > 20


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_a_million_draws_follow_the_law_of_the_target(laws, rule):
    pairs, _ = drawn(rule, laws, 1_000_000)
    assert surprise_of(pairs, laws) < 4


def test_each_rule_accepts_what_theory_says(laws):
    p, q = softmax(laws[0][VOCAB]), softmax(laws[1][VOCAB])
    overlap = float(np.minimum(p, q).sum())
    expected = {
        "coupled": reference.coupled_acceptance(p, q),
        "rejection": overlap,
        "target-only": float(p[q.argmax()]),
    }
    for rule, chance in expected.items():
        _, accepted = drawn(rule, laws, 20_000)
        assert accepted == pytest.approx(chance, abs=5 * 0.5 / 20_000**0.5), rule


@pytest.mark.parametrize("guessing", [False, True])
@pytest.mark.parametrize("filters", [{}, {"top_k": 3}, {"top_p": 0.8}, {"min_p": 0.2}])
def test_torch_judges_as_the_definition(guessing, filters):
    rng = np.random.default_rng(2)
    rows, drafts = 40, 3
    logits = rng.standard_normal((rows, drafts + 1, VOCAB))
    proposals = rng.standard_normal((rows, drafts, VOCAB))
    rule = "target-only" if guessing else "rejection"
    params = SamplingParams(temperature=0.8, acceptance=rule, **filters)
    sampler = Sampler.of([params] * rows, range(rows), [0] * rows)
    one = torch.ones(rows, 1, dtype=torch.bool)
    rules = Rules(rejecting=one, guessing=one & guessing)
    places = torch.arange(5, 5 + drafts + 1).expand(rows, -1)
    proposed = [
        propose(torch.tensor(proposals[:, i : i + 1]), sampler, rules, places[:, i : i + 1])
        for i in range(drafts)
    ]
    tokens = torch.cat([token for token, _ in proposed], dim=1)
    q = torch.cat([of for _, of in proposed if of is not None], dim=1)
    usable = torch.arange(rows) % (drafts + 1)
    ran, accepted = judge(
        torch.tensor(logits), Drafts(tokens=tokens, usable=usable, q=q), sampler, rules, places
    )
    chosen: Callable[..., np.ndarray] = reference.probabilities
    for row in range(rows):
        count = int(usable[row])
        uniforms = [
            float(
                reference.uniform_noise(reference.noise_key(row, 5 + i, 0, reference.ACCEPT), 1)[0]
            )
            for i in range(count)
        ]
        noise = np.stack(
            [
                reference.gumbel_noise(row, 5 + i, VOCAB, 0, reference.REPLACE)
                for i in range(count + 1)
            ]
        )
        want, stood = reference.judge(
            np.stack([chosen(logits[row, i], 0.8, **filters) for i in range(count + 1)]),
            q[row].numpy(),
            tokens[row, :count].tolist(),
            uniforms,
            noise,
        )
        assert int(accepted[row]) == stood
        assert ran[row, : stood + 1].tolist() == want


def test_greedy_rows_reject_like_greedy_rows(laws):
    logits = torch.tensor(laws[0][:3])[:, None].expand(3, 2, VOCAB)
    params = SamplingParams(acceptance="rejection")
    sampler = Sampler.of([params] * 3, [0] * 3, [0] * 3)
    one = torch.ones(3, 1, dtype=torch.bool)
    best = logits[:, 0].argmax(-1)
    drafts = torch.stack([best[0], best[1], (best[2] + 1) % VOCAB]).unsqueeze(1)
    q = torch.nn.functional.one_hot(drafts, VOCAB).double()
    tokens, accepted = judge(
        logits,
        Drafts(tokens=drafts, usable=torch.tensor([1, 0, 1]), q=q),
        sampler,
        Rules(rejecting=one, guessing=~one),
        torch.ones(3, 2, dtype=torch.int64),
    )
    assert accepted.tolist() == [1, 0, 0]
    assert tokens[:, 0].tolist() == best.tolist()

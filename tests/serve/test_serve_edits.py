"""Penalties, biases and constraints: the definition's numbers, and the same text with drafts."""

import numpy as np
import pytest
import torch

from longcat.serve import ConstraintSpec, Engine, EngineConfig, Request, SamplingParams, reference
from longcat.serve.edits import Penalties

VOCAB = 7


def generated(model, params: SamplingParams, drafts: int, **fields) -> list[int]:
    engine = Engine(model, None, EngineConfig(num_drafts=drafts), **fields)
    engine.add(Request(request_id="a", prompt_ids=(1, 2), params=params))
    engine.add(Request(request_id="b", prompt_ids=(3,), params=SamplingParams(max_tokens=9)))
    tokens = []
    while engine.has_work:
        for delta in engine.step():
            if delta.request_id == "a":
                tokens += [token.id for token in delta.tokens]
    return tokens


EDITS = [
    {"presence_penalty": 1.5},
    {"frequency_penalty": 0.7},
    {"repetition_penalty": 1.4},
    {"logit_bias": {2: -100.0, 5: 1.0}},
    {"presence_penalty": -1.0, "repetition_penalty": 0.8, "logit_bias": {0: 2.0}},
]


@pytest.mark.parametrize("edits", EDITS, ids=str)
def test_torch_edits_logits_as_the_definition(edits):
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((2, 3, VOCAB)).astype(np.float32)
    prompts, texts, drafts = [[1, 2], [3]], [[2, 4, 4], []], [[4, 0], [5, 5]]
    asked = [SamplingParams(**edits), SamplingParams()]
    penalties = Penalties.of(asked, prompts, texts, VOCAB)
    assert penalties is not None
    edited = penalties.apply(torch.tensor(logits), torch.tensor(drafts)).numpy()
    for row in range(2):
        for place in range(3):
            text = texts[row] + drafts[row][:place]
            fields = edits if row == 0 else {}
            want = reference.edit_logits(logits[row, place], prompts[row], text, **fields)
            np.testing.assert_allclose(edited[row, place], want, rtol=1e-5, atol=1e-6)


def test_nobody_asking_costs_nothing():
    assert Penalties.of([SamplingParams()], [[1]], [[]], VOCAB) is None


@pytest.mark.parametrize("edits", EDITS, ids=str)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_edited_text_is_the_same_with_drafts(markov, edits, temperature):
    params = SamplingParams(max_tokens=25, temperature=temperature, seed=4, **edits)
    plain = generated(markov(), params, 0)
    assert len(plain) == 25
    for drafts in (1, 3):
        assert generated(markov(), params, drafts) == plain


def test_a_bias_and_a_penalty_are_felt(markov):
    def text(**edits):
        params = SamplingParams(max_tokens=25, temperature=1.0, seed=4, **edits)
        return generated(markov(), params, 1)

    assert 2 in text()
    assert 2 not in text(logit_bias={2: -100.0})
    assert set(text(logit_bias={2: 100.0})) == {2}
    assert len(set(text(presence_penalty=2.0)[:7])) > len(set(text(presence_penalty=-2.0)[:7]))


class Alternating:
    """Tokens must alternate between odd and even, five of them."""

    failure: str | None = None

    def __init__(self, spec: ConstraintSpec) -> None:
        self.tokens: list[int] = []

    def mask(self, drafts):
        rows = []
        for i in range(len(drafts) + 1):
            before = [*self.tokens, *drafts[:i]]
            row = np.arange(VOCAB) % 2 == len(before) % 2
            row[0] = False
            rows.append(row if len(before) < 5 else np.arange(VOCAB) == 0)
        return np.stack(rows)

    def redraft(self, drafts):
        return drafts

    def advance(self, tokens):
        for token in tokens:
            assert self.mask([])[0][token], "a token was taken that is not allowed"
            self.tokens.append(token)

    @property
    def finished(self):
        return len(self.tokens) == 5


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_constraint_is_kept_with_drafts_and_without(markov, temperature):
    params = SamplingParams(
        max_tokens=9, temperature=temperature, seed=3, constraint=ConstraintSpec(regex="x")
    )
    texts = []
    for drafts in (0, 1, 3):
        model = markov(quality=1.0)
        model.eos_token_id = 0
        texts.append(generated(model, params, drafts, constraints=Alternating))
    assert [token % 2 for token in texts[0][:5]] == [0, 1, 0, 1, 0]
    assert texts[0][5:] == [0]
    assert texts[1] == texts[2] == texts[0]


class GivesUp(Alternating):
    """Gives up after two tokens: when it takes the third, or when it is asked what follows."""

    taking = False

    def mask(self, drafts):
        if not self.taking and len(self.tokens) >= 2:
            self.failure = "it is too long"
            return np.ones((len(drafts) + 1, VOCAB), dtype=bool)
        return super().mask(drafts)

    def advance(self, tokens):
        if self.failure is None:
            super().advance(tokens)
            if self.taking and len(self.tokens) > 2:
                self.failure = "it is too long"


@pytest.mark.parametrize("taking", [False, True])
@pytest.mark.parametrize("drafts", [0, 1, 3])
def test_a_form_that_cannot_be_kept_to_ends_its_own_request_alone(markov, drafts, taking):
    model = markov(quality=1.0)
    model.eos_token_id = 0
    config = EngineConfig(num_drafts=drafts)
    forms = {"(x)": Alternating, "(y)": type("Form", (GivesUp,), {"taking": taking})}
    engine = Engine(model, None, config, constraints=lambda spec: forms[spec.regex](spec))
    for regex in forms:
        params = SamplingParams(max_tokens=9, constraint=ConstraintSpec(regex=regex))
        engine.add(Request(request_id=regex, prompt_ids=(1,), params=params))
    last = {}
    while engine.has_work:
        last |= {delta.request_id: delta for delta in engine.step()}
    assert last["(x)"].finish_reason == "stop"
    failed = last["(y)"]
    assert (failed.finish_reason, failed.error, failed.fault) == (
        "error",
        "it is too long",
        "request",
    )
    engine.check_integrity()
    assert engine.stats().pages_used == 0


def test_a_constraint_without_someone_to_check_it_is_refused(markov):
    params = SamplingParams(constraint=ConstraintSpec(json_object=True))
    engine = Engine(markov(), None)
    with pytest.raises(ValueError, match="constraint"):
        engine.add(Request(request_id="a", prompt_ids=(1,), params=params))


@pytest.mark.parametrize("acceptance", ["rejection", "target-only"])
def test_every_acceptance_rule_serves_beside_the_others(markov, acceptance):
    model = markov()
    coupled = SamplingParams(max_tokens=30, temperature=0.9, seed=8)
    other = SamplingParams(max_tokens=30, temperature=0.9, seed=8, acceptance=acceptance)

    def together(*asked: SamplingParams) -> list[list[int]]:
        engine = Engine(model, None, EngineConfig(num_drafts=2))
        for index, params in enumerate(asked):
            engine.add(Request(request_id=str(index), prompt_ids=(1, 2), params=params))
        tokens: list[list[int]] = [[] for _ in asked]
        while engine.has_work:
            for delta in engine.step():
                tokens[int(delta.request_id)] += [token.id for token in delta.tokens]
        return tokens

    first, second = together(coupled, other)
    assert first == together(coupled)[0]
    assert second == together(other)[0]
    assert len(second) == 30


@pytest.mark.parametrize("acceptance", ["rejection", "target-only"])
def test_the_engine_keeps_the_law_under_every_rule(markov, law_surprise, acceptance):
    model = markov()
    model.table *= 0.4  # no outcome so rare that chi-square would mind a single one
    engine = Engine(model, None, EngineConfig(num_drafts=2))
    for index in range(8):
        params = SamplingParams(max_tokens=120, temperature=1.0, seed=index, acceptance=acceptance)
        engine.add(Request(request_id=str(index), prompt_ids=(1, 2), params=params))
    texts: dict[str, list[int]] = {str(index): [1, 2] for index in range(8)}
    while engine.has_work:
        for delta in engine.step():
            texts[delta.request_id] += [token.id for token in delta.tokens]
    p = np.exp(model.table - model.table.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    assert law_surprise(p, *texts.values()) < 4
    assert engine.stats().acceptance > 0.1

"""Whatever an engine accepts it answers: no mixture of parameters brings it down for the others."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from longcat.serve import ConstraintSpec, Engine, EngineConfig, Request, SamplingParams
from longcat.serve.structured import ConstraintCompiler, TextConstraint

pytest.importorskip("llguidance")

EOS = 0
CALL = 7
TOKENS = [b"", b"a", b"b", b"1", b'"', b"[", b"]", b"", b""]
FORMS = [
    ConstraintSpec(regex="[ab]{1,4}"),
    ConstraintSpec(regex="a*"),
    ConstraintSpec(choice=("a", "ab", "1")),
    ConstraintSpec(grammar='start: "a" start | "b"'),
    ConstraintSpec(grammar=f'start: ("a" <[{CALL}]>)+'),
    ConstraintSpec(json_schema='{"type": "array", "items": {"enum": ["a", 1]}, "maxItems": 1}'),
    # Endless once an array has been begun.
    ConstraintSpec(
        json_schema='{"anyOf": [{"const": 1}, {"$ref": "#/$defs/e"}], '
        '"$defs": {"e": {"type": "array", "items": {"$ref": "#/$defs/e"}, "minItems": 1}}}'
    ),
]


class Tokenizer:
    """Nine tokens, of which one ends a text and two more are no text."""

    eos_id = EOS

    def encode(self, text: str) -> list[int]:
        return [TOKENS.index(letter.encode()) for letter in text]

    def decode(self, ids: Any) -> str:
        return b"".join(TOKENS[i] for i in ids).decode()

    def token_bytes(self) -> list[bytes]:
        return TOKENS


def mixtures() -> st.SearchStrategy[dict[str, Any]]:
    """Parameters, each at its ends or left out."""
    token, some = st.integers(0, len(TOKENS) - 1), st.integers(0, 3)
    fields: dict[str, st.SearchStrategy[Any]] = {
        "temperature": st.sampled_from([0, 5e-324, 1e-9, 0.7, 1, 1e300]),
        "top_k": st.sampled_from([0, 1, 3, 10**6]),
        "top_p": st.sampled_from([5e-324, 0.5, 1]),
        "min_p": st.sampled_from([0, 5e-324, 0.5, 1]),
        "seed": st.sampled_from([0, 2**64 - 1]),
        "presence_penalty": st.sampled_from([-2, 2]),
        "frequency_penalty": st.sampled_from([-2, 2]),
        "repetition_penalty": st.sampled_from([0.01, 100]),
        "logit_bias": st.dictionaries(token, st.sampled_from([-(10**30), -100, 0.5, 1e30])),
        "logprobs": some,
        "prompt_logprobs": some,
        "stop": st.lists(st.sampled_from(["a", "ab", "1]"]), max_size=2).map(tuple),
        "stop_token_ids": st.lists(token, max_size=9).map(tuple),
        "min_tokens": some,
        "ignore_eos": st.booleans(),
        "acceptance": st.sampled_from(["coupled", "rejection", "target-only"]),
        "speculative": st.booleans(),
        "constraint": st.sampled_from(FORMS),
    }
    return st.fixed_dictionaries({"max_tokens": st.integers(3, 9)}, optional=fields)


def answered(model: Any, asked: list[dict[str, Any]], config: EngineConfig) -> None:
    """Every request ends, by its own limits or with a reason, and gives back what it held."""
    model.eos_token_id = EOS
    compiler = ConstraintCompiler(TOKENS, EOS)
    engine = Engine(model, Tokenizer(), config, constraints=compiler)
    awaited: dict[str, dict[str, Any]] = {}
    for index, fields in enumerate(asked):
        name = str(index)
        request = Request(request_id=name, prompt_ids=(1, 2), params=SamplingParams(**fields))
        if "constraint" in fields and (fields.get("min_tokens") or fields.get("ignore_eos")):
            with pytest.raises(ValueError, match="contradicts constraint"):
                engine.add(request)
            continue
        engine.add(request)
        awaited[name] = fields
    reasons = {}
    while engine.has_work:
        reasons |= {delta.request_id: delta for delta in engine.step()}
    engine.check_integrity()
    assert engine.stats().pages_used == 0
    assert reasons.keys() == awaited.keys()
    for name, last in reasons.items():
        assert last.finish_reason in ("stop", "length", "error")
        if last.finish_reason == "error":
            assert (last.fault, awaited[name]["constraint"]) == ("request", FORMS[-1])


@given(
    asked=st.lists(mixtures(), min_size=1, max_size=4),
    drafts=st.sampled_from([0, 1, 3, None]),
    overlap=st.booleans(),
)
@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_every_request_that_is_accepted_is_answered(markov, asked, drafts, overlap) -> None:
    answered(
        markov(len(TOKENS)), asked, EngineConfig(num_drafts=drafts, overlap=overlap, page_size=4)
    )


def test_control_an_endless_form_that_nobody_notices_is_found(markov, monkeypatch) -> None:
    asked = [{"constraint": FORMS[-1], "logit_bias": {TOKENS.index(b"["): 100}}, {}]
    answered(markov(len(TOKENS)), asked, EngineConfig(num_drafts=1))
    monkeypatch.setattr(TextConstraint, "_note_failure", lambda _: None)
    with pytest.raises((AssertionError, ValueError)):
        answered(markov(len(TOKENS)), asked, EngineConfig(num_drafts=1))


@pytest.mark.parametrize("form", FORMS[:-1], ids=str)
@pytest.mark.parametrize("name", ["min_tokens", "ignore_eos"])
def test_what_contradicts_a_form_is_refused_by_name(markov, form, name) -> None:
    engine = Engine(markov(len(TOKENS)), None, constraints=ConstraintCompiler(TOKENS, EOS))
    params = SamplingParams(constraint=form, **{name: 1 if name == "min_tokens" else True})
    with pytest.raises(ValueError, match=rf"^{name} contradicts constraint"):
        engine.add(Request(request_id="a", prompt_ids=(1,), params=params))


@pytest.mark.parametrize("drafts", [0, 1, 3])
def test_without_an_end_of_sequence_a_text_ends_with_its_form(markov, drafts) -> None:
    model = markov(len(TOKENS), quality=1.0)
    assert model.eos_token_id is None
    compiler = ConstraintCompiler(TOKENS, None)
    engine = Engine(model, Tokenizer(), EngineConfig(num_drafts=drafts), constraints=compiler)
    params = SamplingParams(constraint=ConstraintSpec(regex="[ab]{3}"), max_tokens=9)
    engine.add(Request(request_id="a", prompt_ids=(1,), params=params))
    text, reason = "", None
    while engine.has_work:
        for delta in engine.step():
            text, reason = text + delta.text, delta.finish_reason
    assert (len(text), set(text) <= {"a", "b"}, reason) == (3, True, "stop")


def test_a_schema_that_must_contain_itself_is_refused() -> None:
    endless = ConstraintSpec(json_schema='{"type": "array", "items": {"$ref": "#"}, "minItems": 1}')
    with pytest.raises(ValueError, match=r"^json_schema cannot be honoured: .* never done$"):
        ConstraintCompiler(TOKENS, EOS)(endless)


@pytest.mark.parametrize("drafts", [0, 1, 3])
def test_a_form_that_becomes_endless_on_the_way_fails_without_an_exception(drafts: int) -> None:
    constraint = ConstraintCompiler(TOKENS, EOS)(FORMS[-1])
    opening = TOKENS.index(b"[")
    for _ in range(8):
        assert constraint.mask([opening] * drafts)[0, opening]
        constraint.redraft([opening] * drafts)
        assert constraint.failure is None, "a draft is only a guess"
        constraint.advance([opening])
        if constraint.failure is not None:
            break
    assert "held to its form no longer" in (constraint.failure or "")
    assert "\n" not in (constraint.failure or "")
    assert constraint.mask([opening]).all()
    assert constraint.redraft([opening]) == []
    constraint.advance([opening])

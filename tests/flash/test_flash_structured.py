"""Structured output by the shipped nano: every text has the form, and drafts do not change it."""

import json
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import longcat.flash
from longcat.flash import FlashModel
from longcat.flash.tokenizer import Tokenizer
from longcat.kernels import exact
from longcat.serve import ConstraintSpec, Engine, EngineConfig, Request, SamplingParams
from longcat.serve.structured import ConstraintCompiler, TextConstraint

jsonschema = pytest.importorskip("jsonschema")
pytest.importorskip("llguidance")

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[a-z]{1,8}$"},
        "n": {"type": "integer", "minimum": 0, "maximum": 999},
        "kind": {"enum": ["list", "dict", None]},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
    },
    "required": ["name", "n", "kind", "tags"],
    "additionalProperties": False,
}
REGEX = "(import|from) [a-z]{2,8}(\\.[a-z]{2,8})?\n"
SMALL: dict[str, Any] = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}, "b": {"type": "boolean"}},
    "required": ["n", "b"],
    "additionalProperties": False,
}
SCHEMAS = {"schema": SCHEMA, "small": SMALL}
SPECS = {
    **{name: ConstraintSpec(json_schema=json.dumps(schema)) for name, schema in SCHEMAS.items()},
    "regex": ConstraintSpec(regex=REGEX),
    "choice": ConstraintSpec(choice=("import os", "import sys", "from")),
}
PASSES: list[int] = []  # of every call of `texts`
PROMPTS = ["import os\n", "    return "]


@cache
def nano() -> tuple[FlashModel, Tokenizer]:
    where = Path(next(iter(longcat.flash.__path__))) / "nano"
    return FlashModel.from_pretrained(where).eval(), Tokenizer.load(where)


def compiler() -> ConstraintCompiler:
    model, tokenizer = nano()
    return ConstraintCompiler(
        tokenizer.token_bytes(), model.eos_token_id, model.vocab_size, tokenizer.encode_bytes
    )


def texts(
    spec: ConstraintSpec, num_drafts: int, constraints: Any = None, **sampling: Any
) -> list[tuple[str, str | None]]:
    """(text, why it ended) of every prompt, all served together."""
    model, tokenizer = nano()
    config = EngineConfig(num_pages=64, num_drafts=num_drafts)
    engine = Engine(model, tokenizer, config, constraints=constraints or compiler())
    params = SamplingParams(**{"max_tokens": 80, "constraint": spec, **sampling})
    said = {str(i): ("", None) for i in range(len(PROMPTS))}
    for i, prompt in enumerate(PROMPTS):
        ids = tuple(tokenizer.encode(prompt, bos=True))
        engine.add(Request(request_id=str(i), prompt_ids=ids, params=params))
    with exact():
        while engine.has_work:
            for delta in engine.step():
                text, _ = said[delta.request_id]
                said[delta.request_id] = (text + delta.text, delta.finish_reason)
    engine.check_integrity()
    PASSES.append(engine.stats().steps)
    return list(said.values())


def has_form(name: str, text: str) -> bool:
    if name in SCHEMAS:
        jsonschema.validate(json.loads(text), SCHEMAS[name])
        return True
    if name == "regex":
        return re.fullmatch(REGEX, text) is not None
    return text in SPECS["choice"].choice


SAMPLINGS = [{}, {"temperature": 1.3, "seed": 5}]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "hot"])
@pytest.mark.parametrize("name", ["small", "regex", "choice"])
def test_every_text_has_the_form_and_is_the_same_with_and_without_drafts(
    name: str, sampling: Any
) -> None:
    plain = texts(SPECS[name], 0, **sampling)
    assert all(reason == "stop" and has_form(name, text) for text, reason in plain), plain
    assert texts(SPECS[name], 3, **sampling) == plain


@pytest.mark.slow
@pytest.mark.parametrize("name", list(SPECS))
def test_it_holds_for_many_seeds_and_every_number_of_drafts(name: str) -> None:
    for seed in range(10):
        sampling = {"temperature": 0.3 * (seed % 6), "seed": seed}
        plain = texts(SPECS[name], 0, **sampling)
        assert all(reason == "stop" and has_form(name, text) for text, reason in plain), plain
        for drafts in (1, 2, 3):
            assert texts(SPECS[name], drafts, **sampling) == plain


class AllowsAll(TextConstraint):
    """The mutant: it follows the text and forbids nothing."""

    def mask(self, drafts: Sequence[int] = ()) -> NDArray[np.bool_]:
        return np.ones_like(super().mask(drafts))

    def advance(self, tokens: Sequence[int]) -> None:
        pass


def test_control_without_the_mask_the_form_is_missed() -> None:
    made = compiler()

    def factory(spec: ConstraintSpec) -> TextConstraint:
        sound = made(spec)
        return AllowsAll(sound._matcher, sound._vocab_size, sound._eos)

    free = texts(SPECS["regex"], 1, factory, max_tokens=12, temperature=1.3, seed=5)
    for name in SPECS:
        for text, _ in free:
            with pytest.raises((AssertionError, ValueError)):
                assert has_form(name, text)


class LeavesDrafts(TextConstraint):
    """The control: the head's drafts as they are."""

    def redraft(self, drafts: Sequence[int]) -> list[int]:
        return list(drafts)


def test_what_the_form_makes_certain_is_drafted_and_saves_passes() -> None:
    made = compiler()

    def factory(spec: ConstraintSpec) -> TextConstraint:
        sound = made(spec)
        return LeavesDrafts(sound._matcher, sound._vocab_size, sound._eos)

    left, bettered = texts(SPECS["small"], 3, factory), texts(SPECS["small"], 3, made)
    assert bettered == left
    assert PASSES[-1] <= 0.7 * PASSES[-2], PASSES[-2:]


def test_a_text_that_is_cut_off_is_the_beginning_of_one_that_has_the_form() -> None:
    model, tokenizer = nano()
    whole = json.dumps({"name": "abc", "n": 12, "kind": "list", "tags": [True]})
    constraint = compiler()(SPECS["schema"])
    ids = tokenizer.encode(whole)
    constraint.advance(ids[: len(ids) // 2])
    assert not constraint.mask([])[0, model.eos_token_id]
    constraint.advance(ids[len(ids) // 2 :])
    assert constraint.mask([])[0, model.eos_token_id]

"""Claims about structured output: what the masks let through has the form, also along drafts."""

import json
import pickle
import re
import sys
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from longcat.serve import ConstraintSpec
from longcat.serve.structured import ConstraintCompiler, TextConstraint, check_spec

pytest.importorskip("llguidance")

EOS = 0
# Bytes, and a few longer tokens, so that a text can be cut in several ways.
WORDS = [b"yes", b"no", b'{"', b'": ', b", ", b"12", b"true", b"\xc3\xa4", b"ye", b"s "]
TOKENS = [b"", b"", *[bytes([b]) for b in range(256)], *WORDS]
WIDTH = len(TOKENS) + 3  # a model may have spare rows
SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 5},
            "n": {"type": "integer", "minimum": 0, "maximum": 99},
            "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
        },
        "required": ["name", "n"],
        "additionalProperties": False,
    }
)
SPECS = {
    "schema": ConstraintSpec(json_schema=SCHEMA),
    "regex": ConstraintSpec(regex="(yes|no) [0-9]{2,4}|ä+z"),
    "choice": ConstraintSpec(choice=("yes", 'say "no"\n', "ä\\d", "yes 12")),
    "grammar": ConstraintSpec(grammar='start: "yes" [tail]\ntail: "," /[0-9]+/'),
}


@pytest.fixture(scope="module")
def compiler() -> ConstraintCompiler:
    return ConstraintCompiler(TOKENS, EOS, WIDTH)


def walk(constraint: TextConstraint, seed: int, limit: int = 200) -> tuple[list[int], bool]:
    """Tokens drawn evenly from what is allowed, and whether the text came to its end."""
    rng = np.random.default_rng(seed)
    tokens: list[int] = []
    while len(tokens) < limit:
        row = constraint.mask([])[0]
        tokens.append(int(rng.choice(np.flatnonzero(row))))
        constraint.advance(tokens[-1:])
        if tokens[-1] == EOS:
            return tokens, True
    return tokens, False


def text_of(tokens: Sequence[int]) -> str:
    return b"".join(TOKENS[token] for token in tokens).decode("utf-8")


def has_form(name: str, text: str) -> bool:
    if name == "schema":
        found = json.loads(text)
        assert text == json.dumps(found, ensure_ascii=False) or "\\" in text
        return (
            set(found) <= {"name", "n", "tags"}
            and len(found["name"]) <= 5
            and 0 <= found["n"] <= 99
            and set(found.get("tags", [])) <= {"a", "b"}
        )
    patterns = {"regex": SPECS["regex"].regex or "", "grammar": r"yes(,[0-9]+)?"}
    if name in patterns:
        return re.fullmatch(patterns[name], text, re.ASCII) is not None
    return text in SPECS["choice"].choice


@pytest.mark.parametrize("name", list(SPECS))
def test_every_walk_through_the_masks_ends_in_the_form(
    name: str, compiler: ConstraintCompiler
) -> None:
    ended = 0
    for seed in range(20):
        tokens, done = walk(compiler(SPECS[name]), seed)
        ended += done
        assert not done or has_form(name, text_of(tokens[:-1])), text_of(tokens)
    assert ended >= 18


def test_any_json_object_is_a_json_object(compiler: ConstraintCompiler) -> None:
    constraint = compiler(ConstraintSpec(json_object=True))
    row = constraint.mask([])[0]
    assert {TOKENS[i] for i in np.flatnonzero(row)} == {b"{", b'{"'}
    constraint.advance([2 + b for b in b'{"a": [1, null], "b": {}}'])
    assert constraint.mask([])[0, EOS]


def check_rows(name: str, compiler: ConstraintCompiler, constraint: TextConstraint) -> None:
    """Row i is the mask after the drafts before it, and the text stays where it was."""
    tokens, _ = walk(compiler(SPECS[name]), seed=3)
    for at in range(len(tokens)):
        drafts = tokens[at : at + 3]
        rows = constraint.mask(drafts)
        assert rows.shape == (len(drafts) + 1, WIDTH)
        alone = compiler(SPECS[name])
        alone.advance(tokens[:at])
        for i, draft in enumerate(drafts):
            assert np.array_equal(rows[i], alone.mask([])[0]), (at, i)
            if draft == EOS:
                break
            alone.advance([draft])
        constraint.advance(tokens[at : at + 1])


@pytest.mark.parametrize("name", list(SPECS))
def test_a_row_along_drafts_is_the_mask_after_them_and_the_text_stays_where_it_was(
    name: str, compiler: ConstraintCompiler
) -> None:
    check_rows(name, compiler, compiler(SPECS[name]))


class ForgetsItsDrafts(TextConstraint):
    def mask(self, drafts: Sequence[int] = ()) -> NDArray[np.bool_]:
        return np.repeat(super().mask([]), len(drafts) + 1, axis=0)


class KeepsItsDrafts(TextConstraint):
    def mask(self, drafts: Sequence[int] = ()) -> NDArray[np.bool_]:
        rows = super().mask(drafts)
        if drafts:
            self.advance(drafts[:1])
        return rows


@pytest.mark.parametrize("mutant", [ForgetsItsDrafts, KeepsItsDrafts])
def test_control_masks_that_forget_or_keep_the_drafts_are_noticed(
    mutant: type[TextConstraint], compiler: ConstraintCompiler
) -> None:
    sound = compiler(SPECS["regex"])
    with pytest.raises((AssertionError, ValueError)):
        check_rows("regex", compiler, mutant(sound._matcher, WIDTH, EOS))


def test_behind_a_draft_that_is_not_allowed_anything_is(compiler: ConstraintCompiler) -> None:
    constraint = compiler(ConstraintSpec(regex="[0-9]{3}"))
    seven, letter = 2 + ord("7"), 2 + ord("x")
    rows = constraint.mask([seven, letter, seven])
    digits = 10 + 1  # and the token "12"
    assert [int(row.sum()) for row in rows] == [digits, digits, WIDTH, WIDTH]
    assert not constraint.finished
    assert int(constraint.mask([])[0].sum()) == digits


def test_drafts_are_bettered_where_one_token_is_certain_and_cut_where_none_can_stand(
    compiler: ConstraintCompiler,
) -> None:
    seven, wrong = 2 + ord("7"), 2 + ord("x")
    certain = [2 + ord("a"), 2 + ord("b"), EOS]
    constraint = compiler(ConstraintSpec(regex="[0-9]ab"))
    for drafts, better in [
        ([], []),
        ([wrong, wrong], []),
        ([seven], [seven]),
        ([seven, wrong, wrong], [seven, *certain[:2]]),
        ([seven, wrong, wrong, wrong, wrong], [seven, *certain]),
    ]:
        before = constraint.mask([])
        assert constraint.redraft(drafts) == better
        assert np.array_equal(constraint.mask([]), before), "the text stays where it was"
    constraint.advance([seven])
    assert constraint.redraft([wrong] * 3) == certain


def test_a_text_may_end_only_where_it_is_complete(compiler: ConstraintCompiler) -> None:
    constraint = compiler(ConstraintSpec(regex="a|abc"))
    seen = []
    for byte in b"abc":
        seen.append((bool(constraint.mask([])[0, EOS]), constraint.finished))
        constraint.advance([2 + byte])
    assert seen == [(False, False), (True, False), (False, False)]
    assert constraint.finished
    assert np.flatnonzero(constraint.mask([])[0]).tolist() == [EOS]
    constraint.advance([EOS])
    assert constraint.finished


def test_without_an_end_of_sequence_a_complete_text_is_finished() -> None:
    constraint = ConstraintCompiler(TOKENS, None)(ConstraintSpec(regex="ab"))
    constraint.advance([2 + b for b in b"ab"])
    assert constraint.finished
    assert constraint.mask([5]).all()


def test_spare_rows_and_control_tokens_are_never_allowed(compiler: ConstraintCompiler) -> None:
    row = compiler(ConstraintSpec(regex="(?s:.*)")).mask([])[0]
    assert row[EOS]
    assert not row[1]
    assert not row[len(TOKENS) :].any()


def test_a_control_token_that_a_form_names_is_the_only_one_allowed(
    compiler: ConstraintCompiler,
) -> None:
    """Not its neighbours without a text, nor the byte that no text has."""
    opening, closing = 1, WIDTH - 1
    grammar = f'start: call+\ncall: <[{opening}]> "a" <[{closing}]>'
    constraint = compiler(ConstraintSpec(grammar=grammar))
    for token in (opening, 2 + ord("a"), closing):
        assert np.flatnonzero(constraint.mask([])[0]).tolist() == [token]
        constraint.advance([token])
    assert np.flatnonzero(constraint.mask([])[0]).tolist() == [EOS, opening]


def test_a_token_out_of_form_is_refused(compiler: ConstraintCompiler) -> None:
    constraint = compiler(ConstraintSpec(regex="ab"))
    for token in (EOS, 2 + ord("b")):
        with pytest.raises(ValueError, match=f"token {token} was not allowed there"):
            compiler(ConstraintSpec(regex="ab")).advance([token])
    constraint.advance([2 + ord("a")])


def test_what_is_certain_is_spelled_as_the_tokenizer_spells_it() -> None:
    byte_by_byte = ConstraintCompiler(TOKENS, EOS, encode=lambda text: [2 + b for b in text])
    longest = ConstraintCompiler(TOKENS, EOS)
    spec = ConstraintSpec(choice=("yes",))
    for compiler, token in ((byte_by_byte, 2 + ord("y")), (longest, TOKENS.index(b"yes"))):
        assert np.flatnonzero(compiler(spec).mask([])[0]).tolist() == [token]


def test_texts_of_one_form_do_not_know_of_each_other(compiler: ConstraintCompiler) -> None:
    one, other = compiler(SPECS["regex"]), compiler(SPECS["regex"])
    one.advance([TOKENS.index(b"yes")])
    assert not np.array_equal(one.mask([]), other.mask([]))


def test_a_compiler_crosses_into_another_process(compiler: ConstraintCompiler) -> None:
    there = pickle.loads(pickle.dumps(compiler))
    assert np.array_equal(there(SPECS["schema"]).mask([]), compiler(SPECS["schema"]).mask([]))


BAD = [
    (ConstraintSpec(json_schema="{"), "json_schema cannot be honoured: it is no JSON"),
    (ConstraintSpec(json_schema="3"), "json_schema .*: a schema is an object, got int"),
    (ConstraintSpec(json_schema='{"type": "strin"}'), "json_schema .*: Invalid type: strin"),
    (ConstraintSpec(json_schema='{"not": {}}'), r'json_schema .*: Unimplemented keys: \["not"\]'),
    (ConstraintSpec(json_schema="false"), "json_schema .*: Unsatisfiable schema"),
    (ConstraintSpec(regex="(a"), "regex cannot be honoured: unclosed group"),
    (ConstraintSpec(regex="(?=a)b"), "regex cannot be honoured: look-around"),
    (ConstraintSpec(regex=r"(a)\1"), "regex cannot be honoured: backreferences"),
    (ConstraintSpec(grammar="start: a"), "grammar cannot be honoured: .*unknown name"),
]


@pytest.mark.parametrize(("spec", "sentence"), BAD)
def test_a_form_that_cannot_be_honoured_is_refused_by_field_in_one_line(
    spec: ConstraintSpec, sentence: str, compiler: ConstraintCompiler
) -> None:
    for refuse in (check_spec, compiler):
        with pytest.raises(ValueError, match=sentence) as caught:
            refuse(spec)
        assert "\n" not in str(caught.value)


def test_a_form_without_a_text_is_refused(compiler: ConstraintCompiler) -> None:
    with pytest.raises(ValueError, match="regex cannot be honoured: no text has this form"):
        compiler(ConstraintSpec(regex="[a&&b]"))


def test_without_llguidance_a_sentence_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    for refuse in (lambda: check_spec(SPECS["regex"]), lambda: ConstraintCompiler(TOKENS, EOS)):
        with pytest.raises(ValueError, match=r"pip install 'longcat-serve\[structured\]'"):
            refuse()

"""Claims about long texts that a form makes certain: a step's work does not grow with them."""

import json
from collections.abc import Callable

import numpy as np
import pytest

from longcat.serve import ConstraintSpec, structured
from longcat.serve.structured import ConstraintCompiler, TextConstraint

pytest.importorskip("llguidance")

EOS = 0
WORDS = [b"yes", b"no", b"ye", b"s ", b"\xc3\xa4", b"\xc3\xa4no"]
TOKENS = [b"", b"", *[bytes([b]) for b in range(256)], *WORDS]
IDS = {text: token for token, text in enumerate(TOKENS) if text}
LONGEST = max(map(len, TOKENS))


def longest_first(text: bytes) -> list[int]:
    """A tokenizer: the longest token that fits, again and again."""
    text.decode()  # it takes whole characters alone
    ids = []
    while text:
        piece = next(text[:n] for n in range(LONGEST, 0, -1) if text[:n] in IDS)
        ids.append(IDS[piece])
        text = text[len(piece) :]
    return ids


def only(constraint: TextConstraint) -> int:
    """The one token that may come next."""
    (token,) = np.flatnonzero(constraint.mask()[0]).tolist()
    return int(token)


def spelled(text: str) -> list[int]:
    """The tokens that a form of one text lets through, one at a time."""
    constraint = ConstraintCompiler(TOKENS, EOS, encode=longest_first)(
        ConstraintSpec(choice=(text,))
    )
    tokens = []
    while not tokens or tokens[-1] != EOS:
        tokens.append(only(constraint))
        constraint.advance(tokens[-1:])
        assert constraint.failure is None
    return tokens[:-1]


@pytest.mark.parametrize("lead", ["", "x"])  # a piece's end falls between characters, or in one
def test_a_long_text_is_spelled_as_the_tokenizer_spells_the_whole_of_it(lead: str) -> None:
    text = lead + "ä" * 400 + "yes no äno" * 90
    assert spelled(text) == longest_first(text.encode())


def test_control_a_piece_that_ends_within_a_character_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def cut(self: structured._Vocabulary, text: bytes) -> list[int]:
        return list(self.encode(text[:512]))

    monkeypatch.setattr(structured._Vocabulary, "__call__", cut)
    with pytest.raises(ValueError, match="unexpected end of data"):
        spelled("x" + "ä" * 400)


FORMS: dict[str, Callable[[str], ConstraintSpec]] = {
    "const": lambda text: ConstraintSpec(json_schema=json.dumps({"const": text})),
    "regex": lambda text: ConstraintSpec(regex=f"{text}[0-9]"),
    "choice": lambda text: ConstraintSpec(choice=(text, f"{text} or not")),
}


def most_spelled_at_once(form: str, length: int) -> int:
    """Bytes, in the steps of a text with drafts."""
    asked: list[int] = []

    def encode(text: bytes) -> list[int]:
        asked.append(len(text))
        return longest_first(text)

    compiler = ConstraintCompiler(TOKENS, EOS, encode=encode)
    constraint = compiler(FORMS[form]("yes no " * (length // 7)))
    for _ in range(3):
        token = only(constraint)
        constraint.mask([token, token])
        constraint.redraft([token, token])
        constraint.advance([token])
    return max(asked)


@pytest.mark.parametrize("form", list(FORMS))
def test_what_is_spelled_in_a_step_does_not_grow_with_what_is_certain(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert most_spelled_at_once(form, 700) == most_spelled_at_once(form, 14_000) == 512
    monkeypatch.setattr(structured, "_AHEAD", 10**9)  # the control
    assert most_spelled_at_once(form, 14_000) > 13_000

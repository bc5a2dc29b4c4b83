"""Claims about a step's work under a form: it does not grow with what the form makes certain, and
no place is looked at twice.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

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


class Counted:
    """A matcher, and all its copies, that count the masks they are asked for."""

    def __init__(self, matcher: Any, asked: list[None]) -> None:
        self._matcher, self._asked = matcher, asked

    def __getattr__(self, name: str) -> Any:
        return getattr(self._matcher, name)

    def deep_copy(self) -> "Counted":
        return Counted(self._matcher.deep_copy(), self._asked)

    def compute_bitmask(self) -> bytes:
        self._asked.append(None)
        return bytes(self._matcher.compute_bitmask())


class Forgetful(TextConstraint):
    """The control: it goes every way anew."""

    def mask(self, drafts: Sequence[int] = ()) -> NDArray[np.bool_]:
        self._known.clear()
        return super().mask(drafts)


@pytest.mark.parametrize(("kind", "masks"), [(TextConstraint, 3 + 1), (Forgetful, 3 + 4)])
def test_no_place_along_the_drafts_is_looked_at_twice(
    kind: type[TextConstraint], masks: int
) -> None:
    compiler = ConstraintCompiler(TOKENS, EOS, encode=longest_first)
    asked: list[None] = []
    matcher: Any = Counted(compiler(ConstraintSpec(regex="[a-z]+"))._matcher, asked)
    constraint = kind(matcher, len(TOKENS), EOS)
    drafts = [IDS[bytes([letter])] for letter in b"yes"]
    assert constraint.redraft(drafts) == drafts
    rows = constraint.mask(drafts)
    assert len(asked) == masks
    constraint.advance(drafts)
    assert np.array_equal(rows[-1], constraint.mask()[0])
    assert len(asked) == masks + 1  # the text has gone on

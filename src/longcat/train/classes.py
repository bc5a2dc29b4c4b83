"""Kinds of tokens, and how many FFN experts each kind used.

Trivial tokens get less compute (report section 2.1 and appendix A.1). What shows after minutes of
training is the kind of token; the correlation with how hard a token is to predict is weak.
"""

import keyword
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from longcat.flash.tokenizer import Tokenizer
from longcat.train.evaluate import HeldOut

KINDS = (
    "newline and indentation",
    "digit",
    "punctuation",
    "word or part of one",
    "Python keyword",
    "blank",
)


@dataclass(frozen=True, kw_only=True)
class KindFigures:
    """Tokens of one kind: how many, and mean FFN experts over tokens and layers."""

    kind: str
    tokens: int
    ffn_experts: float


@dataclass(frozen=True, kw_only=True)
class TokenFigures:
    """A single vocabulary entry that occurs often: its text, and its mean FFN experts."""

    text: str
    tokens: int
    ffn_experts: float


def kinds_of(pieces: Sequence[bytes]) -> list[int]:
    """The index in KINDS of each token of a text, or -1 for control tokens.

    A keyword is one only as a whole word: `in` inside `input` is part of a word.
    """
    kinds = []
    for i, piece in enumerate(pieces):
        text = piece.decode("utf-8", errors="replace")
        bare = text.strip(" \t")
        if not piece:
            kind = -1
        elif text[0] in "\r\n":
            kind = 0
        elif not bare:
            kind = 5
        elif bare.isdigit():
            kind = 1
        elif bare in keyword.kwlist and _stands_alone(pieces, i):
            kind = 4
        else:
            kind = 3 if any(c.isalpha() for c in bare) else 2
        kinds.append(kind)
    return kinds


def _stands_alone(pieces: Sequence[bytes], i: int) -> bool:
    before = pieces[i - 1][-1:] if i > 0 else b""
    after = pieces[i + 1][:1] if i + 1 < len(pieces) else b""
    opened = pieces[i][:1] in (b" ", b"\t") or not _in_word(before)
    return opened and not _in_word(after)


def _in_word(byte: bytes) -> bool:
    return byte.isalnum() or byte == b"_" or byte >= b"\x80"


def by_kind(held_out: HeldOut, tokenizer: Tokenizer) -> list[KindFigures]:
    """Mean FFN experts of each kind that occurs, fewest first."""
    table = tokenizer.token_bytes()
    kinds = np.array(kinds_of([table[i] for i in held_out.ids]))
    used = held_out.ffn.mean(axis=0)
    figures = [
        KindFigures(
            kind=name,
            tokens=int((kinds == k).sum()),
            ffn_experts=float(used[kinds == k].mean()),
        )
        for k, name in enumerate(KINDS)
        if (kinds == k).any()
    ]
    return sorted(figures, key=lambda f: f.ffn_experts)


def by_token(held_out: HeldOut, tokenizer: Tokenizer, *, at_least: int) -> list[TokenFigures]:
    """Entries that occur `at_least` times in the held-out text, fewest FFN experts first."""
    table = tokenizer.token_bytes()
    counts = np.bincount(held_out.ids, minlength=len(table))
    sums = np.bincount(held_out.ids, weights=held_out.ffn.mean(axis=0), minlength=len(table))
    figures = [
        TokenFigures(
            text=table[i].decode("utf-8", errors="replace"),
            tokens=int(counts[i]),
            ffn_experts=float(sums[i] / counts[i]),
        )
        for i in np.flatnonzero(counts >= at_least)
        if table[i]
    ]
    return sorted(figures, key=lambda f: f.ffn_experts)

"""Structured output: which tokens may come next, so that a text has the form that was asked for.

    compiler = ConstraintCompiler(token_bytes, eos_token_id=2, encode=tokenizer.encode_bytes)
    constraint = compiler(ConstraintSpec(regex="[0-9]{3}"))
    constraint.mask([])          # [1, V]: the tokens that begin with a digit

The grammar engine is llguidance, an optional dependency; this file says what it is asked, and turns
what it answers into the engine's `Constraint`.

Notable:
- JSON is written as Python's `json.dumps` writes it, ", " and ": " and no other white space, so
  that a model cannot dawdle between two values;
- a keyword of JSON Schema that llguidance cannot enforce is refused, never ignored;
- where the form leaves one continuation only, its tokens are those that the tokenizer would give;
  llguidance asks for all of them again at every token, and is told the first few hundred bytes'.

Shape legend: g drafts, V vocabulary.
"""

import json
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from longcat.serve.constraint import ConstraintSpec

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

_JSON_STYLE: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_KEPT = 64  # compiled grammars
_AHEAD = 512  # bytes of what is certain that are spelled at once; only the next token is asked for
Encode = Callable[[bytes], Sequence[int]]


def check_spec(spec: ConstraintSpec) -> None:
    """Refuse a form that cannot be honoured, before any model is asked.

    Raises ValueError that names the field and the reason, or says what to install.
    """
    wrong: str = _matcher().validate_grammar(_grammar(spec))
    if wrong:
        raise _refused(spec, wrong)


class ConstraintCompiler:
    """A `ConstraintFactory` for one vocabulary; can be pickled.

    Args:
        token_bytes: what each token stands for [V']; control tokens stand for nothing.
        eos_token_id: the token that ends a text; None where there is none.
        vocab_size: V, the width of the masks; tokens past token_bytes are never allowed.
        encode: the tokenizer, bytes to ids. It spells what is certain to come; without it the
            longest matching tokens do.

    Raises ValueError where llguidance is not installed.
    """

    def __init__(
        self,
        token_bytes: Sequence[bytes],
        eos_token_id: int | None,
        vocab_size: int | None = None,
        encode: Encode | None = None,
    ) -> None:
        self._arguments = (list(token_bytes), eos_token_id, vocab_size, encode)
        self._vocab_size = len(token_bytes) if vocab_size is None else vocab_size
        self._tokenizer = _tokenizer(token_bytes, eos_token_id, self._vocab_size, encode)
        self._compiled: OrderedDict[ConstraintSpec, LLMatcher] = OrderedDict()

    def __reduce__(self) -> tuple[Any, ...]:
        return ConstraintCompiler, self._arguments

    def __call__(self, spec: ConstraintSpec) -> "TextConstraint":
        """The constraint for a text of that form, at its beginning.

        Raises ValueError for a form that cannot be honoured.
        """
        start = self._compiled.pop(spec, None)
        if start is None:
            start = _matcher()(self._tokenizer, _grammar(spec), log_level=0)
            start.compute_bitmask()  # some impossible forms are found out only here
            probe = start.deep_copy()  # and some when what they make certain is gone through
            for token in probe.compute_ff_tokens()[:1]:
                probe.consume_token(token)
            if probe.is_error():
                raise _refused(spec, probe.get_error())
        self._compiled[spec] = start
        if len(self._compiled) > _KEPT:
            self._compiled.popitem(last=False)
        return TextConstraint(start.deep_copy(), self._vocab_size, self._arguments[1])


class TextConstraint:
    """One text under way; see `longcat.serve.constraint.Constraint`.

    What is found out along drafts is kept until the text goes on: `redraft` and the `mask` of its
    drafts go the same way.

    Attributes: failure (why the text can be held to its form no longer, or None).
    """

    def __init__(self, matcher: "LLMatcher", vocab_size: int, eos_token_id: int | None) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size
        self._eos = eos_token_id
        self._ended = False
        self._known: dict[tuple[int, ...], tuple[LLMatcher, NDArray[np.bool_]]] = {}
        self.failure: str | None = None

    def mask(self, drafts: Sequence[int] = ()) -> NDArray[np.bool_]:
        """Allowed tokens [g+1, V]: row i after the text so far and drafts[:i].

        The end-of-sequence token is allowed where the text may end. Behind a draft that is not
        allowed, or that ends the text, rows are all true: nothing there will be kept. So they are
        where the text can be held to its form no longer.
        """
        allowed = np.ones((len(drafts) + 1, self._vocab_size), dtype=np.bool_)
        way = tuple(drafts)
        for place, row in enumerate(allowed):
            following = self._following(way[:place])
            if not following.any():  # failed; or complete, without an end of sequence
                break
            row[:] = following
            if place == len(way) or way[place] == self._eos or not following[way[place]]:
                break
        return allowed

    def redraft(self, drafts: Sequence[int]) -> list[int]:
        """Better drafts for the text so far: where one token alone is allowed, it stands instead.

        They end before one that is not allowed.
        """
        better: list[int] = []
        for draft in drafts:
            following = np.flatnonzero(self._following(tuple(better)))
            token = int(following[0]) if len(following) == 1 else draft
            if token not in following:
                break
            better.append(token)
            if token == self._eos:
                break
        return better

    def advance(self, tokens: Sequence[int]) -> None:
        """Take these tokens into the text.

        Nothing is taken where the text can be held to its form no longer. Raises ValueError for a
        token that is not allowed where it stands.
        """
        for token in tokens:
            if self.failure is not None:
                return
            # The end is ours to note: llguidance does not always count it, and could not go back.
            if not self._ended and token == self._eos and self._matcher.is_accepting():
                self._ended = True
            elif self._ended or token == self._eos or not self._matcher.validate_tokens([token]):
                raise ValueError(
                    f"constraint: token {token} was not allowed there, so the text no longer has "
                    "the form asked for"
                )
            else:
                self._matcher.consume_token(token)
                self._known.clear()
                self._note_failure()

    @property
    def finished(self) -> bool:
        """Whether the text is complete and nothing but its end may follow."""
        return self._ended or bool(self._matcher.is_stopped())

    def _following(self, drafts: tuple[int, ...]) -> NDArray[np.bool_]:
        """The tokens [V] that may come after the text and these drafts."""
        return self._after(drafts)[1]

    def _after(self, drafts: tuple[int, ...]) -> "tuple[LLMatcher, NDArray[np.bool_]]":
        """What stands there, and the tokens [V] that may follow; none where it has given up."""
        if drafts not in self._known:
            matcher = self._matcher
            if drafts:
                matcher = self._after(drafts[:-1])[0].deep_copy()
                matcher.consume_token(drafts[-1])
            bits = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
            self._note_failure()
            following = np.unpackbits(bits, bitorder="little", count=self._vocab_size)
            if matcher.is_error():
                following[:] = 0
            self._known[drafts] = matcher, following.view(np.bool_)
        return self._known[drafts]

    def _note_failure(self) -> None:
        """llguidance has limits, which a form may meet on its way."""
        if self._matcher.is_error() and self.failure is None:
            reason = _sentence(self._matcher.get_error())
            self.failure = f"the text can be held to its form no longer: {reason}"


def _grammar(spec: ConstraintSpec) -> str:
    """The form as llguidance writes it."""
    matcher = _matcher()
    if spec.regex is not None:
        return str(matcher.grammar_from_regex(spec.regex))
    if spec.grammar is not None:
        return str(matcher.grammar_from_lark(spec.grammar))
    if spec.choice:
        texts = (json.dumps(text, ensure_ascii=False) for text in spec.choice)
        return str(matcher.grammar_from_lark("start: " + " | ".join(texts)))
    schema: object = {"type": "object"}
    if spec.json_schema is not None:
        try:
            schema = json.loads(spec.json_schema)
        except ValueError as error:
            raise _refused(spec, f"it is no JSON: {error}") from None
    if isinstance(schema, bool):
        schema = {} if schema else {"enum": []}
    if not isinstance(schema, dict):
        raise _refused(spec, f"a schema is an object, got {type(schema).__name__}")
    return str(matcher.grammar_from_json_schema(schema, overrides=_JSON_STYLE))


def _refused(spec: ConstraintSpec, reason: str) -> ValueError:
    names = ("json_schema", "json_object", "regex", "choice", "grammar")
    field = next(name for name in names if getattr(spec, name))
    return ValueError(f"{field} cannot be honoured: {_sentence(reason)}")


def _sentence(reason: str) -> str:
    """The gist of an error of llguidance, which draws pictures and prints its state."""
    if reason.startswith("NoExtension"):
        return "no text has this form"
    if "Too many items" in reason:
        return (
            "what it makes certain is too long; a schema that must contain itself, for one, is "
            "never done"
        )
    lines = [line.strip() for line in reason.partition("\n<state>")[0].splitlines()]
    gist = next((line for line in lines if line.startswith("error: ")), lines[0] if lines else "")
    return gist.removeprefix("error: ")


def _matcher() -> "type[LLMatcher]":
    try:
        from llguidance import LLMatcher
    except ModuleNotFoundError:
        raise ValueError(
            "structured output needs llguidance; install it with "
            "`pip install 'longcat-serve[structured]'`, or `pip install llguidance`"
        ) from None
    return LLMatcher


def _tokenizer(
    token_bytes: Sequence[bytes], eos_token_id: int | None, vocab_size: int, encode: Encode | None
) -> "LLTokenizer":
    _matcher()  # says what to install
    from llguidance import LLTokenizer, TokenizerWrapper

    vocabulary = _Vocabulary(token_bytes, eos_token_id, vocab_size)
    tokenizer = LLTokenizer(TokenizerWrapper(vocabulary))
    vocabulary.encode = encode or (lambda text: tokenizer.greedy_tokenize(text.decode()))
    return tokenizer


class _Vocabulary:
    """What llguidance wants to know of a tokenizer, under the names that it reads."""

    bos_token_id = None

    def __init__(
        self, token_bytes: Sequence[bytes], eos_token_id: int | None, vocab_size: int
    ) -> None:
        tokens = [*token_bytes[:vocab_size], *[b""] * (vocab_size - len(token_bytes))]
        if eos_token_id is None:  # llguidance insists on one: a token that no mask reaches
            eos_token_id = len(tokens)
            tokens.append(b"")
        self.eos_token_id = eos_token_id
        # Control tokens, and what no text in UTF-8 holds. llguidance puts a byte 255 before their
        # names, and writes the one that a grammar wants by its number as "[7]" behind that byte:
        # no name may be the beginning of another.
        self.special_token_ids = [i for i, text in enumerate(tokens) if text[:1] in (b"", b"\xff")]
        for i in self.special_token_ids:
            tokens[i] = b"<%d>" % i
        self.tokens = tokens
        self.encode: Encode = lambda text: []

    def __call__(self, text: bytes) -> list[int]:
        """The first tokens of a text, which may be all that is left of a long form."""
        ends = range(_AHEAD, _AHEAD - 4, -1)  # of whole characters
        if len(text) > _AHEAD:
            text = text[: next((end for end in ends if text[end] & 0xC0 != 0x80), _AHEAD)]
        return list(self.encode(text))

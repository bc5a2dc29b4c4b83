"""Streamed text: whole characters, no stop strings, and tokens that go with their text."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longcat.serve import LLM, Engine, EngineConfig, Request, SamplingParams, Token
from longcat.serve.text import TextStream

# Every byte is a token; then some longer ones, and one without text.
TABLE = [bytes([b]) for b in range(256)] + [
    b"stop",
    b"ab",
    "é".encode(),
    "\U0001f600".encode(),
    b"",
]


class Bytes:
    """A tokenizer over TABLE."""

    bos_id = eos_id = len(TABLE) - 1

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids) -> str:
        return b"".join(TABLE[i] for i in ids).decode("utf-8", errors="replace")

    def token_bytes(self) -> list[bytes]:
        return TABLE


def streamed(ids: list[int], stop: tuple[str, ...] = ()) -> tuple[list[str], list[int]]:
    """The pieces and the tokens that come out, up to the stop."""
    stream = TextStream(TABLE, stop)
    pieces, tokens = [], []
    for i in ids:
        ended = stream.add(Token(id=i))
        if ended:
            break
        out, text = stream.take()
        pieces.append(text)
        tokens += [token.id for token in out]
    out, text = stream.take(final=True)
    return [*pieces, text], [*tokens, *(token.id for token in out)]


@given(st.lists(st.integers(0, len(TABLE) - 1), max_size=12))
def test_the_pieces_are_the_text_and_the_tokens_are_all_there(ids):
    pieces, tokens = streamed(ids)
    assert "".join(pieces) == Bytes().decode(ids)
    assert tokens == ids


@given(st.text(max_size=10))
def test_no_piece_holds_half_a_character(text):
    pieces, _ = streamed(list(text.encode()))
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece for piece in pieces) or "\ufffd" in text


def test_a_control_that_decodes_bytes_by_themselves_would_break_characters():
    assert "".join(Bytes().decode([b]) for b in "é".encode()) != "é"


@given(
    st.text(alphabet="abcé", max_size=12),
    st.lists(st.text(alphabet="abcé", min_size=1, max_size=3), min_size=1, max_size=2),
)
def test_text_ends_where_the_first_stop_string_to_be_complete_begins(text, stops):
    pieces, tokens = streamed(list(text.encode()), tuple(stops))
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    if not ends:
        want = text
    else:
        complete = text[: min(ends)]
        want = complete[: min(complete.find(s) for s in stops if complete.endswith(s))]
    assert "".join(pieces) == want
    assert Bytes().decode(tokens) == want  # one byte a token: none of the stop's own remain


def test_a_token_that_holds_more_than_the_stop_string_stays():
    pieces, tokens = streamed([ord("x"), 256], ("op",))
    assert "".join(pieces) == "xst"
    assert tokens == [ord("x"), 256]


def test_what_might_become_a_stop_string_waits_and_then_comes():
    stream = TextStream(TABLE, ("abc",))
    stream.add(Token(id=ord("x")))
    stream.add(Token(id=257))
    assert stream.take() == ((Token(id=ord("x")),), "x")
    stream.add(Token(id=ord("d")))
    assert stream.take() == ((Token(id=257), Token(id=ord("d"))), "abd")


LETTERS = b"_abcdefghijklmnopqrstuvwxyz.END"


class Letters(Bytes):
    """A tokenizer with a token for each of LETTERS; the first begins a text."""

    bos_id = 0

    def encode(self, text: str) -> list[int]:
        return [LETTERS.index(byte) for byte in text.encode()]

    def token_bytes(self) -> list[bytes]:
        return [bytes([byte]) for byte in LETTERS]


@pytest.fixture
def reciting(markov):
    """A model that continues the prompt "_" with a script, and whose head knows it by heart."""

    def build(script: str):
        model = markov(vocab=len(LETTERS))
        table = np.zeros((len(LETTERS),) * 3)
        history = [0, 0, *Letters().encode(script)]
        for a, b, c in zip(history, history[1:], history[2:], strict=False):
            table[a, b, c] = 30.0
        model.table = model.draft_table = table
        return model

    return build


@pytest.mark.parametrize("drafts", [0, 3])
def test_a_stop_string_inside_an_accepted_run_cuts_ids_text_and_counts(reciting, drafts):
    engine = Engine(reciting("hexgo.END.mor"), Letters(), EngineConfig(num_drafts=drafts))
    params = SamplingParams(max_tokens=13, stop=("END",), logprobs=0)
    engine.add(Request(request_id="a", prompt_ids=(0,), params=params))
    deltas = []
    while engine.has_work:
        deltas += engine.step()
    tokens = [token for delta in deltas for token in delta.tokens]
    assert [token.id for token in tokens] == Letters().encode("hexgo.")
    assert all(token.logprob is not None for token in tokens)
    assert "".join(delta.text for delta in deltas) == "hexgo."
    assert (deltas[-1].finish_reason, deltas[-1].stop_reason) == ("stop", "END")
    engine.check_integrity()


def test_neither_stop_strings_nor_stop_tokens_count_before_min_tokens(reciting):
    llm = LLM(reciting("a.b.cd"), Letters())
    short, long = llm.generate(
        [[0], [0]],
        [
            SamplingParams(max_tokens=6, stop=(".",)),
            SamplingParams(max_tokens=6, stop=(".",), min_tokens=2),
        ],
    )
    assert (short.text, long.text) == ("a", "a.b")
    (point,) = Letters().encode(".")
    (banned,) = llm.generate(
        [[0]], SamplingParams(max_tokens=3, stop_token_ids=(point,), min_tokens=3)
    )
    assert point not in banned.token_ids
    assert banned.finish_reason == "length"


def test_a_stop_token_is_named_and_the_end_of_text_is_not(reciting):
    model = reciting("ab")
    (b,) = Letters().encode("b")
    (stopped,) = LLM(model, Letters()).generate([[0]], SamplingParams(stop_token_ids=(b,)))
    assert (stopped.text, stopped.finish_reason, stopped.stop_reason) == ("ab", "stop", b)
    model.eos_token_id = b
    (ended,) = LLM(model, Letters()).generate([[0]], SamplingParams())
    assert (ended.finish_reason, ended.stop_reason) == ("stop", None)

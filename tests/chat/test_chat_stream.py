"""Claims about a reply read while it is generated: any cut of it is what parse_reply says."""

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longcat.chat import (
    TEMPLATES,
    Call,
    CallDelta,
    Delta,
    ReplyParser,
    TextDelta,
    parse_reply,
    render_spans,
)
from longcat.chat import stream as module

NAMES = list(TEMPLATES)
GOOD = '{"name": "add", "arguments": {"a": 12, "b": "}\\\\\\"{\\n"}}'


def cut(text: str, places: Sequence[int]) -> list[str]:
    borders = [0, *sorted(p % (len(text) + 1) for p in places), len(text)]
    return [text[a:b] for a, b in pairwise(borders)]


def streamed(pieces: Sequence[str], template: str) -> list[Delta]:
    parser = ReplyParser(template)
    deltas = [delta for piece in pieces for delta in parser.feed(piece)] + parser.close()
    assert parser.reply == parse_reply("".join(pieces), template)
    return deltas


def put_together(deltas: Sequence[Delta]) -> tuple[str, list[tuple[str, str]]]:
    """What a client that follows the deltas ends with: the text, and (name, arguments) per call."""
    text, calls = "", []
    for delta in deltas:
        if isinstance(delta, CallDelta):
            if delta.name is not None:
                assert delta.index == len(calls), "calls are announced in order"
                calls.append((delta.name, ""))
            assert delta.index == len(calls) - 1, "only the newest call grows"
            name, arguments = calls[-1]
            calls[-1] = (name, arguments + delta.arguments)
        else:
            text += delta.text
            if delta.withdraws:
                assert calls, "there was something to withdraw"
                calls = []
    return text, calls


def check(pieces: Sequence[str], template: str) -> None:
    reply = parse_reply("".join(pieces), template)
    text, calls = put_together(streamed(pieces, template))
    assert text == reply.text
    assert [Call(name=n, arguments=json.loads(a)) for n, a in calls] == list(reply.calls)


def fragments(template: str) -> st.SearchStrategy[str]:
    form = TEMPLATES[template]
    opening, closing = form.call
    call = opening + GOOD + closing
    parts = ["a", "\n", "{", '"', "<", "\\", opening, closing, opening[:-1], closing[1:],
             form.joint, form.end, form.end[:-1], call, form.joint + call, GOOD, "{}",
             '{"name": "f", "arguments": {', '{"name": "f", "arguments": 3}', "}",
             '{"arguments": {"x": [1]}, "name": "g"}', '"name": "h"',
             opening + '{"name": "f", "name": "g", "arguments": {}}' + closing,
             opening + '{"name": "f", "arguments": {"x": NaN}}' + closing,
             opening + '{"name": "f", "arguments": {}, "x": 1}' + closing]  # fmt: skip
    return st.lists(st.sampled_from(parts), max_size=7).map("".join)


@pytest.mark.parametrize("template", NAMES)
@given(data=st.data())
def test_any_cut_of_any_text_gives_what_parse_reply_gives(template: str, data: Any) -> None:
    text = data.draw(fragments(template))
    places = data.draw(st.lists(st.integers(0, 10**6), max_size=8))
    check(cut(text, places), template)
    check(list(text), template)


def hides_no_tail(*arguments: Any) -> int:
    return 0


@pytest.mark.parametrize("template", NAMES)
def test_control_a_parser_that_holds_no_tail_back_is_noticed(
    template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opening, closing = TEMPLATES[template].call
    text = f"a{opening}{GOOD}{closing}{TEMPLATES[template].end}"
    check(list(text), template)
    monkeypatch.setattr(module, "_tail", hides_no_tail)
    with pytest.raises(AssertionError):
        check(list(text), template)


@pytest.mark.parametrize("template", NAMES)
def test_several_calls_come_name_first_then_their_arguments_in_fragments(template: str) -> None:
    opening, closing = TEMPLATES[template].call
    joint = TEMPLATES[template].joint
    text = f"I look.{joint}{opening}{GOOD}{closing}{joint}{opening}{GOOD}{closing}"
    deltas = streamed(list(text + TEMPLATES[template].end), template)
    assert "".join(d.text for d in deltas if isinstance(d, TextDelta)) == "I look."
    for index in (0, 1):
        mine = [d for d in deltas if isinstance(d, CallDelta) and d.index == index]
        assert (mine[0].name, mine[0].arguments) == ("add", "")
        assert all(d.name is None for d in mine[1:])
        assert len(mine) > 10, "arguments are passed on while they are generated"
        assert "".join(d.arguments for d in mine) == GOOD[GOOD.index('{"a"') : -1]


@pytest.mark.parametrize("template", NAMES)
@pytest.mark.parametrize("number", ["1", "12", "-0.5", "1e30", "123456789012345678901234567890"])
def test_a_number_among_the_arguments_arrives_whole(template: str, number: str) -> None:
    opening, closing = TEMPLATES[template].call
    text = f'{opening}{{"name": "f", "arguments": {{"n": {number}}}}}{closing}'
    _, calls = put_together(streamed(list(text), template))
    assert calls == [("f", f'{{"n": {number}}}')]


@pytest.mark.parametrize("template", NAMES)
@pytest.mark.parametrize("number", ["3", "12"])
def test_arguments_that_are_a_bare_number_are_text(template: str, number: str) -> None:
    opening, closing = TEMPLATES[template].call
    text = f'{opening}{{"name": "f", "arguments": {number}}}{closing}'
    assert put_together(streamed(list(text), template)) == (text, [])


@pytest.mark.parametrize("template", NAMES)
def test_a_call_that_was_announced_and_cut_off_is_taken_back_and_given_as_text(
    template: str,
) -> None:
    opening, _ = TEMPLATES[template].call
    text = f'a{opening}{{"name": "f", "arguments": {{"n": 1'
    deltas = streamed(list(text), template)
    assert CallDelta(index=0, name="f") in deltas
    assert deltas[-1] == TextDelta(text=text[1:], withdraws=True)


def test_text_is_passed_on_at_once_but_for_what_may_become_a_marker() -> None:
    parser = ReplyParser()
    assert parser.feed("Hi <") == [TextDelta(text="Hi ")]
    assert parser.feed("longcat>") == [TextDelta(text="<longcat>")]
    assert parser.feed("</longcat_s>more") == []
    assert parser.feed("never seen") == []
    assert parser.close() == []
    assert parser.reply.text == "Hi <longcat>"


@pytest.mark.parametrize("template", NAMES)
def test_what_render_writes_is_read_back_while_it_streams(template: str) -> None:
    tool = {"type": "function", "function": {"name": "f"}}
    calls: Any = [
        {"id": str(i), "type": "function", "function": {"name": "f", "arguments": arguments}}
        for i, arguments in enumerate(['{"x":1}', {"y": "ä"}])
    ]
    messages: Any = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": "Wait.", "tool_calls": calls},
    ]
    rendered = render_spans(messages, template, [tool])
    start, stop = rendered.spans[0]
    text, made = put_together(streamed(list(rendered.text[start:stop]), template))
    assert (text, made) == ("Wait.", [("f", '{"x":1}'), ("f", '{"y": "ä"}')])


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown template 'llama'"):
        ReplyParser("llama")

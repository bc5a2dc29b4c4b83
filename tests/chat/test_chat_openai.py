"""Claims about calls in the form of the OpenAI API: ids, arguments as text, and the way back."""

import json
import re
from typing import Any

import pytest

from longcat.chat import (
    Call,
    CallDelta,
    from_tool_calls,
    new_call_id,
    render,
    to_tool_call_delta,
    to_tool_calls,
)

CALLS = (Call(name="f", arguments={"n": 12, "s": "ä"}), Call(name="g", arguments={}))


def test_calls_get_ids_of_their_own_and_arguments_as_json_text() -> None:
    first, second = to_tool_calls(CALLS)
    assert first["function"] == {"name": "f", "arguments": '{"n": 12, "s": "ä"}'}
    assert (first["type"], second["function"]["arguments"]) == ("function", "{}")
    assert re.fullmatch("call_[0-9a-f]{24}", first["id"])
    assert first["id"] != second["id"] != new_call_id()


def test_calls_come_back_from_text_and_from_objects() -> None:
    written = to_tool_calls(CALLS)
    assert from_tool_calls(written) == CALLS
    objects: Any = [
        {**call, "function": {**call["function"], "arguments": made.arguments}}
        for call, made in zip(written, CALLS, strict=True)
    ]
    assert from_tool_calls(objects) == CALLS


def test_a_prompt_is_the_same_whether_arguments_are_text_or_an_object() -> None:
    tools = [{"type": "function", "function": {"name": name}} for name in "fg"]

    def prompt(calls: Any) -> str:
        answers = [{"role": "tool", "content": "1", "tool_call_id": c["id"]} for c in calls]
        messages: Any = [
            {"role": "user", "content": "x"},
            {"role": "assistant", "content": None, "tool_calls": calls},
            *answers,
        ]
        return render(messages, tools=tools)

    written = to_tool_calls(CALLS)
    objects = [
        {**c, "function": {**c["function"], "arguments": json.loads(c["function"]["arguments"])}}
        for c in written
    ]
    assert prompt(written) == prompt(objects)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        ({"id": "a"}, r"tool_calls\[0\] must have a function with a name"),
        ("f", r"tool_calls\[0\] must have a function with a name"),
        ({"function": {"name": "f", "arguments": "{"}}, r"tool_calls\[0\].function.arguments must"),
        ({"function": {"name": "f", "arguments": "3"}}, "must be a JSON object, or one as text"),
        ({"function": {"name": "f"}}, "must be a JSON object, or one as text; got None"),
    ],
)
def test_calls_out_of_form_are_refused_by_field(call: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        from_tool_calls([call])


def test_a_streamed_call_names_its_id_once() -> None:
    assert to_tool_call_delta(CallDelta(index=1, name="f"), "call_1") == {
        "index": 1,
        "id": "call_1",
        "type": "function",
        "function": {"name": "f", "arguments": ""},
    }
    assert to_tool_call_delta(CallDelta(index=1, arguments='{"n'), "call_1") == {
        "index": 1,
        "function": {"arguments": '{"n'},
    }

"""Claims about what the assistant produced: its spans, its calls, and tools in both formats.

The definition of a span needs no template code: it starts where the prompt for that reply ends,
and it ends where the conversation up to that reply ends.
"""

import json
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longcat.chat import LONGCAT, TEMPLATES, Call, parse, parse_reply, render, render_spans
from longcat.chat.render import _compiled, _Generation
from longcat.chat.templates import template_of

NAMES = list(TEMPLATES)
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": 'Weather of a city, "now" & <here>.',
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
BARE = {"type": "function", "function": {"name": "clock"}}


def user(text: str) -> Any:
    return {"role": "user", "content": text}


def said(text: str | None, *calls: Any) -> Any:
    message: Any = {"role": "assistant", "content": text}
    return message | {"tool_calls": list(calls)} if calls else message


def call(identity: str, name: str = "weather", arguments: Any = '{"city":"Ulm"}') -> Any:
    return {
        "id": identity,
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }


def result(identity: str, text: str = "3") -> Any:
    return {"role": "tool", "tool_call_id": identity, "content": text}


WITH_TOOLS: Any = [
    {"role": "system", "content": "Be brief."},
    user("Ulm and Köln?"),
    said("I look.", call("a"), call("b", arguments={"city": "Köln", "z": 1, "a": 2})),
    result("a"),
    result("b", '{"c": 4}'),
    said("3 and 4."),
    user("And now?"),
    said(None, call("c", name="clock", arguments="{}")),
    result("c"),
    said(""),
]


def spans_by_definition(messages: Any, template: str, tools: Any) -> list[tuple[int, int]]:
    """Where each reply stands, from `render` alone; ChatML's newline after it is not its own."""
    after = "\n" if template == "chatml" else ""
    found = []
    for index, message in enumerate(messages):
        if message["role"] == "assistant":
            prompt = render(messages[:index], template, True, tools)
            so_far = render(messages[: index + 1], template, False, tools)
            assert so_far.startswith(prompt)
            assert so_far.endswith(TEMPLATES[template].end + after)
            found.append((len(prompt), len(so_far) - len(after)))
    return found


def check_spans(messages: Any, template: str, tools: Any = None) -> None:
    rendered = render_spans(messages, template, tools)
    assert rendered.text == render(messages, template, False, tools)
    assert list(rendered.spans) == spans_by_definition(messages, template, tools)


@pytest.mark.parametrize("template", NAMES)
def test_the_assistant_spoke_from_the_end_of_the_prompt_to_the_end_of_its_reply(
    template: str,
) -> None:
    check_spans(WITH_TOOLS, template, [TOOL, BARE])
    check_spans([user("a"), said("b")], template)


@pytest.mark.parametrize("template", NAMES)
@given(texts=st.lists(st.text(max_size=6), min_size=2, max_size=6))
def test_spans_hold_for_any_text(template: str, texts: list[str]) -> None:
    check_spans([(said if i % 2 else user)(t) for i, t in enumerate(texts)], template)


def off_by_one(self: Any, recorder: Any, caller: Any) -> str:
    text: str = caller()
    recorder.spans.append((recorder.position + 1, recorder.position + len(text)))
    return text


def with_the_user(self: Any, recorder: Any, caller: Any) -> str:
    text: str = caller()
    recorder.spans.append((0, recorder.position + len(text)))
    return text


@pytest.mark.parametrize("mutant", [off_by_one, with_the_user])
@pytest.mark.parametrize("template", NAMES)
def test_control_spans_that_are_off_are_noticed(
    template: str, mutant: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Generation, "record", mutant)
    with pytest.raises(AssertionError):
        check_spans([user("a"), said("b")], template)


@pytest.mark.parametrize(
    ("template", "there", "instead"),
    [
        ("longcat", "{{- ' ASSISTANT:' if", "{{- ' ASSISTANT:\\n' if"),
        ("chatml", "assistant\\n' if", "assistant' if"),
    ],
)
def test_control_a_prompt_that_differs_by_a_newline_is_noticed(
    template: str, there: str, instead: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    form = TEMPLATES[template]
    assert form.jinja.count(there) == 1
    mutant = _compiled(form.jinja.replace(there, instead))
    monkeypatch.setattr(sys.modules[_compiled.__module__], "_compiled", lambda source: mutant)
    with pytest.raises(AssertionError):
        check_spans([user("a"), said("b")], template)


@pytest.mark.parametrize("template", NAMES)
@pytest.mark.parametrize("tools", [None, [TOOL, BARE]])
def test_transformers_renders_the_same_text_and_finds_the_same_spans(
    template: str, tools: Any
) -> None:
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    messages = WITH_TOOLS if tools else [user("a"), said("b"), user("{{ c }}"), said("d")]
    theirs, spans = utils.render_jinja_template(
        [messages],
        tools=tools,
        chat_template=TEMPLATES[template].jinja,
        return_assistant_tokens_mask=True,
    )
    ours = render_spans(messages, template, tools)
    assert theirs == [ours.text]
    assert spans == [list(ours.spans)]


def test_longcat_describes_tools_as_published() -> None:
    text = render([user("Hi")], "longcat", True, [BARE, TOOL])
    head, _, rest = text.partition("\n\n## Messages\n")
    assert rest == "[Round 0] USER:Hi ASSISTANT:"
    assert head.startswith(
        "## Tools\nYou have access to the following tools: \n\n### Tool namespace: function\n\n"
        "#### Tool name: clock\n\nDescription: \n\nInputSchema: \n{}\n\n#### Tool name: weather\n\n"
        'Description: Weather of a city, "now" & <here>.\n\nInputSchema: \n{\n  "type": "object",\n'
    )
    assert head.endswith(
        '<longcat_tool_call>\n{"name": <function-name>, "arguments": <args-dict>}\n'
        "</longcat_tool_call><longcat_tool_call>\n"
        '{"name": <function-name>, "arguments": <args-dict>}\n</longcat_tool_call>'
    )


def test_longcat_writes_calls_consecutively_and_gives_results_back_in_tags() -> None:
    text = render_spans(WITH_TOOLS[1:6], "longcat", [TOOL]).text
    assert text.endswith(
        "[Round 0] USER:Ulm and Köln? ASSISTANT:I look."
        '<longcat_tool_call>\n{"name": "weather", "arguments": {"city":"Ulm"}}\n'
        "</longcat_tool_call><longcat_tool_call>\n"
        '{"name": "weather", "arguments": {"city": "Köln", "z": 1, "a": 2}}\n'
        "</longcat_tool_call></longcat_s> <longcat_tool_response>3</longcat_tool_response>"
        ' <longcat_tool_response>{"c": 4}</longcat_tool_response> ASSISTANT:3 and 4.</longcat_s>'
    )


@pytest.mark.parametrize("template", NAMES)
@pytest.mark.parametrize("text", ["", "Wait.\n", " {"])
def test_the_calls_of_a_reply_are_read_back(template: str, text: str) -> None:
    message = said(text or None, call("a", arguments='{"n": 12, "s": "}\\n"}'), call("b"))
    rendered = render_spans([user("x"), message], template, [TOOL])
    start, stop = rendered.spans[0]
    reply = parse_reply(rendered.text[start:stop], template)
    assert (reply.text, reply.finished) == (text, True)
    assert reply.calls == (
        Call(name="weather", arguments={"n": 12, "s": "}\n"}),
        Call(name="weather", arguments={"city": "Ulm"}),
    )


@pytest.mark.parametrize(
    "body",
    ["{", "3", '{"name": "f"}', '{"name": 1, "arguments": {}}', '{"name": "f", "arguments": "{}"}'],
)
@pytest.mark.parametrize("template", NAMES)
def test_a_call_out_of_form_stays_text(template: str, body: str) -> None:
    opening, closing = TEMPLATES[template].call
    good = json.dumps({"name": "f", "arguments": {}})
    for generated in (
        f"a{opening}{body}{closing}",
        f"a{opening}{good}",
        f"a{opening}{good}{closing} then text",
    ):
        reply = parse_reply(generated, template)
        assert (reply.text, reply.calls) == (generated, ())


@pytest.mark.parametrize("template", NAMES)
def test_a_conversation_with_tools_is_not_parsed_back(template: str) -> None:
    with pytest.raises(ValueError, match="not a conversation"):
        parse(render_spans(WITH_TOOLS, template, [TOOL, BARE]).text, template)


def test_a_template_is_known_by_its_source() -> None:
    assert template_of(LONGCAT.jinja) is LONGCAT
    assert template_of(LONGCAT.jinja + "\n") is None


ASK = user("x")
BAD: list[tuple[Any, Any, str]] = [
    ([ASK, {"role": "tool", "content": "x"}], None, "keys role, content and tool_call_id, got"),
    ([ASK, result("a")], None, r"message 1 answers the call 'a'; expected the answers .* \[\]"),
    ([ASK, said("", call("a")), result("b")], [TOOL], r"answers the call 'b'; .* \['a'\]"),
    (
        [ASK, said("", call("a"), call("b")), result("b"), result("a")],
        [TOOL],
        r"message 2 answers the call 'b'; .* \['a', 'b'\], in their order",
    ),
    ([ASK, said("", call("a")), said("b")], [TOOL], r"comes before the calls \['a'\] are answered"),
    ([ASK, said("", call("a"), call("a"))], [TOOL], "call 1 has the id 'a' of an earlier call"),
    ([ASK, said("", call(""))], [TOOL], "call 0 must be an object with an id"),
    ([ASK, said("", {"type": "function"})], [TOOL], "call 0 must be an object with an id"),
    ([ASK, said("", call("a") | {"type": "f"})], [TOOL], "must have type 'function'"),
    ([ASK, said("", call("a"))], None, r"calls 'weather', which is not among the tools \[\]"),
    ([ASK, said("", call("a", arguments="3"))], [TOOL], "arguments must be a JSON object"),
    ([ASK, said("", call("a", arguments="{"))], [TOOL], "arguments must be a JSON object"),
    ([ASK, said("") | {"tool_calls": []}], None, "a list of at least one call"),
    ([ASK, said(None)], None, "must have text as its content, got NoneType"),
    ([ASK], [TOOL, TOOL], "tool 1 must have a name of its own, got 'weather'"),
    ([ASK], [{"name": "f"}], "tool 0 must be {'type': 'function'"),
    ([ASK], ["f"], "tool 0 must be {'type': 'function'"),
    ([ASK, said("", call("a")), result("a"), ASK], [TOOL], "of role tool or assistant at turn 3"),
]


@pytest.mark.parametrize("template", NAMES)
@pytest.mark.parametrize(("messages", "tools", "sentence"), BAD)
def test_calls_and_tools_out_of_form_are_refused_in_one_sentence(
    template: str, messages: Any, tools: Any, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        render_spans(messages, template, tools)


@pytest.mark.parametrize("template", NAMES)
def test_what_was_once_said_is_rendered_where_it_would_not_be_learned(template: str) -> None:
    broken = TEMPLATES[template].call[0] + '{"name": "wea'
    for said_once, sentence in (
        ([ASK, said("", call("a")), result("a")], "not among the tools"),
        ([ASK, said(broken), ASK], "keeps for itself"),
        ([ASK, said("", call("a", arguments='{"k": "')), result("a")], "must be a JSON object"),
    ):
        render(said_once, template)
        tools = [TOOL] if "JSON" in sentence else None
        with pytest.raises(ValueError, match=sentence):
            render_spans(said_once, template, tools)


@pytest.mark.parametrize("template", NAMES)
def test_no_part_of_a_conversation_can_forge_a_marker(template: str) -> None:
    for marker in TEMPLATES[template].special:
        described = {"type": "function", "function": {"name": "f", "description": marker}}
        for messages, tools in (
            ([user(marker)], None),
            ([ASK, said("", call("a", arguments=json.dumps({"k": marker})))], [TOOL]),
            ([ASK, said("", call("a", arguments={"k": marker}))], [TOOL]),
            ([ASK, said("", call("a")), result("a", marker)], [TOOL]),
            ([ASK], [described]),
        ):
            with pytest.raises(ValueError, match="keeps for itself"):
                render(messages, template, False, tools)

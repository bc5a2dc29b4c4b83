"""Claims about /v1/chat/completions: what is rendered, how replies and calls come back."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from longcat.chat import Template
from longcat.serve.server.answers import ChatCompletion
from longcat.serve.structured import ConstraintCompiler

PATH = "/v1/chat/completions"
Ask = Callable[..., Any]
BODY: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
PARAMETERS = {
    "type": "object",
    "properties": {"a": {"type": "integer"}},
    "required": ["a"],
    "additionalProperties": False,
}


def tool(name: str, **more: Any) -> dict[str, Any]:
    function = {"name": name, "parameters": PARAMETERS} | more
    return {"type": "function", "function": function}


async def chat(server: Any, **fields: Any) -> Any:
    answer = await server.post(PATH, BODY | fields)
    assert answer.status_code == 200, answer.text
    ChatCompletion.model_validate(answer.json(), strict=True)
    return answer.json()


def rebuilt(chunks: list[Any]) -> tuple[str, list[dict[str, str]], list[str]]:
    """(text, calls, reasons) of one choice, put together as a client does."""
    text, calls, reasons = "", [], []
    for chunk in chunks:
        choice = chunk["choices"][0]
        text += choice["delta"].get("content") or ""
        for part in choice["delta"].get("tool_calls", ()):
            if part["index"] == len(calls):
                calls.append({"id": part["id"], "name": part["function"]["name"], "arguments": ""})
            calls[part["index"]]["arguments"] += part["function"]["arguments"]
        reasons += [choice["finish_reason"]] if choice["finish_reason"] else []
    return text, calls, reasons


def test_a_conversation_is_rendered_with_its_markers_as_tokens(ask: Ask) -> None:
    async def scenario(server: Any) -> None:
        messages = [
            {"role": "developer", "content": "be kind"},
            {
                "role": "user",
                "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
            },
            {"role": "assistant", "content": "c", "refusal": None},
            {"role": "user", "content": "d"},
        ]
        told = await chat(server, messages=messages)
        tokenizer = server.service.tokenizer
        ids = server.engine.requests[0].prompt_ids
        end = tokenizer.markers["</longcat_s>"]
        assert ids.count(end) == 1
        shown = tokenizer.decode(ids[: ids.index(end)])
        assert shown == "SYSTEM:be kind [Round 0] USER:ab ASSISTANT:c"
        assert told["choices"][0]["message"] == {
            "role": "assistant",
            "content": "hello",
            "refusal": None,
        }
        assert told["usage"]["prompt_tokens"] == len(ids)
        # Without a limit, a reply may be as long as what is left.
        assert server.engine.requests[0].params.max_tokens == 200 - len(ids)
        await chat(server, max_completion_tokens=4)
        assert server.engine.requests[1].params.max_tokens == 4

    ask(scenario)


def test_a_stream_says_who_speaks_once_and_ends_each_choice_once(ask: Ask) -> None:
    async def scenario(server: Any) -> None:
        body = BODY | {"stream": True, "n": 2, "stream_options": {"include_usage": True}}
        *chunks, last = await server.events(PATH, body)
        for index in (0, 1):
            mine = [c for c in chunks if c["choices"][0]["index"] == index]
            deltas = [c["choices"][0]["delta"] for c in mine]
            assert deltas[0] == {"role": "assistant", "content": "", "refusal": None}
            assert not any("role" in delta for delta in deltas[1:])
            assert deltas[-1] == {}
            assert rebuilt(mine) == ("hello", [], ["stop"])
        assert {c["object"] for c in chunks} == {"chat.completion.chunk"}
        assert last["choices"] == []
        assert last["usage"]["completion_tokens"] == 12

    ask(scenario)


def test_logprobs_of_a_reply_name_tokens_and_their_bytes(ask: Ask) -> None:
    async def scenario(server: Any) -> None:
        told = await chat(server, logprobs=True, top_logprobs=1)
        content = told["choices"][0]["logprobs"]["content"]
        assert [token["token"] for token in content] == [*"hello", "</s>"]
        assert content[0]["bytes"] == [104]
        assert content[0]["top_logprobs"] == [{"token": "h", "logprob": -0.5, "bytes": [104]}]
        chunks = await server.events(PATH, BODY | {"logprobs": True, "stream": True})
        streamed = [
            token["token"]
            for chunk in chunks
            for token in (chunk["choices"][0]["logprobs"] or {"content": []})["content"]
        ]
        assert streamed == [*"hello", "</s>"]

    ask(scenario)


def test_calls_come_back_as_calls_streamed_or_whole(ask: Ask, template: Template) -> None:
    async def scenario(server: Any) -> None:
        opening, closing = template.call
        calls = [f'{opening}{{"name": "f", "arguments": {{"a": {i}}}}}{closing}' for i in (12, 7)]
        server.engine.reply = ("Well." + template.joint + template.joint.join(calls)).encode()
        fields = {"tools": [tool("f")]}
        told = await chat(server, **fields)
        choice = told["choices"][0]
        assert choice["finish_reason"] == "tool_calls"
        assert choice["message"]["content"] == "Well."
        arguments = [c["function"]["arguments"] for c in choice["message"]["tool_calls"]]
        assert [json.loads(a) for a in arguments] == [{"a": 12}, {"a": 7}]
        chunks = await server.events(PATH, BODY | fields | {"stream": True})
        text, streamed, reasons = rebuilt(chunks)
        assert (text, reasons) == ("Well.", ["tool_calls"])
        assert [c["arguments"] for c in streamed] == ['{"a": 12}', '{"a": 7}']
        assert len({c["id"] for c in streamed}) == 2
        # Without tools, or with none allowed, the same reply is text.
        for other in ({}, fields | {"tool_choice": "none"}):
            told = await chat(server, **other)
            assert told["choices"][0]["finish_reason"] == "stop"
            assert "tool_calls" not in told["choices"][0]["message"]

    ask(scenario, chat=template, window=4000)


def test_a_damaged_call_is_text_and_no_reason_says_otherwise(ask: Ask, template: Template) -> None:
    async def scenario(server: Any) -> None:
        reply = template.call[0] + '{"name": "f", "arguments": {"a": 1'
        server.engine.reply = reply.encode()
        told = await chat(server, tools=[tool("f")])
        assert told["choices"][0]["message"]["content"] == reply
        assert told["choices"][0]["finish_reason"] == "stop"
        chunks = await server.events(PATH, BODY | {"tools": [tool("f")], "stream": True})
        assert rebuilt(chunks)[0] == reply
        assert rebuilt(chunks)[2] == ["stop"]

    ask(scenario, chat=template, window=4000)


def test_without_parallel_calls_the_engine_stops_at_the_first_ones_end(ask: Ask) -> None:
    async def scenario(server: Any) -> None:
        await chat(server, tools=[tool("f")], parallel_tool_calls=False, stop="x")
        closing = server.service.tokenizer.chat.call[1]
        assert server.engine.requests[0].params.stop == ("x", closing)

    ask(scenario, window=4000)


def test_a_stopped_call_is_whole_again_in_the_answer() -> None:
    from longcat.chat import LONGCAT
    from longcat.serve import Delta
    from longcat.serve.server.chat_choice import ChatChoice

    opening, closing = LONGCAT.call
    body = '{"name": "f", "arguments": {"a": 1}}'
    delta = Delta(request_id="x", text=opening + body, finish_reason="stop", stop_reason=closing)
    options: Any = {"index": 0, "template": "longcat", "logprobs": False, "closing": closing}
    told = ChatChoice(None, **options).whole(delta)  # type: ignore[arg-type]
    assert told["finish_reason"] == "tool_calls"
    chunks = ChatChoice(None, **options).chunks(delta)  # type: ignore[arg-type]
    assert chunks[-1]["finish_reason"] == "tool_calls"


CHOICES = [
    ("required", None, {"f": True, "g": True, "text": False, "wrong": False}),
    ({"type": "function", "function": {"name": "g"}}, None, {"f": False, "g": True, "text": False}),
    ("auto", True, {"f": True, "g": True, "text": True, "wrong": False}),
    (None, True, {"f": True, "text": True, "wrong": False}),
]


@pytest.mark.parametrize(("choice", "strict", "allowed"), CHOICES, ids=lambda v: str(v)[:30])
def test_a_demanded_or_strict_call_is_held_to_its_grammar(
    ask: Ask, template: Template, choice: Any, strict: bool | None, allowed: dict[str, bool]
) -> None:
    pytest.importorskip("llguidance")

    async def scenario(server: Any) -> None:
        tokenizer = server.service.tokenizer
        table = [t if i < 256 else b"" for i, t in enumerate(tokenizer.token_bytes())]
        server.service.constraints = ConstraintCompiler(table, 257, 300)
        tools = [tool("f", strict=strict), tool("g", strict=strict)]
        await chat(server, tools=tools, tool_choice=choice)
        spec = server.engine.requests[0].params.constraint
        opening, closing = ([tokenizer.markers[t.strip()]] for t in template.call)
        texts = {
            "f": '{"name": "f", "arguments": {"a": 1}}',
            "g": '{"name": "g", "arguments": {"a": 2}}',
            "wrong": '{"name": "f", "arguments": {"a": "x"}}',
        }
        written = {
            name: [*opening, *f"\n{text}\n".encode(), *closing] for name, text in texts.items()
        } | {"text": list(b"no call")}
        for name, expected in allowed.items():
            constraint = server.service.constraints(spec)
            try:
                constraint.advance([*written[name], 257])
                taken = True
            except ValueError:
                taken = False
            assert taken == expected, name

    ask(scenario, chat=template, window=4000)


def test_response_formats_become_constraints_and_bad_ones_are_refused(ask: Ask) -> None:
    pytest.importorskip("llguidance")

    async def scenario(server: Any) -> None:
        table = [bytes([b]) for b in range(256)]
        server.service.constraints = ConstraintCompiler(table, 257, 300)
        for fields, attribute in (
            ({"response_format": {"type": "json_object"}}, "json_object"),
            (
                {
                    "response_format": {
                        "type": "json_schema",
                        "json_schema": {"name": "x", "schema": PARAMETERS, "strict": True},
                    }
                },
                "json_schema",
            ),
            ({"structured_outputs": {"regex": "[0-9]+"}}, "regex"),
            ({"structured_outputs": {"choice": ["a", "b"]}}, "choice"),
            ({"structured_outputs": {"grammar": 'start: "a"'}}, "grammar"),
            ({"structured_outputs": {"json": PARAMETERS}}, "json_schema"),
        ):
            await chat(server, **fields)
            assert getattr(server.engine.requests[-1].params.constraint, attribute), fields
        await chat(server, response_format={"type": "text"})
        assert server.engine.requests[-1].params.constraint is None
        schema = {"name": "x", "schema": {"type": "no such type"}}
        for fields, param in (
            (
                {"response_format": {"type": "json_schema", "json_schema": schema}},
                "response_format.json_schema.schema",
            ),
            ({"structured_outputs": {"regex": "["}}, "structured_outputs.regex"),
            ({"structured_outputs": {"regex": "a"}, "min_tokens": 2}, "min_tokens"),
        ):
            answer = await server.post(PATH, BODY | fields)
            assert answer.status_code == 400, answer.text
            assert answer.json()["error"]["param"] == param

    ask(scenario, window=4000)


@pytest.mark.parametrize(
    ("choice", "strict", "param"),
    [
        ("required", None, "tools.1.function.parameters"),
        ({"type": "function", "function": {"name": "bad"}}, None, "tools.1.function.parameters"),
        ("auto", True, "tools.1.function.parameters"),
        ({"type": "function", "function": {"name": "f"}}, None, None),
        ("auto", None, None),
        ("none", True, None),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_schema_that_cannot_be_held_is_refused_by_its_tool(
    ask: Ask, choice: Any, strict: bool | None, param: str | None
) -> None:
    pytest.importorskip("llguidance")

    async def scenario(server: Any) -> None:
        table = [bytes([b]) for b in range(256)]
        server.service.constraints = ConstraintCompiler(table, 257, 300)
        bad = {"type": "object", "properties": {"a": {"not": {}}}}
        function = {"name": "bad", "parameters": bad, "strict": strict}
        tools = [tool("f", strict=strict), {"type": "function", "function": function}]
        answer = await server.post(PATH, BODY | {"tools": tools, "tool_choice": choice})
        assert answer.status_code == (200 if param is None else 400), answer.text
        if param is not None:
            assert answer.json()["error"]["param"] == param

    ask(scenario, window=4000)

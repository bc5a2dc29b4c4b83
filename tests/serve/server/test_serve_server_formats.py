"""Claims about a reply that has tools and a form: it calls, or it is a text of that form."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from longcat.chat import Template
from longcat.serve.structured import ConstraintCompiler

pytest.importorskip("llguidance")
PATH = "/v1/chat/completions"
Ask = Callable[..., Any]
BODY: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
ONE: dict[str, Any] = {
    "type": "object",
    "properties": {"a": {"type": "integer"}},
    "required": ["a"],
    "additionalProperties": False,
}
FORM = {"type": "json_schema", "json_schema": {"name": "x", "schema": ONE, "strict": True}}


def tools(*, strict: bool | None = None) -> list[Any]:
    function = {"name": "f", "parameters": ONE, "strict": strict}
    return [{"type": "function", "function": function}]


def compiled(server: Any) -> ConstraintCompiler:
    tokenizer = server.service.tokenizer
    table = [t if i < 256 else b"" for i, t in enumerate(tokenizer.token_bytes())]
    server.service.constraints = ConstraintCompiler(table, 257, 300)
    return server.service.constraints


def written(server: Any, template: Template, arguments: str) -> list[int]:
    opening, closing = (server.service.tokenizer.markers[tag.strip()] for tag in template.call)
    return [opening, *f'\n{{"name": "f", "arguments": {arguments}}}\n'.encode(), closing]


@pytest.mark.parametrize(
    ("fields", "allowed"),
    [
        ({"response_format": FORM}, {"form", "call", "other call"}),
        ({"response_format": FORM, "tool_choice": "auto"}, {"form", "call", "other call"}),
        ({"response_format": {"type": "json_object"}}, {"form", "object", "call", "other call"}),
        ({"response_format": FORM, "tools": tools(strict=True)}, {"form", "call"}),
        ({"response_format": FORM, "tool_choice": "required"}, {"call"}),
        ({"response_format": FORM, "tool_choice": "none"}, {"form"}),
        ({"response_format": {"type": "text"}, "tool_choice": "required"}, {"call"}),
    ],
    ids=lambda value: str(value)[:60] if isinstance(value, dict) else "",
)
def test_a_reply_with_tools_and_a_form_is_calls_or_a_text_of_the_form(
    ask: Ask, template: Template, fields: Any, allowed: set[str]
) -> None:
    async def scenario(server: Any) -> None:
        compiler = compiled(server)
        answer = await server.post(PATH, BODY | {"tools": tools()} | fields)
        assert answer.status_code == 200, answer.text
        spec = server.engine.requests[0].params.constraint
        texts = {
            "form": list(b'{"a": 1}'),
            "object": list(b'{"b": "x"}'),
            "call": written(server, template, '{"a": 1}'),
            "other call": written(server, template, '{"b": "x"}'),
            "broken call": written(server, template, '{"a": '),
            "text": list(b"no form"),
            "both": [*b'{"a": 1}', *written(server, template, '{"a": 1}')],
        }
        taken = set()
        for name, ids in texts.items():
            constraint = compiler(spec)
            try:
                constraint.advance([*ids, 257])
            except ValueError:
                continue
            taken.add(name)
        assert taken == allowed

    ask(scenario, chat=template, window=4000)


def test_a_form_beside_tools_comes_back_as_the_text_of_the_reply(
    ask: Ask, template: Template
) -> None:
    async def scenario(server: Any) -> None:
        compiled(server)
        server.engine.reply = b'{"a": 1}'
        body = BODY | {"tools": tools(), "response_format": FORM}
        [choice] = (await server.post(PATH, body)).json()["choices"]
        assert json.loads(choice["message"]["content"]) == {"a": 1}
        assert choice["finish_reason"] == "stop"
        chunks = await server.events(PATH, body | {"stream": True})
        deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
        assert "".join(delta.get("content") or "" for delta in deltas) == '{"a": 1}'

    ask(scenario, chat=template, window=4000)


def test_of_a_form_and_tools_the_one_that_cannot_be_held_is_named(ask: Ask) -> None:
    async def scenario(server: Any) -> None:
        compiled(server)
        bad = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {}}}}
        for fields, param in (
            ({"response_format": bad}, "response_format.json_schema.schema"),
            ({"structured_outputs": {"regex": "a"}}, "structured_outputs"),
        ):
            answer = await server.post(PATH, BODY | {"tools": tools()} | fields)
            assert answer.status_code == 400, answer.text
            assert answer.json()["error"]["param"] == param

    ask(scenario, window=4000)


@pytest.mark.parametrize(
    ("choice", "told"),
    [
        ("f", "tool_choice: Input should be 'none', 'auto' or 'required'; got 'f'"),
        ({"type": "allowed_tools", "allowed_tools": {}}, "should be 'function'"),
        ({"function": {"name": "f"}}, "tool_choice.type is missing"),
    ],
    ids=str,
)
def test_a_choice_of_tools_that_is_none_is_refused_by_the_field(
    ask: Ask, choice: Any, told: str
) -> None:
    async def scenario(server: Any) -> None:
        answer = await server.post(PATH, BODY | {"tools": tools(), "tool_choice": choice})
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert error["param"] == ("tool_choice" if choice == "f" else "tool_choice.type")
        assert told in error["message"]

    ask(scenario)

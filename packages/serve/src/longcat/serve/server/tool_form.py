"""The grammar of a reply that calls tools: when a call is demanded, or arguments or text are held.

    start: call (joint call)*            tool_choice "required", or one tool's name
    start: TEXT? (call (joint call)*)?   "auto", where a tool is `strict`
    start: form | call (joint call)*     "auto", where `response_format` says what a text must be

A call is written as the model's chat format writes it, and its arguments follow the tool's schema.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from longcat.chat import Template
from longcat.serve.constraint import ConstraintSpec
from longcat.serve.server.chat_request import ChatRequest, NamedTool, ToolDefinition
from longcat.serve.server.errors import ApiError

# JSON as the rest of the structured output writes it.
_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


def held_schemas(asked: ChatRequest) -> Iterator[tuple[int, ConstraintSpec]]:
    """The schemas to which the form of a reply holds arguments, with the places of their tools."""
    choice = asked.tool_choice
    named = choice.function.name if isinstance(choice, NamedTool) else None
    for place, tool in enumerate(asked.tools or ()):
        function = tool.function
        held = function.strict or choice == "required" or named is not None
        if held and named in (None, function.name) and function.parameters is not None:
            yield place, ConstraintSpec(json_schema=json.dumps(function.parameters))


def tool_form(
    asked: ChatRequest, form: Template, markers: Mapping[str, int]
) -> ConstraintSpec | None:
    """The form that `tool_choice`, `strict` and `response_format` demand of a reply that may call
    tools; None when they demand none, or it may not.

    Raises ApiError (400) for a strict tool where calls begin with plain text, which a grammar
    cannot tell from the reply's.
    """
    tools = asked.tools or []
    named = asked.tool_choice.function.name if isinstance(asked.tool_choice, NamedTool) else None
    demanded = asked.tool_choice == "required" or named is not None
    free = not demanded and asked.text_schema is None
    if not tools or asked.tool_choice == "none":
        return None
    if free and not any(t.function.strict for t in tools):
        return None
    if free and _marker(form.call[0]) not in markers:
        raise ApiError(
            400,
            "tools: strict is not supported with this model: its calls begin with plain text",
            param="tools",
            code="unsupported_parameter",
        )
    if named is not None:
        tools = [tool for tool in tools if tool.function.name == named]
    more = f"call ({_text(form.joint)} call)*" if form.joint else "call+"
    several = "call" if asked.parallel_tool_calls is False else more
    start = several if demanded else f"TEXT? ({several})?" if free else f"form | {several}"
    rules = [f"start: {start}", _call(form, markers, len(tools))]
    rules += [line for i, tool in enumerate(tools) for line in _tool(i, tool, held=demanded)]
    if free:
        rules.append(r"TEXT: /(.|\n)+/")
    elif not demanded:
        rules.append(f"form: {_json(asked.text_schema or {})}")
    return ConstraintSpec(grammar="\n".join(rules))


def _call(form: Template, markers: Mapping[str, int], count: int) -> str:
    opening, closing = (_tag(tag, markers) for tag in form.call)
    return f"call: {opening} ({' | '.join(f'tool{i}' for i in range(count))}) {closing}"


def _tool(number: int, tool: ToolDefinition, *, held: bool) -> Sequence[str]:
    function = tool.function
    head = f'{{"name": {json.dumps(function.name)}, "arguments": '
    schema: dict[str, Any] = {"type": "object"}
    if held or function.strict:
        schema = function.parameters or schema
    return (
        f'tool{number}: {_text(head)} arguments{number} "}}"',
        f"arguments{number}: {_json(schema)}",
    )


def _json(schema: Mapping[str, Any]) -> str:
    return f"%json {json.dumps({'x-guidance': _STYLE} | dict(schema))}"


def _tag(tag: str, markers: Mapping[str, int]) -> str:
    """A tag in the grammar: its control token, where it is one, and the newlines around it."""
    marker = _marker(tag)
    if marker not in markers:
        return _text(tag)
    before, _, after = tag.partition(marker)
    token = f"<[{markers[marker]}]>"
    return " ".join(part for part in (_text(before), token, _text(after)) if part != '""')


def _marker(tag: str) -> str:
    return tag.strip()


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)

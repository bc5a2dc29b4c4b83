"""Messages and tools in the form of the OpenAI API, and what is wrong with those that are not."""

import json
from collections.abc import Sequence
from typing import Any, Literal, NotRequired, TypedDict

from longcat.chat.templates import Template

Role = Literal["system", "user", "assistant", "tool"]
_REQUIRED = {
    "system": ("role", "content"),
    "user": ("role", "content"),
    "assistant": ("role", "content"),  # or tool_calls, with or without content
    "tool": ("role", "content", "tool_call_id"),
}


class Function(TypedDict):
    """What a call calls; `arguments` is a JSON object as text (OpenAI) or as it is."""

    name: str
    arguments: str | dict[str, Any]


class ToolCall(TypedDict):
    """One call of an assistant message."""

    id: str
    type: Literal["function"]
    function: Function


class Message(TypedDict):
    """One message: a role and plain text; calls of the assistant, and the answers to them."""

    role: Role
    content: str | None
    tool_calls: NotRequired[list[ToolCall]]
    tool_call_id: NotRequired[str]


Tool = dict[str, Any]  # {"type": "function", "function": {"name", "description", "parameters"}}


def check_conversation(
    messages: Sequence[object],
    tools: Sequence[object] | None,
    form: Template,
    *,
    learned: bool,
) -> None:
    """Refuse what cannot be rendered as it is meant; the order of roles is the template's matter.

    learned: the conversation is to be learned from. Then the assistant calls known tools only, with
        a JSON object, and its text holds no tag of a call. What a model once said may be otherwise:
        tools come and go, and a call may have been broken off.

    Raises:
        ValueError: a message or tool out of form, a control string in a text, a call of an unknown
            tool, a call without an answer or an answer without a call.
    """
    names = _tool_names(tools or (), form)
    open_calls: list[str] = []
    for index, message in enumerate(messages):
        where = f"chat: message {index}"
        role = _checked_role(message, index, where, form, learned)
        assert isinstance(message, dict)
        if role == "tool":
            # Neither format writes ids, so the order alone says which call a result is of.
            if not open_calls or message["tool_call_id"] != open_calls[0]:
                raise ValueError(
                    f"{where} answers the call {message['tool_call_id']!r}; expected the answers "
                    f"to the open calls {open_calls}, in their order"
                )
            open_calls = open_calls[1:]
        elif open_calls:
            raise ValueError(
                f"{where} comes before the calls {open_calls} are answered by tool messages"
            )
        if "tool_calls" in message:
            callable_names = names if learned else None
            open_calls = _checked_calls(message["tool_calls"], callable_names, where, form)


def _checked_role(message: object, index: int, where: str, form: Template, learned: bool) -> str:
    """The message's role, after its keys and its text were found to be in form."""
    if not isinstance(message, dict):
        raise ValueError(
            f"{where} must be an object with role and content, got {type(message).__name__}"
        )
    role = message.get("role", "user")
    if not isinstance(role, str) or role not in _REQUIRED:
        raise ValueError(f"{where} has role {role!r}; known are system, user, assistant and tool")
    calling = role == "assistant" and "tool_calls" in message
    keys = set(message) - {"tool_calls"} | {"content"} if calling else set(message)
    if keys != set(_REQUIRED[role]):
        *most, last = _REQUIRED[role]
        raise ValueError(
            f"{where} must have exactly the keys {', '.join(most)} and {last}, got "
            f"{sorted(message)}"
        )
    if role == "system" and index > 0:
        raise ValueError(f"{where} is a system message; only the first may be one")
    content = message.get("content")
    if not isinstance(content, str) and not (content is None and calling):
        raise ValueError(f"{where} must have text as its content, got {type(content).__name__}")
    own = () if learned or role != "assistant" else tuple(tag.strip() for tag in form.call)
    _refuse_reserved(content or "", where, form, allowed=own)
    return role


def _checked_calls(calls: object, names: set[str] | None, where: str, form: Template) -> list[str]:
    """The ids of a message's calls; names: the tools to be called, None for what was once said."""
    if not isinstance(calls, list) or not calls:
        raise ValueError(f"{where}: tool_calls must be a list of at least one call")
    ids: list[str] = []
    for number, call in enumerate(calls):
        place = f"{where}, call {number}"
        if not isinstance(call, dict) or not isinstance(call.get("id"), str) or not call["id"]:
            raise ValueError(f"{place} must be an object with an id, which its answer names")
        function = call.get("function")
        if call.get("type", "function") != "function" or not isinstance(function, dict):
            raise ValueError(f"{place} must have type 'function' and a function")
        name = function.get("name")
        if not isinstance(name, str) or not name:
            raise ValueError(f"{place} must name the function that it calls, got {name!r}")
        if names is not None and name not in names:
            raise ValueError(
                f"{place} calls {name!r}, which is not among the tools {sorted(names)}"
            )
        _refuse_reserved(name, place, form)
        _check_arguments(function.get("arguments"), place, form, learned=names is not None)
        if call["id"] in ids:
            raise ValueError(f"{place} has the id {call['id']!r} of an earlier call")
        ids.append(call["id"])
    return ids


def _check_arguments(arguments: object, place: str, form: Template, *, learned: bool) -> None:
    value = arguments
    if isinstance(arguments, str) and not learned:
        _refuse_reserved(arguments, place, form)
        return
    if isinstance(arguments, str):
        try:
            value = json.loads(arguments)
        except json.JSONDecodeError:
            value = None
    if not isinstance(value, dict):
        raise ValueError(f"{place}: arguments must be a JSON object, or one as text")
    written = arguments if isinstance(arguments, str) else json.dumps(value, ensure_ascii=False)
    _refuse_reserved(written, place, form)


def _tool_names(tools: Sequence[object], form: Template) -> set[str]:
    names: set[str] = set()
    for index, tool in enumerate(tools):
        where = f"chat: tool {index}"
        function = tool.get("function") if isinstance(tool, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(tool, dict) or tool.get("type") != "function" or not name:
            raise ValueError(
                f"{where} must be {{'type': 'function', 'function': {{'name': ...}}}} with "
                "description and parameters"
            )
        if not isinstance(name, str) or name in names:
            raise ValueError(f"{where} must have a name of its own, got {name!r}")
        _refuse_reserved(json.dumps(tool, ensure_ascii=False), where, form)
        names.add(name)
    return names


def _refuse_reserved(text: str, where: str, form: Template, allowed: Sequence[str] = ()) -> None:
    for forbidden in form.reserved:
        if forbidden in text and forbidden not in allowed:
            raise ValueError(
                f"{where} contains {forbidden!r}, which the {form.name} format keeps for itself; "
                "remove or escape it"
            )

"""Tool calls in the form of the OpenAI API, whole and streamed, and back.

There `arguments` is a JSON text and every call has an id, which its answer names. Neither format of
ours writes ids, so they are made here.
"""

import json
import secrets
from collections.abc import Callable, Sequence
from typing import Any

from longcat.chat.messages import ToolCall
from longcat.chat.parse import Call
from longcat.chat.stream import CallDelta


def new_call_id() -> str:
    """A fresh id for a call: `call_` and 24 hexadecimal digits."""
    return f"call_{secrets.token_hex(12)}"


def to_tool_calls(calls: Sequence[Call], new_id: Callable[[], str] = new_call_id) -> list[ToolCall]:
    """The calls of a reply as the `tool_calls` of an assistant message."""
    return [
        {
            "id": new_id(),
            "type": "function",
            "function": {
                "name": call.name,
                "arguments": json.dumps(call.arguments, ensure_ascii=False),
            },
        }
        for call in calls
    ]


def from_tool_calls(tool_calls: Sequence[Any]) -> tuple[Call, ...]:
    """The calls of an assistant message; arguments may be a JSON text or an object.

    Raises ValueError for a call without a name, or whose arguments are no JSON object.
    """
    calls = []
    for number, tool_call in enumerate(tool_calls):
        function = tool_call.get("function") if isinstance(tool_call, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(function, dict) or not isinstance(name, str) or not name:
            raise ValueError(f"chat: tool_calls[{number}] must have a function with a name")
        calls.append(Call(name=name, arguments=_object_of(function.get("arguments"), number)))
    return tuple(calls)


def to_tool_call_delta(delta: CallDelta, call_id: str) -> dict[str, Any]:
    """One element of `tool_calls` in a streamed chunk; the first of a call holds id and name.

    call_id must be the same for all deltas of one index.
    """
    if delta.name is None:
        return {"index": delta.index, "function": {"arguments": delta.arguments}}
    return {
        "index": delta.index,
        "id": call_id,
        "type": "function",
        "function": {"name": delta.name, "arguments": delta.arguments},
    }


def _object_of(arguments: object, number: int) -> dict[str, Any]:
    value = arguments
    if isinstance(arguments, str):
        try:
            value = json.loads(arguments)
        except ValueError:
            value = None
    if not isinstance(value, dict):
        raise ValueError(
            f"chat: tool_calls[{number}].function.arguments must be a JSON object, or one as text; "
            f"got {arguments!r}"
        )
    return value

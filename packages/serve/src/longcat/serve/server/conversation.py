"""The messages of a conversation: how they are read, and the turns that `longcat.chat` renders."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from longcat.serve.server.errors import ApiError
from longcat.serve.server.fields import NoList, NotHonoured, Strict, Text

Restated = Annotated[
    Any, Field(description="What OpenAI's client read out of the reply; the reply itself counts.")
]


class TextPart(Strict):
    """A piece of a message's text."""

    type: Literal["text"]
    text: str


class CalledFunction(Strict):
    """What a call of the assistant called."""

    name: Text
    arguments: str
    parsed_arguments: Restated = None


class CalledTool(Strict):
    """One call in a message of the assistant."""

    id: Text
    type: Literal["function"]
    function: CalledFunction
    index: int | None = Field(None, description="Left over from a stream: its place among them.")

    def plain(self) -> dict[str, Any]:
        """The call alone; some models leave out the arguments of a function that takes none."""
        called = {"name": self.function.name, "arguments": self.function.arguments or "{}"}
        return {"id": self.id, "type": self.type, "function": called}


class ChatMessage(Strict):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    tool_calls: list[CalledTool] | None = None
    tool_call_id: Text | None = None
    name: Text | None = Field(
        None, description="Of a tool's result, the function's; else of the only one in this role."
    )
    # Clients send back what they were answered, empty fields included.
    annotations: NoList = None
    parsed: Restated = None
    refusal: NotHonoured = None
    audio: NotHonoured = None
    function_call: NotHonoured = None

    @field_validator("tool_calls")
    @classmethod
    def _in_order(cls, calls: list[CalledTool] | None) -> list[CalledTool] | None:
        for place, call in enumerate(calls or ()):
            if call.index not in (None, place):
                raise ValueError(f"call {place} has the index {call.index}")
        return calls

    @property
    def speaker(self) -> str:
        """The role as the formats know it."""
        return "system" if self.role == "developer" else self.role

    def plain(self) -> dict[str, Any]:
        """The message with one text as its content, and no empty fields."""
        content = self.content
        if isinstance(content, list):
            content = "".join(part.text for part in content)
        message: dict[str, Any] = {"role": self.speaker, "content": content}
        if self.tool_calls:
            message["tool_calls"] = [call.plain() for call in self.tool_calls]
        if self.tool_call_id is not None:
            message["tool_call_id"] = self.tool_call_id
        return message


@dataclass(kw_only=True)
class Turns:
    """A conversation as the formats take it: one turn after the other.

    messages  plain messages, as `longcat.chat` renders them
    places    of each, the place in the request of the first message that is in it
    """

    messages: list[Any] = field(default_factory=list)
    places: list[int] = field(default_factory=list)

    def told(self, error: ValueError) -> str:
        """What `longcat.chat` says of a message, with its place in the request."""
        return re.sub(
            r"(?<=^chat: message )\d+", lambda found: str(self.places[int(found[0])]), str(error)
        )


# Whose turn it would have been between two messages that may follow each other.
_PASSED_OVER = {
    ("tool", "user"): "assistant",
    ("system", "assistant"): "user",
    (None, "assistant"): "user",
}


def turns(messages: Sequence[ChatMessage]) -> Turns:
    """The turns of a conversation.

    Messages of one role in a row are one turn, a blank line between their texts. Where the user
    speaks right after a tool's result, the assistant said nothing in between; where the assistant
    speaks first, the user said nothing before. Results may come in any order, as their ids say
    whose they are; the formats write no ids, so here they follow the calls one by one.

    Raises ApiError (400) for a name that the formats cannot write.
    """
    _check_names(messages)
    made = Turns()
    for place, message in _ordered([message.plain() for message in messages]):
        last = made.messages[-1] if made.messages else {"role": None}
        if _continues(last, message):
            texts = (last["content"], message["content"])
            made.messages[-1] = last | message | {"content": "\n\n".join(filter(None, texts))}
            continue
        silent = _PASSED_OVER.get((last["role"], message["role"]))
        if silent is not None:
            made.messages.append({"role": silent, "content": ""})
            made.places.append(place)
        made.messages.append(message)
        made.places.append(place)
    return made


def _continues(last: dict[str, Any], message: dict[str, Any]) -> bool:
    """Whether a message goes on with what the last one says; a result and a call stand alone."""
    if last["role"] != message["role"] or "tool_call_id" in message or "tool_calls" in last:
        return False
    return last["content"] is not None and (
        message["content"] is not None or "tool_calls" in message
    )


def _ordered(plain: list[dict[str, Any]]) -> Iterator[tuple[int, dict[str, Any]]]:
    """All messages with their places, results in the order of their calls."""
    place = 0
    while place < len(plain):
        yield place, plain[place]
        order = [call["id"] for call in plain[place].get("tool_calls", ())]
        start = place = place + 1
        while place < len(plain) and plain[place].get("tool_call_id") in order:
            place += 1
        results = range(start, place)
        yield from (
            (result, plain[result])
            for result in sorted(results, key=lambda i: order.index(plain[i]["tool_call_id"]))
        )


def _check_names(messages: Sequence[ChatMessage]) -> None:
    """Names tell participants of one role apart, and no format has a place for them."""
    called: dict[str | None, str] = {}
    names: dict[str, str | None] = {}
    for place, message in enumerate(messages):
        called |= {call.id: call.function.name for call in message.tool_calls or ()}
        name = message.name
        if message.role == "tool":
            expected = called.get(message.tool_call_id, name)
            told = f"this is the result of a call of {expected!r}, not of {name!r}"
            known = name in (None, expected)
        else:
            before = names.setdefault(message.speaker, name)
            told = (
                f"the model's chat format knows one participant of each role, so {before!r} and "
                f"{name!r} cannot be told apart; leave the names out"
            )
            known = name == before
        if not known:
            param = f"messages.{place}.name"
            raise ApiError(400, f"{param}: {told}", param=param, code="invalid_value")

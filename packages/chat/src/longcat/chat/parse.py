"""Text back to messages: of a reply as a model generates it, and of a whole conversation."""

import json
import re
from dataclasses import dataclass
from typing import Any, NoReturn

from longcat.chat.messages import Message, Role
from longcat.chat.render import render, render_spans
from longcat.chat.templates import Template, template_named


@dataclass(frozen=True, kw_only=True)
class Call:
    """One tool call of a reply."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What a model answered; `finished` says whether it ended by itself or was cut off."""

    text: str
    finished: bool
    calls: tuple[Call, ...] = ()


def parse_reply(generated: str, template: str = "longcat") -> Reply:
    """The reply in what a model generated after `render(..., add_generation_prompt=True)`.

    Everything from the format's end marker on is dropped; without one the reply was cut off. Tool
    calls stand at the end of a reply; where they are not in form (a damaged JSON object, text
    between or after them) nothing is guessed: all of it is text, and there are no calls.
    Raises ValueError for an unknown template.
    """
    form = template_named(template)
    whole, end, _ = generated.partition(form.end)
    text, calls = _split_calls(whole, form)
    return Reply(text=text, finished=bool(end), calls=calls)


def _split_calls(whole: str, form: Template) -> tuple[str, tuple[Call, ...]]:
    opening, closing = form.call
    text, *pieces = whole.split(opening)
    calls = []
    for number, piece in enumerate(pieces, start=1):
        body, closed, rest = piece.partition(closing)
        call = parse_call(body) if closed else None
        if call is None or rest != (form.joint if number < len(pieces) else ""):
            return whole, ()
        calls.append(call)
    return text.removesuffix(form.joint) if calls else whole, tuple(calls)


def parse_call(body: str) -> Call | None:
    """The call between its tags, or None where it is not in form: nothing is guessed.

    In form is a JSON object of exactly a name and an object of arguments. No key may stand twice,
    and numbers must be numbers (Python alone reads NaN).
    """
    try:
        call = json.loads(body, object_pairs_hook=_object, parse_constant=_no_number)
    except (ValueError, RecursionError):
        return None
    if not isinstance(call, dict) or set(call) != {"name", "arguments"}:
        return None
    if not isinstance(call["name"], str) or not isinstance(call["arguments"], dict):
        return None
    return Call(name=call["name"], arguments=call["arguments"])


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice")
    return found


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def parse(text: str, template: str = "longcat") -> list[Message]:
    """The messages that `render` made this text from: the inverse of `render`.

    A text that ends with the opening of a reply gives the messages before it.
    Raises ValueError for text that `render` does not make, and for text that it makes from
    more than one conversation: LongCat's format does not mark user text off, so a user who
    writes " ASSISTANT:" makes the text ambiguous. Nothing is guessed. Conversations with tools are
    refused too: the text does not hold the calls' ids.
    """
    form = template_named(template)
    messages = _parse_longcat(text) if form.name == "longcat" else _parse_chatml(text)
    if messages and text in _rendered(messages, template):
        return messages
    raise ValueError(
        f"chat: this is not a conversation in the {form.name} format, or one that can be read "
        f"in two ways: {text[:60]!r}{'...' if len(text) > 60 else ''}"
    )


def _rendered(messages: list[Message], template: str) -> list[str]:
    """What the format makes of these messages: one text, or two when a reply may be asked for."""
    try:
        whole = render_spans(messages, template).text
        return [whole, render(messages, template)] if messages[-1]["role"] == "user" else [whole]
    except ValueError:  # a control string where only text may be: no conversation of ours
        return []


# The places where a conversation in LongCat's format can be cut: rounds, and replies in them.
_ROUND = re.compile(r"(?:^| )\[Round (\d+)\] USER:")
_REPLY = " ASSISTANT:"


def _parse_longcat(text: str) -> list[Message] | None:
    rounds = list(_ROUND.finditer(text))
    if not rounds or [int(found[1]) for found in rounds] != list(range(len(rounds))):
        return None
    messages: list[Message] = []
    if rounds[0].start() > 0:
        head = text[: rounds[0].start()]
        if not head.startswith("SYSTEM:"):
            return None
        messages.append({"role": "system", "content": head.removeprefix("SYSTEM:")})
    ends = [found.start() for found in rounds[1:]] + [len(text)]
    for found, end in zip(rounds, ends, strict=True):
        body = text[found.end() : end]
        if body.count(_REPLY) > 1:
            return None
        user, opened, reply = body.partition(_REPLY)
        messages.append({"role": "user", "content": user})
        if opened and (reply or end < len(text)):
            messages.append({"role": "assistant", "content": reply.removesuffix("</longcat_s>")})
    return messages


def _parse_chatml(text: str) -> list[Message] | None:
    text = text.removesuffix("<|im_start|>assistant\n")
    messages: list[Message] = []
    for piece in text.split("<|im_start|>")[1:]:
        name, _, content = piece.partition("\n")
        role = _ROLES.get(name)
        if role is None:
            return None
        messages.append({"role": role, "content": content.removesuffix("<|im_end|>\n")})
    return messages


_ROLES: dict[str, Role] = {"system": "system", "user": "user", "assistant": "assistant"}

"""A conversation and how it is to be continued, as one JSON file."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from longcat.chat import Message, Reply, Tool, render, to_tool_calls
from longcat.cli.ui.record import write

_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How replies are drawn.

    temperature  0 is greedy
    top_p        draw from the most probable tokens that reach this mass
    seed         None draws a fresh one for every reply
    max_tokens   most tokens of a reply; None: 512 here, and what a server gives there
    draft        draft with the MTP head where there is one; the text is the same

    Raises ValueError for a value outside its range.
    """

    temperature: float = 0.7
    top_p: float = 0.95
    seed: int | None = None
    max_tokens: int | None = None
    draft: bool = True

    def __post_init__(self) -> None:
        from longcat.serve import SamplingParams

        for known in fields(self):
            value, kind = getattr(self, known.name), _KINDS[known.name]
            if isinstance(value, bool) != (kind is bool) or not isinstance(value, kind):
                raise ValueError(f"chat: {known.name} cannot be {value!r}")
        given = {k: v for k, v in asdict(self).items() if k != "draft" and v is not None}
        SamplingParams(**given)


_KINDS: dict[str, Any] = {
    "temperature": (int, float),
    "top_p": (int, float),
    "seed": (int, type(None)),
    "max_tokens": (int, type(None)),
    "draft": bool,
}


@dataclass(kw_only=True)
class Session:
    """Messages so far, tools that may be called, settings."""

    messages: list[Message] = field(default_factory=list)
    tools: list[Tool] = field(default_factory=list)
    settings: Settings = field(default_factory=Settings)

    @property
    def open_calls(self) -> list[str]:
        """Ids of the calls that wait for their answers, in order."""
        ids: list[str] = []
        for message in self.messages:
            if message["role"] == "tool":
                ids.remove(message["tool_call_id"])
            ids += [call["id"] for call in message.get("tool_calls", [])]
        return ids

    def set_system(self, text: str) -> None:
        """Make `text` the system message; an empty one takes it away."""
        rest = self.messages[1:] if self._has_system else self.messages
        self.messages = [*([{"role": "system", "content": text}] if text else []), *rest]  # type: ignore[list-item]

    def reset(self) -> None:
        """Forget what was said; the system message stays."""
        self.messages = self.messages[: int(self._has_system)]

    def ask(self, text: str) -> None:
        """Add what the user says, or the answer to the first open call."""
        if self.open_calls:
            call = self.open_calls[0]
            self.messages.append({"role": "tool", "content": text, "tool_call_id": call})
        else:
            self.messages.append({"role": "user", "content": text})

    def answer(self, reply: Reply) -> None:
        """Add what the assistant said."""
        said: Message = {"role": "assistant", "content": reply.text}
        if reply.calls:
            said["tool_calls"] = to_tool_calls(reply.calls)
        self.messages.append(said)

    def take_back(self) -> str | None:
        """Take back the last question and what followed; its text, or None where there is none."""
        while self.messages and self.messages[-1]["role"] != "system":
            message = self.messages.pop()
            if message["role"] == "user":
                return message["content"]
        return None

    def change(self, **changes: Any) -> None:
        """Change settings; ValueError for a value outside its range."""
        self.settings = replace(self.settings, **changes)

    def save(self, path: Path) -> None:
        """Write the session, whole or not at all."""
        document = {"version": _VERSION, "settings": asdict(self.settings), "tools": self.tools}
        write(path, json.dumps(document | {"messages": self.messages}, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> "Session":
        """Read a session that was saved.

        Raises ValueError for a file that holds none, saying what is wrong with it.
        """
        try:
            document = json.loads(path.read_text("utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is no saved chat: {error}") from None
        if not isinstance(document, dict) or document.get("version") != _VERSION:
            raise ValueError(
                f"{path} is no saved chat: expected a JSON object with version {_VERSION}, "
                "as /save writes it"
            )
        try:
            session = cls(
                messages=_list(document, "messages"),
                tools=_list(document, "tools"),
                settings=Settings(**document.get("settings", {})),
            )
            check(session.messages, session.tools)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path} is no saved chat: {error}") from None
        return session

    @property
    def _has_system(self) -> bool:
        return bool(self.messages) and self.messages[0]["role"] == "system"


def check(messages: Sequence[Message], tools: Sequence[Tool]) -> None:
    """Raise ValueError for messages or tools out of form; unanswered calls are in form."""
    spoken: list[Message] = [m for m in messages if m["role"] != "system"]
    if not spoken and not tools:
        return
    answered = list(messages) if spoken else [*messages, _HELLO]
    session = Session(messages=list(answered))
    for call in session.open_calls:
        answered.append({"role": "tool", "content": "", "tool_call_id": call})
    render(answered, add_generation_prompt=False, tools=list(tools) or None)


_HELLO: Message = {"role": "user", "content": "hello"}


def read_tools(path: Path) -> list[Tool]:
    """Tools from a JSON file: a list in the form of the OpenAI API.

    Raises ValueError for anything else.
    """
    try:
        tools = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from None
    if not isinstance(tools, list):
        raise ValueError(f"{path} must hold a list of tools, as the OpenAI API takes it")
    check([], tools)
    return tools


def _list(document: dict[str, Any], name: str) -> list[Any]:
    value = document.get(name, [])
    if not isinstance(value, list):
        raise ValueError(f"{name} must be a list")
    if not all(isinstance(one, dict) and isinstance(one.get("role", ""), str) for one in value):
        raise ValueError(f"{name} must be a list of objects")
    return value

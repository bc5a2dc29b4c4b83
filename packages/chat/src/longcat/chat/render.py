"""Messages to text, and which characters of it the assistant produced."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NoReturn

from jinja2 import Template as Compiled
from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from longcat.chat.messages import Message, Tool, check_conversation
from longcat.chat.templates import template_named


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """A conversation as text.

    text   what a model reads
    spans  (start, stop) of the characters that the assistant produced, in order: its text, its
           calls and the end of its reply; what a model learns in fine-tuning
    """

    text: str
    spans: tuple[tuple[int, int], ...]


def render(
    messages: Sequence[Message],
    template: str = "longcat",
    add_generation_prompt: bool = True,
    tools: Sequence[Tool] | None = None,
) -> str:
    """The text that a model is given for a conversation.

    messages               an optional system message, then user and assistant by turns; tool
                           messages follow the calls that they answer
    template               "longcat" or "chatml"
    add_generation_prompt  end with the opening of the assistant's reply, for generation
    tools                  what the assistant may call, in the form of the OpenAI API; what it
                           called before need not be among them

    Raises ValueError for an unknown template, a role out of order, a message, call or tool out of
    form, or text that holds one of the format's control strings.
    """
    return _render(messages, template, add_generation_prompt, tools, learned=False).text


def render_spans(
    messages: Sequence[Message], template: str = "longcat", tools: Sequence[Tool] | None = None
) -> Rendered:
    """A whole conversation and where the assistant speaks in it.

    Raises ValueError as `render`, and for a call of a tool that is not among `tools` or a tag of a
    call in the assistant's text: a model would learn them.
    """
    return _render(messages, template, False, tools, learned=True)


def _render(
    messages: Sequence[Message],
    template: str,
    asked: bool,
    tools: Sequence[Tool] | None,
    *,
    learned: bool,
) -> Rendered:
    form = template_named(template)
    check_conversation(messages, tools, form, learned=learned)
    recorder, parts = _Recorder(), []
    try:
        # Part by part, so that the recorder knows how much stands before a generation block.
        for part in _compiled(form.jinja).generate(
            messages=list(messages),
            tools=list(tools) if tools else None,
            add_generation_prompt=asked,
            recorder=recorder,
        ):
            parts.append(part)
            recorder.position += len(part)
    except TemplateError as error:
        raise ValueError(f"chat: {error.message}") from None
    return Rendered(text="".join(parts), spans=tuple(recorder.spans))


@dataclass
class _Recorder:
    position: int = 0
    spans: list[tuple[int, int]] = field(default_factory=list)


class _Generation(Extension):
    """`{% generation %} ... {% endgeneration %}`: the body, its place told to the recorder."""

    tags = {"generation"}  # noqa: RUF012 (jinja2's own declaration)

    def parse(self, parser: Parser) -> nodes.Node:
        """The tag as a call of `record` on its body."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("record", [nodes.Name("recorder", "load")])
        return nodes.CallBlock(call, [], [], body).set_lineno(line)

    def record(self, recorder: _Recorder, caller: Callable[[], str]) -> str:
        """The body's text."""
        text = caller()
        recorder.spans.append((recorder.position, recorder.position + len(text)))
        return text


@lru_cache(maxsize=8)
def _compiled(source: str) -> Compiled:
    # The environment Hugging Face renders chat templates in, so that a template that works
    # here works there: sandboxed, blocks trimmed, JSON as it is (jinja2's own escapes HTML and
    # sorts the keys), raise_exception given.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    return environment.from_string(source)


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)

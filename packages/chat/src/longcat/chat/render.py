"""Messages to text."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, NoReturn, TypedDict

from jinja2 import Template as Compiled
from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from longcat.chat.templates import Template, template_named

Role = Literal["system", "user", "assistant"]


class Message(TypedDict):
    """One message in the form of the OpenAI API: a role and plain text."""

    role: Role
    content: str


def render(
    messages: Sequence[Message], template: str = "longcat", add_generation_prompt: bool = True
) -> str:
    """The text that a model is given for a conversation.

    messages               an optional system message, then user and assistant by turns
    template               "longcat" or "chatml"
    add_generation_prompt  end with the opening of the assistant's reply, for generation

    Raises ValueError for an unknown template, a role out of order, a message that is not
    {"role": ..., "content": text}, or text that holds one of the format's control strings.
    """
    form = template_named(template)
    for index, message in enumerate(messages):
        _check(index, message, form)
    try:
        return _compiled(form.jinja).render(
            messages=list(messages), add_generation_prompt=add_generation_prompt
        )
    except TemplateError as error:
        raise ValueError(f"chat: {error.message}") from None


def _check(index: int, message: object, form: Template) -> None:
    if not isinstance(message, dict) or set(message) != {"role", "content"}:
        found = sorted(message) if isinstance(message, dict) else type(message).__name__
        raise ValueError(
            f"chat: message {index} must have exactly the keys role and content, got {found}"
        )
    role, content = message["role"], message["content"]
    if role not in ("system", "user", "assistant"):
        raise ValueError(
            f"chat: message {index} has role {role!r}; known are system, user and assistant"
        )
    if role == "system" and index > 0:
        raise ValueError(f"chat: message {index} is a system message; only the first may be one")
    if not isinstance(content, str):
        raise ValueError(
            f"chat: message {index} must have text as its content, got {type(content).__name__}"
        )
    for forbidden in form.reserved:
        if forbidden in content:
            raise ValueError(
                f"chat: message {index} contains {forbidden!r}, which the {form.name} format "
                "keeps for itself; remove or escape it"
            )


@lru_cache(maxsize=8)
def _compiled(source: str) -> Compiled:
    # The environment Hugging Face renders chat templates in, so that a template that works
    # here works there: sandboxed, blocks trimmed, raise_exception given.
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = _raise_exception
    return environment.from_string(source)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)

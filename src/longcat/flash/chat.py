"""Conversations to ids: markers are single control tokens, text can never become one.

A tokenizer made for chat (`Tokenizer.with_markers`) has one id for each marker of its format; the
rendered text is cut at them. With a tokenizer that has no markers they are spelled out: that works
too, only longer. A reply is also cut from its prompt, since that is how it comes to be: the model
is given the prompt's ids and adds its own.

There is no <s>: the ids are those of transformers' `apply_chat_template`, which adds none (but for
a reply whose first characters would merge with the prompt's last ones).
"""

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise

from longcat.chat import Message, Rendered, Template, Tool, render
from longcat.flash.errors import CheckpointError
from longcat.flash.tokenizer import Tokenizer


def encode_conversation(
    tokenizer: Tokenizer, rendered: Rendered, form: Template
) -> tuple[list[int], list[bool]]:
    """(ids, whether the assistant produced each) of a conversation from `render_spans`."""
    ids: list[int] = []
    learned: list[bool] = []
    borders = [0, *(place for span in rendered.spans for place in span), len(rendered.text)]
    for number, (start, stop) in enumerate(pairwise(borders)):  # prompt, reply, prompt, reply, ...
        piece = encode_text(tokenizer, rendered.text[start:stop], form)
        ids += piece
        learned += [number % 2 == 1] * len(piece)
    return ids, learned


def encode_prompt(
    tokenizer: Tokenizer, messages: Sequence[Message], tools: Sequence[Tool] | None = None
) -> list[int]:
    """The ids that a chat model is given for a reply to these messages.

    Raises:
        CheckpointError: the tokenizer has no chat format.
        ValueError: messages out of form.
    """
    form = chat_format(tokenizer)
    return encode_text(tokenizer, render(messages, form.name, True, tools), form)


def encode_text(tokenizer: Tokenizer, text: str, form: Template) -> list[int]:
    """Ids of text in which the format's markers stand for themselves."""
    known = [marker for marker in form.special if marker in tokenizer.markers]
    if not known:
        return tokenizer.encode(text)
    ids: list[int] = []
    for piece in re.split(f"({'|'.join(map(re.escape, known))})", text):
        marker = tokenizer.markers.get(piece) if piece in known else None
        ids += tokenizer.encode(piece) if marker is None else [marker]
    return ids


def decode_reply(tokenizer: Tokenizer, ids: Iterable[int]) -> str:
    """Text of generated ids with the format's markers written out, as `parse_reply` reads it.

    Ids past the tokenizer's, which a model may have to spare, stand for nothing.
    """
    table = reply_bytes(tokenizer)
    return b"".join(table[i] for i in ids if i < len(table)).decode("utf-8", errors="replace")


def reply_bytes(tokenizer: Tokenizer, *, end: bool = True) -> list[bytes]:
    """What each id stands for in a reply [V]: text, or a marker of the format.

    end: also write out the marker that ends a reply.
    """
    form, table = chat_format(tokenizer), list(tokenizer.token_bytes())
    for marker in form.special:
        if marker in tokenizer.markers and (end or marker != form.end):
            table[tokenizer.markers[marker]] = marker.encode()
    return table


def chat_format(tokenizer: Tokenizer) -> Template:
    """The tokenizer's chat format.

    Raises:
        CheckpointError: when it has none that is known.
    """
    if tokenizer.chat is None:
        raise CheckpointError(
            "this checkpoint has no chat template of ours (chat_template.jinja); fine-tune it by "
            "`longcat train --sft CHATS.jsonl --init MODEL`"
        )
    return tokenizer.chat

"""Chat formats: messages to text and back, for LongCat's format and ChatML.

    from longcat.chat import render, parse_reply

    prompt = render([{"role": "user", "content": "hello"}])   # "[Round 0] USER:hello ASSISTANT:"
    reply = parse_reply("Hi!</longcat_s>")                    # Reply(text="Hi!", finished=True)

`LONGCAT.jinja` and `CHATML.jinja` are the same formats as Hugging Face chat templates.
"""

from longcat.chat.parse import Reply, parse, parse_reply
from longcat.chat.render import Message, render
from longcat.chat.templates import CHATML, LONGCAT, TEMPLATES, Template

__all__ = [
    "CHATML",
    "LONGCAT",
    "TEMPLATES",
    "Message",
    "Reply",
    "Template",
    "parse",
    "parse_reply",
    "render",
]

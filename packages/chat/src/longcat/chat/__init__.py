"""Chat formats: messages to text and back, for LongCat's format and ChatML.

    from longcat.chat import render, parse_reply

    prompt = render([{"role": "user", "content": "hello"}])   # "[Round 0] USER:hello ASSISTANT:"
    reply = parse_reply("Hi!</longcat_s>")                    # Reply(text="Hi!", finished=True)

`render_spans` says which characters the assistant produced: what a model learns in fine-tuning.
`LONGCAT.jinja` and `CHATML.jinja` are the same formats as Hugging Face chat templates.
"""

from longcat.chat.messages import Message, Tool, ToolCall
from longcat.chat.parse import Call, Reply, parse, parse_reply
from longcat.chat.render import Rendered, render, render_spans
from longcat.chat.templates import CHATML, LONGCAT, TEMPLATES, Template, template_named, template_of

__all__ = [
    "CHATML",
    "LONGCAT",
    "TEMPLATES",
    "Call",
    "Message",
    "Rendered",
    "Reply",
    "Template",
    "Tool",
    "ToolCall",
    "parse",
    "parse_reply",
    "render",
    "render_spans",
    "template_named",
    "template_of",
]
